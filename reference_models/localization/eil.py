"""EIL: shared layers classify with and without the most attended region.

J. Mai, M. Yang, W. Luo, "Erasing integrated learning: A simple yet effective approach for weakly supervised
object localization", CVPR 2020. Values and steps are those of the authors' code (Wayne-Mai/EIL), which is for
VGG.

Idea. ACoL and ADL make a network use more than the most discriminative part: ACoL by a second classifier, ADL
by erasing in some steps only. EIL does both in each step. The features at one point fork into an unchanged
stream and one without the most attended region. The layers behind that point are shared and learn from both.
MEIL forks at several points.

    paper      name                                    shape
    F^u        features after an insertion point       (B, D, h, w)
    M          attention(F^u)                          (B, 1, h, w)
    gamma      config.gamma, a fraction of the maximum
    F^e        erase_attended(F^u)                     (B, D, h, w)
    p^u, p^e   logits of the two streams               (B, C)
    sigma      config.sigma
    M_c        maps_of(class_ids)                      (B, K, h, w), the map of CAM from the stream without
                                                       erasing

    (1)  M = mean of F^u over the channels
    (2)  F^e = F^u where M < gamma max(M), else 0; the maximum is over the pixels of an image
    (3)  L = CE(p^u, y) + sigma CE(p^e, y), one term with p^e for each insertion point

Behind the point both streams are one batch of twice the size. So batch norm sees both, and its statistics at
test are those of training. The parameters are those of CAM, and at test the method is CAM.

Insertion points (`find_step`). `points` are named by the blocks of VGG: 3, 4 and 5 are the ends of the last
three stages (VGG: pool 3, pool 4, conv5_3; ResNet-50: layers 2, 3, 4). Point 4 of Inception-V3 is after
Mixed_6a. Inception and ResNet are this project's choice. Point 5, in front of the head, works with any
network; the others need one whose steps can be edited.

MEIL. The authors' code has points 3, 4 and 5 and uses only 4. This project reads MEIL as points 4 and 5, each
forking off the stream without erasing, and each with the weight sigma. Only numbers of MEIL were found.

Rates (`is_new`). In the authors' code only the linear layer learns at ten times the rate. conv6 is as new but
learns at the base rate. Their program has a rule for ResNet as well (layer 4, too), but no such network with
EIL. For ILSVRC it fixes where the rate falls, before the epochs 4 and 7 counted from 0, and no script gives
the other values, so there the recipe is that of SPA.

The paper's text was not at hand; equations are numbered here. By gamma it may mean an absolute threshold; the
code takes a fraction of the maximum. The mask (2) has no gradient, in the code and here. The code draws one
box around all regions above 0.15 of the normalised map; here the evaluation makes the boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch
from reference_models.core.recipes import Recipe
from reference_models.layers.attention import attention, is_kept
from reference_models.layers.heads import HeadKind, cross_entropy
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Positive, Weight

PAPER = "eil"

HEAD_POINT = 5
"""The end of the last stage, the input of the head."""


@dataclass(frozen=True, kw_only=True)
class EilConfig(HeadConfig):
    """Settings of `eil`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"eil": {}, "meil": {"points": (4, HEAD_POINT)}}
    )
    variant: Literal["eil", "meil"] = "eil"
    """`eil`: one insertion point (authors' code). `meil`: two."""
    head: HeadKind = "fc"
    """The authors' code: on VGG a 3x3 convolution of 1024 channels, pooling, a linear layer."""
    points: tuple[int, ...] = (4,)
    """Insertion points where features are erased, of 3, 4, 5: the authors' code uses 4."""
    gamma: Positive = 0.7
    """Fraction of the maximal attention from which features are erased: authors' code. Above 1: none."""
    sigma: Weight = 1.0
    """Weight of the erased streams: 1 in the authors' code. Their page names a weight without its value."""


def find_step(point: int, backbone: Backbone) -> str:
    """Return the step of the backbone after which a point is."""
    if point == HEAD_POINT:
        return backbone.layout[-1].name
    way_out = "--set points=5, which is in front of the head, or "
    (place,) = backbone.role("branch" if point == 4 else "early-branch", "method 'eil'", way_out)
    return place.name


def erase_attended(features: Float[Tensor, "b d h w"], gamma: float) -> Float[Tensor, "b d h w"]:
    """Erase the most attended region, eqs. (1) and (2)."""
    return features * is_kept(attention(features.detach()), gamma)


class Eil(HeadLocalizer):
    """See the module. Network and maps are those of `head_localizer.py`."""

    method_name = "eil"
    Config = EilConfig
    config: EilConfig
    recipes = MappingProxyType(
        {
            "eil": Recipe(
                source="Wayne-Mai/EIL",
                epochs=80,
                batch_size=64,
                lr=1e-3,
                weight_decay=1e-4,
                milestones=(0.75,),
                bias_factor=1.0,
            )
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: EilConfig) -> None:
        points = config.points
        if not points or not set(points) <= {3, 4, HEAD_POINT} or len(set(points)) < len(points):
            raise UsageError(
                f"setting points of method 'eil' is {points}; expected one or more of 3, 4, 5, each once"
            )
        if not config.gamma > 0:
            raise UsageError(
                f"setting gamma of method 'eil' is {config.gamma}; expected a number greater than 0, or "
                "all is erased"
            )
        if not config.sigma >= 0:
            raise UsageError(
                f"setting sigma of method 'eil' is {config.sigma}; expected a number that is not negative"
            )
        super().__init__(backbone, num_classes, config)
        self.inside = tuple(find_step(point, backbone) for point in sorted(points) if point != HEAD_POINT)
        """Steps with an insertion point after them, except the one in front of the head."""

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the authors' recipe in place of SPA's for CUB. They give no script for ILSVRC."""
        name = super().recipe_name(backbone, num_classes)
        return "eil" if name == "spa_cub" else name

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Of the head, only the last layer learns faster."""
        return super().is_new(name, recipe) and (
            name.startswith("head.classifier.") or name.startswith("backbone.")
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of each stream, eq. (3)."""
        count = len(batch.images)

        def fork(features: Tensor) -> Tensor:
            return torch.cat(
                [features, erase_attended(features[:count], self.config.gamma)]
            )  # the first stream is the one without erasing

        features = self.backbone.run(
            batch.images,
            edit=(lambda step, x: fork(x) if step in self.inside else x) if self.inside else None,
        )
        if HEAD_POINT in self.config.points:
            features = fork(features)
        whole, *streams = self.head(features).logits.split(count)
        terms = {"cross_entropy": cross_entropy(whole, batch.labels)}
        for point, logits in zip(sorted(self.config.points), streams, strict=True):
            terms[f"erased_{point}"] = self.config.sigma * cross_entropy(logits, batch.labels)
        return terms
