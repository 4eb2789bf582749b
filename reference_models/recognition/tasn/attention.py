"""TASN's attention network: a small network, two dilated convolutions, and the trilinear product.

    X       features            (B, c, h, w)    output of `AttentionNet.features`; c = 512
    M       trilinear           (B, c, h, w)    a map for each channel
    W, b    classifier          (Y, c), (Y,)

    (1)  M(X) = N2(N1(X) X^T) X     N1: softmax over the locations of each channel; N2: softmax over the
                                    channels in each row of the c x c relation

Rows of N2 sum to 1, so each map is a mean of channels, weighted by how similar they are. The released code
multiplies X by 7 before N1 (its PyTorch half by 2), so that the softmax is not flat.

The convolutions are 3x3. Each is used with several dilations (1 and 2, then 1, 2 and 3), its weights shared,
and the ReLU outputs are added. The released classifier passes X through batch norm and a ReLU first. That of
the PyTorch half does not, and neither does this one.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.core.backbone import Backbone

STRIDE = 16
"""Largest stride of the trunk's output: 28x28 cells at 448 pixels, as in the paper."""
DILATIONS = ((1, 2), (1, 2, 3))
"""Dilations of both convolutions: released code."""


@torch.no_grad()
def trilinear(features: Float[Tensor, "b c h w"], scale: float) -> Float[Tensor, "b c h w"]:
    """Return M, eq. (1), in float32 or float64. `scale` multiplies X in N1."""
    with torch.autocast(features.device.type, enabled=False):
        x = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)  # (B, c, h w)
        relation = (scale * x).softmax(dim=2) @ x.mT  # (B, c, c)
        return (relation.softmax(dim=2) @ x).view_as(features)


class AttentionNet(nn.Module):
    """The trunk, the dilated convolutions, and a classifier on the mean of X."""

    def __init__(self, trunk: Backbone, channels: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.first = nn.Conv2d(trunk.channels[-1], channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[OrderedDict[str, Tensor], Float[Tensor, "b c h w"]]:
        """Return the stages of the trunk, and X."""
        stages = self.trunk.stages(images)
        x = next(reversed(stages.values()))
        for layer, dilations in zip((self.first, self.second), DILATIONS, strict=True):
            outputs = [
                F.conv2d(x, layer.weight, layer.bias, padding=dilation, dilation=dilation).relu()
                for dilation in dilations
            ]
            x = torch.stack(outputs).sum(dim=0)
        return stages, x
