"""SPA's training: the identities of its restricted activation loss, and the values that the released code
gives."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.outputs import Batch
from reference_models.layers.heads import FcHead
from reference_models.localization.cam import Cam
from reference_models.localization.spa import (
    Spa,
    SpaConfig,
    class_spread,
    largest_spread,
    pseudo_masks,
    restricted_activation,
)
from tests.oracles.golden import golden
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError

CLASSES = 5
HEADS = ["conv", "conv1x1", "fc"]


def spa(**settings) -> Spa:
    return Spa(toy_backbone(), CLASSES, SpaConfig(**settings)).train()


def batch(**changes) -> Batch:
    values = {
        "images": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
        "labels": torch.arange(4) % CLASSES,
        "indices": torch.arange(4),
        "epoch": 5,
        "epochs": 10,
        "step": 0,
        "generator": torch.Generator().manual_seed(0),
    }
    return Batch(**{**values, **changes})


def ra_loss(maps, labels, tau=0.1, gap=0.2, spread="var_minmax") -> torch.Tensor:
    return restricted_activation(maps, labels, *pseudo_masks(class_spread(maps.detach(), spread), tau, gap))


# --- values from elsewhere ----------------------------------------------------------------------------------


def test_three_classes_on_four_pixels_worked_out_by_hand():
    maps = torch.tensor([[[2.0, 0], [0, -1]], [[0, 0], [3, -1]], [[0, 0], [0, -1]]])[None]
    variance = class_spread(maps, "var")
    torch.testing.assert_close(variance[0], torch.tensor([[0.154351, 0], [0.248927, 0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(class_spread(maps, "std"), variance.sqrt())
    stretched = class_spread(maps, "var_minmax")
    torch.testing.assert_close(stretched[0], torch.tensor([[0.620064, 0], [1, 0]]), atol=1e-4, rtol=0)
    background, foreground = pseudo_masks(stretched, 0.1, 0.2)
    assert background[0].tolist() == [[False, True], [False, True]]
    assert foreground[0].tolist() == [[True, False], [True, False]]
    loss = restricted_activation(maps, torch.tensor([0]), background, foreground)
    torch.testing.assert_close(loss, torch.tensor(0.347036), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", range(5))
def test_loss_gradient_and_spread_are_those_of_the_released_code(case):
    stored = golden("spa_tensors")
    maps = torch.tensor(stored[f"ra_logits_{case:02d}"], requires_grad=True)
    labels = torch.tensor(stored[f"ra_label_{case:02d}"])
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(
        class_spread(maps.detach(), "var_minmax"),
        torch.tensor(stored[f"ra_norm_var_{case:02d}"]),
        **tolerance,
    )
    loss = ra_loss(maps, labels, float(stored["ra_th_bg"][case]), float(stored["ra_gap"][case]))
    torch.testing.assert_close(loss, torch.tensor(stored["ra_loss"][case]), **tolerance)
    loss.backward()
    torch.testing.assert_close(maps.grad, torch.tensor(stored[f"ra_grad_{case:02d}"]), **tolerance)


# --- identities ---------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["var_minmax", "var", "std"]))
def test_the_loss_is_in_the_unit_interval_and_the_masks_are_disjoint(seed, tau, gap, spread):
    maps = 5 * torch.randn(3, CLASSES, 4, 6, generator=torch.Generator().manual_seed(seed))
    assert 0 <= ra_loss(maps, torch.tensor([0, 4, 2]), tau, gap, spread) <= 1
    background, foreground = pseudo_masks(class_spread(maps, spread), tau, gap)
    assert not (background & foreground).any()


def test_even_scores_are_all_background_and_cost_one_half():
    maps = torch.zeros(2, CLASSES, 4, 4)
    assert not class_spread(maps, "var_minmax").any()
    assert ra_loss(maps, torch.tensor([0, 1])) == 0.5


def test_a_map_that_is_high_on_the_object_and_low_elsewhere_costs_nothing():
    area = torch.zeros(4, 4, dtype=torch.bool)
    area[1:3, 1:4] = True
    maps = torch.full((1, CLASSES, 4, 4), -40.0)
    maps[0, 2, area] = 40.0
    background, foreground = pseudo_masks(class_spread(maps, "var_minmax"), 0.1, 0.2)
    assert torch.equal(foreground[0], area)
    assert torch.equal(background[0], ~area)
    assert ra_loss(maps, torch.tensor([2])) < 1e-6
    assert ra_loss(-maps, torch.tensor([2])) > 0.3  # high on the background


def test_the_gradient_goes_through_the_label_s_map_alone():
    maps = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    labels = torch.tensor([1, 3])
    background, foreground = pseudo_masks(class_spread(maps.detach(), "var_minmax"), 0.1, 0.2)
    loss = restricted_activation(maps, labels, background, foreground)
    loss.backward()
    others = torch.ones(2, CLASSES, dtype=torch.bool)
    others[[0, 1], labels] = False
    assert not maps.grad[others].any()
    sigmoid = maps.detach()[[0, 1], labels].sigmoid()
    expected = (background.float() - foreground.float()) * sigmoid * (1 - sigmoid) / (2 * 4 * 4)
    torch.testing.assert_close(maps.grad[[0, 1], labels], expected)
    changed = maps.detach().clone()
    changed[others] += torch.randn(8, 4, 4)
    assert torch.equal(restricted_activation(changed, labels, background, foreground), loss.detach())


def test_with_tau_0_nothing_is_background():
    background, _ = pseudo_masks(class_spread(torch.randn(2, CLASSES, 4, 4), "var_minmax"), 0.0, 0.2)
    assert not background.any()


@given(st.integers(2, 50), st.integers(0, 2**31), st.floats(0, 60))
def test_no_distribution_is_spread_more_than_a_certain_one(classes, seed, scale):
    random = scale * torch.randn(1, classes, 4, 4, generator=torch.Generator().manual_seed(seed))
    certain = torch.zeros(1, classes, 1, 1)
    certain[0, 0] = 200.0
    for kind in ("var", "std"):
        assert class_spread(random, kind).max() <= largest_spread(classes, kind) + 1e-6
        assert class_spread(certain, kind).item() == pytest.approx(largest_spread(classes, kind), rel=1e-5)


# --- the method ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_before_the_start_and_without_ram_the_loss_is_the_cross_entropy_to_the_bit(head):
    model = spa(head=head)
    expected = F.cross_entropy(model(batch().images).logits, batch().labels)
    for changes in ({"epoch": 0}, {"epoch": 1}, {"epoch": 19, "epochs": 100}):
        assert torch.equal(sum(model.loss(batch(**changes)).values()), expected)
    for changes in ({"epoch": 2}, {"epoch": 20, "epochs": 100}, {"epoch": 3, "epochs": 15}):
        assert set(model.loss(batch(**changes))) == {"cross_entropy", "restricted_activation"}
    assert len(spa(head=head, start=0.55).loss(batch(epoch=55, epochs=100))) == 2  # 0.55 * 100 > 55 in binary
    without = spa(head=head, ram=False)
    without.load_state_dict(model.state_dict())
    assert torch.equal(sum(without.loss(batch()).values()), expected)


@pytest.mark.parametrize("head", HEADS)
def test_the_weighted_term_is_that_of_all_class_maps(head):
    model = spa(head=head, alpha=0.25, tau=0.3, gap=0.1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    result = model(batch().images)
    maps = (
        torch.einsum("cd,bdhw->bchw", model.head.classifier.weight, result.penultimate)
        if isinstance(model.head, FcHead)
        else model.head.classifier(result.penultimate)
    )
    term = model.loss(batch())["restricted_activation"]
    torch.testing.assert_close(term, 0.25 * ra_loss(maps, batch().labels, 0.3, 0.1))
    assert term > 0


def test_maps_and_scores_are_those_of_cam():
    model, plain = spa().eval(), Cam(toy_backbone(), CLASSES, HeadConfig()).eval()
    plain.load_state_dict(model.state_dict())
    asked = torch.tensor([[4, 0]] * 4)
    one, two = model.localize(batch().images), plain.localize(batch().images)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.score_maps(asked), two.score_maps(asked))
    assert list(one.stages) == ["one", "two", "three"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_terms_are_float32_and_finite(dtype):
    with torch.autocast("cpu", dtype=dtype):
        terms = spa().loss(batch())
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(torch.isfinite(term) for term in terms.values())


def test_unset_values_are_those_of_the_scripts_for_the_kind_of_data():
    values = [
        (model.tau, model.gap, model.start)
        for model in (Spa(toy_backbone(), classes, SpaConfig()) for classes in (200, 1000))
    ]
    assert values == [(0.1, 0.2, 0.2), (0.4, 0.1, 0.25)]
    described = json.loads(json.dumps(Spa(toy_backbone(), 200, SpaConfig(tau=0.3)).describe()))
    assert (described["config"]["tau"], described["config"]["gap"], described["variant"]) == (
        0.3,
        0.2,
        "official",
    )


def test_the_paper_s_deviation_needs_thresholds_that_can_be_reached():
    settings = {"variant": "paper"}
    with pytest.raises(UsageError, match=r"0\.07071.*none are published"):
        Spa.create(backbone="tiny", num_classes=200, weights="none", settings=settings)
    model = Spa.create(
        backbone="tiny", num_classes=200, weights="none", settings={**settings, "tau": "0.02", "gap": "0.01"}
    )
    assert model.config.spread == "std"
    Spa.create(backbone="tiny", num_classes=200, weights="none", settings={**settings, "ram": "false"})


def test_the_paper_s_vgg_is_that_of_acol_and_the_code_s_is_not():
    assert Spa.grid_for("vgg16", SpaConfig(variant="paper")) == "acol28"
    assert Spa.grid_for("vgg16", SpaConfig(variant="paper", grid="std28")) == "std28"
    assert {Spa.grid_for("vgg16", SpaConfig()), Spa.grid_for("inception_v3", SpaConfig(variant="paper"))} == {
        "default"
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": -1.0},
        {"tau": -0.1},
        {"gap": -0.1},
        {"start": 1.5},
        {"tau": 0.9, "gap": 0.1},
        {"tau": float("nan")},
        {"spread": "var"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError, match="method 'spa'"):
        spa(**settings)


def test_one_class_alone_is_refused():
    with pytest.raises(UsageError, match="at least 2"):
        Spa(toy_backbone(), 1, SpaConfig())
