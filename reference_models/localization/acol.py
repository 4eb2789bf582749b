"""ACoL: erase what one classifier uses, train a second one on the rest.

X. Zhang, Y. Wei, J. Feng, Y. Yang, T. Huang, "Adversarial complementary learning for weakly supervised object
localization", CVPR 2018. Values and steps are those of the authors' code (xiaomengyc/ACoL) and of
clovaai/wsolevaluation.

Idea. A classifier uses mainly the most discriminative part of the object. If the features of that part are
erased, a second classifier has to use other parts. Together the two cover more of the object.

    paper      name                                    shape
    S          features, the last stage                (B, D, h, w)
    A, B       head, second                            two heads of the same form, with separate weights
    M^A_c      maps of A, of the class c               (B, K, h, w)
    M^B_c      maps of B on erased features            (B, K, h, w)
    delta      config.delta
    E_c        is_kept(M^A_c)                          (B, K, h, w)   False where features are erased

    mm: min-max normalisation of each map (`layers/maps.py`)

    (1)  E_c = 1 where mm(M^A_c) < delta, else 0
    (2)  M^B_c = B(S * E_c)_c
    (3)  L = CE(A(S), y) + CE(B(S * E_y), y)
    (4)  M_c = max(mm(M^A_c), mm(M^B_c))

No gradient passes through (1): A does not learn what to erase, and B trains the backbone only where nothing
is erased. A constant map has mm = 0, so it erases nothing. At test the requested class erases, as in both
codes, so (2) runs B once for each class.

The paper's text was not at hand. Equations are numbered here, and values are those of the authors' code,
whose script gives no decay points.

Departures from released code. wsolevaluation erases from 0.7 on and has a 14x14 grid on VGG
(`variant=clovaai`). Its heads on VGG, ResNet and Inception are the ones here. On ResNet it initialises their
weights by He's rule (`variant=clovaai`) and, with its recipes, trains them at the base rate. It normalises
the maps of all classes and then picks one, which is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import Recipe
from reference_models.layers.heads import cross_entropy, make_head
from reference_models.layers.maps import min_max
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Positive

PAPER = "acol"

PAIRS_AT_ONCE = 64
"""Number of (image, class) pairs that the second head gets in one call.

64 x 512 x 28 x 28 features are 100 MB.
"""


@dataclass(frozen=True, kw_only=True)
class AcolConfig(HeadConfig):
    """Settings of `acol`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"test_erase_label", "logits"})

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"official": {}, "clovaai": {"delta": 0.7}}
    )
    variant: Literal["official", "clovaai"] = "official"
    """`official`: the authors' code.

    `clovaai`: wsolevaluation's threshold, its 14x14 grid on VGG, and its initialisation on ResNet.
    """
    delta: Positive = 0.6
    """Features are erased where the normalised map of the label reaches this.

    0.6 (authors), 0.7 (wsolevaluation). Above 1 nothing is erased.
    """
    test_erase_label: Literal["given", "predicted"] = "given"
    """Class whose map erases at test.

    `given`: each requested class (authors, wsolevaluation). `predicted`: the class that A predicts.
    """
    logits: Literal["A", "mean"] = "A"
    """Scores of an image: those of A (authors, wsolevaluation), or the mean of A and B.

    For the mean, A's prediction erases.
    """


def is_kept(maps: Float[Tensor, "b k h w"], delta: float) -> Bool[Tensor, "b k h w"]:
    """Return E, False in the region that is erased, eq. (1)."""
    return min_max(maps.detach()) < delta


