"""Recipes against the released programs: the rate of each epoch, which layers learn faster, how images are
resized."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_models.base.localizer import Localizer
from reference_models.core.recipes import RECIPES, Recipe
from reference_models.localization.acol import Acol
from reference_models.localization.adl import Adl
from reference_models.localization.cam import Cam
from reference_models.localization.cutmix import CutMix
from reference_models.localization.danet.method import Danet
from reference_models.localization.eil import Eil
from reference_models.localization.has import Has
from reference_models.localization.i2c import I2C
from reference_models.localization.nl_ccam import NlCcam
from reference_models.localization.spa import Spa
from reference_models.localization.spg import Spg

Rates = list[tuple[int, float]]


def rates(model: Any, recipe: Recipe) -> Rates:
    """Runs of epochs with one rate, relative to the base rate. Within an epoch the rate must not change."""
    runs: Rates = []
    for epoch in range(recipe.epochs):
        first, last = (
            round(model.lr_factor(recipe, (epoch + part) / recipe.epochs), 9) for part in (0.001, 0.999)
        )
        assert first == last
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0] + 1, first)
        else:
            runs.append((1, first))
    return runs


# --- when the rate falls ------------------------------------------------------------------------------------

# `reduce_lr` of the released programs compares epochs counted from 0 with the decay points;
# `adjust_learning_rate` of wsolevaluation is called with epochs counted from 1.
SCHEDULES: dict[tuple[type[Localizer], str], Rates] = {
    (Cam, "spa_cub"): [(80, 1), (20, 0.1)],
    (Cam, "spa_ilsvrc"): [(10, 1), (5, 0.1), (5, 0.01)],
    **{
        (Cam, f"clovaai_cub_{net}"): [(14, 1), (15, 0.1), (15, 0.01), (6, 0.001)]
        for net in ("vgg16", "resnet50", "inception_v3")
    },
    **{
        (Cam, f"clovaai_ilsvrc_{net}"): [(2, 1), (3, 0.1), (3, 0.01), (2, 0.001)]
        for net in ("vgg16", "resnet50", "inception_v3")
    },
    (Acol, "acol_cub"): [(60, 1)],
    (Acol, "acol_ilsvrc"): [(6, 1)],
    (Spg, "spg_ilsvrc"): [(5, 1)],
    (Spg, "spg_official"): [(5, 1)],
    (I2C, "i2c_ilsvrc"): [(2, 1), (1, 0.1), (1, 0.01), (1, 0.001)],
    (Eil, "eil"): [(60, 1), (20, 0.1)],
    (NlCcam, "nl_ccam_cub"): [(1, round((1 - epoch / 100) ** 0.9, 9)) for epoch in range(100)],
}


def model_of(method: type[Localizer], backbone: str, settings: dict[str, str] | None = None) -> Localizer:
    """A model that believes its backbone to be pretrained."""
    model = method.create(
        backbone=backbone, num_classes=4, weights="none", settings=settings or {}, image_size=64
    )
    model.backbone.weights = types.SimpleNamespace(sha256="x", name="x")  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(("method", "name"), SCHEDULES)
def test_each_epoch_has_the_rate_of_the_released_program(method, name):
    recipe = method.recipe_for("vgg16", 200, {"recipe": name})
    model = types.SimpleNamespace(lr_factor=lambda recipe, done: method.lr_factor(None, recipe, done))
    assert rates(model, recipe) == [(count, pytest.approx(rate)) for count, rate in SCHEDULES[method, name]]


def test_every_recipe_with_milestones_is_compared():
    known = {
        name: recipe
        for method in (Cam, Acol, Spg, I2C, Eil, NlCcam)
        for name, recipe in {**RECIPES, **method.recipes}.items()
    }
    assert {name for name, recipe in known.items() if recipe.schedule == "step"} <= {
        name for _, name in SCHEDULES
    }


@given(st.integers(1, 60), st.sampled_from(["clovaai_cub_vgg16", "clovaai_ilsvrc_resnet50"]))
def test_with_any_number_of_epochs_the_fall_of_wsolevaluation_comes_before_the_epoch_whose_number_divides(
    tens, name
):
    epochs = 10 * tens
    recipe = Cam.recipe_for("resnet50", 200, {"recipe": name, "recipe.epochs": str(epochs)})
    frequency, rate, expected = 3 * tens, 1.0, []
    for number in range(1, epochs + 1):  # as in the program, whose first epoch has the number 1
        if number % frequency == 0:
            rate *= 0.1
        expected.append(rate)
    assert [recipe.lr_factor((epoch + 0.5) / epochs) for epoch in range(epochs)] == pytest.approx(expected)


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7])
def test_a_short_run_starts_at_the_full_rate_and_falls_once_for_each_milestone_at_most(epochs):
    recipe = Cam.recipe_for("vgg16", 200, {"recipe": "clovaai_cub_vgg16", "recipe.epochs": str(epochs)})
    factors = [recipe.lr_factor(step / (50 * epochs)) for step in range(50 * epochs)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert min(factors) >= 0.1**3 - 1e-12


def test_only_wsolevaluation_counts_epochs_from_1():
    assert {name for name, recipe in RECIPES.items() if recipe.first_epoch == 1} == {
        name for name in RECIPES if "clovaai" in name
    }
    plain, early = (
        Recipe(source="", epochs=20, batch_size=1, lr=1.0, milestones=(0.5,), first_epoch=first)
        for first in (0, 1)
    )
    assert [
        sum(recipe.lr_factor((epoch + 0.5) / 20) == 1 for epoch in range(20)) for recipe in (plain, early)
    ] == [10, 9]


def test_the_last_stage_counts_as_new_in_the_recipes_of_wsolevaluation_for_resnet_alone():
    assert {name for name, recipe in RECIPES.items() if recipe.last_stage_is_new} == {
        "clovaai_cub_resnet50",
        "clovaai_ilsvrc_resnet50",
    }


# --- which layers learn at ten times the rate ---------------------------------------------------------------

HEAD = ("head.",)
FAST: dict[tuple[type[Localizer], str, str], tuple[str, ...]] = {
    (Spa, "vgg16", "spa_cub"): HEAD,
    (Acol, "vgg16", "acol_cub"): ("head.", "second."),
    (I2C, "inception_v3", "i2c_ilsvrc"): HEAD,
    (Danet, "vgg16", "spa_cub"): ("levels.",),
    (Danet, "inception_v3", "spa_cub"): ("levels.",),
    (Spg, "inception_v3", "spg_official"): (),
    (Eil, "vgg16", "eil"): ("head.classifier.",),
    (Eil, "resnet50", "eil"): ("head.classifier.",),
    (NlCcam, "vgg16", "nl_ccam_cub"): ("head.classifier.",),
    # wsolevaluation decides by names: `features.` on VGG, `Mixed` and `Conv2d_` on Inception learn at the
    # base rate and all else faster; on ResNet `layer4.` and `fc.` learn faster and all else at the base rate.
    **{(method, "vgg16", "clovaai_cub_vgg16"): HEAD for method in (Cam, Has, CutMix, Adl)},
    **{
        (method, "resnet50", "clovaai_cub_resnet50"): ("head.", "backbone.steps.layer4")
        for method in (Cam, Has, CutMix, Adl)
    },
    **{(method, "inception_v3", "clovaai_cub_inception_v3"): HEAD for method in (Cam, Has, CutMix, Adl)},
    (Acol, "vgg16", "clovaai_cub_vgg16"): ("head.", "second."),
    (Acol, "resnet50", "clovaai_cub_resnet50"): ("backbone.steps.layer4",),
    (Acol, "inception_v3", "clovaai_cub_inception_v3"): ("head.", "second."),
    (Spg, "vgg16", "clovaai_cub_vgg16"): (
        "head.",
        "side",
        "shared.",
        "backbone.steps.conv4",
        "backbone.steps.conv5",
    ),
    (Spg, "resnet50", "clovaai_cub_resnet50"): ("backbone.steps.layer4",),
    (Spg, "inception_v3", "clovaai_cub_inception_v3"): ("head.", "side", "shared."),
}
WITH_FC = {method: {"head": "fc"} for method in (Cam, Has, CutMix, Adl)}
"""wsolevaluation's head on VGG and ResNet."""


