"""GC-Net: fit an ellipse or box that keeps the class evidence inside.

W. Lu, X. Jia, W. Xie, L. Shen, Y. Zhou, J. Duan, "Geometry constrained weakly supervised object
localization", ECCV 2020. Released code: lwzeng/GC-Net.

Idea. A detector predicts the four or five numbers of a shape from the image. A generator turns them into a
soft mask. A frozen classifier then sees the masked image and the rest. The detector learns a small shape that
makes the classifier confident of the label inside, and of nothing outside.

    paper          name                            shape
    I              images                          (B, 3, H, W)
    detector       detector, regressor             a second copy of the backbone, and layers on it
    u              numbers                         (B, 4 or 5)   in (0, 1)
    generator      shape_mask (the code's `math`), or ShapeNet (`cnn`): see `shapes.py`
    m              masks, maps_of(class_ids)       (B, H, W)     in (0, 1); the same for every class
    classifier     backbone, head                  logits (B, C) of the whole image are its

    (1)  L_obj = CE(classifier(I m), y)
    (2)  L_bg = log C - H(softmax(classifier(I (1 - m))))      H: entropy; 0 if all classes are equally likely
    (3)  L_area = mean of w h
    (4)  L = L_obj + L_bg + kappa L_area

The numbers of the equations are those of this file. The paper's text was not at hand, and values are those of
the released code. The image is normalised before it is masked, so masked pixels have the data's mean colour.

The classifier. The paper starts with a trained one. Here it is one of these, in this order. First, that of
the checkpoint `classifier` (of `cam`, or another method that is a backbone and a head). Second, the
backbone's own, if the weights include one for these classes (`head=fc` on ImageNet). Third, it is trained by
cross-entropy in the first `classifier_part` of the run, and then frozen. Each part has the whole schedule of
the recipe. A run of one epoch, or with a trained classifier, trains only the detector (all 45 epochs of
`gc_net`; the code: 30). Validation accuracy does not measure the detector, so do not use the best
checkpoint.

The box of the shape, `propose()`, needs no threshold: `wsolbench eval --map union` scores it. The class's map
is m, 1/2 on the outline; its other level sets are shapes of other sizes. There are no stages for
post-processes, because no map of a class exists.

Departures. Backbones here have no fully connected layers: the regressor is a hidden layer on features pooled
to 7x7 (VGG-16 has that grid), or the mean over all pixels and one layer (ResNet, Inception). Inception's
input is 224, the code's 299. Width and height are those of the whole shape; the code takes halves for `rect`
with `cnn`. (2) has log C, the code 5.3, a constant. The released code's default, for ImageNet, has no area
term, and 200 epochs whose rate falls from the 20th on. The released code's generator `cnn` learns shapes that
OpenCV fills; here a shape is the pixels whose centres are inside.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.head_localizer import HeadConfig
from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch, ForwardPass, Proposals
from reference_models.core.recipes import Recipe
from reference_models.core.weights import digest_of_setting, load_parts
from reference_models.layers.heads import HeadKind, cross_entropy, make_head
from reference_models.localization.gc_net.shapes import (
    Shape,
    ShapeNet,
    count_numbers,
    shape_boxes,
    shape_mask,
    train_shape_net,
)
from wsolbench.exceptions import UsageError
from wsolbench.ranges import BatchSize, Channels, Positive, Share, Steps, Weight
from wsolbench.types import Dataset

PAPER = "gc-net"

DECAY_START = 2 / 3
"""Fraction of the detector's training after which its rate falls: epoch 20 of 30 in the released code."""


