"""Random views that the device of the network rotates and crops, where processor cores are too few.

On the host, Pillow rotates and crops (`wsolbench.methods.inputs.training_view`). Here the same transform is
computed for a batch at once. Both draw the same angles, crops and mirrors. Their pixels differ by at most one
of 255 levels, because Pillow computes in float64.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from reference_models.core.recipes import Recipe


@torch.no_grad()
def device_views(
    pixels: UInt8[Tensor, "b h w c"], draws: Float[Tensor, "b 4"], size: int, recipe: Recipe
) -> UInt8[Tensor, "b s s c"]:
    """Rotate, crop and mirror resized images.

    Args:
        pixels: resized images, both sides at least `size`. A fourth channel, a mask, moves with the others.
        draws: uniform numbers in [0, 1) for angle, row, column and mirror, of `draw_views`.
        size: side of the crop in pixels.
        recipe: largest angle, filter, and probability of the mirror image.
    """
    height, width = pixels.shape[1:3]
    angle, row, column, coin = draws.to(torch.float64)[:, :, None, None].unbind(1)  # (B, 1, 1) each
    # Centres of the view's pixels in the rotated image.
    steps = torch.arange(size, device=pixels.device, dtype=torch.float64) + 0.5
    top, left = ((share * (side - size + 1)).floor() for share, side in ((row, height), (column, width)))
    x = left + torch.where(coin < recipe.flip, size - steps, steps)  # (B, 1, S)
    y = top + steps[:, None]  # (B, S, 1)
    # The same points in the resized image, which Pillow rotates about its centre.
    turn = -(2 * angle - 1) * recipe.rotation * (math.pi / 180)
    cosine, sine, right, down = turn.cos(), turn.sin(), x - width / 2, y - height / 2
    x = cosine * right + sine * down + width / 2  # (B, S, S)
    y = cosine * down - sine * right + height / 2
    grid = torch.stack([2 * x / width - 1, 2 * y / height - 1], dim=3).float()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    values = F.grid_sample(
        pixels.permute(0, 3, 1, 2).float(),
        grid,
        mode=recipe.rotation_filter,
        padding_mode="border",
        align_corners=False,
    )
    # Pillow truncates. The small number is above the rounding error of float32 at a whole level.
    return (values * inside[:, None] + 1e-3).to(torch.uint8).permute(0, 2, 3, 1)
