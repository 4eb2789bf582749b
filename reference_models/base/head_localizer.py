"""Backbone, head, cross-entropy: the base of methods that change part of a CAM network.

They change the images, the features or the loss.

    f       stages[-1]        (B, C_in, h, w)   input of the head
    S_c     logits            (B, C)
    M_c     maps_of(c)        (B, K, h, w)
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.layers.heads import FcHead, HeadKind, cross_entropy, make_head
from wsolbench.ranges import Channels, ShareBelow1


@dataclass(frozen=True, kw_only=True)
class HeadConfig(MethodConfig):
    """Settings of the head."""

    head: HeadKind = "conv"
    """`conv`: released code of SPA and ACoL. `fc`: wsolevaluation on VGG and ResNet."""
    width: Channels = 0
    """Channels of the hidden layers. 0: 1024 (the papers), or less if the backbone is small."""
    dropout: ShareBelow1 = 0.0
    """Dropout before each convolution of `conv`: 0 in ACoL and SPA, 0.5 in wsolevaluation's Inception."""


class HeadLocalizer(Localizer):
    """A CAM network. A method overrides `loss` to change images, features, or to add a term."""

    Config = HeadConfig
    config: HeadConfig

    def __init__(self, backbone: Backbone, num_classes: int, config: HeadConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.head = make_head(config.head, backbone, num_classes, width=config.width, dropout=config.dropout)
        self.ready = isinstance(self.head, FcHead) and self.head.pretrained

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits, and the map of any class from the same pass."""
        stages = self.backbone.stages(images)
        head = self.head(next(reversed(stages.values())))
        return ForwardPass(
            logits=head.logits,
            maps_of=head.maps_of,
            stages=stages,
            penultimate=head.penultimate,
            weights_of=head.weights_of,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the pooled scores: L = CE(S, y)."""
        logits = self(batch.images).logits
        return {"cross_entropy": cross_entropy(logits, batch.labels)}
