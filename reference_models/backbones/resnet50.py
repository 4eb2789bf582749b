"""ResNet-50 with a large grid in its last stages.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016; weights of
torchvision (`IMAGENET1K_V1`, which strides in the 3x3 convolution), input 224.

Variants (the number is the side of the last grid at 224; nothing is dilated):

    std28   layers 3 and 4 have stride 1 (wsolevaluation's large feature map, its choice for CUB and ILSVRC).
    std14   layer 4 has stride 1.
    stock   the network as it is, 7x7 at 224 and 14x14 at 448: fine-grained recognition.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

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
    torchvision_file,
)
from wsolbench.methods import InputSpec

PROFILE = Profile(
    grids=("std28", "std14", "stock"),
    grid_for={"fine-grained": "stock", "small": "std14"},
    kin="resnet",
    recipe_family="published",
    fine_grained_recipes=True,
    fine_grained_size=448,
    step_groups={"last-stage": ("layer4",)},
)


def build(*, weights: WeightsFile | str = IMAGENET, grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    grid = pick_grid("resnet50", grid, PROFILE.grids)
    # Build torchvision's network and load the weights.
    net = resnet50(weights=None)
    source, classifier = Weights(NONE), None
    net.fc = nn.Identity()
    if weights != NONE:
        file = (
            weights
            if isinstance(weights, WeightsFile)
            else read_weights(torchvision_file(ResNet50_Weights.IMAGENET1K_V1.url, "resnet50"))
        )
        load_strictly(net, drop_prefixes(file.tensors, "fc."), what="the weights of resnet50")
        source = Weights("torchvision IMAGENET1K_V1", file.sha256)
        if file.tensors.keys() >= {"fc.weight", "fc.bias"}:
            classifier = (file.tensors["fc.weight"], file.tensors["fc.bias"])
    # Apply the variant.
    if grid != "stock":
        _keep_size(net.layer4[0])
    if grid == "std28":
        _keep_size(net.layer3[0])
    # List steps and stages, block by block.
    steps: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=net.conv1, bn1=net.bn1, relu1=net.relu, pool1=net.maxpool
    )
    strides = {"std28": (8, 8), "std14": (16, 16), "stock": (16, 32)}[grid]
    layout = []
    for layer, channels, stride in ((1, 256, 4), (2, 512, 8), (3, 1024, strides[0]), (4, 2048, strides[1])):
        blocks = list(getattr(net, f"layer{layer}"))
        steps.update({f"layer{layer}_{number}": block for number, block in enumerate(blocks)})
        layout.append(Stage(f"layer{layer}_{len(blocks) - 1}", stride, channels))
    third, last = Stage("layer3_0", strides[0], 1024), layout[-1]
    backbone = Backbone(
        "resnet50",
        steps,
        layout,
        grid=grid,
        input_spec=InputSpec(),
        profile=PROFILE,
        roles={
            "drop": (third, Stage("layer4_0", last.stride, last.channels), last),
            "guides": (third, layout[-2]),
            "last-layers": tuple(Stage(f"layer4_{n}", last.stride, last.channels) for n in range(3)),
            "skips": (Stage("relu1", 2, 64), *layout[:-1]),
        },
    )
    backbone.weights, backbone.classifier = source, classifier
    return backbone


def _keep_size(block: Any) -> None:
    """Set stride 1 in the first block of a layer."""
    for convolution in (block.conv2, block.downsample[0]):
        convolution.stride = (1, 1)
