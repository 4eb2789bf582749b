"""Classifiers that train in stages: rates of copies of the backbone, the schedule, and what stays frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import MappingProxyType

import pytest
from torch import nn

from reference_models.base.staged_recognizer import StagedConfig, StagedRecognizer
from reference_models.core.config import parse_settings
from reference_models.core.recipes import RECIPES
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Count


@dataclass(frozen=True, kw_only=True)
class TwoStages(StagedConfig):
    stage_epochs: tuple[Count, ...] = (3, 1)


class Copies(StagedRecognizer):
    """Two copies of the backbone and a new layer."""

    method_name = "copies"
    Config = TwoStages
    copies = ("others",)
    recipes = MappingProxyType({"own": RECIPES["spa_cub"]})

    def __init__(self, config: TwoStages) -> None:
        backbone = toy_backbone()
        super().__init__(backbone, 3, config)
        self.others = nn.ModuleList(copy.deepcopy(backbone) for _ in range(2))
        self.layer = nn.Linear(16, 3)


def test_a_parameter_of_a_copy_is_new_if_that_of_the_backbone_is(monkeypatch):
    model, recipe = Copies(TwoStages()), replace(RECIPES["spa_cub"], last_stage_is_new=True)
    monkeypatch.setattr(model, "is_last_stage", lambda name: name.startswith("backbone.steps.three."))
    new = {
        name.rsplit(".", maxsplit=2)[0] for name, _ in model.named_parameters() if model.is_new(name, recipe)
    }
    assert new == {"layer"} | {f"{network}.steps.three" for network in ("backbone", "others.0", "others.1")}


def test_the_method_s_own_recipe_has_the_length_of_the_stages_and_others_keep_theirs():
    config = TwoStages(stage_epochs=(5, 2))
    assert Copies.adjust_recipe("own", RECIPES["spa_cub"], config).epochs == 7
    assert Copies.adjust_recipe("tiny", RECIPES["tiny"], config) == RECIPES["tiny"]


def test_each_stage_has_the_whole_schedule_and_a_short_run_has_one():
    model = Copies(TwoStages())
    recipe = replace(RECIPES["spa_cub"], epochs=8, milestones=(0.5,), first_epoch=0)
    rates = [model.lr_factor(recipe, (epoch + 0.5) / 8) for epoch in range(8)]
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 1, 0.1])
    assert [model.place_in_run(epoch, 8).stage for epoch in range(8)] == [0] * 6 + [1] * 2
    short = replace(recipe, epochs=1)
    assert model.place_in_run(0, 1) is None
    assert [model.lr_factor(short, progress) for progress in (0.4, 0.6)] == pytest.approx([1, 0.1])


def test_what_is_frozen_in_the_backbone_is_frozen_in_copies_that_learn():
    model = Copies(TwoStages()).train()
    model.backbone.frozen = ("one",)
    model.set_learning([(model.backbone, False), *((network, True) for network in model.others)])
    for network, learning in ((model.backbone, set()), *((each, {"two", "three"}) for each in model.others)):
        assert {name for name, step in network.steps.items() if step.training} == learning
        assert {
            name.split(".")[1] for name, each in network.named_parameters() if each.requires_grad
        } == learning
    assert model.layer.training  # not named
    model.eval().set_learning([(model.layer, True)])
    assert not model.layer.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_epochs": "1"}, "has 1 lengths; expected those of 2 stages: stage_epochs=3,1"),
        ({"norm_statistics": "per_input"}, "use shared=true or norm_statistics=shared"),
        ({"part_size": "1"}, "expected at least 2 pixels"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        parse_settings(TwoStages, settings, what="copies")
