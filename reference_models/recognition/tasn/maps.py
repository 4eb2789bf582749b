"""The two maps that TASN samples by: A, the mean of all maps, and R, a random one.

    M       maps        (B, c, h, w)    `trilinear`
    A, R                (B, h, w)       `mean_map`, `pick_channel`

As soon as X is large, a row of N2 is one channel, and many rows are the same one. So many maps are equal. The
released code then uses one of them for A and R, as `distinct_maps` finds them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SAME = 1e-5
"""Largest difference of the sums of equal maps, relative to the sum: more than rounding makes."""


@torch.no_grad()
def distinct_maps(maps: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b c"]:
    """Return which maps of an image count: one of those with the same sum over all cells."""
    ordered, order = maps.double().sum(dim=(2, 3)).sort(dim=1, stable=True)
    first = F.pad(ordered.diff(dim=1) > SAME * ordered[:, 1:].abs(), (1, 0), value=True)
    return torch.zeros_like(first).scatter(1, order, first)


def mean_map(
    maps: Float[Tensor, "b c h w"], kept: Bool[Tensor, "b c"] | None = None
) -> Float[Tensor, "b h w"]:
    """Return A, the mean over the channels, or over those that are kept."""
    if kept is None:
        return maps.mean(dim=1)
    weights = kept.to(maps.dtype)
    return (maps * weights[:, :, None, None]).sum(dim=1) / weights.sum(dim=1)[:, None, None]


def pick_channel(
    maps: Float[Tensor, "b c h w"], generator: torch.Generator, kept: Bool[Tensor, "b c"] | None = None
) -> Float[Tensor, "b h w"]:
    """Return R, a random channel of each image, or a random one of those that are kept."""
    device = generator.device
    if kept is None:
        channel = torch.randint(maps.shape[1], (len(maps),), generator=generator, device=device)
    else:  # the earliest of times with one distribution
        times = torch.empty(kept.shape, device=device).exponential_(generator=generator)
        channel = times.to(kept.device).masked_fill(~kept, float("inf")).argmin(dim=1)
    return maps.take_along_dim(channel.to(maps.device)[:, None, None, None], dim=1)[:, 0]
