"""SSANET: classify aligned parts over scale shifts and orientations.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020. There is no released code; equations have the paper's numbers.

Idea. NTS-Net's Navigator proposes parts, and a loss makes the j-th parts of all images similar (Morphological
Alignment Constraints, MAC). Part boxes are only approximate. So one classifier sees each part at several
scales and takes the best cyclic shift of its weights (DSM). Another one sees it pooled along rows and columns
in both directions and takes the best of the four (OP). Only parts decide.

    paper           name                                shape
    A_1 .. A_K      proposed.boxes                      (B, K, 4)           `layers/navigator.py`, as in
                                                                            NTS-Net
    f_i,j           heads.pool(look(...))               (B, K, D)           parts through the backbone again
    FC              part_classifier                     (B, K, C)           one layer for all parts
    S               mac_loss                            (B, B, K, K)        `part_agreement.py`
    (6)-(8), y      reading.scales                      (B, K, C)           DSM, `scale_alignment.py`
    (9)-(13), y     reading.orientations                (B, K, C)           OP, `oriented_pooling.py`, on the
                                                                            aligned candidate

    (1)  L = sum_j CE(FC f_j) + lambda mean of L_m over pairs of images
    (2)  L_m = mean_j log(1 + sum_{m != j} exp(S_jm - S_jj))        the cross-entropy of softmax(S_j) with
                                                                    target j
         logits = sum over j of both y

A run has four stages, each with its own schedule of the rate. Frozen layers are in evaluation mode, batch
norm included.
    1a  Backbone, Navigator, FC, global classifier: (1), NTS-Net's ranking loss, cross-entropy of the whole
        image.
    1b  DSM: cross-entropy of each y_DSM and of their sum.
    2   OP: the same of y_OP, on the candidate that DSM aligns for the label.
    3   Navigator and FC, with a tenth of the rate.
With `training=one_stage`, and in a run of fewer epochs than stages, 1a, 1b and 2 are one. Predictions before
stage 2 are partly untrained. The paper's recipes last as long as the stages of a run: 271 epochs, 90 with
`dsm=none op=false`, 181 with `part_net`.

Maps. `maps_of` is the class activation map of the global classifier. `propose` gives the K boxes, at their
aligned scale if there is DSM. The extra maps `parts` and `union` show the area of the boxes.

Rows of the paper's tables. 3: the method `baseline` with this recipe; `dsm=none op=false mac_weight=0`;
`dsm=none op=false`; `dsm=none`; `op=false`; the defaults. 4: `dsm=none op=false` with `part_pool=max`, with
`mean`; `dsm=none`. 5: `op=false` with `dsm=spp`, `fpn`, `fixed`, `one`, `full`. 6, G+P: `fusion=G+P`. Rows
with DSM or OP can share the 1a of `dsm=none op=false`: `part_net`. Control of these rows: `dsm=fc op=false`,
the part classifier trained for as long on the same frozen parts.

Departures and open readings; those of (2), DSM and OP are in their files
    (1)        Pairs of an image with itself do not count, and pairs have a mean (`mac_self`,
               `mac_reduction`). The choice of boxes gives the Navigator no gradient: `rank_loss`. There is no
               loss of the global classifier: `aux_global`.
    Stage 1    The text trains all parameters with DSM, and says that the backbone is frozen then: `stage1`.
    2 and 3    The global classifier has a third of the rate in 2: here a third of the loss. In 3 "part-net"
               is taken for Navigator and FC.
    Run        The paper gives no lengths: `stage_epochs`. The rate falls after 60 of the 90 epochs of a
               stage, for OP on Cars after 30 of 45 (`recipe=ssanet_cars`). Momentum is Nesterov's, as in
               every recipe here.
    Sizes      The paper's are for 448 pixels, the default on ResNet-50; anchors and parts are scaled with the
               image.
    Statistics Image and parts share the running statistics of batch norm, as in NTS-Net: `norm_statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import FINE_GRAINED, Recipe
from reference_models.core.weights import load_parts
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.navigator import AnchorKind, Navigator, nominate, part_costs, rank_loss
from reference_models.layers.norm_statistics import PartInputConfig, PartStatistics
from reference_models.recognition.ssanet.part_agreement import Reduction, mac_loss
from reference_models.recognition.ssanet.part_features import aligned_regions, grid_side, reextract_features
from reference_models.recognition.ssanet.part_heads import Fuse, PartHeads, fuse_scores
from reference_models.recognition.ssanet.run_stages import CARS_LENGTHS, LENGTHS, StageConfig, stages_of
from reference_models.training.stages import stage_at
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Count, Share, SideOrDefault, Weight

PAPER = "ssanet"


@dataclass(frozen=True, kw_only=True)
class SsanetConfig(StageConfig, PartInputConfig):
    """Settings of `ssanet`. If no source is named, the paper does not give the value."""

    at_test: ClassVar[frozenset[str]] = frozenset({"fusion", "fuse"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"paper": MappingProxyType({}), "light": MappingProxyType({"dsm_feature": "gap"})}
    )

    variant: Literal["paper", "light"] = "paper"
    """`light`: DSM uses pooled vectors, with 2 instead of 100 million weights (ResNet-50, 200 classes)."""
    parts: Channels = 4
    """K: the paper."""
    proposals: Channels = 6
    """M, parts that the ranking loss compares; the first K are classified: NTS-Net."""
    anchors: AnchorKind = "nts"
    """NTS-Net's ("like [21]"), or one level with three sides and three ratios, as in the later text."""
    nms: Share = 0.25
    """Largest IoU of two parts: NTS-Net."""
    part_size: SideOrDefault = 0
    """Side to which a part is resized. 0: half the image's, 224 as in NTS-Net."""
    part_source: Literal["crop", "roi"] = "crop"
    """Source of part features.

    `crop`: the backbone processes crops of the parts. `roi`: RoIAlign of the whole image's features (the
    paper's hint for more speed).
    """
    crop_chunk: Count = 256
    """Number of crops per pass through a backbone in evaluation mode. It does not affect results."""
    mac_weight: Weight = 0.5
    """lambda: 0.5 in the paper (0.1, 0.3 and 1 are as good). 0: no MAC (Table 3)."""
    mac_self: bool = False
    """Whether pairs of an image with itself count, as in the printed sum."""
    mac_reduction: Reduction = "mean"
    """Reduction over the pairs; `sum` as printed."""
    rank_loss: Literal["nts", "none"] = "nts"
    """Loss of the Navigator. With `none`, the paper to the letter, it does not learn."""
    aux_global: bool = True
    """Whether the global classifier is trained. If not, the maps are those of an untrained one."""
    fusion: Literal["P", "G+P"] = "P"
    """Scores in the prediction: parts (the paper), or also the global classifier (others in Table 6)."""
    fuse: Fuse = "logits"
    """Scores that are "summed together": before or after softmax."""


