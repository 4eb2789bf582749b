"""NTS-Net: learn to propose parts, then classify them with the image.

Z. Yang, T. Luo, D. Wang, Z. Hu, J. Gao, L. Wang, "Learning to navigate for fine-grained classification", ECCV
2018. Released code: yangze0930/NTS-Net.

Idea. A region is informative if a classifier that sees it alone is confident of the label. The Navigator
scores anchors of many sizes from the whole image. It learns to rank them by the confidence of that classifier
(the Teacher). The Scrutinizer classifies by the best regions, enlarged, and the whole image.

    paper       name                                    shape
    X           images                                  (B, 3, S, S)        S = 448
    I(R)        scored.scores                           (B, A)              A = 1614 anchors;
                                                                            `layers/navigator.py`
    R_1..R_M    found.boxes                             (B, M, 4)           the best that do not overlap
                look(...)                               (B, M, D)           R_j cropped, resized, through the
                                                                            same backbone, mean
    C(R_j)      part_classifier                         (B, M, C)           the Teacher; one layer for all
                                                                            parts
    C(X)        raw_classifier                          (B, C)              the Teacher of the whole image;
                                                                            its maps are `maps_of`
    S(X, R)     concat_classifier = logits              (B, C)              of [R_1 .. R_K, X], K = 4

    (1)  L_rank = sum_ij [c_j > c_i] max(0, 1 - I_i + I_j)      c_j = -log C(R_j)_y; mean over the batch
    (2)  L_C = mean_j c_j - log C(X)_y
    (3)  L_S = -log S(X, R)_y
    (4)  L = L_rank + L_C + L_S

The numbers of the equations are those of this file. Boxes are selected and cropped without gradient. The
gradient of the Navigator comes only from (1), and (1) has no other gradient.

Maps. `maps_of` is the class activation map of C(X). `propose` gives the K boxes. Extra maps: `nav`, at each
cell the best sigmoid(I) of the anchors around it; `parts` and `union`, the area of the K boxes. They show
parts and are not made to find the object's box.

Departures from released code (`variant=official` undoes the first four)
    dropout    The code makes a new dropout layer in each pass, which stays active at test, so its results are
               random. Default: off at test. With `dropout_in_eval` one mask is drawn from a fixed seed for
               all images, so results repeat from run to run.
    overlap    The code suppresses boxes at an IoU of 0.25 and more, on whole pixels; here above 0.25, on the
               boxes as they are.
    crops      The code samples whole boxes with their outermost pixels on the borders; here at the centres of
               equal cells.
    init       With the code's initial weights only anchors of the smallest level are chosen, and (1) does not
               reach the others; here all levels start alike.
    (2)        The paper sums over j, the code takes the mean: `part_reduction`.
    run        Four optimisers of one rate are one, with Nesterov's momentum, as in every recipe here, also
               with `variant=official`. The released loop runs to epoch 499 and has its last fall of the rate
               at 100. The default recipe ends at 110; that of `variant=official` has all 499. Another number
               of epochs scales its falls as well. `--set recipe=nts` is the run of 110 epochs with the falls
               at 60 and 100.
    sizes      Sides of anchors are scaled by S / 448, and parts are resized to S / 2.

Image and parts share the running statistics of batch norm, as in the released code; `norm_statistics` has the
control (`layers/norm_statistics.py`).

The paper's results are at 448 pixels, the default on ResNet-50.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.navigator import (
    Navigator,
    NavigatorInit,
    best_cover,
    nominate,
    part_costs,
    rank_loss,
)
from reference_models.layers.norm_statistics import PartInputConfig, PartStatistics
from reference_models.layers.regions import CropMode, NmsRule, crop_resize
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Share, ShareBelow1, SideOrDefault

PAPER = "nts-net"


@dataclass(frozen=True, kw_only=True)
class NtsNetConfig(PartInputConfig):
    """Settings of `nts-net`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict", "dropout_in_eval"})

    later: ClassVar[frozenset[str]] = PartInputConfig.later | {"rank_loss"}
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": MappingProxyType({}),
            "official": MappingProxyType(
                {
                    "nms_rule": "ge",
                    "crop_mode": "align_corners",
                    "dropout_in_eval": True,
                    "navigator_init": "torch",
                }
            ),
        }
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: as the released code runs, with its recipe on ResNet-50."""
    proposals: Channels = 6
    """M, parts that the Teacher classifies: paper and released code."""
    parts: Channels = 4
    """K, parts that the Scrutinizer uses: paper and released code."""
    nms: Share = 0.25
    """Largest IoU of two parts: released code."""
    nms_rule: NmsRule = "gt"
    """Whether a part is suppressed above that IoU (`gt`), or at it too, on whole pixels (`ge`).

    `ge` is the released code.
    """
    part_size: SideOrDefault = 0
    """Side to which a part is resized. 0: half the image's, 224 in the paper."""
    crop_mode: CropMode = "half_pixel"
    """Sampling of a part; released code: `align_corners`."""
    rank_loss: Literal["nts", "none"] = "nts"
    """Loss of the Navigator, (1). `none`, a control: parts that an untrained Navigator proposes."""
    part_reduction: Literal["mean", "sum"] = "mean"
    """Reduction over the parts in (2): mean in the released code, sum in the paper."""
    dropout: ShareBelow1 = 0.5
    """Dropout before each classifier: released code."""
    dropout_in_eval: bool = False
    """Whether dropout stays active at test (released code), with one fixed mask."""
    navigator_init: NavigatorInit = "even"
    """Initial weights of the Navigator.

    `even`: scores vary equally on all levels. `torch`: the default of the layers (released code).
    """
    predict: Literal["concat", "raw"] = "concat"
    """Scores that are the logits: S, or C(X), the image-level output of the same network."""