def fuse_maps(first: Float[Tensor, "b k h w"], second: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
    """Fuse the maps of A and B by their maximum, eq. (4), float32 in [0, 1]."""
    return torch.maximum(min_max(first), min_max(second))


OFFICIAL_RECIPE = Recipe(
    source="xiaomengyc/ACoL, CUB script",
    epochs=60,
    batch_size=20,
    lr=1e-4,
    schedule="constant",
    short_side=True,
)


class Acol(HeadLocalizer):
    """See the module. `penultimate` is that of A, which is `head`."""

    method_name = "acol"
    Config = AcolConfig
    config: AcolConfig
    map_kind = "unit"
    recipes = MappingProxyType(
        {
            "acol_cub": OFFICIAL_RECIPE,
            "acol_ilsvrc": replace(OFFICIAL_RECIPE, source="xiaomengyc/ACoL, ILSVRC script", epochs=6),
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: AcolConfig) -> None:
        if not config.delta > 0:
            raise UsageError(
                f"setting delta of method 'acol' is {config.delta}; expected a number greater than 0, or "
                "all is erased"
            )
        super().__init__(backbone, num_classes, config)
        self.second = make_head(
            config.head, backbone, num_classes, width=config.width, dropout=config.dropout
        )
        if config.variant == "clovaai" and backbone.profile.kin == "resnet":
            for layer in [*self.head.modules(), *self.second.modules()]:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return ACoL's overlapping pools on VGG: 28x28 in the authors' code, 14x14 in wsolevaluation."""
        small = isinstance(config, AcolConfig) and config.variant == "clovaai"
        return read_profile(backbone).grid(
            config.grid, "overlapping-pools-small" if small else "overlapping-pools"
        )

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the authors' recipes in place of SPA's."""
        return {"spa_cub": "acol_cub", "spa_ilsvrc": "acol_ilsvrc"}.get(
            name := super().recipe_name(backbone, num_classes), name
        )

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Follow wsolevaluation's names with its recipes: on ResNet-50 only the last stage learns faster.

        The two heads do not.
        """
        if recipe.last_stage_is_new and self.backbone.profile.kin == "resnet":
            return self.is_last_stage(name)
        return super().is_new(name, recipe)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits of A, and the fused map of any class from the same features."""
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        first = self.head(features)
        by_prediction = self.config.test_erase_label == "predicted"
        logits, second = first.logits, None
        if by_prediction or self.config.logits == "mean":
            predicted = first.maps_of(first.logits.argmax(dim=1, keepdim=True))
            second = self.second(features * is_kept(predicted, self.config.delta))
            if self.config.logits == "mean":
                logits = (first.logits + second.logits) / 2

        def maps_of(class_ids: Tensor) -> Tensor:
            own = first.maps_of(class_ids)
            if by_prediction and second is not None:
                return fuse_maps(own, second.maps_of(class_ids))
            return fuse_maps(own, self.second_maps(features, is_kept(own, self.config.delta), class_ids))

        return ForwardPass(
            logits=logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=first.penultimate,
            weights_of=first.weights_of,
        )

    def second_maps(
        self, features: Float[Tensor, "b d h w"], seen: Bool[Tensor, "b k h w"], class_ids: Int[Tensor, "b k"]
    ) -> Float[Tensor, "b k h w"]:
        """Return the map of each class on the features that it has not erased, eq. (2)."""
        asked, ids, masks = class_ids.shape[1], class_ids.flatten(), seen.flatten(0, 1)[:, None]
        pairs = torch.arange(len(ids), device=features.device)
        parts = [
            self.second(features[part // asked] * masks[part]).maps_of(ids[part, None])  # (P, 1, h, w)
            for part in torch.split(pairs, PAIRS_AT_ONCE)
        ]
        return torch.cat(parts).view(seen.shape)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of A, and of B on features erased by A's map of the label, eq. (3)."""
        features = self.backbone.run(batch.images)
        first = self.head(features)
        seen = is_kept(first.maps_of(batch.labels[:, None]), self.config.delta)
        second = self.second(features * seen)
        return {
            "cross_entropy": cross_entropy(first.logits, batch.labels),
            "erased_cross_entropy": cross_entropy(second.logits, batch.labels),
        }
