"""Small map algebra that several methods need, in float32 whatever comes in."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def min_max(maps: Float[Tensor, "*b h w"], eps: float = 1e-10) -> Float[Tensor, "*b h w"]:
    """Each map stretched to [0, 1] by its own minimum and maximum; a constant map becomes 0.

    `eps` is added to the span, so the maximum is 1 up to `eps` / span.
    """
    values = maps.float()
    low, high = values.amin(dim=(-2, -1), keepdim=True), values.amax(dim=(-2, -1), keepdim=True)
    return (values - low) / (high - low + eps)