@dataclass(frozen=True, kw_only=True)
class GcNetConfig(HeadConfig):
    """Settings of `gc-net`. `head`, `width` and `dropout` are the classifier's."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": MappingProxyType({}),
            "official": MappingProxyType({"frozen_eval": False, "lr_decay": "compounding"}),
        }
    )

    variant: Literal["default", "official"] = "default"
    """`official`: the released code as it runs."""
    head: HeadKind = "fc"
    """`fc` starts from ImageNet's classifier if there is one."""
    shape: Shape = "ellipse"
    """`ellipse` and `rot_rect` have an angle; `rect` is upright."""
    generator: Literal["math", "cnn"] = "math"
    """`math`: the mask is a formula. `cnn`: a network draws it, trained for that before the run."""
    generator_steps: Steps = 120_000
    """Training steps of that network, at a rate that starts at 0.1: released code."""
    generator_batch: BatchSize = 128
    """Shapes in each step: released code."""
    sharpness: Positive = 10.0
    """Initial value of s of `math`, which is learned: released code."""
    area_weight: Weight | None = None
    """kappa. 0: no area term. None: 2.5 with `math`, 1 with `cnn`, times log C / log 200.

    The values are those of the released code for CUB. They are scaled because (1) and (2) are at most log C:
    with few classes shapes would shrink to nothing.
    """
    classifier: str = ""
    """Checkpoint with a trained classifier for these classes and this backbone.

    Not of `nl-ccam`, whose blocks would be dropped.
    """
    classifier_sha256: str = ""
    """Digest of that file, set when it is read."""
    classifier_part: Share = 1 / 3
    """Fraction of the run that trains the classifier, if it is not trained yet: this project's choice."""
    frozen_eval: bool = True
    """Whether the frozen classifier and generator are in evaluation mode.

    False (released code): batch norm and dropout are as in training.
    """
    lr_decay: Literal["linear", "compounding"] = "linear"
    """Decay of the rate in the last third.

    `linear`: to 0 along a line. `compounding`: after each epoch multiplied by that line's factor once more
    (released code).
    """
    pool: Channels = 0
    """Side of the regressor's input grid. 0: 7 for at most 512 channels, else 1, the mean over all pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classifier and not self.classifier_sha256:
            digest = digest_of_setting(
                self.classifier, setting="classifier of method 'gc-net'", example="cam"
            )
            object.__setattr__(self, "classifier_sha256", digest)


def background_loss(logits: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Return log C minus the entropy of the prediction, averaged over the batch, eq. (2)."""
    shares = logits.float().log_softmax(dim=1)
    entropy = -(shares.exp() * shares).sum(dim=1)
    return math.log(logits.shape[1]) - entropy.mean()


def decay_factor(progress: float, epochs: int, kind: Literal["linear", "compounding"]) -> float:
    """Return the detector's relative learning rate after `progress` in [0, 1] of its `epochs`."""
    start = DECAY_START * epochs
    if kind == "linear":
        return min(1.0, max(0.0, (1 - progress) * epochs / (epochs - start)))
    # The code multiplies when an epoch after the start is over, so the rate of the next one is the first that
    # falls.
    over = range(round(start) + 1, math.floor(progress * epochs + 1e-9))
    return math.prod(((epochs - epoch) / (epochs - round(start)) for epoch in over), start=1.0)


class Regressor(nn.Module):
    """Features (B, C, h, w) -> numbers of a shape (B, n) in (0, 1).

    At first all are near 1/2: half the image's sides, in the middle.
    """

    def __init__(self, channels: int, numbers: int, *, pool: int, hidden: int) -> None:
        super().__init__()
        inputs = channels * pool * pool
        layers = [] if pool == 1 else [nn.Linear(inputs, hidden), nn.ReLU()]
        last = nn.Linear(inputs if pool == 1 else hidden, numbers)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(pool), nn.Flatten(), *layers, last)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n"]:
        """Return u, the numbers of the shape."""
        numbers: Tensor = self.layers(features)
        return numbers.float().sigmoid()


