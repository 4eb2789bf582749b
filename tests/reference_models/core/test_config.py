"""Settings from text, and recipes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.backbone import read_profile
from reference_models.core.config import MethodConfig, from_json, parse_settings, split_settings, to_json
from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.recipes import RECIPES, Recipe, default_recipe
from reference_models.recognition.ra_cnn.settings import RaCnnConfig
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Share, Side


@dataclass(frozen=True, kw_only=True)
class Everything(MethodConfig):
    flag: bool = False
    count: int = 1
    rate: float = 0.5
    name: str = "x"
    kind: Literal["fc", "conv"] = "conv"
    level: Literal[4, 5] = 4
    limit: float | None = None
    stages: tuple[int, ...] = (1, 2)
    share: Share = 0.5
    sides: tuple[Side, ...] = (1,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"flag": "true"}, {"flag": True}),
        ({"flag": "Off"}, {"flag": False}),
        ({"count": "-3"}, {"count": -3}),
        ({"rate": "1e-3"}, {"rate": 0.001}),
        ({"kind": "fc"}, {"kind": "fc"}),
        ({"level": "5"}, {"level": 5}),
        ({"limit": "none"}, {"limit": None}),
        ({"limit": "2"}, {"limit": 2.0}),
        ({"stages": "3,4, 5"}, {"stages": (3, 4, 5)}),
        ({"stages": "()"}, {"stages": ()}),
        ({"name": "none"}, {"name": "none"}),
    ],
)
def test_text_becomes_a_value_of_the_fields_type(text, expected):
    config = parse_settings(Everything, text, what="method 'x'")
    assert config == Everything(**expected)
    (name,) = expected
    assert type(getattr(config, name)) is type(expected[name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"flag": "maybe"}, "flag='maybe' of method 'x': expected true or false"),
        ({"count": "1.5"}, "count='1.5' of method 'x': expected a whole number"),
        ({"rate": "fast"}, "rate='fast' of method 'x': expected a number"),
        ({"rate": "nan"}, "setting rate of method 'x' is nan; expected a number in"),
        ({"rate": "-inf"}, "expected a number in"),
        (
            {"rate": "1e308"},
            r"rate of method 'x' is 1e\+308; expected a number in \[-1000000000, 1000000000\]",
        ),
        ({"count": "9" * 5000}, "expected a whole number"),
        ({"share": "1.5"}, r"share of method 'x' is 1.5; expected a number in \[0, 1\]"),
        ({"share": "nan"}, r"expected a number in \[0, 1\]"),
        ({"limit": "many"}, "limit='many' of method 'x': expected a number, or none"),
        ({"sides": "3,0"}, r"expected a whole number in \[1, 8192\]"),
        ({"kind": "cnn"}, "kind='cnn' of method 'x': expected one of fc, conv"),
        ({"stages": "1,b"}, "expected a whole number"),
        ({"rat": "1"}, "unknown setting 'rat' of method 'x'; did you mean 'rate'"),
    ],
)
def test_a_value_of_another_type_and_an_unknown_name_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_settings(Everything, text, what="method 'x'")


@given(
    st.builds(
        Everything,
        flag=st.booleans(),
        count=st.integers(-(10**9), 10**9),
        rate=st.floats(-1e9, 1e9),
        stages=st.lists(st.integers(-9, 9)).map(tuple),
    )
)
def test_a_config_comes_back_from_json(config):
    assert from_json(Everything, to_json(config)) == config


@pytest.mark.parametrize(
    "changes",
    [{"share": 2.0}, {"rate": float("inf")}, {"sides": (0,)}, {"count": True}, {"flag": 1}, {"kind": "x"}],
)
def test_a_config_outside_its_ranges_cannot_be_made_or_read(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        Everything(**changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        from_json(Everything, {**to_json(Everything()), **changes})


def test_an_error_names_the_method_also_if_its_settings_have_a_file_of_their_own():
    with pytest.raises(UsageError, match="setting margin of method 'ra-cnn' is 2"):
        RaCnnConfig(margin=2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 1e308}, {"lr": -0.1}, {"epochs": 0}, {"epochs": 10**6}, {"batch_size": 0}, {"momentum": 1.0}, {"weight_decay": -1.0},
        {"milestones": (1.5,)}, {"gamma": 2.0}, {"warmup": -0.1}, {"flip": 2.0}, {"rotation": 360.0}, {"resize": 0.5}, {"clip_norm": -1.0},
    ],
)  # fmt: skip
def test_a_recipe_outside_its_ranges_is_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        replace(RECIPES["tiny"], **changes)


@pytest.mark.parametrize("kind", [Recipe, DetectionRecipe])
def test_every_number_of_a_recipe_has_a_range_of_its_own(kind):
    for item in fields(kind):
        if item.type in ("int", "float"):
            pytest.fail(f"{kind.__name__}.{item.name} has no range")


def test_settings_of_the_recipe_are_told_apart():
    assert split_settings({"head": "fc", "recipe.lr": "1", "recipe": "tiny"}) == (
        {"head": "fc", "recipe": "tiny"},
        {"lr": "1"},
    )


def test_the_step_schedule_multiplies_at_each_milestone():
    recipe = Recipe(source="", epochs=20, batch_size=1, lr=1.0, milestones=(0.5, 0.75))
    assert [recipe.lr_factor(epoch / 20) for epoch in (0, 9, 10, 14, 15, 19)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_the_cosine_starts_at_1_after_the_warm_up_and_ends_at_0():
    recipe = Recipe(source="", epochs=1, batch_size=1, lr=1.0, schedule="cosine", warmup=0.2)
    assert [recipe.lr_factor(at) for at in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@given(st.sampled_from(sorted(RECIPES)), st.floats(0, 1))
def test_no_recipe_leaves_the_range_from_0_to_its_base_rate(name, progress):
    assert 0 <= RECIPES[name].lr_factor(progress) <= 1


def test_published_backbones_have_the_recipe_of_spa_for_their_kind_of_data():
    families = {
        name: read_profile(name).recipe_family
        for name in ("vgg16", "tiny", "efficientnet_lite0", "timm:resnet18")
    }
    assert families == {
        "vgg16": "published",
        "tiny": "tiny",
        "efficientnet_lite0": "finetune",
        "timm:resnet18": "finetune",
    }
    assert default_recipe("published", 200) == "spa_cub"
    assert default_recipe("published", 1000) == "spa_ilsvrc"
    assert {default_recipe(family, 10) for family in ("tiny", "finetune")} == {"tiny", "finetune"}
