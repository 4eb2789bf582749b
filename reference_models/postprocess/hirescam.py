"""HiResCAM: signed sum over channels of gradient times features.

R. Draelos, L. Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
networks", arXiv 2011.08891, 2020.

Idea. Grad-CAM averages the gradient over the pixels and so loses where it was high. Without the average, the
map shows the pixels that the network used: for one linear layer on the flattened features, the map sums to
the class score without its bias.

    paper       name        shape
    A^f         a           (B, D, h, w)    features of a stage
    ds_m/dA^f   g           (B, D, h, w)    s_m: class score before softmax
    map         hirescam    (B, h, w)       signed

    (1)  map = sum_f (ds_m / dA^f) * A^f

With mean pooling and a linear layer on these features, the map is CAM without its bias, divided by the number
of pixels. On a stage of a vision transformer directly before a layer norm, the map is 0 up to rounding,
because layer norm ignores the length of a token.

Departures. None are known. The protocol of the evaluation decides what becomes of negative values. The text
of the paper was not at hand; (1) was checked against the library pytorch-grad-cam.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import map_classes
from wsolbench.methods import Localization

PAPER = "hirescam"


@dataclass(frozen=True, kw_only=True)
class HiResCamConfig(PostConfig):
    """Settings of `hirescam`."""

    stage: str = "-1"
    """Features: name of a stage, its position (`-1`: the last one, this project), or `penultimate`.

    `penultimate` is the input of the last linear layer.
    """


def hirescam(a: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
    """Return the sum over the channels of gradient times features."""
    return (g * a).sum(dim=1)  # (1)


class HiResCam(PostProcess):
    """See the module."""

    method_name = "hirescam"
    Config = HiResCamConfig
    needs_gradients = True
    map_kind = "signed"
    config: HiResCamConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        return map_classes(hirescam, result, class_ids, stage=self.config.stage, who=self.method_name)
