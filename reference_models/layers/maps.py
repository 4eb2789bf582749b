"""Map algebra that several methods share, always in float32."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def min_max(maps: Float[Tensor, "*b h w"], eps: float = 1e-10) -> Float[Tensor, "*b h w"]:
    """Min-max normalise each map. A constant map becomes 0.

    `eps` is added to the range, so the maximum is 1 up to `eps` / range.
    """
    values = maps.float()
    low, high = values.amin(dim=(-2, -1), keepdim=True), values.amax(dim=(-2, -1), keepdim=True)
    return (values - low) / (high - low + eps)
