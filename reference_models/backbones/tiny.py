"""A small network for toybirds and tests: a minute of training on a CPU.

Plain 3x3 convolutions with batch norm and ReLU, four stages, input 128. It is this project's design. Its only
weights are checkpoints of this project (`--weights CHECKPOINT`).

Variants: `std16` (the only one): the last two stages share a grid of 16x16 at 128.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from reference_models.core.backbone import Backbone, pick_grid
from reference_models.core.profile import Profile, Stage
from reference_models.core.weights import IMAGENET, Weights, WeightsFile, load_strictly
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

PROFILE = Profile(grids=("std16",), recipe_family="tiny", default_weights="none")
WIDTHS = (24, 48, 64, 64)


def build(*, weights: WeightsFile | str = "none", grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    grid = pick_grid("tiny", grid, PROFILE.grids)
    if weights == IMAGENET:
        raise UsageError(
            "there are no ImageNet weights of the backbone 'tiny'; use --weights none, or the path of a "
            "checkpoint"
        )
    one, two, three, four = WIDTHS
    steps: OrderedDict[str, nn.Module] = OrderedDict(
        stem=_convolution(3, one, stride=2),
        stage1=_convolution(one, two, stride=2),
        stage2=nn.Sequential(_convolution(two, three, stride=2), _convolution(three, three)),
        stage3=_convolution(three, four),
    )
    layout = [
        Stage("stem", 2, one),
        Stage("stage1", 4, two),
        Stage("stage2", 8, three),
        Stage("stage3", 8, four),
    ]
    backbone = Backbone(
        "tiny", steps, layout, grid=grid, input_spec=InputSpec(size=128), head_width=four, profile=PROFILE
    )
    if isinstance(weights, WeightsFile):
        load_strictly(backbone, weights.tensors, what="the weights of tiny")
        backbone.weights = Weights("file", weights.sha256)
    return backbone


def _convolution(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