class GcNet(Localizer):
    """See the module."""

    method_name = "gc-net"
    Config = GcNetConfig
    map_kind = "unit"
    config: GcNetConfig
    recipes: ClassVar[Mapping[str, Recipe]] = MappingProxyType(
        {
            "gc_net": Recipe(
                source=(
                    "lwzeng/GC-Net, 30 epochs of the detector; before them this project's 15 of the "
                    "classifier"
                ),
                epochs=45,
                batch_size=32,
                lr=1e-4,
                optimizer="adam",
                weight_decay=0.0,
                schedule="constant",
                # of the regressor's last layer and of s, as in the released code: see `is_new`
                new_factor=10.0,
            )
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: GcNetConfig) -> None:
        for name in ("sharpness", "generator_steps", "generator_batch"):
            if not getattr(config, name) > 0:
                raise UsageError(
                    f"setting {name}={getattr(config, name)} of method 'gc-net': expected a number greater "
                    "than 0"
                )
        if config.pool < 0 or not 0 < config.classifier_part < 1 or not (config.area_weight or 0) >= 0:
            raise UsageError(
                f"settings pool={config.pool}, classifier_part={config.classifier_part}, "
                f"area_weight={config.area_weight} of method "
                "'gc-net': expected at least 0, a part between 0 and 1, and a number that is not negative"
            )
        super().__init__(backbone, num_classes, config)
        # Classifier, detector and regressor.
        self.head = make_head(config.head, backbone, num_classes, width=config.width, dropout=config.dropout)
        self.classifier_is_trained = bool(config.classifier) or self.head.pretrained
        self.detector = copy.deepcopy(backbone)
        channels, numbers = backbone.channels[-1], count_numbers(config.shape)
        pool = config.pool or (7 if channels <= 512 else 1)
        self.regressor = Regressor(channels, numbers, pool=pool, hidden=config.width or backbone.head_width)
        # Generator.
        drawn = config.generator == "cnn"
        scaled = (1.0 if drawn else 2.5) * math.log(num_classes) / math.log(200)
        self.area_weight = scaled if config.area_weight is None else config.area_weight
        self.generator = ShapeNet(numbers).requires_grad_(False) if drawn else None
        self.sharpness = None if drawn else nn.Parameter(torch.tensor(config.sharpness))
        self._train_only(detector=self.classifier_is_trained)

    def load_referenced_weights(self) -> None:
        """Copy the classifier of the setting `classifier`."""
        if path := self.config.classifier:
            load_parts(self, Path(path), ("backbone", "head"), what="the classifier of gc-net")

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the released recipe for the backbones of the paper."""
        name = super().recipe_name(backbone, num_classes)
        return "gc_net" if name.startswith("spa") else name

    # --- classifier, then detector --------------------------------------------------------------------------
    def detector_start(self, epochs: int) -> int:
        """Return the first epoch that trains the detector."""
        return (
            0
            if self.classifier_is_trained
            else min(max(1, round(self.config.classifier_part * epochs)), epochs - 1)
        )

    def _train_only(self, *, detector: bool) -> None:
        for classifier in (self.backbone, self.head):
            classifier.requires_grad_(not detector)
        for learner in (self.detector, self.regressor):
            learner.requires_grad_(detector)
        if self.sharpness is not None:
            self.sharpness.requires_grad_(detector)

    def before_training(self, train: Dataset) -> None:  # noqa: ARG002 - shapes are made, not taken from the data
        """Train the generator `cnn`. A resumed run has already done it."""
        if self.generator is not None:
            steps, batch_size = self.config.generator_steps, self.config.generator_batch
            train_shape_net(self.generator, self.config.shape, steps=steps, batch_size=batch_size, lr=0.1)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Train either the classifier or the detector. `frozen_eval` sets the mode of what is frozen."""
        detecting = epoch >= self.detector_start(epochs)
        self._train_only(detector=detecting)
        if detecting and self.config.frozen_eval:
            self.backbone.eval()
            self.head.eval()
            if self.generator is not None:
                self.generator.eval()

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """The detector's backbone is as pretrained as the classifier's.

        In the released recipe only the regressor's last layer and s learn faster. The classifier, which is
        already trained there, learns at the base rate.
        """
        if recipe.source == self.recipes["gc_net"].source:
            return name.startswith(("sharpness", f"regressor.layers.{len(self.regressor.layers) - 1}."))
        return super().is_new(name.replace("detector.", "backbone.", 1), recipe)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to each part of the run. A constant rate falls in the last third."""
        start = self.detector_start(recipe.epochs) / recipe.epochs
        part = (0.0, start) if progress < start else (start, 1.0)
        done = (progress - part[0]) / (part[1] - part[0])
        if recipe.schedule != "constant":
            return recipe.lr_factor(done)
        return decay_factor(done, round((part[1] - part[0]) * recipe.epochs), self.config.lr_decay)

    # --- the method -----------------------------------------------------------------------------------------
    def classify(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c"]:
        """Return the classifier's logits."""
        logits: Tensor = self.head(next(reversed(self.backbone.stages(images).values()))).logits
        return logits

    def numbers(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n"]:
        """Return u, the detector's numbers."""
        numbers: Tensor = self.regressor(next(reversed(self.detector.stages(images).values())))
        return numbers

    def masks(self, numbers: Float[Tensor, "b n"], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """Return m, the generator's masks, in float32."""
        if self.generator is not None:
            mask: Tensor = self.generator(numbers, size)
            return mask
        assert self.sharpness is not None
        with torch.autocast(numbers.device.type, enabled=False):
            return shape_mask(numbers, self.config.shape, size, self.sharpness)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits of the whole image, one mask for all classes, and its box with score 1."""
        size = (images.shape[-2], images.shape[-1])
        numbers = self.numbers(images)
        masks = self.masks(numbers, size)
        boxes = shape_boxes(numbers, self.config.shape, size)[:, None]  # (B, 1, 4)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k H W"]:
            return masks[:, None].expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(
            logits=self.classify(images),
            maps_of=maps_of,
            propose=lambda: Proposals(boxes=boxes, scores=torch.ones_like(boxes[..., 0])),
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the classifier's cross-entropy in its part of the run, then the detector's loss, eq. (4)."""
        images = batch.images
        if batch.epoch < self.detector_start(batch.epochs):
            return {"cross_entropy": cross_entropy(self.classify(images), batch.labels)}
        numbers = self.numbers(images)
        mask = self.masks(numbers, (images.shape[-2], images.shape[-1]))[:, None]
        inside, outside = self.classify(torch.cat([images * mask, images * (1 - mask)])).chunk(2)
        terms = {
            "object": cross_entropy(inside, batch.labels),
            "background": background_loss(outside),
        }  # (1), (2)
        if self.area_weight > 0:
            terms["area"] = self.area_weight * (numbers[:, 2] * numbers[:, 3]).mean()  # (3)
        return terms