@pytest.mark.parametrize(("method", "backbone", "name"), FAST)
def test_the_layers_of_the_released_program_learn_at_ten_times_the_rate(method, backbone, name):
    model = model_of(method, backbone, WITH_FC.get(method) if backbone != "inception_v3" else None)
    recipe = method.recipe_for(backbone, 200, {"recipe": name})
    fast = FAST[method, backbone, name]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(one)]: group["factor"] for group in model.parameter_groups(recipe) for one in group["params"]
    }
    assert found.keys() == set(names.values())
    for parameter, factor in found.items():
        expected = (10 if parameter.startswith(fast) else 1) * (
            recipe.bias_factor if parameter.endswith("bias") else 1
        )
        assert (parameter, factor) == (parameter, expected)
    assert all(any(parameter.startswith(prefix) for parameter in found) for prefix in fast)


# --- how images are resized ---------------------------------------------------------------------------------


def test_the_releases_that_resize_the_shorter_side_are_those_that_pass_one_number():
    own = {
        name: recipe for method in (Acol, Spg, I2C, Eil, NlCcam) for name, recipe in method.recipes.items()
    }
    assert {name for name, recipe in {**RECIPES, **own}.items() if recipe.short_side} == {
        "acol_cub",
        "acol_ilsvrc",
        "spg_ilsvrc",
        "spg_official",
        "i2c_ilsvrc",
        "nl_ccam_cub",
    }
    sides = {
        name: round(224 * own[name].resize)
        for name in ("acol_cub", "i2c_ilsvrc", "spg_ilsvrc", "nl_ccam_cub")
    }
    assert sides == {
        "acol_cub": 256,
        "i2c_ilsvrc": 256,
        "spg_ilsvrc": round(224 * 356 / 321),
        "nl_ccam_cub": 224,
    }


def test_wsolevaluation_draws_the_heads_of_acol_on_resnet_by_the_rule_of_he():
    released, official = (
        model_of(Acol, "resnet50", {"variant": variant}) for variant in ("clovaai", "official")
    )
    for head in (released.head, released.second):
        assert head.trunk[1].weight.std().item() == pytest.approx(np.sqrt(2 / (1024 * 9)), rel=0.01)
        assert not head.trunk[1].bias.any()
    xavier = np.sqrt(2 / (2048 * 9 + 1024 * 9))
    assert official.head.trunk[1].weight.std().item() == pytest.approx(xavier, rel=0.01)
