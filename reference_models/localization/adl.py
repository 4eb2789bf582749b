"""ADL: erase the most attended features at random, else reweight them.

J. Choe, H. Shim, "Attention-based dropout layer for weakly supervised object localization", CVPR 2019.
Written from the authors' code (junsukchoe/ADL) and the re-implementation in clovaai/wsolevaluation.

Idea. The mean over the channels of a feature map is an attention map. In most steps the most attended region
is erased, so that the network has to learn from the rest. In the other steps the features are weighted by the
attention, so that accuracy does not suffer. The layer has no parameters and is the identity at test.

    paper      name                                    shape
    F          features after a step of the backbone   (B, D, h, w)
    M_att      seen, attention(F)                      (B, 1, h, w)
    M_drop     is_kept(seen)                           (B, 1, h, w)
    M_imp      seen.sigmoid()                          (B, 1, h, w)
    gamma      config.tau, a fraction of the maximum
    coin       drop                                    (1, 1, 1, 1), or (B, 1, 1, 1) with coin=sample
    M_c        maps_of(class_ids)                      (B, K, h, w), the map of CAM

    (1)  M_att = mean of F over the channels
    (2)  M_drop = 1 where M_att < gamma max(M_att), else 0; the maximum is over the pixels of an image
    (3)  M_imp = sigmoid(M_att)
    (4)  F' = F * M_drop with probability drop_rate, else F * M_imp; in training only, without rescaling
    (5)  L = CE(S, y)

Insertion points (`find_insertion_points`). VGG: after pool 3, after the fourth block of convolutions before
its pool (wsolevaluation; with `position=original` after pool 4, as in the authors' code), after the fifth
block. ResNet-50: after the first block of layer 3, after the first and the last block of layer 4 (both
codes). Inception: after Mixed_5d, after Mixed_6e, and with the head `conv` after its second 3x3 convolution
(wsolevaluation). Any other network (this project): at the ends of the last three stages.

The comparison (2) is strict, so the maximum itself is dropped for gamma <= 1. If it is 0, the whole image is
dropped. On features that can be negative (all of EfficientNet's stages except the last) nothing is dropped if
the maximum is negative.

Departures. The head is that of `cam` (`conv`); wsolevaluation has `fc` on VGG and ResNet, and `conv` without
dropout on Inception. The authors' ResNet has squeeze-and-excitation, ours does not. Equations are numbered
here, not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch
from reference_models.layers.attention import attention, is_kept
from reference_models.layers.heads import ConvHead, cross_entropy
from wsolbench.exceptions import UsageError
from wsolbench.ranges import PositiveShare, Share

PAPER = "adl"


@dataclass(frozen=True, kw_only=True)
class AdlConfig(HeadConfig):
    """Settings of `adl`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"default": {}, "official": {"position": "original"}, "clovaai": {"tau": 0.9}}
    )
    variant: str = "default"
    """Source of insertion points and thresholds.

    `default`: wsolevaluation's insertion points with the authors' thresholds. `official`: the authors' code.
    `clovaai`: wsolevaluation.
    """
    drop_rate: Share = 0.75
    """Probability of erasing: 0.75 in the authors' code (keep probability 0.25) and wsolevaluation."""
    tau: PositiveShare | None = None
    """gamma of (2). None: 0.8 on VGG, else 0.9, as in the authors' code.

    wsolevaluation has 0.9 everywhere.
    """
    coin: Literal["batch", "sample"] = "batch"
    """Draw one coin at each insertion point for the batch (authors, wsolevaluation), or one per image."""
    position: Literal["clovaai", "original"] = "clovaai"
    """Second insertion point on VGG: before pool 4 (wsolevaluation) or after it (authors)."""


PLACES = 3
"""Number of insertion points. A backbone with fewer leaves the last one to the head `conv`."""

IN_HEAD = "head.trunk"
"""The insertion point after the second 3x3 convolution of the head `conv`.

Its dot distinguishes it from all names of steps.
"""


def find_insertion_points(backbone: Backbone, config: AdlConfig) -> tuple[str, ...]:
    """Return the steps after which the layer is inserted, and `IN_HEAD` if it is inserted in the head."""
    original = config.position == "original" and "drop-after-pool" in backbone.roles
    places = backbone.role("drop-after-pool" if original else "drop", "method 'adl'")
    in_head = len(places) < PLACES and config.head == "conv"
    return (*(place.name for place in places), *([IN_HEAD] if in_head else []))


def attention_dropout(
    features: Float[Tensor, "b d h w"], drop: Bool[Tensor, "n 1 1 1"], tau: float
) -> Float[Tensor, "b d h w"]:
    """Erase the most attended region where `drop` is True, else weight features by importance, eq. (4)."""
    seen = attention(features)  # (1)
    chosen = torch.where(drop, is_kept(seen, tau).float(), seen.sigmoid())  # (2), (3)
    return features * chosen.to(features.dtype)


class Adl(HeadLocalizer):
    """See the module. `forward` is the network without the layer, as at test."""

    method_name = "adl"
    Config = AdlConfig
    config: AdlConfig

    def __init__(self, backbone: Backbone, num_classes: int, config: AdlConfig) -> None:
        super().__init__(backbone, num_classes, config)
        if not 0 <= config.drop_rate <= 1:
            raise UsageError(
                f"setting drop_rate of method 'adl' is {config.drop_rate}; expected a probability in [0, 1]"
            )
        self.tau = (0.8 if backbone.profile.kin == "vgg" else 0.9) if config.tau is None else config.tau
        if not 0 < self.tau <= 1:
            raise UsageError(
                f"setting tau of method 'adl' is {self.tau}; expected a number in (0, 1], or none"
            )
        self.places = find_insertion_points(backbone, config)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the network with the layer at its insertion points."""

        def layer(place: str, features: Tensor) -> Tensor:
            if place not in self.places:
                return features
            count = len(features) if self.config.coin == "sample" else 1
            coin = (
                torch.rand(count, 1, 1, 1, generator=batch.generator, device=features.device)
                < self.config.drop_rate
            )
            return attention_dropout(features, coin, self.tau)

        features = self.backbone.run(batch.images, edit=layer)
        if isinstance(self.head, ConvHead):
            logits = self.head.classify(layer(IN_HEAD, self.head.trunk(features))).logits
        else:
            logits = self.head(features).logits
        return {"cross_entropy": cross_entropy(logits, batch.labels)}  # (5)
