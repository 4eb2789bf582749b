"""Baseline: fine-tuned network with pooling and a linear classifier.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016; its maps are those
of B. Zhou, A. Khosla, A. Lapedriza, A. Oliva, A. Torralba, "Learning deep features for discriminative
localization", CVPR 2016 (CAM).

Idea. The unchanged network (7x7 at 224 pixels, 14x14 at 448), with a new classifier for the data set's
classes. On VGG-16 a 3x3 convolution comes before the pooling, as in CAM.

    paper      name                         shape
    f          penultimate                  (B, D, h, w)
    w, b       head.classifier              (C, D), (C,)
    S_c        logits                       (B, C)         w_c mean(f) + b_c
    M_c        maps_of(class_ids)           (B, K, h, w)   w_c f; its mean and b_c make S_c

    L = CE(S, y)

Recipes. Published baselines of the same network differ: ResNet-50 has 84.5 on CUB in the papers of NTS-Net,
SSANET and Focus-and-Discriminate, 85.5 in LIO's. So compare a method with the baseline trained by the
method's own recipe: `--set recipe=lio`, `nts`, `ssanet_cub`, `ssanet_cars`, `ssanet_aircraft`, `fnd`. The
default on ResNet-50 is LIO's without its rotation, `lio_upright`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.base.recognizer import Recognizer
from reference_models.core.pooled_recipes import POOLED
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.heads import HeadKind

PAPER = "resnet"


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(HeadConfig):
    """Settings of `baseline`."""

    head: HeadKind = "fc"
    """GAP and a linear layer: ResNet's own."""


class Baseline(Recognizer, HeadLocalizer):
    """See the module. The forward pass and the loss are those of `head_localizer.py`."""

    method_name = "baseline"
    Config = BaselineConfig
    recipes = MappingProxyType({**FINE_GRAINED, **POOLED})

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return LIO's recipe without its rotation."""
        return "lio_upright"