def drop_values(
    features: Float[Tensor, "b n d"], p: float, generator: torch.Generator, *, per_image: bool = True
) -> Float[Tensor, "b n d"]:
    """Set each value to 0 with probability p, and scale the others by 1 / (1 - p).

    With `per_image=False` all images have the same zeros.
    """
    shape = features.shape if per_image else features.shape[1:]
    kept = torch.rand(shape, generator=generator, device=generator.device).to(features.device) >= p
    return features * kept / (1 - p)


class NtsNet(Recognizer):
    """See the module."""

    method_name = "nts-net"
    Config = NtsNetConfig
    config: NtsNetConfig
    recipes = MappingProxyType({name: FINE_GRAINED[name] for name in ("nts", "nts_official")})
    official_recipes = MappingProxyType({"nts": "nts_official"})

    def __init__(self, backbone: Backbone, num_classes: int, config: NtsNetConfig) -> None:
        if not 1 <= config.parts <= config.proposals:
            raise UsageError(
                f"settings parts={config.parts} and proposals={config.proposals} of method 'nts-net': "
                "expected at least one part, and no more of them than proposals"
            )
        if not 0 <= config.nms <= 1 or not 0 <= config.dropout < 1 or config.part_size < 0:
            raise UsageError(
                f"settings nms={config.nms}, dropout={config.dropout}, part_size={config.part_size} of "
                "method 'nts-net': "
                "expected an IoU in [0, 1], a chance from 0 to below 1, and a side in pixels, or 0"
            )
        super().__init__(backbone, num_classes, config)
        last = backbone.layout[-1]
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        self.navigator = Navigator(last.channels, last.stride, init=config.navigator_init)
        self.raw_classifier = nn.Linear(last.channels, num_classes)
        self.part_classifier = nn.Linear(last.channels, num_classes)
        self.concat_classifier = nn.Linear(last.channels * (config.parts + 1), num_classes)

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the released recipe."""
        return "nts"

    def look(self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b k 4"]) -> Float[Tensor, "b k d"]:
        """Crop the parts and return their pooled features."""
        size = self.config.part_size or images.shape[-1] // 2
        crops = crop_resize(images, boxes, size, self.config.crop_mode)
        with self.part_statistics.in_use(self.backbone):
            features = self.backbone.run(crops).mean(dim=(2, 3))
        return features.view(*boxes.shape[:2], -1)

    def scrutinize(self, parts: Float[Tensor, "b m d"], whole: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Return S, the logits of the first K parts and the whole image."""
        logits: Tensor = self.concat_classifier(
            torch.cat([parts[:, : self.config.parts].flatten(1), whole], dim=1)
        )
        return logits

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return logits of S, maps of C(X), and the K parts."""
        config, size = self.config, images.shape[-1]
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        scored = self.navigator(features, size)
        # Parts (B, K, 4), and features of parts and image.
        found = nominate(scored, size, config.parts, config.nms, config.nms_rule)
        seen = torch.cat(
            [self.look(images, found.boxes), features.mean(dim=(2, 3))[:, None]], dim=1
        )  # (B, K + 1, D)
        if config.dropout_in_eval:
            seen = drop_values(seen, config.dropout, torch.Generator().manual_seed(0), per_image=False)
        parts, whole = seen[:, :-1], seen[:, -1]
        # Logits, maps and proposals.
        return ForwardPass(
            logits=self.scrutinize(parts, whole)
            if config.predict == "concat"
            else self.raw_classifier(whole),
            maps_of=lambda class_ids: class_activation_maps(features, self.raw_classifier.weight, class_ids),
            stages=stages,
            penultimate=features,
            propose=lambda: found,
            extra_maps={"nav": best_cover(scored, (features.shape[2], features.shape[3]), size)},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the ranking loss and the cross-entropies of Teacher and Scrutinizer, eq. (4)."""
        config, size = self.config, batch.images.shape[-1]
        features = self.backbone.run(batch.images)
        found = nominate(self.navigator(features, size), size, config.proposals, config.nms, config.nms_rule)
        seen = torch.cat(
            [self.look(batch.images, found.boxes), features.mean(dim=(2, 3))[:, None]], dim=1
        )  # (B, M + 1, D)
        seen = drop_values(seen, config.dropout, batch.generator)
        parts, whole = seen[:, :-1], seen[:, -1]
        costs = part_costs(self.part_classifier(parts), batch.labels)
        ranking = {"rank": rank_loss(found.scores, costs)} if config.rank_loss == "nts" else {}  # (1)
        return {
            **ranking,
            "part": (
                costs.mean(dim=1) if config.part_reduction == "mean" else costs.sum(dim=1)
            ).mean(),  # (2)
            "raw": cross_entropy(self.raw_classifier(whole), batch.labels),  # (2)
            "concat": cross_entropy(self.scrutinize(parts, whole), batch.labels),  # (3)
        }
