"""Element-wise Grad-CAM: sum of positive gradient times features.

An option of J. Gildenblat and contributors, "PyTorch library for CAM methods", 2021 (pytorch-grad-cam), which
names no paper for it.

Idea. Gradient times features is the share of a channel and a pixel in the class score. Shares that speak
against the class are dropped, each by itself, so that they cannot cancel those that speak for it.

    symbol    name                    shape
    A         a                       (B, D, h, w)    features of a stage
    g         g                       (B, D, h, w)    d s_c / d A, with s_c before softmax
    M         grad_cam_elementwise    (B, h, w)       not negative

    (1)  M = sum_d relu( g_d A_d )

It is never below the positive part of `hirescam`. On features that are not negative it equals `layercam`. The
released code of BagCAMs computes this map on the stage before the last one: see `bagcams`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import map_classes
from wsolbench.methods import Localization

PAPER = "pytorch-grad-cam"


@dataclass(frozen=True, kw_only=True)
class GradCamElementwiseConfig(PostConfig):
    """Settings of `grad-cam-elementwise`."""

    stage: str = "-1"
    """Features: name of a stage, its position (`-1`: the last one, this project), or `penultimate`.

    `penultimate` is the input of the last linear layer.
    """


def grad_cam_elementwise(a: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
    """Return M, the sum of the positive parts of gradient times features."""
    return (g * a).relu().sum(dim=1)  # (1)


class GradCamElementwise(PostProcess):
    """See the module."""

    method_name = "grad-cam-elementwise"
    Config = GradCamElementwiseConfig
    needs_gradients = True
    map_kind = "nonneg"
    config: GradCamElementwiseConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        return map_classes(
            grad_cam_elementwise, result, class_ids, stage=self.config.stage, who=self.method_name
        )
