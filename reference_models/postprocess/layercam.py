"""LayerCAM: features weighted pixel by pixel by positive gradients.

P.-T. Jiang, C.-B. Zhang, Q. Hou, M.-M. Cheng, Y. Wei, "LayerCAM: exploring hierarchical class activation maps
for localization", IEEE TIP 2021.

Idea. One weight per channel is too coarse for inner layers, where a channel answers to object and background
alike. A weight per pixel separates them, so that maps of early, fine stages can be used.

    paper     name         shape
    A_k       a            (B, D, h, w)    features of a stage
    g_k^c     g            (B, D, h, w)    gradient of the class score before softmax
    M^c       layercam     (B, h, w)       not negative

    (1)  M = relu( sum_k relu(g_k) A_k )

Departures. The paper adds the maps of several stages, those of early stages after a scaled tanh. Here a map
comes from one stage. The text of the paper was not at hand; (1) was checked against the library
pytorch-grad-cam.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.gradient_maps import map_classes
from wsolbench.methods import Localization

PAPER = "layercam"


@dataclass(frozen=True, kw_only=True)
class LayerCamConfig(PostConfig):
    """Settings of `layercam`."""

    stage: str = "-1"
    """Features: name of a stage, its position (`-1`: the last one, this project), or `penultimate`.

    `penultimate` is the input of the last linear layer.
    """


def layercam(a: Float[Tensor, "b d h w"], g: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
    """Return M, the positive part of the features weighted by positive gradients."""
    return (g.relu() * a).sum(dim=1).relu()  # (1)


class LayerCam(PostProcess):
    """See the module."""

    method_name = "layercam"
    Config = LayerCamConfig
    needs_gradients = True
    map_kind = "nonneg"
    config: LayerCamConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the stage."""
        return map_classes(layercam, result, class_ids, stage=self.config.stage, who=self.method_name)
