"""OPAM, a re-reading: the object in the class map, and a pair of parts.

Y. Peng, X. He, J. Zhao, "Object-part attention model for fine-grained image classification", IEEE
Transactions on Image Processing 27(3), 2018 (arXiv:1704.01740). Released code: PKU-ICST-MIPL/OPAM_TIP2018
(Cars alone). The numbers of the equations are those of this file.

A re-reading: it keeps the choice of object and parts, and not the training. Published numbers of OPAM are not
its numbers. The original fine-tunes on filtered patches of Selective Search, and chooses parts among its
boxes.

Idea. The object is the box around the class activation map. Among boxes in it, a pair is chosen that covers
much of it, overlaps little, and is salient. Filters of the network, grouped by spectral clustering, say which
of the two is which part. Classifiers of image, object and parts are added.

    paper    name                       shape
    M        maps                       (B, h, w)       class activation map without negative values
    b        object_box(M)              (B, 4)          `part_selection.py`
    p        candidates                 (1614, 4)       anchors of NTS-Net, scaled and clipped to the image
    A_U, ..  pair_scores(...)           (B, R, R)
    W        filter_similarity(...)     (D, D)          D filters of the last convolution
             channel_group              (D,)            buffer
    q        logits = log q             (B, C)

    (1)  b = the largest box around a connected region of M >= 0.2 max M
    (2)  candidates: |p & b| / |p| > 0.7 and |p & b| / |b| > 0.4; if fewer than two, the second condition
         alone
    (3)  parts = the pair with the highest log(A_U - A_I - A_O) + log(mean of M over the union), with the
         areas of union, intersection within b, and union outside of b. Without two candidates: the two
         highest |p & b| / |p|.
    (4)  W = cosines of the filters; eigenvectors 2 and 3 of the Laplacian of W + W^T, rows normalised,
         2-means
    (5)  Part j is the box where the channels of group j are more active.
    (6)  q = 0.5 softmax(image) + 0.3 softmax(object) + 0.2 mean over parts of softmax(part)

A run has two stages: the image classifier; then the classifiers of object and parts. The latter are copies of
the trained image classifier, each with its own network, that learn on crops of the frozen model's boxes. M is
the map of the label in training, and of the prediction at test. Each stage has the recipe's whole schedule. A
run of one epoch trains everything at once.

Maps. Class maps are those of the image classifier. The extra map `object` is the box b. `propose` gives both
parts, by the mean of M. Parts of an image with too few candidates are `padded`. A part covers 40 % of the
object or more, so its centre is far from most key points.

Control: `part_boxes=halves`, the upper and lower half of the object. The plain network: `baseline` with this
recipe.

Departures and open readings
    patches    Random crops of the recipe stand for the filtered patches of Selective Search.
    (1)        Regions are those of the grid of M, with 8 neighbours. The released code takes the largest of
               all boxes at three thresholds, 20, 100 and 110 of 255.
    (2)        The values are those of the released code, which draws 200 of more candidates. Here the 200
               stay that have the largest integral of M within b. The released code has a further step before
               the last resort.
    (3)        In the released code the resized saliency is read at wrong coordinates: a test of the image's
               size looks at the number of its dimensions. Its sum over a pair leaves out the first box.
    (4)        The filters of the last convolution, after stage 1, but no shortcut's. Released: those of
               conv5_3 of VGG-19. As released, the first eigenvector is dropped as if it were constant. With
               negative cosines it need not be, and can be the one that separates.
    (5)        Activations are means of F over the part and the group, and parts are matched one to one, by
               the larger sum of both. The released code passes each cut-out part through the network, adds
               over the group, lets each group take its best box, and does not use the result.
    networks   Each part has its own. The released code trains one network on both parts of all images, so
               there it does not matter which part is which.
    (6)        The weights are those of the released code for Cars. It adds scores that are standardised over
               the test images, and reads 195 of 196 classes.
    recipe     Rate and batch as released. New layers have ten times the rate; released: the same. Epochs are
               chosen here, so the fall after 25,000 steps is never reached.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import FINE_GRAINED, Recipe
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.navigator import nts_anchors
from reference_models.layers.regions import crop_resize, union
from reference_models.recognition.opam.part_selection import (
    PARTS,
    align_parts,
    filter_similarity,
    halves,
    object_box,
    part_pair,
    ranked_parts,
    spectral_groups,
)
from reference_models.training.stages import stage_at, stage_if_any, stage_lr_factor
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Epochs, ShareBelow1, SideOrDefault

PAPER = "opam"

SHARES = (0.5, 0.3, 0.2)
"""Weights of image, object and parts in (6): released code for Cars."""
SHORTCUTS = frozenset({"downsample", "shortcut"})
"""Names of the branch of a residual block that skips its convolutions."""


@dataclass(frozen=True, kw_only=True)
class OpamConfig(MethodConfig):
    """Settings of `opam`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict"})

    threshold: ShareBelow1 = 0.2
    """Threshold of (1), relative to the maximum of M. This value is ours."""
    crop_size: SideOrDefault = 0
    """Side to which object and parts are resized. 0: half the input's."""
    part_boxes: Literal["pair", "halves"] = "pair"
    """Parts: the pair of (3), or as a control the upper and lower half of the object."""
    stage_epochs: tuple[Epochs, ...] = (40, 20)
    """Lengths of the two stages. These are ours. A run of another length scales them."""
    predict: Literal["full", "image", "object", "parts"] = "full"
    """Terms of (6) that predict."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stage_epochs) != 2:
            raise UsageError(
                f"setting stage_epochs={','.join(map(str, self.stage_epochs))} of method 'opam': expected 2 "
                "lengths, for example stage_epochs=40,20"
            )
        if self.crop_size == 1:
            raise UsageError(
                "setting crop_size=1 of method 'opam': expected at least 2 pixels, or 0: half the input"
            )


class Opam(Recognizer):
    """See the module."""

    method_name = "opam"
    Config = OpamConfig
    config: OpamConfig
    channel_group: Tensor
    recipes = MappingProxyType({"opam": FINE_GRAINED["opam"]})

    def __init__(self, backbone: Backbone, num_classes: int, config: OpamConfig) -> None:
        super().__init__(backbone, num_classes, config)
        width = backbone.channels[-1]
        self.filters = _last_filters(backbone)
        self.image_classifier = nn.Linear(width, num_classes)
        self.networks = nn.ModuleList(copy.deepcopy(backbone) for _ in range(1 + PARTS))
        self.classifiers = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(1 + PARTS))
        self.register_buffer("channel_group", torch.arange(width) * PARTS // width)
        self._set_learning(frozenset({0}))

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the recipe with the released rate and batch."""
        return "opam"

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Return as `Model.is_new`, but False for copies of the backbone."""
        return super().is_new(name, recipe) and not name.startswith("networks.")

    # --- the stages of a run --------------------------------------------------------------------------------
    def learning_at(self, epoch: int | float, epochs: int) -> tuple[frozenset[int], int, int]:
        """Return the stages that learn, their first epoch, and the epoch after their last."""
        if epochs < 2:
            return frozenset({0, 1}), 0, epochs
        place = stage_at(epoch, epochs, self.config.stage_epochs)
        return frozenset({place.stage}), place.start, place.stop

    def _set_learning(self, learning: frozenset[int]) -> None:
        """Freeze everything that does not belong to the stages in `learning`."""
        self.learning = learning
        for network in self.networks:
            assert isinstance(network, Backbone)
            network.frozen = self.backbone.frozen  # stages that the recipe freezes
        for stage, modules in (
            (0, (self.backbone, self.image_classifier)),
            (1, (*self.networks, *self.classifiers)),
        ):
            for module in modules:
                module.requires_grad_(stage in learning).train(stage in learning and self.training)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze what does not learn. Copy the image classifier and group its filters before stage 2."""
        learning, start, _ = self.learning_at(epoch, epochs)
        self._set_learning(learning)
        if epoch != start or 1 not in learning:
            return
        weight = self.backbone.get_parameter(self.filters).detach().flatten(1).cpu().double().numpy()
        groups = spectral_groups(filter_similarity(weight), PARTS)
        self.channel_group.copy_(torch.from_numpy(groups))
        if 0 not in learning:
            for network, classifier in zip(self.networks, self.classifiers, strict=True):
                network.load_state_dict(self.backbone.state_dict())
                classifier.load_state_dict(self.image_classifier.state_dict())

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to each stage."""
        place = stage_if_any(progress * recipe.epochs, recipe.epochs, self.config.stage_epochs)
        return stage_lr_factor(recipe, progress, place)

    # --- the method -----------------------------------------------------------------------------------------
    @torch.no_grad()
    def find(
        self, features: Float[Tensor, "b d h w"], class_ids: Int[Tensor, " b"], size: int
    ) -> tuple[Float[Tensor, "b 3 4"], Float[Tensor, "b h w"], Bool[Tensor, " b"]]:
        """Return the boxes of object and parts, M, and whether there were candidates, eq. (1)-(5)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            maps = class_activation_maps(features, self.image_classifier.weight, class_ids[:, None])[:, 0]
            maps = maps.relu()
            around = object_box(maps, self.config.threshold, size)
            if self.config.part_boxes == "halves":
                parts, found = halves(around), torch.ones_like(class_ids, dtype=torch.bool)
            else:
                anchors = nts_anchors(size, features.device).clamp(0, size)
                parts, found = part_pair(anchors, around, maps, size)
                parts = align_parts(features, parts, self.channel_group, size)
        return torch.cat([around[:, None], parts], dim=1), maps, found

    def classify(
        self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b 3 4"]
    ) -> Float[Tensor, "b 3 c"]:
        """Return the logits of object and parts, each by its own network."""
        crops = crop_resize(images, boxes, self.config.crop_size or images.shape[-1] // 2)
        of_box = crops.view(len(boxes), -1, *crops.shape[1:]).unbind(dim=1)
        logits = []
        for network, classifier, crop in zip(self.networks, self.classifiers, of_box, strict=True):
            assert isinstance(network, Backbone)
            logits.append(classifier(network.run(crop).mean(dim=(2, 3))))
        return torch.stack(logits, dim=1)

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return log q, maps of the image classifier, and both parts."""
        stages, size = self.backbone.stages(images), images.shape[-1]
        features = next(reversed(stages.values()))
        image = self.image_classifier(features.mean(dim=(2, 3)))
        boxes, maps, found = self.find(features, image.argmax(dim=1), size)
        others = self.classify(images, boxes).float().softmax(dim=2)
        terms = {
            "image": image.float().softmax(dim=1),
            "object": others[:, 0],
            "parts": others[:, 1:].mean(dim=1),
        }
        terms["full"] = sum(
            (share * terms[name] for share, name in zip(SHARES, ("image", "object", "parts"), strict=True)),
            torch.zeros_like(terms["image"]),
        )
        predicted = terms[self.config.predict]
        around = Proposals(boxes=boxes[:, :1], scores=torch.ones_like(boxes[:, :1, 0]))
        return ForwardPass(
            logits=predicted.clamp_min(torch.finfo(predicted.dtype).tiny).log(),
            maps_of=lambda class_ids: class_activation_maps(
                features, self.image_classifier.weight, class_ids
            ),
            stages=stages,
            penultimate=features,
            propose=lambda: ranked_parts(boxes[:, 1:], maps, found, size),
            extra_maps={"object": union(around, size)},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the image, or those of object and parts."""
        images, labels, terms = batch.images, batch.labels, {}
        features = self.backbone.run(images)
        if 0 in self.learning:
            terms["image"] = cross_entropy(self.image_classifier(features.mean(dim=(2, 3))), labels)
        if 1 in self.learning:
            boxes, _, _ = self.find(features, labels, images.shape[-1])
            logits = self.classify(images, boxes).unbind(dim=1)
            terms["object"] = cross_entropy(logits[0], labels)
            for number, one in enumerate(logits[1:], start=1):
                terms[f"part{number}"] = cross_entropy(one, labels)
        return terms


def _last_filters(backbone: Backbone) -> str:
    """Return the name of the weight of the last convolution with as many filters as the last stage.

    A residual block may register its shortcut last; convolutions of shortcuts do not count. Raises
    `UsageError` if there is none.
    """
    names = [
        f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.out_channels == backbone.channels[-1]
        and not set(name.split(".")) & SHORTCUTS
    ]
    if not names:
        raise UsageError(
            f"method 'opam' groups the filters of the last convolution, and {backbone.name} has none with "
            f"{backbone.channels[-1]} channels; use a convolutional network, for example resnet50"
        )
    return names[-1]
