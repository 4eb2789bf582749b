"""`Model`: the interface between a method and training, checkpoints and records.

Every hook that a method file may override has its default here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.core.backbone import Backbone, load_backbone, make_empty_backbone, read_profile
from reference_models.core.config import MethodConfig, parse_settings, split_settings, to_json
from reference_models.core.objectives import Objective
from reference_models.core.outputs import Batch, ForwardPass, ImagePasses
from reference_models.core.recipes import RECIPES, Recipe, default_recipe
from reference_models.core.tokens import require_tokens
from wsolbench.exceptions import unknown_name
from wsolbench.maps.masks import MaskSource
from wsolbench.methods import Supervision, TrainRequest
from wsolbench.types import Dataset

M = TypeVar("M", bound="Model")


class Model(nn.Module):
    """Base of all methods as training and checkpoints use them. `Localizer` adds what the commands call.

    Class attributes:
        method_name: the file's name with dashes.
        Config: dataclass of the settings.
        trainable: False for a method without parameters.
        needs_backbone: False for a method that uses no features. It gets an empty backbone.
        needs_tokens: True for a method of vision transformers. Its backbone is a `TokenBackbone`.
        learns_from: `gradients` of `loss`, or `statistics`, which `measure` collects.
        map_kind: range of the raw maps: `signed`, `nonneg` (unbounded), or `unit` (in [0, 1]).
        recipes: training recipes that only this method has.
        official_recipes: for `variant=official`: the name of a default recipe -> the released code's recipe
            that replaces it.
    """

    method_name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    trainable: ClassVar[bool] = True
    needs_backbone: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = False
    learns_from: ClassVar[Literal["gradients", "statistics"]] = "gradients"
    map_kind: ClassVar[Literal["signed", "nonneg", "unit"]] = "signed"
    recipes: ClassVar[Mapping[str, Recipe]] = MappingProxyType({})
    official_recipes: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, backbone: Backbone, num_classes: int, config: MethodConfig) -> None:
        super().__init__()
        if self.needs_tokens:
            require_tokens(backbone, f"method {self.method_name!r}")
        self.backbone, self.num_classes, self.config = backbone, num_classes, config
        self.input_spec = backbone.input_spec
        self.class_names: tuple[str, ...] = ()
        self.facts: dict[str, Any] = {}
        """Training metadata of the weights, filled by training and by `load`."""
        self.trained_size: int | None = None
        """Side of the training's input, if the model is used at another one; see `resize_input`."""
        self.ready = not self.trainable
        """Whether a new model can be evaluated without training, because all its weights are pretrained."""

    # --- what a method file defines -------------------------------------------------------------------------
    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Run one forward pass. It keeps the graph if gradients are enabled."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return named scalar terms, already weighted. Their sum is minimised."""
        raise NotImplementedError

    # --- hooks that a method may override -------------------------------------------------------------------
    @property
    def mask_source(self) -> MaskSource | None:
        """Ground truth that `Batch.masks` is made of: masks, filled boxes, or any. None: no masks."""
        return None

    @property
    def supervision(self) -> Supervision | None:
        """Ground truth besides labels that training reads, for the record. None: only labels."""
        return None

    @property
    def group_size(self) -> int:
        """Number of neighbours in a batch that must stay in one process, at least 2."""
        return 2

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the variant of the backbone that this method needs."""
        return read_profile(backbone).grid(config.grid, "tokens") if cls.needs_tokens else config.grid

    @classmethod
    def default_size(cls, backbone: str, num_classes: int) -> int | None:  # noqa: ARG003 - for methods whose choice depends on them
        """Return the default side of the input, or None for the backbone's."""
        return None

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the name of the recipe for `recipe=default`."""
        return default_recipe(read_profile(backbone).recipe_family, num_classes)

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:  # noqa: ARG003 - for methods whose recipe depends on them
        """Return the recipe of that name for these settings, before the user's changes to it.

        Example: a shorter run if there is less to train.
        """
        return recipe

    def before_training(self, train: Dataset) -> None:
        """Hook: called once before the first epoch, also when a run resumes.

        Collects what a method needs of the data.
        """

    def fit_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        """Hook: give buffers whose size depends on the training split the size that a checkpoint has.

        Called before the tensors of a checkpoint, or of an interrupted run, are copied into a new model.
        """

    def training_targets(self, train: Dataset) -> Dataset:
        """Return the training split with the boxes and masks that `Batch.masks` is made of.

        The default is the ground truth. A method that finds boxes itself in `before_training`, which is
        called first, returns the images with these boxes.
        """
        return train

    def measure(self, train: Dataset, passes: ImagePasses) -> None:
        """Fill the buffers, for methods that learn from `statistics`. Gradients are disabled.

        `train` has the boxes of its images. Each call of `passes` is one pass over the images, or over chosen
        ones. The checkpoint stores the buffers.
        """
        raise NotImplementedError

    @classmethod
    def train_split(cls, settings: Mapping[str, str]) -> str:  # noqa: ARG003 - for methods whose settings choose it
        """Return the split to fit on: `train`, or `val` for methods that need its boxes."""
        return "train"

    @classmethod
    def choose_images(cls, request: TrainRequest) -> TrainRequest:
        """Return the request with the images that are trained and validated on.

        Example: a few of each class, and no validation for a method that does not classify.
        """
        return request

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Hook: called before each epoch, in train mode, to freeze or unfreeze layers or to change modes."""

    def after_epoch(self, epoch: int, epochs: int) -> None:
        """Hook: called after the last step of each epoch, before validation. Gradients are disabled.

        What it changes has to be in buffers, or `before_training` has to restore it: the state of the run is
        written afterwards.
        """

    def batches(
        self, labels: Int[np.ndarray, " n"], batch_size: int, rng: np.random.Generator
    ) -> list[Int[np.ndarray, " _"]]:
        """Return the positions of the images in each batch of an epoch. Every image occurs once, shuffled.

        A last batch of one image is dropped, because batch norm needs two.
        """
        order = rng.permutation(len(labels))
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        return parts[:-1] if len(parts) > 1 and len(parts[-1]) == 1 else parts

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Return whether a parameter was not pretrained and learns at `recipe.new_factor` times the rate."""
        return not name.startswith("backbone.") or (recipe.last_stage_is_new and self.is_last_stage(name))

    def is_last_stage(self, name: str) -> bool:
        """Return whether a parameter belongs to the last stage, on backbones whose file names that stage."""
        return self.backbone.profile.in_group(name, "last-stage")

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the optimiser's groups, each with its factor of the base learning rate.

        They separate pretrained from new layers, weights from biases, and parameters with weight decay from
        those without.
        """
        pretrained = self.backbone.weights.sha256 is not None
        assert recipe.new_factor is not None
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.named_parameters():
            new, bias = self.is_new(name, recipe), name.endswith("bias")
            factor = (recipe.new_factor if new and pretrained else 1.0) * (
                recipe.bias_factor if bias else 1.0
            )
            key = f"{'new' if new else 'backbone'} {'biases' if bias else 'weights'}"
            decays = recipe.decay_vectors or (name.endswith("weight") and parameter.ndim > 1)
            key, options = (key, {}) if decays else (f"{key} without decay", {"weight_decay": 0.0})
            group = groups.setdefault(key, {"name": key, "factor": factor, "params": [], **options})
            group["params"].append(parameter)
        return list(groups.values())

    def objectives(self, recipe: Recipe) -> Sequence[Objective]:
        """Return what is minimised: `loss`, by all parameters.

        A method with several optimisers returns several.
        """
        return [Objective(loss=self.loss, groups=self.parameter_groups(recipe), recipe=recipe)]

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Return the learning rate relative to its base after `progress` in [0, 1] of the run.

        It is called before every step.
        """
        return recipe.lr_factor(progress)

    def group_factor(self, group: Mapping[str, Any], recipe: Recipe, progress: float) -> float:
        """Return the factor of a parameter group's rate: its own, times `lr_factor`."""
        return float(group["factor"]) * self.lr_factor(recipe, progress)

    # --- what training and records use ----------------------------------------------------------------------
    @classmethod
    def create(
        cls: type[M],
        *,
        backbone: str,
        num_classes: int,
        weights: str,
        settings: Mapping[str, str],
        image_size: int | None = None,
    ) -> M:
        """Create a model in eval mode; see `wsolbench.methods.contracts.Method.create`.

        Its new layers draw from torch's global generator.
        """
        config = parse_settings(cls.Config, split_settings(settings)[0], what=f"method {cls.method_name!r}")
        size = image_size or cls.default_size(backbone, num_classes)
        network = cls.open_backbone(
            backbone, weights=weights, grid=cls.grid_for(backbone, config), image_size=size
        )
        model = cls(network, num_classes, config)
        model.load_referenced_weights()
        return model.eval()

    def resize_input(self, size: int) -> None:
        """Use a trained model with inputs of another size. What training has fixed in pixels stays."""
        if size == self.input_spec.size:
            return
        self.trained_size = self.trained_size or self.input_spec.size
        self.input_spec = self.backbone.input_spec = replace(self.input_spec, size=size)

    @classmethod
    def open_backbone(cls, name: str, *, weights: str, grid: str, image_size: int | None = None) -> Backbone:
        """Load the backbone by name, or the empty one for methods that need none."""
        if not cls.needs_backbone:
            return make_empty_backbone(image_size)
        return load_backbone(name, weights=weights, grid=grid, image_size=image_size)

    def load_referenced_weights(self) -> None:
        """Hook: copy weights that the settings refer to (for example `part_net`).

        The default does nothing.
        """

    @classmethod
    def recipe_for(cls, backbone: str, num_classes: int, settings: Mapping[str, str]) -> Recipe:
        """Return the recipe that `settings` ask for, with their changes (`recipe.lr=0.1`).

        Raises `UsageError` on unknown names.
        """
        own, changes = split_settings(settings)
        known = {**RECIPES, **cls.recipes}
        config = parse_settings(cls.Config, own, what=f"method {cls.method_name!r}")
        name = config.recipe
        if name == "default":
            name = cls.recipe_name(backbone, num_classes)
            name = cls.official_recipes.get(name, name) if own.get("variant") == "official" else name
        if name not in known:
            raise unknown_name("recipe", name, known)
        if changes.get("optimizer", known[name].optimizer) != known[name].optimizer:
            changes = {
                "new_factor": "none",
                **changes,
            }  # a factor for another optimiser does not apply
        return parse_settings(
            Recipe, changes, what=f"recipe {name!r}", start=cls.adjust_recipe(name, known[name], config)
        )

    def describe(self) -> dict[str, Any]:
        """Describe the model for the record; see `wsolbench.methods.contracts.Method.describe`."""
        described: dict[str, Any] = {
            "method": self.method_name,
            "variant": getattr(self.config, "variant", "default"),
            "config": to_json(self.config),
            "backbone": self.backbone.name,
            "grid": self.backbone.grid,
            "weights": self.backbone.describe()["weights"],
            "image_size": self.input_spec.size,
            "num_classes": self.num_classes,
            "map_kind": self.map_kind,
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }
        if self.supervision is not None:
            described["supervision"] = self.supervision.to_json()
        if self.trained_size not in (None, self.input_spec.size):
            described["trained_image_size"] = self.trained_size
        if self.facts:
            described["training"] = self.facts
        return described
