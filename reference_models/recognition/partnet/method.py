"""PartNet: detectors that learn from image labels which boxes are parts.

Y. Zhang, K. Jia, Z. Wang, "Part-aware fine-grained object categorization using weakly supervised part
detection network", arXiv:1806.06198 (IEEE Transactions on Multimedia 2020). Released code:
Gorilla-Lab-SCUT/PartNet, which this file was checked against. The numbers of the equations are those of this
file.

Idea. Boxes are proposed straight from the cells where feature channels peak (Discretized Part Proposals,
DPP). One stream classifies each box, another one says which of P part detectors it belongs to. The product,
summed over the boxes, is a score of the image. So detectors learn from the labels of images. The best box of
each detector is cut out and classified, and all scores are added (PartNet-Full).

    paper    name                       shape
    F        detect(...).features       (B, C, h, w)    28x28 cells at 448 pixels
             part_boxes                 (B, R, 4)       `part_proposals.py`; R = 49 centres x 28 shapes
    x_r      pool_boxes                 (B, R, 9 C)
    c_r      detect(...).classes        (B, R, Y)       `detectors.py`
    d_rp     detect(...).detections     (B, R, P)       P = 3
    w_rp     detection_weights          (B, R, P)
    s_y      image_scores               (B, Y)
    q        fused_scores               (B, Y)          `fusion.py`; logits = log q

    (1)  49 centres, one in each of 7x7 squares of cells: the cell where most channels peak (no channel: the
         highest sum of the channels). 28 shapes around each, clipped to the image.
    (2)  x_r = the maxima of 3x3 bins of box r, for two streams: linear layer, ReLU, dropout, linear layer
    (3)  c_r = softmax over the Y classes and background, without background
    (4)  d_r = softmax over the P parts and background, without background; w_rp = softmax over r of d_rp
    (5)  s_y = mean_p sum_r c_ry w_rp
    (6)  L = BCE(s, one-hot label), the mean over classes and images
    (7)  After each epoch, singular values of both last layers are clamped to [1 / 1.5, 1.5] (SVB).
    (8)  Classifier of part p: cross-entropy on one of the 50 boxes with the highest d_rp, at test the first
    (9)  q = (softmax(image) + sum_p softmax(part p) + s / sum_y s_y) / (P + 2)

A run has three stages: image classifier; detectors, (1)-(7); part classifiers, (8). What does not learn is
frozen and in evaluation mode, batch norm included. Each stage has the recipe's whole schedule of the rate.
Networks of later stages start as copies of the trained image classifier. A run of fewer epochs than stages
trains everything at once. Before the last stage, q has terms that are not trained: see `predict`.

Variants. `paper` has its own network for the detectors and one for each part, 4096 hidden units, and parts of
448 pixels, as released. `official` adds the errors of the released proposals (`part_proposals.py`). `light`
(default) keeps the image network frozen under the detectors, has one network for all parts, 512 hidden units,
and parts of half the input.

Finding. In (4) the second softmax runs over probabilities, so weights of an image differ by a factor of e at
most. None of 1,372 boxes has more than 0.2 % of the weight, and (5) is close to the mean of all boxes.
`det_norm=linear` divides by the sum in place of this softmax.

Maps. Class maps are those of the image classifier. The extra map `part1` is at each cell the mean d_r1 of the
boxes on it, which count by the share of the cell that they cover, and so on. `propose` gives the best box of
each detector. A box that two detectors chose is `padded`.

Control: `choice=random`, boxes of (8) anywhere among the proposals. The plain network: `baseline` with this
recipe.

Departures and open readings
    F          The last stage with a stride of at most 16: the last one of VGG, layer 3 of ResNet.
    (4)        What of it the paper prints is not verified; the released code is followed.
    (7)        Not after the last epoch of the stage, as released. Both layers, as the code runs; a comment in
               it says that the detection stream was not bounded in the experiments.
    (8)        Boxes are found in the augmented view. Released: in the central view, before training, 50
               images per part and image in each epoch. Here a part is one image in each epoch, so 30 epochs
               are fewer steps.
    stages     `stage_epochs` 160, 160, 30 as released; a run of another length scales them.
    recipe     Rates of all layers fall together, at 1/2 and 3/4 of a stage. Released: layers from ImageNet
               keep their rate, new ones fall from 100 times that to it, and part classifiers fall at 1/3 and
               2/3. The batch of 64 is that of the released detectors; the classifiers' is 128.
    epoch      The last one. The released stages keep the epoch with the best accuracy on the test images.
    network    The paper's VGG-19 with batch norm is here `timm:vgg19_bn`. Its image classifier is behind the
               last pooling, which the released network does not have.
    view       Images are squashed to a square; the released code keeps their aspect ratio.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import FINE_GRAINED, Recipe
from reference_models.layers.heads import class_activation_maps, cross_entropy
from reference_models.layers.regions import crop_resize
from reference_models.layers.trunks import copy_trunk
from reference_models.recognition.partnet.detectors import (
    Detected,
    DetectionNorm,
    Detectors,
    detection_weights,
    image_scores,
    score_loss,
)
from reference_models.recognition.partnet.fusion import (
    best_boxes,
    draw_boxes,
    fixed_boxes,
    fused_scores,
    mean_detections,
    ranked_boxes,
)
from reference_models.recognition.partnet.part_proposals import (
    BINS,
    ProposalRule,
    centre_cells,
    part_boxes,
    pool_boxes,
    shape_corners,
)
from reference_models.training.stages import stage_at, stage_if_any, stage_lr_factor
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Count, Epochs, Range, ShareBelow1, SideOrDefault

PAPER = "partnet"

STRIDE = 16
"""Largest stride of F."""
STAGES = ("image", "detectors", "parts")
RELEASED = MappingProxyType(
    {"detector_network": "own", "part_network": "each", "hidden": 4096, "part_size": 448}
)
"""Networks of the released code."""


@dataclass(frozen=True, kw_only=True)
class PartnetConfig(MethodConfig):
    """Settings of `partnet`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"predict"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "light": MappingProxyType({}),
            "paper": RELEASED,
            "official": MappingProxyType({**RELEASED, "proposals": "official"}),
        }
    )

    variant: Literal["light", "paper", "official"] = "light"
    """`paper`: the released networks. `official`: with the released errors. `light`: smaller ones."""
    parts: Annotated[int, Range(1, 16)] = 3
    """P: released code."""
    detector_network: Literal["shared", "own"] = "shared"
    """Network of F: the frozen image classifier, or a copy that stage 2 fine-tunes (released code)."""
    part_network: Literal["one", "each"] = "one"
    """Networks of the part classifiers: one for all parts, or one for each (released code)."""
    hidden: Channels = 0
    """Hidden units of a stream: 4096 in the released code. 0: 512, but at most twice the channels of F."""
    part_size: SideOrDefault = 0
    """Side to which a part is resized: 448 in the released code. 0: half the input's."""
    proposals: ProposalRule = "repaired"
    """Whether (1) is as intended, or has the errors of the released code."""
    det_norm: DetectionNorm = "softmax"
    """w in (4): a softmax of probabilities (released code), or their share of the sum."""
    dropout: ShareBelow1 = 0.5
    """Dropout before the last layer of a stream: released code."""
    svb: Annotated[float, Range(0, 1000)] = 1.5
    """Largest singular value in (7), and inverse of the smallest: released code. 0: no bound."""
    candidates: Count = 50
    """Boxes of each part that (8) trains on: released code."""
    choice: Literal["detector", "random"] = "detector"
    """Boxes of (8): those with the highest d_rp, or as a control any of the proposals."""
    stage_epochs: tuple[Epochs, ...] = (160, 160, 30)
    """Lengths of the three stages: released code. A run of another length scales them."""
    predict: Literal["full", "image", "partnet", "parts"] = "full"
    """Terms of (9) that predict: all (PartNet-Full), or one kind of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stage_epochs) != len(STAGES):
            raise UsageError(
                f"setting stage_epochs={','.join(map(str, self.stage_epochs))} of method 'partnet': expected "
                f"{len(STAGES)} lengths, for example stage_epochs=160,160,30"
            )
        if 0 < self.svb < 1:
            raise UsageError(
                f"setting svb={self.svb} of method 'partnet': expected at least 1, or 0: no bound; singular "
                "values are clamped to [1 / svb, svb]"
            )
        if self.part_size == 1:
            raise UsageError(
                "setting part_size=1 of method 'partnet': expected at least 2 pixels, or 0: half the input"
            )


class Partnet(Recognizer):
    """See the module."""

    method_name = "partnet"
    Config = PartnetConfig
    config: PartnetConfig
    corners: Tensor
    recipes = MappingProxyType({"partnet": FINE_GRAINED["partnet"]})

    def __init__(self, backbone: Backbone, num_classes: int, config: PartnetConfig) -> None:
        super().__init__(backbone, num_classes, config)
        width, fine = backbone.channels[-1], [stage for stage in backbone.layout if stage.stride <= STRIDE]
        self.part_stage = (fine or backbone.layout)[-1]
        channels, own = self.part_stage.channels, config.detector_network == "own"
        networks = config.parts if config.part_network == "each" else 1
        self.image_classifier = nn.Linear(width, num_classes)
        self.detector_network = copy_trunk(backbone, STRIDE) if own else None
        self.detectors = Detectors(
            BINS**2 * channels,
            config.hidden or min(512, 2 * channels),
            num_classes,
            config.parts,
            config.dropout,
        )
        self.part_networks = nn.ModuleList(copy.deepcopy(backbone) for _ in range(networks))
        self.part_classifiers = nn.ModuleList(nn.Linear(width, num_classes) for _ in range(config.parts))
        self.register_buffer("corners", shape_corners(config.proposals), persistent=False)
        self._set_learning(frozenset({"image"}))

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:  # noqa: ARG003 - one for all
        """Return the released recipe."""
        return "partnet"

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Return as `Model.is_new`, but False for copies of the backbone."""
        return super().is_new(name, recipe) and not name.startswith(("detector_network.", "part_networks."))

    # --- the stages of a run --------------------------------------------------------------------------------
    def learning_at(self, epoch: int | float, epochs: int) -> tuple[frozenset[str], int, int]:
        """Return the stages that learn, their first epoch, and the epoch after their last."""
        if epochs < len(STAGES):
            return frozenset(STAGES), 0, epochs
        place = stage_at(epoch, epochs, self.config.stage_epochs)
        return frozenset({STAGES[place.stage]}), place.start, place.stop

    def _set_learning(self, learning: frozenset[str]) -> None:
        """Freeze everything that does not belong to the stages in `learning`."""
        self.learning = learning
        own = () if self.detector_network is None else (self.detector_network,)
        for network in (*own, *self.part_networks):
            assert isinstance(network, Backbone)
            frozen = self.backbone.frozen  # stages that the recipe freezes
            network.frozen = tuple(name for name in frozen if name in network.steps)
        stages: dict[str, tuple[nn.Module, ...]] = {
            "image": (self.backbone, self.image_classifier),
            "detectors": (*own, self.detectors),
            "parts": (*self.part_networks, *self.part_classifiers),
        }
        for name, modules in stages.items():
            for module in modules:
                module.requires_grad_(name in learning).train(name in learning and self.training)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze what does not learn, and copy the trained image classifier at the start of a stage."""
        learning, start, _ = self.learning_at(epoch, epochs)
        self._set_learning(learning)
        if epoch == start and learning == {"detectors"} and self.detector_network is not None:
            self.detector_network.load_state_dict(self.backbone.state_dict(), strict=False)  # it ends earlier
        if epoch == start and learning == {"parts"}:
            for network in self.part_networks:
                network.load_state_dict(self.backbone.state_dict())
            for classifier in self.part_classifiers:
                classifier.load_state_dict(self.image_classifier.state_dict())

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Bound singular values after each epoch of the detectors except the last, eq. (7)."""
        learning, _, stop = self.learning_at(epoch, epochs)
        if "detectors" in learning and self.config.svb > 0 and epoch + 1 < stop:
            self.detectors.bound(self.config.svb)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to each stage."""
        place = stage_if_any(progress * recipe.epochs, recipe.epochs, self.config.stage_epochs)
        return stage_lr_factor(recipe, progress, place)

    # --- the method -----------------------------------------------------------------------------------------
    def detect(
        self,
        images: Float[Tensor, "b 3 S S"],
        stages: Mapping[str, Tensor],
        generator: torch.Generator | None = None,
    ) -> Detected:
        """Return boxes with c and d, eq. (1)-(4). `stages` are those of the image network."""
        rule, size = self.config.proposals, images.shape[-1]
        if self.detector_network is None:
            features = stages[self.part_stage.name].detach()
        else:
            features = self.detector_network.stages(images)[self.part_stage.name]
        grid = (features.shape[2], features.shape[3])
        boxes = part_boxes(centre_cells(features, rule), self.corners, grid, size, rule)
        classes, detections = self.detectors(pool_boxes(features, boxes, size, rule), generator)
        return Detected(features, boxes, classes, detections)

    def choose(
        self, detections: Float[Tensor, "b r p"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "b p"]:
        """Return the box of each part, eq. (8). With a generator, in training, it is drawn."""
        any_box = self.config.choice == "random"
        if generator is None:
            return fixed_boxes(detections) if any_box else best_boxes(detections)
        candidates = detections.shape[1] if any_box else self.config.candidates
        return draw_boxes(detections, candidates, generator)

    def classify_parts(
        self, images: Float[Tensor, "b 3 S S"], boxes: Float[Tensor, "b p 4"]
    ) -> Float[Tensor, "b p y"]:
        """Return the logits of each part by its own classifier."""
        count, parts = boxes.shape[:2]
        crops = crop_resize(images, boxes, self.config.part_size or images.shape[-1] // 2)
        if self.config.part_network == "one":
            pooled = self._features(0, crops).view(count, parts, -1)
        else:
            of_part = crops.view(count, parts, *crops.shape[1:])
            pooled = torch.stack([self._features(part, of_part[:, part]) for part in range(parts)], dim=1)
        logits = [layer(x) for layer, x in zip(self.part_classifiers, pooled.unbind(dim=1), strict=True)]
        return torch.stack(logits, dim=1)

    def _features(self, number: int, crops: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Return the pooled features of a part network."""
        network = self.part_networks[number]
        assert isinstance(network, Backbone)
        return network.run(crops).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "b 3 S S"]) -> ForwardPass:
        """Return log q, the maps of the image classifier, and the best box of each detector."""
        stages, size = self.backbone.stages(images), images.shape[-1]
        features = next(reversed(stages.values()))
        image = self.image_classifier(features.mean(dim=(2, 3)))
        # Detectors, and the box of each part: (B, P).
        found = self.detect(images, stages)
        scores = image_scores(found.classes, detection_weights(found.detections, self.config.det_norm))
        chosen = self.choose(found.detections)
        boxes = found.boxes.take_along_dim(chosen[..., None], dim=1)
        parts = self.classify_parts(images, boxes)
        # Scores of the terms that predict.
        predicted = {
            "full": fused_scores(image, parts, scores),
            "image": image.float().softmax(dim=1),
            "partnet": scores,
            "parts": parts.float().softmax(dim=2).mean(dim=1),
        }[self.config.predict]
        grid = (found.features.shape[2], found.features.shape[3])
        own = mean_detections(found.boxes, found.detections, grid, size)
        return ForwardPass(
            logits=predicted.clamp_min(torch.finfo(predicted.dtype).tiny).log(),
            maps_of=lambda class_ids: class_activation_maps(
                features, self.image_classifier.weight, class_ids
            ),
            stages=stages,
            penultimate=features,
            propose=lambda: ranked_boxes(boxes, found.detections.gather(1, chosen[:, None])[:, 0], chosen),
            extra_maps={f"part{part + 1}": own[:, part].detach() for part in range(self.config.parts)},
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the stage: cross-entropy of the image, BCE of s, cross-entropy of the parts."""
        images, labels, terms = batch.images, batch.labels, {}
        stages = self.backbone.stages(images)
        if "image" in self.learning:
            whole = next(reversed(stages.values())).mean(dim=(2, 3))
            terms["image"] = cross_entropy(self.image_classifier(whole), labels)
        if not self.learning & {"detectors", "parts"}:
            return terms
        learns = "detectors" in self.learning
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            found = self.detect(images, stages, batch.generator if learns else None)
        if learns:
            weights = detection_weights(found.detections, self.config.det_norm)
            terms["detectors"] = score_loss(image_scores(found.classes, weights), labels)
        if "parts" in self.learning:
            chosen = self.choose(found.detections.detach(), batch.generator)
            logits = self.classify_parts(images, found.boxes.take_along_dim(chosen[..., None], dim=1))
            each = [cross_entropy(one, labels) for one in logits.unbind(dim=1)]
            # Networks of their own learn as if alone; in one network, the parts share its steps.
            terms["parts"] = sum(each, torch.zeros_like(each[0])) / (
                len(each) if self.config.part_network == "one" else 1
            )
        return terms
