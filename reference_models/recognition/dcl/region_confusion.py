"""Region confusion of DCL: shuffle the patches of an image locally, and say where each patch came from.

    I           images              (B, 3, S, S)
    q           keys                (B, N, N)       of all rows, or of all columns
    sigma       source              (B, N, N)       row * N + column of the patch that lies there

Equations (1) to (3) are in `method.py`. The functions named after the released code do what that code does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wsolbench.methods import InputSpec
from wsolbench.methods.device import constants

PAPER_SIZE = 448
"""Side of the paper's input, to which `BORDER` refers."""
BORDER = 10
"""Pixels that the released shuffle cuts off at each side."""


def draw_keys(count: int, cells: int, reach: float, generator: torch.Generator) -> Float[Tensor, "b n n"]:
    """Draw q of all rows, or of all columns, eq. (1)."""
    device = generator.device
    drawn = torch.rand((count, cells, cells), generator=generator, device=device)
    return torch.arange(cells, device=device) + reach * (2 * drawn - 1)


def sorted_source(
    row_keys: Float[Tensor, "b n n"], column_keys: Float[Tensor, "b n n"]
) -> Int[Tensor, "b n n"]:
    """Return sigma: patches sorted along rows by (1), and the result along columns by (2).

    `row_keys[:, j]` are those of row j, and `column_keys[:, i]` those of column i.
    """
    cells = row_keys.shape[2]
    index = torch.arange(cells**2, device=row_keys.device).view(1, cells, cells)
    along_rows = index.take_along_dim(row_keys.argsort(dim=2, stable=True), dim=2)
    return along_rows.take_along_dim(column_keys.argsort(dim=2, stable=True).mT, dim=1)


def exchanged_order(coins: Bool[Tensor, "*b n"]) -> Int[Tensor, "*b n"]:
    """Return the order after each item, if its coin is True, was exchanged with the one before it.

    The item in front is carried along until a coin is False. The first coin is not used.
    """
    index = torch.arange(coins.shape[-1], device=coins.device)
    carried = index.where(~coins, 0).cummax(dim=-1).values
    exchanged = F.pad(coins[..., 1:], (0, 1))
    return (index + 1).where(exchanged, carried)


def exchanged_source(
    patch_coins: Bool[Tensor, "b n n"], row_coins: Bool[Tensor, "b n"]
) -> Int[Tensor, "b n n"]:
    """Return the source of each patch in the released code: exchanges in each row, then of whole rows."""
    columns, rows = exchanged_order(patch_coins), exchanged_order(row_coins)[:, :, None]
    return rows * columns.shape[2] + columns.take_along_dim(rows, dim=1)


def move_patches(images: Float[Tensor, "b c S S"], source: Int[Tensor, "b n n"]) -> Float[Tensor, "b c S S"]:
    """Return images whose patch at each place is that of `source`. Pixels outside the grid stay."""
    count, channels, size, _ = images.shape
    cells = source.shape[2]
    patch = size // cells
    inside = cells * patch
    start = (size - inside) // 2
    inner = (..., slice(start, start + inside), slice(start, start + inside))
    grid = images[inner].reshape(count, channels, cells, patch, cells, patch)
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, N N, C, p, p)
    image = torch.arange(count, device=images.device)[:, None]
    moved = patches[image, source.flatten(1)].view(count, cells, cells, channels, patch, patch)
    result = images.clone()
    result[inner] = moved.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, inside, inside)
    return result


def border_of(size: int) -> int:
    """Return the pixels that the released shuffle cuts off at each side of an image."""
    return round(BORDER * size / PAPER_SIZE)


def move_patches_as_released(
    images: Float[Tensor, "b c S S"], source: Int[Tensor, "b n n"]
) -> Float[Tensor, "b c S S"]:
    """Return the images without their border, cut into patches, moved and enlarged to the old size.

    Pixels are repeated, which is the default of Pillow 5.1, the version that the released code names.
    """
    size, border = images.shape[-1], border_of(images.shape[-1])
    inside = (size - 2 * border) // source.shape[2] * source.shape[2]
    end = border + inside
    moved = move_patches(images[..., border:end, border:end], source)
    return F.interpolate(moved, size=size, mode="nearest-exact")


def colour_source(
    whole: Float[Tensor, "b 3 S S"], shuffled: Float[Tensor, "b 3 S S"], cells: int, spec: InputSpec
) -> Int[Tensor, "b n n"]:
    """Return for each patch of `shuffled` the patch of `whole` with the nearest mean colour, the first one.

    Colours are the sums of whole levels of 255, so equal patches have equal colours.
    """
    std, mean = (constants(values, whole.device, torch.float32) for values in (spec.std, spec.mean))
    patch = whole.shape[-1] // cells
    start = (whole.shape[-1] - cells * patch) // 2
    inside = slice(start, start + cells * patch)

    def colours(images: Float[Tensor, "b 3 S S"]) -> Int[Tensor, "b p"]:
        pixels = images[..., inside, inside].float()
        levels = (255 * (pixels * std[:, None, None] + mean[:, None, None])).round().to(torch.int32)
        grid = levels.reshape(len(images), 3, cells, patch, cells, patch)
        return grid.sum(dim=(1, 3, 5)).flatten(1)

    distance = (colours(shuffled)[:, :, None] - colours(whole)[:, None]).abs()
    return distance.argmin(dim=2).view(-1, cells, cells)
