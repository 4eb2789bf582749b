"""VGG-16 without its fully connected layers.

K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015;
weights of torchvision (`IMAGENET1K_V1`), input 224.

Variants (the number is the side of the last grid at 224):

    std14   pools 1-4 are 2x2, stride 2; no pool 5. Most methods, and SPA's released code.
    std28   pool 4 removed (wsolevaluation's large feature map).
    acol14  pools 1-4 are 3x3, stride 2, padding 1; then pool 5 and an average pool, both 3x3, stride 1
            (wsolevaluation's ACoL).
    acol28  as acol14, but pool 4 has stride 1 (released code of ACoL and I2C).

Stages: s1-s4 end after pools 1-4, s5 after the last step.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import cfgs, make_layers

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
    grids=("std14", "std28", "acol14", "acol28"),
    grid_for={"overlapping-pools": "acol28", "overlapping-pools-small": "acol14"},
    kin="vgg",
    recipe_family="published",
    convolution_before_linear=True,
    step_groups={"deep": ("conv4", "conv5")},
)


def build(*, weights: WeightsFile | str = IMAGENET, grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    grid = pick_grid("vgg16", grid, PROFILE.grids)
    # Build torchvision's layers and load the weights.
    features = make_layers(cfgs["D"])
    source = Weights(NONE)
    if weights == NONE:
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    else:
        file = (
            weights
            if isinstance(weights, WeightsFile)
            else read_weights(torchvision_file(VGG16_Weights.IMAGENET1K_V1.url, "vgg16"))
        )
        load_strictly(
            nn.ModuleDict({"features": features}),
            drop_prefixes(file.tensors, "classifier."),
            what="the weights of vgg16",
        )
        source = Weights("torchvision IMAGENET1K_V1", file.sha256)
    # Steps, stages and roles.
    steps, layout = _steps(features, grid)
    third, fourth, last = layout[2], layout[3], layout[4]
    backbone = Backbone(
        "vgg16",
        steps,
        layout,
        grid=grid,
        input_spec=InputSpec(),
        profile=PROFILE,
        roles={
            "drop": (
                third,
                Stage("relu4_3", third.stride, fourth.channels),
                Stage("relu5_3", fourth.stride, last.channels),
            ),
            "drop-after-pool": (third, fourth, Stage("relu5_3", fourth.stride, last.channels)),
            "attend": layout[-4:],
            "last-layers": tuple(Stage(f"relu5_{n}", fourth.stride, last.channels) for n in (1, 2, 3)),
            "patches": (Stage("relu4_3", third.stride, fourth.channels),),
            "generator": (Stage("relu4_3", third.stride, fourth.channels),),
            "skips": tuple(
                Stage(name, before.stride, after.channels)
                for name, before, after in zip(
                    ("relu2_2", "relu3_3", "relu4_3"), layout[:3], layout[1:4], strict=True
                )
                if before.stride < fourth.stride
            ),
        },
    )
    backbone.weights = source
    return backbone


def _steps(features: nn.Sequential, grid: str) -> tuple[OrderedDict[str, nn.Module], list[Stage]]:
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    layout: list[Stage] = []
    block, conv, stride, channels = 1, 0, 1, 0
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            conv += 1
            channels = layer.out_channels
            steps[f"conv{block}_{conv}"] = layer
        elif isinstance(layer, nn.ReLU):
            steps[f"relu{block}_{conv}"] = nn.ReLU()
        elif block < 5:
            pool, factor = _pool(block, grid)
            stride *= factor
            steps[f"pool{block}"] = pool
            layout.append(Stage(f"pool{block}", stride, channels))
            block, conv = block + 1, 0
    if grid.startswith("acol"):
        steps["pool5"] = nn.MaxPool2d(3, stride=1, padding=1)
        steps["smooth5"] = nn.AvgPool2d(3, stride=1, padding=1)
    layout.append(Stage(next(reversed(steps)), stride, channels))
    return steps, layout


def _pool(block: int, grid: str) -> tuple[nn.Module, int]:
    """Return the pool after a block, and its stride."""
    if block == 4 and grid == "std28":
        return nn.Identity(), 1
    if grid.startswith("std"):
        return nn.MaxPool2d(2, stride=2), 2
    stride = 1 if block == 4 and grid == "acol28" else 2
    return nn.MaxPool2d(3, stride=stride, padding=1), stride
