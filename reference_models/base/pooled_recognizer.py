"""Base of classifiers on pooled products of features: backbone, representation, linear layer, two stages.

    x           features of the last stage      (B, C, h, w)
    z           representation.vector           (B, F)          `represent`
    W, b        classifier                      (Y, F), (Y,)
    logits      W z + b                         (B, Y)

A method defines `represent`, which turns features into a `Representation`: the input of the classifier, and
the maps of any weights of the classifier (`layers/second_order.py`). `read` chooses other features than the
last stage. Everything behind the backbone is float32, also in mixed precision.

A run has two stages (`core/pooled_recipes.py`). In the first one the backbone is frozen in evaluation mode,
and everything else learns. In the second one everything learns. A backbone without pretrained weights has no
first stage. VGG-16 and ResNet-50 have a published recipe (a method's page says whose) and 448 pixels by
default.

The extra map `gradient` is a control: the derivative of the predicted class's score by the weight of each
location. Its mean is 0 where the representation is normalised, so it cannot show what makes the score.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass, LazyMaps
from reference_models.core.pooled_recipes import HEAD_STAGES, POOLED, SHORT, HeadStage
from reference_models.core.profile import Profile, Stage
from reference_models.core.recipes import MANY_CLASSES, Recipe, default_recipe
from reference_models.layers.heads import cross_entropy
from reference_models.layers.second_order import Representation
from reference_models.training.stages import Place, stage_at
from wsolbench.exceptions import UsageError
from wsolbench.ranges import CountOrZero, Positive

MOST_CHANNELS, REDUCED = 512, 256

Features = tuple[Tensor, ...]
"""Outputs of one or several layers, each (B, C, h, w)."""


@dataclass(frozen=True, kw_only=True)
class PooledConfig(MethodConfig):
    """Settings of the stages of a run. None, or empty: those of the recipe."""

    stage_epochs: tuple[CountOrZero, ...] = ()
    """Relative lengths of both stages; the first can be 0. A run of any number of epochs scales them."""
    head_rate: Positive | None = None
    """Factor of the recipe's learning rate in the first stage."""
    head_factor: Positive | None = None
    """Factor of the classifier's learning rate in both stages, for SGD; `new_factor` is for other new layers.

    Adam's default is 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage_epochs and (len(self.stage_epochs) != 2 or self.stage_epochs[1] < 1):
            raise UsageError(
                f"setting stage_epochs is {','.join(map(str, self.stage_epochs))}; expected the lengths of "
                "two stages, of which the first may be 0: stage_epochs=1,2"
            )


class PooledRecognizer(Recognizer):
    """See the module."""

    Config = PooledConfig
    config: PooledConfig
    published_recipe: ClassVar[str]
    """Name of the recipe on the networks of the papers."""
    short_stage: ClassVar[HeadStage] = SHORT
    """First stage for recipes that state none. `SHORT` is for classifiers on unit vectors."""
    recipes = POOLED
    classifier: nn.Linear

    def __init__(self, backbone: Backbone, num_classes: int, config: PooledConfig) -> None:
        super().__init__(backbone, num_classes, config)
        name = config.recipe
        if name == "default":
            name = self._recipe_name(backbone.profile, num_classes)
            official = getattr(config, "variant", "") == "official"
            name = self.official_recipes.get(name, name) if official else name
        stage = HEAD_STAGES.get(name, self.short_stage)
        self.head_stage = replace(
            stage,
            lengths=(config.stage_epochs[0], config.stage_epochs[1])
            if config.stage_epochs
            else stage.lengths,
            rate=config.head_rate or stage.rate,
        )

    def add_classifier(self, inputs: int) -> None:
        """Add the linear layer on a representation of that length. A method's `__init__` ends with it."""
        self.classifier = nn.Linear(inputs, self.num_classes)

    # --- what a method defines ------------------------------------------------------------------------------
    def read(self, images: Float[Tensor, "b 3 H W"]) -> tuple[OrderedDict[str, Tensor], Features]:
        """Return the stages, and the features that are pooled: the last stage."""
        stages = self.backbone.stages(images)
        return stages, (next(reversed(stages.values())),)

    def read_steps(
        self, images: Float[Tensor, "b 3 H W"], steps: Sequence[Stage]
    ) -> tuple[OrderedDict[str, Tensor], Features]:
        """Return the stages, and the outputs of some steps inside the backbone."""
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> Tensor:
            if name in wanted:
                found[name] = output
            return output

        wanted = {step.name for step in steps}
        stages = self.backbone.stages(images, keep)
        return stages, tuple(found[step.name] for step in steps)

    def represent(self, features: Features) -> Representation:
        """Return the classifier's input and its maps.

        Features (B, C, h, w) are those of `read`, in float32. Autocast is off.
        """
        raise NotImplementedError

    def extra_maps(
        self, representation: Representation, weights: Callable[[], Float[Tensor, "b 1 f"]]
    ) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute the extra maps (B, h, w).

        `weights` returns the classifier's weights of the predicted class.
        """
        maps_of = representation.gradient_maps_of
        return {} if maps_of is None else {"gradient": lambda: maps_of(weights())[:, 0]}

    # --- forward pass and loss ------------------------------------------------------------------------------
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits, maps of any class, and the extra maps."""
        stages, features = self.read(images)
        weight = self.classifier.weight
        with self.full_precision(images):
            representation = self.represent(tuple(feature.float() for feature in features))
            logits = self.classifier(representation.vector)

        def maps_of(class_ids: Tensor) -> Tensor:
            with self.full_precision(images):
                return representation.maps_of(weight[class_ids])

        extra = self.extra_maps(representation, lambda: weight[logits.argmax(dim=1), None])
        return ForwardPass(
            logits=logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=features[-1],
            extra_maps=LazyMaps(extra, context=partial(self.full_precision, images)),
        )

    def score(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k"]:
        """Return the logits alone, float32, with their graph."""
        _, features = self.read(images)
        with self.full_precision(images):
            logits: Tensor = self.classifier(self.represent(tuple(each.float() for each in features)).vector)
        return logits

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the logits."""
        logits = self.score(batch.images)
        with self.full_precision(batch.images):
            return {"cross_entropy": cross_entropy(logits, batch.labels)}

    @staticmethod
    def full_precision(images: Tensor) -> torch.autocast:
        """Return the context without mixed precision."""
        return torch.autocast(images.device.type, enabled=False)

    # --- defaults for a backbone ----------------------------------------------------------------------------
    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:
        """Return 448 on the networks of the papers, except for ImageNet."""
        return 448 if is_published(read_profile(backbone), num_classes) else None

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the paper's recipe on the networks of the papers, else the backbone's."""
        return cls._recipe_name(read_profile(backbone), num_classes)

    @classmethod
    def _recipe_name(cls, profile: Profile, num_classes: int) -> str:
        if is_published(profile, num_classes):
            return cls.published_recipe
        return default_recipe(profile.recipe_family, num_classes)

    # --- the stages of a run --------------------------------------------------------------------------------
    def place_at(self, epoch: int | float, epochs: int) -> Place:
        """Return the stage of a time: 0 for the head alone, 1 for everything."""
        head, everything = self.head_stage.lengths
        if not head or epochs < 2 or self.backbone.weights.sha256 is None:
            return Place(1, 0, epochs)
        return stage_at(epoch, epochs, (head, everything))

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Freeze the backbone in the first stage."""
        on = self.place_at(epoch, epochs).stage == 1
        self.backbone.requires_grad_(on).train(on and self.training)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to the second stage, and the steps of `HeadStage` to the first."""
        place, plan = self.place_at(progress * recipe.epochs, recipe.epochs), self.head_stage
        part = (progress * recipe.epochs - place.start) / (place.stop - place.start)
        if place.stage == 1:
            return recipe.lr_factor(part)
        return plan.rate * plan.gamma ** sum(part >= milestone - 1e-9 for milestone in plan.milestones)

    def group_factor(self, group: Mapping[str, Any], recipe: Recipe, progress: float) -> float:
        """Return the factor of a group's rate. Groups marked `steady` have their own in the first stage.

        They are single numbers inside the representation, which the rate of a classifier on unit vectors
        would throw far from their initial values.
        """
        if group.get("steady") and self.place_at(progress * recipe.epochs, recipe.epochs).stage == 0:
            return float(group["factor"])
        return super().group_factor(group, recipe, progress)

    def new_factor(self, recipe: Recipe) -> float:
        """Return the factor of the rate of new layers, as `Model.parameter_groups` has it."""
        assert recipe.new_factor is not None
        return 1.0 if self.backbone.weights.sha256 is None else recipe.new_factor

    @property
    def decay(self) -> dict[str, float]:
        """Options of a group of parameters that are not the backbone's: their weight decay, if it differs."""
        decay = self.head_stage.weight_decay
        return {} if decay is None else {"weight_decay": decay}

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the groups of `Model`, with the classifier in groups of its own."""
        plan = self.head_stage
        suits = plan.adam == (recipe.optimizer != "sgd")
        factor = self.config.head_factor or (plan.head_factor if suits else 1.0)
        groups = super().parameter_groups(recipe)
        for group in groups:
            if group["name"].startswith("new "):
                group.update(self.decay)
        weights, bias = [self.classifier.weight], [self.classifier.bias]
        take_out(groups, "classifier weights", weights, factor=factor, **self.decay)
        take_out(groups, "classifier biases", bias, factor=factor * recipe.bias_factor, **self.decay)
        return groups


def take_out(
    groups: list[dict[str, Any]], name: str, parameters: Sequence[Tensor], **options: float | bool
) -> None:
    """Move parameters of an optimiser from their groups to a new one with options such as `weight_decay`."""
    chosen = {id(parameter) for parameter in parameters}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
    groups.append({"name": name, "params": list(parameters), **options})


def reduce_channels(channels: int, width: int) -> tuple[nn.Module, int]:
    """Return the layer in front of products of channels, and the number of channels behind it.

    Args:
        channels: those of the features.
        width: those after a 1x1 convolution without bias. 0: no layer for up to 512 channels, which VGG-16
            has, else 256.
    """
    if not width and channels <= MOST_CHANNELS:
        return nn.Identity(), channels
    width = width or REDUCED
    return nn.Conv2d(channels, width, 1, bias=False), width


def is_published(profile: Profile, num_classes: int) -> bool:
    """Return whether the papers train this network on a data set of this kind."""
    return profile.kin in ("vgg", "resnet") and num_classes < MANY_CLASSES
