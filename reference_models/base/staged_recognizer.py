"""Base of classifiers that train in stages, with copies of the backbone for other views of the image.

The stages of a run have relative lengths (`stage_epochs`). Each has the whole schedule of the recipe's rate.
It trains some modules; the others are frozen, in evaluation mode. A run of fewer epochs than stages trains
everything at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig, owner_of
from reference_models.core.recipes import Recipe
from reference_models.layers.norm_statistics import PartInputConfig
from reference_models.training.stages import Place, stage_if_any, stage_lr_factor
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Count, SideOrDefault


@dataclass(frozen=True, kw_only=True)
class StagedConfig(PartInputConfig):
    """Settings of methods that train in stages."""

    shared: bool = False
    """Whether one network sees all views of an image, or each view has a network of its own."""
    part_size: SideOrDefault = 0
    """Side to which parts of the image are enlarged. 0: half of the image's."""
    stage_epochs: tuple[Count, ...] = ()
    """Relative lengths of the stages. The default of a method has one for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        who, usual = f"of method {owner_of(self)!r}", type(self).stage_epochs
        if len(self.stage_epochs) != len(usual):
            raise UsageError(
                f"setting stage_epochs={_listed(self.stage_epochs)} {who} has {len(self.stage_epochs)} "
                f"lengths; expected those of {len(usual)} stages: stage_epochs={_listed(usual)}"
            )
        if self.norm_statistics == "per_input" and not self.shared:
            raise UsageError(
                f"settings norm_statistics=per_input and shared=false {who}: each network has "
                "statistics of its own; use shared=true or norm_statistics=shared"
            )
        if self.part_size == 1:
            raise UsageError(f"setting part_size=1 {who}: expected at least 2 pixels, or 0: half the image")


class StagedRecognizer(Recognizer):
    """Base of methods whose config is a `StagedConfig`.

    Class attribute:
        copies: names of the `ModuleList`s that hold copies of the backbone.
    """

    config: StagedConfig
    copies: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def adjust_recipe(cls, name: str, recipe: Recipe, config: MethodConfig) -> Recipe:
        """Give the method's own recipe the length of the stages."""
        assert isinstance(config, StagedConfig)
        return replace(recipe, epochs=sum(config.stage_epochs)) if name in cls.recipes else recipe

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Return as `Recognizer.is_new`. A parameter of a copy is as the backbone's."""
        first, _, rest = name.partition(".")
        if first in self.copies:
            name = f"backbone.{rest.partition('.')[2]}"  # without the number of the copy
        return super().is_new(name, recipe)

    def place_in_run(self, epoch: int | float, epochs: int) -> Place | None:
        """Return the stage of a time, or None in a run that is too short for stages."""
        return stage_if_any(epoch, epochs, self.config.stage_epochs)

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule to each stage."""
        return stage_lr_factor(recipe, progress, self.place_in_run(progress * recipe.epochs, recipe.epochs))

    def set_learning(self, learns: Iterable[tuple[nn.Module, bool]]) -> None:
        """Switch learning of modules on or off. Steps that are frozen in the backbone stay so in its copies.

        A network is given by itself, not in a list: a list switches frozen steps on.
        """
        for name in self.copies:
            for network in getattr(self, name):
                assert isinstance(network, Backbone)
                network.frozen = self.backbone.frozen
        for module, on in learns:
            module.requires_grad_(on).train(on and self.training)


def _listed(lengths: tuple[int, ...]) -> str:
    return ",".join(map(str, lengths))
