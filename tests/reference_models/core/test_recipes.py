"""How fast new layers learn: every recipe of every method and detector."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from reference_models.core.recipes import LATER_FIELDS, RECIPES, Recipe
from reference_models.training.detector_loop import build_optimizer
from reference_models.training.request import recipe_metadata
from wsolbench.methods import list_detectors, list_methods, load_detector, load_method

METHODS = [load_method(row.name) for row in list_methods() if row.module.startswith("reference_models.")]
TRAINABLE = [method for method in METHODS if method.trainable]
KNOWN = {**RECIPES, **{name: recipe for method in TRAINABLE for name, recipe in method.recipes.items()}}
STATED = {"nl_ccam_cub": 10.0, "gc_net": 10.0, "isqrt_hawkeye": 5.0}
"""Adam recipes whose released code has another rate for new layers."""


@pytest.mark.parametrize("name", sorted(name for name, recipe in KNOWN.items() if recipe.optimizer != "sgd"))
def test_new_layers_learn_at_the_base_rate_of_adam_unless_the_released_code_says_otherwise(name):
    assert KNOWN[name].new_factor == STATED.get(name, 1.0)


def test_the_small_recipes_are_among_those_that_are_looked_at():
    assert {"tiny", *STATED} <= {name for name, recipe in KNOWN.items() if recipe.optimizer != "sgd"}
    assert (KNOWN["tiny"].new_factor, KNOWN["finetune"].new_factor, KNOWN["spa_cub"].new_factor) == (
        1,
        10,
        10,
    )


@pytest.mark.parametrize(
    "method",
    [method for method in TRAINABLE if not method.needs_tokens],
    ids=lambda method: method.method_name,
)
def test_a_fine_tuned_small_network_has_one_rate_for_all_its_weights(method):
    model = method.create(backbone="tiny", num_classes=4, weights="none", settings={}, image_size=64)
    model.backbone.weights = SimpleNamespace(sha256="x", name="x")
    recipe = method.recipe_for("tiny", 4, {})
    assert recipe.optimizer == "adamw"
    if method.learns_from == "gradients":
        assert {recipe.lr * group["factor"] for group in model.parameter_groups(recipe)} == {2e-3}


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_no_recipe_keeps_the_factor_of_sgd_when_it_is_run_with_adam(name, optimizer):
    cam = load_method("cam")
    assert cam.recipe_for("tiny", 4, {"recipe": name, "recipe.optimizer": optimizer}).new_factor == 1
    assert (
        cam.recipe_for(
            "tiny", 4, {"recipe": name, "recipe.optimizer": optimizer, "recipe.new_factor": "3"}
        ).new_factor
        == 3
    )
    assert cam.recipe_for("tiny", 4, {"recipe": name, "recipe.optimizer": "sgd"}).new_factor == 10


def test_a_recipe_that_states_no_factor_has_the_one_of_its_optimiser():
    assert [
        Recipe(source="", epochs=1, batch_size=1, lr=1.0, optimizer=kind).new_factor
        for kind in ("sgd", "adam", "adamw")
    ] == [10, 1, 1]
    assert (
        Recipe(source="", epochs=1, batch_size=1, lr=1.0, optimizer="adam", new_factor=10.0).new_factor == 10
    )


def test_the_stated_factor_stays_when_the_optimiser_is_named_again():
    assert (
        load_method("nl-ccam")
        .recipe_for("vgg16", 200, {"recipe": "nl_ccam_cub", "recipe.optimizer": "adam"})
        .new_factor
        == 10
    )


def test_detectors_have_one_rate_for_all_layers():
    for row in list_detectors():
        kind = load_detector(row.name)
        model = kind.create(backbone="tiny", class_names=["one", "two"], weights="none", settings={})
        groups = build_optimizer(model, kind.recipe_for("tiny", {})).param_groups
        assert {group["lr"] for group in groups} == {1e-3}
        assert sum(len(group["params"]) for group in groups) == len(
            [p for p in model.parameters() if p.requires_grad]
        )


@pytest.mark.parametrize(
    ("epochs", "falls"),
    [
        (1, [0.3, 0.6, 0.9]),  # all of them would lie before the first epoch
        (3, [0.3, 0.6, 0.9 - 1 / 3]),
        (5, [0.3, 0.4, 0.7]),
        (10, [0.2, 0.5, 0.8]),
        (50, [0.28, 0.58, 0.88]),
    ],
)
def test_a_fall_that_would_lie_in_the_first_epoch_stays_where_it_is(epochs, falls):
    recipe = load_method("cam").recipe_for(
        "vgg16", 200, {"recipe": "clovaai_cub_vgg16", "recipe.epochs": str(epochs)}
    )
    for fall in falls:
        assert recipe.lr_factor(fall - 1e-6) > recipe.lr_factor(fall) + 1e-9
    assert recipe.lr_factor(0.0) == 1
    assert recipe.lr_factor(1.0) == pytest.approx(0.1**3)


def test_a_later_field_is_in_the_facts_where_it_is_not_the_default():
    plain = Recipe(source="", epochs=1, batch_size=1, lr=1.0)
    assert not LATER_FIELDS & recipe_metadata(plain).keys()
    assert recipe_metadata(plain) | {"first_epoch": 1} == recipe_metadata(replace(plain, first_epoch=1))


def test_with_the_official_variant_the_default_recipe_is_the_released_one_also_where_default_is_written_out():
    for method, name in (("lio", "lio_official"), ("nts-net", "nts_official")):
        kind = load_method(method)
        asked = [
            kind.recipe_for("resnet50", 200, {"variant": "official", **more})
            for more in ({}, {"recipe": "default"})
        ]
        assert asked == [kind.recipes[name]] * 2
