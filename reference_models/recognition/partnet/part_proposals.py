"""Discretized Part Proposals (DPP): boxes at the cells where channels peak, and max-pooling inside of them.

Y. Zhang, K. Jia, Z. Wang, arXiv:1806.06198; released code: Gorilla-Lab-SCUT/PartNet.

    F        features           (B, C, h, w)
    centres  centre_cells       (B, K, 2)           column and row; K = 49
             part_boxes         (B, R, 4)           R = 28 K boxes in pixels, centre by centre
    x_r      pool_boxes         (B, R, 9 C)

Sizes are fractions of the image, so they do not depend on the grid. On the paper's grid of 28x28 cells a
square has 4x4 cells, and a side of `SHAPES` counts cells.

Errors of the released proposals, in `proposals=official` only
    peaks      The search for a maximum keeps it as a whole number. Every value above the truncated maximum
               wins. A channel that is below 1 everywhere gives its last positive cell, not its peak.
    shape      (12, 7) reaches 12 units down in place of 7.
    middle     Boxes lie around the first corner of a cell, half a cell off the cells that are pooled.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import roi_pool

from reference_models.layers.regions import first_maximum
from reference_models.layers.second_order import in_full_precision

ProposalRule = Literal["repaired", "official"]

SQUARES = 7
"""Squares along one side of the image, each with one centre."""
UNITS = 28
"""Units along one side of the image, in which `SHAPES` are given."""
SHAPES = (
    *((1, 1), (2, 2), (1, 3), (3, 1), (3, 3), (2, 4), (4, 2)),
    *((4, 4), (3, 5), (5, 3), (5, 5), (4, 7), (7, 4), (6, 6)),
    *((4, 8), (8, 4), (7, 7), (5, 10), (10, 5), (8, 8), (6, 11)),
    *((11, 6), (9, 9), (7, 12), (12, 7), (10, 10), (7, 14), (14, 7)),
)
"""Half of a box's width and height in units: released code."""
MISPRINT = 24
"""Number of the shape (12, 7) that reaches 12 instead of 7 units down in the released code."""
BINS = 3
"""Bins of the pooling along one side."""
ROUNDING = 1e-3
"""Part of a cell by which a box may pass a border through rounding alone."""


def shape_corners(rule: ProposalRule) -> Float[Tensor, "s 4"]:
    """Return the corners of all shapes relative to their centre, xyxy in units."""
    half = torch.tensor(SHAPES, dtype=torch.float32)
    corners = torch.cat([-half, half], dim=1)
    if rule == "official":
        corners[MISPRINT, 3] = 12
    return corners


# --- centres ------------------------------------------------------------------------------------------------


def truncated_maximum(values: Float[Tensor, "*a n"]) -> Int[Tensor, "*a"]:
    """Return the position that the released search for a maximum stops at.

    It starts with the maximum 0 at position 0. It takes every value above the maximum, and truncates the new
    maximum to a whole number.
    """
    reached = values.clamp_min(0).trunc().cummax(dim=-1).values
    before = torch.cat([torch.zeros_like(reached[..., :1]), reached[..., :-1]], dim=-1)
    return ((values > before) * torch.arange(values.shape[-1], device=values.device)).amax(dim=-1)


@torch.no_grad()
@in_full_precision
def centre_cells(features: Float[Tensor, "b c h w"], rule: ProposalRule = "repaired") -> Int[Tensor, "b k 2"]:
    """Return the centre of each square, as (column, row): the cell where most channels peak.

    The first of equal cells counts. In a square without a peak it is the cell with the highest sum over the
    channels. `official` searches both maxima by `truncated_maximum`. There a channel without positive values
    peaks in the image's first cell, and a square without positive sums has its centre there. With `repaired`
    such a channel has no vote.
    """
    height, width = features.shape[2:]
    cells = features.flatten(2)  # (B, C, h w)
    # Votes of the channels and their sums, (B, h w).
    if rule == "official":
        peak, voting = truncated_maximum(cells), torch.ones_like(cells[..., 0])
    else:
        peak, voting = first_maximum(cells), (cells.amax(dim=2) > 0).to(cells.dtype)
    votes = torch.zeros_like(cells[:, 0]).scatter_add_(1, peak, voting)  # whole numbers: any order is exact
    sums = cells.sum(dim=1)
    # Squares that the cells belong to, row by row: (K, h w).
    rows, columns = (
        torch.arange(count, device=cells.device) * min(SQUARES, count) // count for count in (height, width)
    )
    across = min(SQUARES, width)
    square = (rows[:, None] * across + columns).flatten()
    inside = square == torch.arange(min(SQUARES, height) * across, device=cells.device)[:, None]
    # The best cell of each square, (B, K).
    by_votes = first_maximum(votes[:, None].masked_fill(~inside, -1.0))
    if rule == "official":
        by_sums = truncated_maximum(sums[:, None].masked_fill(~inside, 0.0))
    else:
        by_sums = first_maximum(sums[:, None].masked_fill(~inside, -torch.inf))
    chosen = torch.where((votes[:, None] * inside).amax(dim=2) > 0, by_votes, by_sums)
    return torch.stack([chosen % width, chosen // width], dim=-1)


# --- boxes --------------------------------------------------------------------------------------------------


def part_boxes(
    centres: Int[Tensor, "b k 2"],
    corners: Float[Tensor, "s 4"],
    grid: tuple[int, int],
    image_size: int,
    rule: ProposalRule = "repaired",
) -> Float[Tensor, "b r 4"]:
    """Return a box of each shape around each centre, in pixels and clipped to the image.

    Args:
        centres: column and row of cells.
        corners: `shape_corners`.
        grid: height and width of the grid.
        image_size: side of the image.
        rule: `official` puts a box around the first corner of the cell, not around its middle.
    """
    middle = 0.0 if rule == "official" else 0.5
    x, y = ((centres[..., axis] + middle) * (image_size / grid[1 - axis]) for axis in (0, 1))
    around = torch.stack([x, y, x, y], dim=-1)[:, :, None]  # (B, K, 1, 4)
    return (around + corners * (image_size / UNITS)).clamp(0, image_size).flatten(1, 2)


@in_full_precision
def pool_boxes(
    features: Float[Tensor, "b c h w"],
    boxes: Float[Tensor, "b r 4"],
    image_size: int,
    rule: ProposalRule = "repaired",
) -> Float[Tensor, "b r v"]:
    """Return the largest values of 3x3 bins of each box, flattened; v = 9 C.

    A box consists of whole cells: all that it reaches into. A border of the box on a border of cells (a grid
    of 14x14 has such shapes) reaches into neither neighbour. With `official` its corners are rounded to
    borders of cells, and the cell behind the last border counts, too.
    """
    count, _, height, width = features.shape
    x0, y0, x1, y1 = (boxes / image_size).unbind(dim=-1)
    if rule == "official":
        ends = [(x * width + 0.5).floor() for x in (x0, x1)], [(y * height + 0.5).floor() for y in (y0, y1)]
    else:
        ends = (
            [(x0 * width + ROUNDING).floor(), (x1 * width - ROUNDING).ceil() - 1],
            [(y0 * height + ROUNDING).floor(), (y1 * height - ROUNDING).ceil() - 1],
        )
    (left, right), (top, bottom) = ends
    image = torch.arange(count, device=boxes.device, dtype=boxes.dtype)[:, None].expand_as(left)
    regions = torch.stack([image, left, top, right, bottom], dim=-1).flatten(0, 1)
    pooled: Tensor = roi_pool(features, regions, BINS)
    return pooled.flatten(1).view(count, boxes.shape[1], -1)
