"""Other classifiers of parts than SSANET's scale mining: the pyramids of Table 5, and a linear layer.

K. He, X. Zhang, S. Ren, J. Sun, "Spatial pyramid pooling in deep convolutional networks for visual
recognition", TPAMI 2015; T.-Y. Lin, P. Dollar, R. Girshick, K. He, B. Hariharan, S. Belongie, "Feature
pyramid networks for object detection", CVPR 2017.

SSANET says only that settings are those of the two papers. Here both see one part at its own scale. The
linear layer is a control of this project: scale mining without scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Pool = Literal["mean", "max"]


def pool_parts(features: Float[Tensor, "*r d h h"], how: Pool) -> Float[Tensor, "*r d"]:
    """Pool features over their grid."""
    return features.mean(dim=(-2, -1)) if how == "mean" else features.amax(dim=(-2, -1))


class LinearPart(nn.Module):
    """A linear layer on the pooled last stage, as the part classifier is."""

    def __init__(self, channels: int, num_classes: int, pool: Pool) -> None:
        super().__init__()
        self.pool: Pool = pool
        self.classifier = nn.Linear(channels, num_classes)

    def start_from(self, classifier: nn.Linear) -> None:
        """Copy the weights of the part classifier."""
        self.classifier.load_state_dict(classifier.state_dict())

    def forward(self, stages: Sequence[Tensor]) -> Float[Tensor, "r c"]:
        """Return logits from the last stage."""
        logits: Tensor = self.classifier(pool_parts(stages[-1], self.pool))
        return logits


class SpatialPyramid(nn.Module):
    """Max pooling over grids of 1, 2, 3 and 6 cells per side, and a linear layer on all 50 vectors."""

    BINS = (1, 2, 3, 6)

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels * sum(side**2 for side in self.BINS), num_classes)

    def forward(self, stages: Sequence[Tensor]) -> Float[Tensor, "r c"]:
        """Return logits from the last stage."""
        bins = [F.adaptive_max_pool2d(stages[-1], side).flatten(1) for side in self.BINS]
        logits: Tensor = self.classifier(torch.cat(bins, dim=1))
        return logits


class FeaturePyramid(nn.Module):
    """Feature pyramid of 256 channels: the mean of each level, and a linear layer on all of them.

    Each level is added to the next finer one.
    """

    WIDTH = 256

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, self.WIDTH, 1) for inputs in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(self.WIDTH, self.WIDTH, 3, padding=1) for _ in channels)
        self.classifier = nn.Linear(self.WIDTH * len(channels), num_classes)

    def forward(self, stages: Sequence[Tensor]) -> Float[Tensor, "r c"]:
        """Return logits from as many stages as there are `channels`, fine ones first."""
        pooled, above = [], None
        for lateral, smooth, features in reversed(list(zip(self.lateral, self.smooth, stages, strict=True))):
            merged = lateral(features)
            if above is not None:
                merged = merged + F.interpolate(above, size=merged.shape[2:], mode="nearest")
            pooled.append(smooth(merged).mean(dim=(2, 3)))
            above = merged
        logits: Tensor = self.classifier(torch.cat(pooled, dim=1))
        return logits
