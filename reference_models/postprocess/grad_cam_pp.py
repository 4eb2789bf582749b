"""Grad-CAM++: positive gradients, weighted so that small objects count.

A. Chattopadhay, A. Sarkar, P. Howlader, V. Balasubramanian, "Grad-CAM++: generalized gradient-based visual
explanations for deep convolutional networks", WACV 2018.

Idea. Grad-CAM's mean gradient of a channel grows with the area that the channel answers to, so the largest of
several objects wins. A weighted sum of the positive gradients corrects this. The weights alpha follow from
the second and third derivatives of exp(S^c), which are powers of the first one.

    paper           name           shape
    A^k             a              (B, D, h, w)    features of a stage
    g = dS^c/dA^k   g              (B, D, h, w)    S^c: class score before softmax
    alpha_ij^kc     alpha          (B, D, h, w)
    w_k^c           weights        (B, D, 1, 1)
    L^c             grad_cam_pp    (B, h, w)       not negative

    (19)  alpha_ij = g_ij^2 / ( 2 g_ij^2 + g_ij^3 sum_ab A_ab ), and 0 where g_ij = 0
                   = 1 / ( 2 + g_ij sum_ab A_ab )
    (a)   w_k = sum_ij alpha_ij relu(g_ij)
    (b)   L = relu( sum_k w_k A^k )

(19) is the paper's number; the text of the paper was not at hand for the others.

With mean pooling and a linear layer of weights v_k on these features, w_k = relu(v_k) / (2 + v_k mean A^k).

Departures. The paper differentiates exp(S^c). This multiplies w by exp(S^c), one positive number per image
and class, which is left out because it overflows and has no effect after normalisation. Inner features that
are negative can make the denominator of (19) negative or 0. Within 1e-6 of 0 it is rounding, and alpha is 0.

The second form of (19) is computed: g^2 of real networks is about 1e-8, and the first form divides by it. Two
libraries compute another map. torchcam 0.5.0 never applies the denominator. pytorch-grad-cam 1.5.7 adds 1e-6
to the first form's denominator, which is smaller than that.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import map_classes
from wsolbench.methods import Localization

PAPER = "grad-cam-pp"

ROUNDING = 1e-6
"""A denominator of (19) that is closer to 0 is the rounding error of a sum of float32 numbers near 2."""


@dataclass(frozen=True, kw_only=True)
class GradCamPPConfig(PostConfig):
    """Settings of `grad-cam-pp`."""

    stage: str = "-1"
    """Features: name of a stage, its position (`-1`: the last one, this project), or `penultimate`.

    `penultimate` is the input of the last linear layer. Inner stages need features that are not negative.
    """


def pixel_weights(a: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """Return alpha, the weight of each pixel's gradient."""
    below = 2 + g * a.sum(dim=(2, 3), keepdim=True)
    undefined = (g == 0) | (below.abs() < ROUNDING)
    return below.reciprocal().masked_fill(undefined, 0.0)  # (19)


def grad_cam_pp(a: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
    """Return L, the positive part of the features weighted by weighted sums of positive gradients."""
    weights = (pixel_weights(a, g) * g.relu()).sum(dim=(2, 3), keepdim=True)  # (a)
    return (weights * a).sum(dim=1).relu()  # (b)


class GradCamPP(PostProcess):
    """See the module."""

    method_name = "grad-cam-pp"
    Config = GradCamPPConfig
    needs_gradients = True
    map_kind = "nonneg"
    config: GradCamPPConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        return map_classes(grad_cam_pp, result, class_ids, stage=self.config.stage, who=self.method_name)