class Ssanet(Recognizer):
    """See the module."""

    method_name = "ssanet"
    Config = SsanetConfig
    config: SsanetConfig
    recipes: ClassVar[Mapping[str, Recipe]] = MappingProxyType(
        {
            name: replace(
                FINE_GRAINED[name],
                source="arXiv:2001.01211; what it does not give is this project's",
                epochs=sum(lengths),
            )
            for name, lengths in (
                ("ssanet_cub", LENGTHS),
                ("ssanet_cars", CARS_LENGTHS),
                ("ssanet_aircraft", LENGTHS),
            )
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: SsanetConfig) -> None:
        _check(config)
        super().__init__(backbone, num_classes, config)
        last = backbone.layout[-1]
        self.part_size = config.part_size or backbone.input_spec.size // 2
        self.part_side = grid_side(backbone, self.part_size)
        self.part_statistics = PartStatistics(backbone, config.norm_statistics)
        self.navigator = Navigator(last.channels, last.stride, config.anchors)
        self.part_classifier = nn.Linear(last.channels, num_classes)
        self.global_classifier = nn.Linear(last.channels, num_classes)
        self.heads = PartHeads(
            backbone.channels, self.part_side, num_classes, config.parts, config, who=self.method_name
        )
        self.heads.start_from(self.part_classifier)
        self.stages = stages_of(config)
        self._set_learning(self.stages[0][0])

    def load_referenced_weights(self) -> None:
        """Copy the modules of stage 1a from the setting `part_net`."""
        if path := self.config.part_net:
            load_parts(
                self,
                Path(path),
                ("backbone", "part_statistics", "navigator", "part_classifier", "global_classifier"),
                what=f"the part_net of ssanet with norm_statistics={self.config.norm_statistics}",
            )

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the paper's recipe for CUB."""
        return "ssanet_cub"

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:
        """Give the paper's recipes the length of the stages that the run has."""
        assert isinstance(config, SsanetConfig)
        _check(config)
        return (
            replace(recipe, epochs=sum(length for _, length in stages_of(config)))
            if name in cls.recipes
            else recipe
        )

    # --- the stages of a run --------------------------------------------------------------------------------
    def learning_at(self, epoch: int | float, epochs: int) -> tuple[frozenset[str], int, int]:
        """Return the trained modules, the stage's first epoch, and the epoch after its last."""
        if epochs < len(self.stages):
            return frozenset().union(*(names for names, _ in self.stages)) - {"3"}, 0, epochs
        place = stage_at(epoch, epochs, [length for _, length in self.stages])
        return self.stages[place.stage][0], place.start, place.stop

    def _set_learning(self, learning: frozenset[str]) -> None:
        self.learning = learning
        proposing, config = bool(learning & {"1a", "3"}), self.config
        learns = {
            self.backbone: "1a" in learning,
            self.navigator: proposing and config.rank_loss != "none",
            self.part_classifier: proposing,
            self.global_classifier: bool(learning & {"1a", "2"}) and config.aux_global,
            self.heads.mining or self.heads.pyramid: "1b" in learning,
            self.heads.orienting: "2" in learning,
        }
        for module, on in learns.items():
            if module is not None:
                module.requires_grad_(on).train(on and self.training)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze the modules that do not learn. DSM on pooled vectors starts from the trained FC."""
        learning, start, _ = self.learning_at(epoch, epochs)
        self._set_learning(learning)
        if epoch == start and "1b" in learning and "1a" not in learning:
            self.heads.start_from(self.part_classifier)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to each stage. The last one has a tenth of the rate."""
        learning, start, stop = self.learning_at(progress * recipe.epochs, recipe.epochs)
        if learning == {"3"}:
            return 0.1
        factor = recipe.lr_factor((progress * recipe.epochs - start) / (stop - start))
        return factor if "1a" in learning else factor * self.config.module_rate

    # --- the method -----------------------------------------------------------------------------------------
    def look(
        self,
        images: Float[Tensor, "b 3 S S"],
        features: Float[Tensor, "b d h w"],
        boxes: Float[Tensor, "b n 4"],
    ) -> list[Tensor]:
        """Return the last stages of each part, (B, n, D, h, h)."""
        if self.config.part_source == "roi":
            return [aligned_regions(features, boxes, images.shape[-1], self.part_side)]
        with self.part_statistics.in_use(self.backbone):
            return reextract_features(
                self.backbone,
                images,
                boxes,
                self.part_size,
                depth=self.heads.depth,
                chunk=self.config.crop_chunk,
            )

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return logits of the parts, maps of the global classifier, and the aligned parts."""
        config, size = self.config, images.shape[-1]
        stages = self.backbone.stages(images)
        features = next(reversed(stages.values()))
        proposed = nominate(self.navigator(features, size), size, config.parts, config.nms)
        reading = self.heads(partial(self.look, images, features), proposed.boxes)
        scores = [y.sum(dim=1) for y in (reading.scales, reading.orientations) if y is not None]
        scores = scores or [self.part_classifier(self.heads.pool(reading.features)).sum(dim=1)]
        if config.fusion == "G+P":
            scores.append(self.global_classifier(features.mean(dim=(2, 3))))
        return ForwardPass(
            logits=fuse_scores(scores, config.fuse),
            maps_of=lambda class_ids: class_activation_maps(
                features, self.global_classifier.weight, class_ids
            ),
            stages=stages,
            penultimate=features,
            propose=lambda: replace(proposed, boxes=reading.boxes),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of the current stage; see the module."""
        config, learning, images, labels = self.config, self.learning, batch.images, batch.labels
        features, size = self.backbone.run(images), images.shape[-1]
        look = partial(self.look, images, features)
        proposed = nominate(self.navigator(features, size), size, config.proposals, config.nms)
        terms: dict[str, Tensor] = {}
        # Global classifier.
        if config.aux_global and learning & {"1a", "2"}:
            whole = cross_entropy(self.global_classifier(features.mean(dim=(2, 3))), labels)
            terms["global"] = whole if "1a" in learning else whole / 3
        # Parts: FC, ranking and MAC.
        if learning & {"1a", "3"}:
            parts = self.heads.pool(look(proposed.boxes)[-1])  # (B, M, D)
            costs = part_costs(self.part_classifier(parts), labels)
            terms["part"] = costs[:, : config.parts].sum(dim=1).mean()  # (1)
            if config.rank_loss == "nts":
                terms["rank"] = rank_loss(proposed.scores, costs)
            if "1a" in learning and config.mac_weight > 0:
                mac = mac_loss(
                    parts[:, : config.parts], with_self=config.mac_self, reduction=config.mac_reduction
                )
                terms["mac"] = config.mac_weight * mac  # (1)
        # DSM and OP, on the first K parts.
        if learning & {"1b", "2"}:
            reading = self.heads(look, proposed.boxes[:, : config.parts], labels, orient="2" in learning)
            for name, scores in (
                ("scale", reading.scales if "1b" in learning else None),
                ("orientation", reading.orientations),
            ):
                if scores is not None:
                    terms[name] = part_costs(scores, labels).sum(dim=1).mean()
                    terms[f"{name}_sum"] = cross_entropy(scores.sum(dim=1), labels)
        return terms


def _check(config: SsanetConfig) -> None:
    """Raise `UsageError` on settings that are invalid together."""
    who, lengths = "of method 'ssanet'", config.stage_epochs
    if not 1 <= config.parts <= config.proposals:
        raise UsageError(
            f"settings parts={config.parts} and proposals={config.proposals} {who}: expected 1 <= parts <= "
            "proposals"
        )
    if config.part_net and config.dsm == "none" and not config.op:
        raise UsageError(
            f"setting part_net={config.part_net} {who} leaves nothing to train: expected dsm or op"
        )
    if len(lengths) != 4 or min(lengths[:3]) < 1 or lengths[3] < 0:
        raise UsageError(
            f"setting stage_epochs={','.join(map(str, lengths))} {who}: expected four lengths; only the "
            "last may be 0"
        )
    if config.part_source == "roi" and config.norm_statistics == "per_input":
        raise UsageError(
            f"settings part_source=roi and norm_statistics=per_input {who}: parts are cut from the image's "
            "features and have no statistics; use part_source=crop"
        )
    if config.part_source == "roi" and config.dsm == "fpn":
        raise UsageError(
            f"settings part_source=roi and dsm=fpn {who}: a feature pyramid needs the backbone's stages; "
            "use part_source=crop"
        )
