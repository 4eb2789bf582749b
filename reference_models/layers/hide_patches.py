"""Random patches that hide pixels: the input transform of Hide-and-Seek and of Where-to-Look.

K. K. Singh, Y. J. Lee, "Hide-and-Seek: Forcing a network to be meticulous for weakly-supervised object and
action localization", ICCV 2017.

    s       side of a patch          pixels, at an input of 224: see `scaled_sides`
    p       chance to be hidden      of each patch, independent of the others
    m       hidden                   (B, 1, H, W)   True where a pixel is hidden

Patches begin at multiples of s from the top left corner. If s does not divide the image, the border cuts off
the last row and column of patches (224 with s = 44: 6 x 6 patches, the last 4 pixels wide).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec
from wsolbench.methods.device import constants

Fill = Literal["mean", "black"]

REFERENCE_SIZE = 224
"""Image size to which published sides refer, in pixels."""


def scaled_sides(patch: Sequence[int], size: int) -> tuple[int, ...]:
    """Scale sides from an image of 224 pixels to one of `size`; at least 1, and 0 stays 0.

    >>> scaled_sides((0, 16, 32, 44, 56), 224), scaled_sides((0, 16, 32, 44, 56), 128)
    ((0, 16, 32, 44, 56), (0, 9, 18, 25, 32))
    """
    return tuple(max(1, round(side * size / REFERENCE_SIZE)) if side else 0 for side in patch)


def hidden_pixels(
    images: Float[Tensor, "b 3 H W"], sides: Sequence[int], p: float, generator: torch.Generator
) -> Bool[Tensor, "b 1 H W"]:
    """Draw m, the hidden pixels of each image.

    One of `sides` is drawn for each image (all are equally likely; 0 hides nothing), then its patches.
    """
    count, _, height, width = images.shape
    device = images.device
    options = constants(sides, device, torch.int64)
    side = options[torch.randint(len(sides), (count,), generator=generator, device=device)][:, None]  # (B, 1)
    whole = side == 0
    step = side.where(~whole, max(height, width))
    row = torch.arange(height, device=device) // step  # (B, H): the row of patches that a row of pixels is in
    column = torch.arange(width, device=device) // step  # (B, W)
    smallest = min((side for side in sides if side), default=max(height, width))
    rows, columns = -(-height // smallest), -(-width // smallest)
    drawn = torch.rand(count, rows, columns, generator=generator, device=device) < p
    drawn = drawn & ~whole[:, :, None]
    image = torch.arange(count, device=device)[:, None, None]
    return drawn[image, row[:, :, None], column[:, None, :]][:, None]


def fill_hidden(
    images: Float[Tensor, "b 3 H W"], hidden: Bool[Tensor, "b 1 H W"], fill: Fill, spec: InputSpec
) -> Float[Tensor, "b 3 H W"]:
    """Return the images with hidden pixels set to the mean colour (0 after normalisation) or to black.

    The input is not modified.
    """
    if fill == "mean":
        return images.masked_fill(hidden, 0.0)
    values = [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    black = constants(values, images.device, images.dtype)
    return torch.where(hidden, black[:, None, None], images)


def check_patches(who: str, patch: Sequence[int], p: float, *, smallest: int) -> None:
    """Raise `UsageError` on no sides, on sides below `smallest`, and on a `p` outside [0, 1]."""
    if not patch or min(patch) < smallest:
        found = ",".join(map(str, patch)) or "none"
        raise UsageError(
            f"setting patch of method {who!r} is {found}; expected one or more sides in pixels, each at "
            f"least {smallest}"
        )
    if not 0 <= p <= 1:
        raise UsageError(f"setting p of method {who!r} is {p}; expected a probability in [0, 1]")
