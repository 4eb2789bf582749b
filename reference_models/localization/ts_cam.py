"""TS-CAM: class maps of patch tokens, weighted by attention.

W. Gao, F. Wan, X. Pan, Z. Peng, Q. Tian, Z. Han, B. Zhou, Q. Ye, "TS-CAM: token semantic coupled attention
map for weakly supervised object localization", ICCV 2021. Released code: vasgaowei/TS-CAM (Apache-2.0).

Idea. The class token of a vision transformer attends to whole objects, but to all of them alike. Patch tokens
that are classified know the class, but their scores scatter. The product of the two is a map of the class
that covers the object.

    paper      name                                    shape
    X          stages["patches"]                       (B, D, h, w)   patch tokens after the final norm
    S_c        head.classifier(X)                      (B, C, h, w)
    s_c        logits                                  (B, C)
    a_l        read_attention(..)                      (B, L, h, w)   class token to patches, mean over heads
    F          sum_attention(a)                        (B, 1, h, w)
    M_c        maps_of(class_ids)                      (B, K, h, w)

    (1)  X = the patch tokens as a map, without class token
    (2)  S = conv3x3(X), C channels, with bias
    (3)  s_c = mean over patches of S_c
    (4)  L = CE(s, y)
    (5)  F = sum over l of a_l
    (6)  M_c = F * S_c

The class token is not classified, and attention has no loss: (5) and (6) only read the trained network.

Weights that each published number needs, by their names in timm. The rows DeiT-S: `deit_small_patch16_224`
(.fb_in1k). DeiT-T: `deit_tiny_patch16_224` (.fb_in1k). DeiT-B-384: `deit_base_patch16_384` (.fb_in1k) at 384
pixels. All are without distillation, and their classifier for 1,000 classes is dropped, also on ILSVRC.
Conformer-S is no plain transformer and cannot be used here. Released thresholds of the boxes: 0.1 of the
maximum on CUB, 0.12 on ILSVRC (protocol `tscam`).

Departures. The paper averages (5) over the layers and the code sums: the map is the same after min-max. The
released code keeps the epoch with the best GT-known of the test images; here the last one counts. Maps are
raw and signed. The recipes are in `core/token_recipes.py`.

Not checked: the text of the paper, and any published number. No pretrained weights were at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from reference_models.base.token_localizer import TokenLocalizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.token_recipes import TOKEN_RECIPES
from reference_models.layers.heads import cross_entropy
from reference_models.layers.token_maps import TokenHead, read_attention, sum_attention

PAPER = "ts-cam"


@dataclass(frozen=True, kw_only=True)
class TsCamConfig(MethodConfig):
    """Settings of `ts-cam`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"coupled"})

    coupled: bool = True
    """Whether class maps are multiplied by F. Without it M_c is S_c: a CAM of the patch tokens."""


def couple(attention: Float[Tensor, "b 1 h w"], maps: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
    """Return M, the class maps weighted by the attention, eq. (6)."""
    return attention * maps  # (6)


class TsCam(TokenLocalizer):
    """See the module."""

    method_name = "ts-cam"
    Config = TsCamConfig
    config: TsCamConfig
    recipes = MappingProxyType({name: TOKEN_RECIPES[name] for name in ("ts_cam_cub", "ts_cam_ilsvrc")})

    def __init__(self, backbone: Backbone, num_classes: int, config: TsCamConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.head = TokenHead(backbone.channels[-1], num_classes)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits, and maps that are coupled with the attention of the same pass."""
        stages, attention = read_attention(self.backbone, images)
        head, summed = self.head(stages["patches"]), sum_attention(attention)  # (2), (3), (5)

        def maps_of(class_ids: Tensor) -> Tensor:
            maps = head.maps_of(class_ids)
            return couple(summed, maps) if self.config.coupled else maps

        return ForwardPass(
            logits=head.logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=head.penultimate,
            extra_maps={"attention": summed[:, 0]},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the mean scores, eq. (4). Attention is not computed."""
        head = self.head(self.backbone.run(batch.images))  # (1) to (3)
        return {"cross_entropy": cross_entropy(head.logits, batch.labels)}  # (4)
