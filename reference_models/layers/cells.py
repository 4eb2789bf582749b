"""Cells of a grid: mean pooling to a fixed number of them, and their shares inside of a box.

The cells of `pool_cells` are those of torch's adaptive mean pooling. Its backward pass is not deterministic
on a GPU; that of a matrix product is. Those of `area_means` are equal parts of the side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cell_weights(side: int, cells: int, like: Tensor) -> Float[Tensor, "side cells"]:
    """Return the matrix of adaptive mean pooling along one axis. Columns sum to 1."""
    return F.adaptive_avg_pool1d(torch.eye(side, dtype=like.dtype, device=like.device), cells)


def pool_cells(features: Float[Tensor, "b c h w"], cells: int) -> Float[Tensor, "b c g g"]:
    """Return the means of `cells` x `cells` cells. A smaller map repeats its values."""
    rows, columns = (cell_weights(side, cells, features) for side in features.shape[2:])
    return rows.T @ features @ columns


def area_means(masks: Float[Tensor, "b H W"], height: int, width: int) -> Float[Tensor, "b h w"]:
    """Return the mean of each of `height` x `width` equal cells, in float32.

    A pixel that several cells share counts by the area in each. So the mean over cells is that over pixels.
    """
    with torch.autocast(masks.device.type, enabled=False):
        values = masks.float()
        rows, columns = (
            _area_weights(side, cells, values)
            for side, cells in zip(masks.shape[1:], (height, width), strict=True)
        )
        return rows.T @ values @ columns


def _area_weights(side: int, cells: int, like: Tensor) -> Float[Tensor, "side cells"]:
    """Return the share of each cell that each pixel of an axis covers. Columns sum to 1."""
    # In units of 1 / (side * cells), in which all ends are whole numbers.
    pixels = torch.arange(side, device=like.device)[:, None] * cells
    starts = torch.arange(cells, device=like.device) * side
    overlaps = torch.minimum(pixels + cells, starts + side) - torch.maximum(pixels, starts)
    return overlaps.clamp(min=0).to(like.dtype) / side


def cell_shares(
    first: Float[Tensor, "*n"], last: Float[Tensor, "*n"], count: int
) -> Float[Tensor, "*n count"]:
    """Return which share of each of `count` cells along an axis lies between two places in [0, 1]."""
    cells = torch.arange(count, device=first.device, dtype=first.dtype)
    ends = torch.minimum(last[..., None] * count, cells + 1) - torch.maximum(first[..., None] * count, cells)
    return ends.clamp_min(0)
