"""The pixels of a class activation map that F-CAM learns from.

All images of a batch are done at once, in tensor operations whose sizes do not depend on values: a GPU never
waits, and each image has two draws, whatever its map.

N. Otsu, "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man, and
Cybernetics 1979.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.layers.regions import first_maximum

LEVELS = 256


def to_levels(maps: Float[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Return maps in [0, 1] as levels from 0 to 255, rounded down."""
    return (maps * (LEVELS - 1)).long()


def otsu_threshold(levels: Int[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """Return the level of each image up to which pixels are background, by Otsu's criterion.

    It maximises the variance between the two sets, weighted by their sizes; the lowest of equal levels wins.
    Of an image with a single level it is 0.
    """
    counts = torch.zeros(len(levels), LEVELS, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels))
    values = torch.arange(LEVELS, device=levels.device)
    # Number and sum of the pixels up to each level, and above it.
    below, mass = counts.cumsum(dim=1), (counts * values).cumsum(dim=1)
    above, rest = below[:, -1:] - below, mass[:, -1:] - mass
    distance = mass.double() / below.clamp(min=1) - rest.double() / above.clamp(min=1)
    return first_maximum(below.double() * above * distance.square())


def foreground_region(levels: Int[Tensor, "b h w"], erosion: int) -> Bool[Tensor, "b h w"]:
    """Return the pixels above Otsu's threshold, eroded by a square of `erosion` pixels.

    Pixels outside the image do not erode. A region that would vanish is not eroded.
    """
    threshold = otsu_threshold(levels.flatten(1)).clamp(1, LEVELS - 2)
    inside = levels > threshold[:, None, None]
    outside = F.max_pool2d((~inside).float()[:, None], erosion, stride=1, padding=erosion // 2)[:, 0]
    eroded = outside == 0
    return torch.where(eroded.flatten(1).any(dim=1)[:, None, None], eroded, inside)


def pick_member(members: Bool[Tensor, "b n"], draws: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return a member of each set by draws in [0, 1), all with the same probability. 0 for an empty set."""
    ranks = members.cumsum(dim=1)  # of the members, from 1
    total = ranks[:, -1]
    wanted = torch.minimum((draws * total).long(), total - 1)
    return (ranks <= wanted[:, None]).sum(dim=1)


def pick_lowest(maps: Float[Tensor, "b n"], share: float, draws: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return one of the `share` of pixels with the lowest values. Of equal values the first ones count."""
    count = max(1, int(share * maps.shape[1]))
    rank = (draws * count).long().clamp(max=count - 1)
    return maps.argsort(dim=1, stable=True).gather(1, rank[:, None])[:, 0]


def squares_around(
    pixels: Int[Tensor, " b"], side: int, height: int, width: int
) -> Bool[Tensor, "b {height} {width}"]:
    """Return a square of `side` pixels around one pixel of each image, cut at the border."""
    row, column = (pixels // width)[:, None, None], (pixels % width)[:, None, None]
    rows = torch.arange(height, device=pixels.device)[:, None]
    columns = torch.arange(width, device=pixels.device)
    return ((rows - row).abs() <= side // 2) & ((columns - column).abs() <= side // 2)


def draw_seeds(
    maps: Float[Tensor, "b h w"],
    generator: torch.Generator,
    *,
    erosion: int,
    background: float,
    side: int,
) -> tuple[Bool[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Return the foreground and the background pixels that are learned from, for maps in [0, 1].

    Each is a square of `side` pixels around a drawn pixel: one of the foreground region, one of the lowest
    share `background`. Pixels of both squares are in neither. A map with a single level has no pixels.
    """
    height, width = maps.shape[-2:]
    draws = torch.rand(len(maps), 2, generator=generator, device=maps.device)
    levels = to_levels(maps)
    region = foreground_region(levels, erosion).flatten(1)
    inside = squares_around(pick_member(region, draws[:, 0]), side, height, width)
    outside = squares_around(pick_lowest(maps.flatten(1), background, draws[:, 1]), side, height, width)
    # Sets that exist, without what belongs to both.
    flat = levels.flatten(1)
    varies = flat.amax(dim=1) > flat.amin(dim=1)
    inside = inside & (varies & region.any(dim=1))[:, None, None]
    outside = outside & varies[:, None, None]
    return inside & ~outside, outside & ~inside
