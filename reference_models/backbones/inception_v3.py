"""Inception-V3 up to Mixed_6e, with a large grid.

C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the inception architecture for computer
vision", CVPR 2016; weights of torchvision (`IMAGENET1K_V1`), input 224, normalised as for the other networks:
WSOL code does not apply torchvision's `transform_input`.

Variants (the number is the side of the last grid at 224). Without Mixed_7 and the auxiliary classifier:

    std28   padding 1 in the first convolution and in two pools; Mixed_6a has stride 1 and padding 1
            (wsolevaluation's large feature map).
    std14   as std28, with one more pool before Mixed_6a.
    stock   strides and padding as torchvision has them: 25x25 and 12x12 at 224.
    padded  as stock, with padding 1 in the first convolution (DANet): grids of the same sides, whose cells
            lie elsewhere in the image.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception_V3_Weights, inception_v3

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
    grids=("std28", "std14", "stock", "padded"),
    grid_for={"small": "std14", "padded": "padded"},
    kin="inception",
    recipe_family="published",
)
UNUSED = ("Mixed_7", "AuxLogits.", "fc.")


class KeepSizeMixed6a(nn.Module):
    """Mixed_6a with stride 1 and padding 1 in its three branches, with the original layers and weights."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.branch3x3 = original.branch3x3
        self.branch3x3dbl_1 = original.branch3x3dbl_1
        self.branch3x3dbl_2 = original.branch3x3dbl_2
        self.branch3x3dbl_3 = original.branch3x3dbl_3
        for layer in (self.branch3x3, self.branch3x3dbl_3):
            layer.conv.stride, layer.conv.padding = (1, 1), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 288, h, w) to (B, 768, h, w)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=1, padding=1)], dim=1)


def build(*, weights: WeightsFile | str = IMAGENET, grid: str = "default") -> Backbone:
    """Build the network; see `reference_models.core.backbone.load_backbone`."""
    grid = pick_grid("inception_v3", grid, PROFILE.grids)
    # Build torchvision's network up to Mixed_6e and load the weights.
    net = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    for name in ("Mixed_7a", "Mixed_7b", "Mixed_7c", "fc"):
        setattr(net, name, nn.Identity())
    source = Weights(NONE)
    if weights != NONE:
        file = (
            weights
            if isinstance(weights, WeightsFile)
            else read_weights(torchvision_file(Inception_V3_Weights.IMAGENET1K_V1.url, "inception_v3"))
        )
        load_strictly(net, drop_prefixes(file.tensors, *UNUSED), what="the weights of inception_v3")
        source = Weights("torchvision IMAGENET1K_V1", file.sha256)
    # Apply the variant: padding, pools, and the stride of Mixed_6a.
    stock = grid in ("stock", "padded")

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2) if stock else nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

    if grid != "stock":
        net.Conv2d_1a_3x3.conv.padding = (1, 1)
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for name in (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "pool1",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
        "pool2",
        "Mixed_5b",
        "Mixed_5c",
        "Mixed_5d",
    ):
        steps[name] = pool() if name.startswith("pool") else getattr(net, name)
    last = 8 if grid == "std28" else 16
    fifth = "Mixed_5d"
    if grid == "std14":
        fifth = "pool3"
        steps[fifth] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    steps["Mixed_6a"] = net.Mixed_6a if stock else KeepSizeMixed6a(net.Mixed_6a)
    steps.update({name: getattr(net, name) for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")})
    # Stages and roles.
    layout = [
        Stage("pool1", 4, 64),
        Stage("pool2", 8, 192),
        Stage(fifth, 16 if grid == "std14" else 8, 288),
        Stage("Mixed_6e", last, 768),
    ]
    backbone = Backbone(
        "inception_v3",
        steps,
        layout,
        grid=grid,
        input_spec=InputSpec(),
        profile=PROFILE,
        roles={
            "branch": (Stage("Mixed_6a", last, 768),),
            # The papers' third insertion point is in the head.
            "drop": (Stage("Mixed_5d", 8, 288), layout[-1]),
            "guides": (layout[-2], Stage("Mixed_6d", last, 768)),
            "last-layers": tuple(Stage(f"Mixed_6{letter}", last, 768) for letter in "cde"),
            "skips": (
                Stage("Conv2d_2b_3x3", 2, 64),
                Stage("Conv2d_3b_1x1", 4, 80),
                Stage("Mixed_5d", 8, 288),
            ),
        },
    )
    backbone.weights = source
    return backbone
