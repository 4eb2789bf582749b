"""Grad-CAM: features weighted by the mean gradient of the class score.

R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra, "Grad-CAM: visual explanations from deep
networks via gradient-based localization", ICCV 2017.

Idea. CAM needs a network that ends with mean pooling and a linear layer, whose weights are the importance of
the channels. The gradient of the class score, averaged over the pixels, generalises these weights to any
network and any layer.

    paper        name        shape
    A^k          a           (B, D, h, w)    features of a stage
    dy^c/dA^k    g           (B, D, h, w)    y^c: class score before softmax
    alpha_k^c    weights     (B, D, 1, 1)
    L^c          grad_cam    (B, h, w)       not negative

    (1)  alpha_k = mean over the pixels of dy/dA^k
    (2)  L = relu( sum_k alpha_k A^k )

With mean pooling and a linear layer on these features, L is the positive part of CAM without its bias,
divided by the number of pixels. `stage=penultimate` therefore gives CAM on every head of `cam`.

Departures. The paper takes the last convolution. Here the default is the last stage of the backbone, which
lies before the convolutions of a head that has some.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import map_classes
from wsolbench.methods import Localization

PAPER = "grad-cam"


@dataclass(frozen=True, kw_only=True)
class GradCamConfig(PostConfig):
    """Settings of `grad-cam`."""

    stage: str = "-1"
    """Features: name of a stage, its position (`-1`: the last one, this project), or `penultimate`.

    `penultimate` is the input of the last linear layer.
    """


def grad_cam(a: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
    """Return L, the positive part of the features weighted by the mean gradient."""
    weights = g.mean(dim=(2, 3), keepdim=True)  # (1)
    return (weights * a).sum(dim=1).relu()  # (2)


class GradCam(PostProcess):
    """See the module."""

    method_name = "grad-cam"
    Config = GradCamConfig
    needs_gradients = True
    map_kind = "nonneg"
    config: GradCamConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        return map_classes(grad_cam, result, class_ids, stage=self.config.stage, who=self.method_name)
