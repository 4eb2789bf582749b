"""The U-Net decoder of F-CAM.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI
2015, in the form that F-CAM's released code has: two 3x3 convolutions with batch norm in each block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEAST_WIDTH = 16
"""Channels of the finest block of the released decoder. No block has fewer."""


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNetDecoder(nn.Module):
    """Blocks that enlarge features to the grid of the next skip, and the last one to the image.

    There is a block for each skip and one more.

    Args:
        channels: channels of the input.
        skips: channels of the skips, from fine to coarse.
        width: channels of the first block. Each further one has half of those before it.
        outputs: channels of the output.
        centre: whether two convolutions that keep the channels come first.
    """

    def __init__(
        self, channels: int, skips: Sequence[int], *, width: int, outputs: int = 2, centre: bool = False
    ) -> None:
        super().__init__()
        self.centre = double_convolution(channels, channels) if centre else nn.Identity()
        blocks: list[nn.Module] = []
        for number, skip in enumerate([*reversed(skips), 0]):
            block_width = max(LEAST_WIDTH, width >> number)
            blocks.append(double_convolution(channels + skip, block_width))
            channels = block_width
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Conv2d(channels, outputs, 3, padding=1)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(
        self, features: Float[Tensor, "b d h w"], skips: Sequence[Tensor], size: tuple[int, int]
    ) -> Float[Tensor, "b o H W"]:
        """Return scores at `size`, of features and of skips from fine to coarse."""
        x = self.centre(features)
        for block, skip in zip(self.blocks, [*reversed(skips), None], strict=True):
            x = enlarge(x, size if skip is None else (skip.shape[-2], skip.shape[-1]))
            x = block(x if skip is None else torch.cat([x, skip], dim=1))
        scores: Tensor = self.output(x)
        return scores


def enlarge(x: Float[Tensor, "b d h w"], size: tuple[int, int]) -> Float[Tensor, "b d H W"]:
    """Return the nearest cells of another grid."""
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="nearest")
