"""ACoL: what the first head erases, what the second one sees, and the maximum of their maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.backbone import load_backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.localization import acol as module
from reference_models.localization.acol import Acol, AcolConfig, fuse_maps, is_kept
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5


def acol(**settings) -> Acol:
    model = Acol(toy_backbone(), CLASSES, AcolConfig(**settings)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


def last_stage(model: Acol, images: torch.Tensor) -> torch.Tensor:
    return model.backbone.run(images)


@given(st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_features_are_erased_where_the_stretched_map_reaches_delta_which_its_maximum_always_does(delta, seed):
    maps = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    left = is_kept(maps, delta)
    stretched = (maps - low) / (high - low)
    clear = (stretched - delta).abs() > 1e-6
    assert torch.equal(left[clear], (stretched < delta)[clear])
    assert not left.flatten(2).gather(2, maps.flatten(2).argmax(2, keepdim=True)).any()


def test_above_one_nothing_is_erased_at_zero_everything_and_by_a_constant_map_nothing():
    maps = torch.randn(2, 3, 5, 4)
    assert is_kept(maps, 1.001).all()
    assert not is_kept(maps, 0.0).any()
    assert is_kept(torch.full((1, 1, 4, 4), 3.0), 0.6).all()


def test_without_erasing_the_second_head_sees_the_features_as_they_are():
    model, images = acol(delta=1.001), torch.randn(3, 3, 32, 32)
    ids = torch.tensor([[0, 4], [1, 1], [3, 2]])
    features = last_stage(model, images)
    expected = fuse_maps(model.head(features).maps_of(ids), model.second(features).maps_of(ids))
    torch.testing.assert_close(model.score_maps(images, ids), expected)


def test_the_map_is_the_maximum_of_both_heads_where_each_class_erases_for_itself():
    model, images = acol(), torch.randn(2, 3, 32, 32)
    ids = torch.tensor([[0, 4, 2], [1, 3, 1]])
    result = model.localize(images).score_maps(ids)
    features = last_stage(model, images)
    for image in range(2):
        for column in range(3):
            label = ids[image, column]
            own = model.head.classifier(model.head.trunk(features[image : image + 1]))[0, label]
            first = (own - own.min()) / (own.max() - own.min())
            left = features[image : image + 1] * (first < 0.6)
            other = model.second.classifier(model.second.trunk(left))[0, label]
            second = (other - other.min()) / (other.max() - other.min())
            torch.testing.assert_close(result[image, column], torch.maximum(first, second), atol=1e-5, rtol=0)


def test_maps_lie_between_zero_and_one_which_they_reach_and_are_never_below_those_of_the_first_head():
    model, images = acol(), torch.randn(3, 3, 32, 32)
    ids = torch.arange(CLASSES).expand(3, CLASSES)
    maps = model.score_maps(images, ids)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.amax((2, 3)), torch.ones(3, CLASSES))
    first = model.head(last_stage(model, images)).maps_of(ids)
    low, high = first.amin((2, 3), keepdim=True), first.amax((2, 3), keepdim=True)
    assert (maps >= (first - low) / (high - low) - 1e-6).all()


def test_many_classes_are_seen_by_the_second_head_in_portions_that_change_nothing(monkeypatch):
    model, images, ids = acol(), torch.randn(3, 3, 32, 32), torch.arange(CLASSES).expand(3, CLASSES)
    together, seen = model.score_maps(images, ids), []
    model.second.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 4)
    torch.testing.assert_close(model.score_maps(images, ids), together)
    assert seen == [4, 4, 4, 3]


def test_erasing_by_the_prediction_runs_the_second_head_once_whatever_is_asked_for():
    given_label, predicted = acol(), acol(test_erase_label="predicted")
    predicted.load_state_dict(given_label.state_dict())
    images, calls = torch.randn(3, 3, 32, 32), []
    best = given_label.localize(images).logits.argmax(1, keepdim=True)
    torch.testing.assert_close(predicted.score_maps(images, best), given_label.score_maps(images, best))
    predicted.second.register_forward_pre_hook(lambda *_: calls.append(1))
    predicted.score_maps(images, torch.arange(CLASSES).expand(3, CLASSES))
    assert len(calls) == 1


def test_logits_are_those_of_the_first_head_or_the_mean_of_both():
    first, mean = acol(), acol(logits="mean")
    mean.load_state_dict(first.state_dict())
    images = torch.randn(3, 3, 32, 32)
    features = last_stage(first, images)
    own = first.head(features)
    assert torch.equal(first.localize(images).logits, own.logits)
    best = own.maps_of(own.logits.argmax(1, keepdim=True))
    second = first.second(features * is_kept(best, 0.6)).logits
    torch.testing.assert_close(mean.localize(images).logits, (own.logits + second) / 2)
    ids = torch.tensor([[0], [1], [2]])
    assert torch.equal(mean.score_maps(images, ids), first.score_maps(images, ids))


def test_the_loss_is_the_cross_entropy_of_both_heads_the_second_on_features_erased_by_the_label():
    model, given_batch = acol(), batch()
    terms = model.loss(given_batch)
    features = last_stage(model, given_batch.images)
    first = model.head(features)
    left = features * is_kept(first.maps_of(given_batch.labels[:, None]), 0.6)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(first.logits, given_batch.labels))
    torch.testing.assert_close(
        terms["erased_cross_entropy"], F.cross_entropy(model.second(left).logits, given_batch.labels)
    )


def test_the_second_head_teaches_the_backbone_but_not_the_first_head():
    model = acol().train()
    model.loss(batch())["erased_cross_entropy"].backward()
    assert all(parameter.grad is None for parameter in model.head.parameters())
    for part in (model.second, model.backbone):
        assert all(parameter.grad.any() for parameter in part.parameters())


def test_no_gradient_reaches_erased_features():
    model, given_batch = acol(), batch()
    features = last_stage(model, given_batch.images).detach().requires_grad_()
    seen = is_kept(model.head(features).maps_of(given_batch.labels[:, None]), 0.6)
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(model.second(features * seen).logits, given_batch.labels), features
    )
    assert not gradient.masked_fill(seen, 0.0).any()
    assert gradient.masked_fill(~seen, 0.0).any()


def test_vgg_has_the_grid_of_the_code_that_the_variant_follows():
    for settings, expected in (
        ({}, "acol28"),
        ({"variant": "clovaai"}, "acol14"),
        ({"grid": "std14"}, "std14"),
    ):
        assert Acol.grid_for("vgg16", AcolConfig(**settings)) == expected
    assert Acol.grid_for("resnet50", AcolConfig()) == "default"


def test_variants_differ_in_the_documented_settings_only():
    official, clovaai = (
        parse_settings(AcolConfig, {"variant": variant}, what="method 'acol'")
        for variant in ("official", "clovaai")
    )
    assert official == AcolConfig()
    assert clovaai == AcolConfig(variant="clovaai", delta=0.7)


def test_recipes_are_the_authors_on_the_networks_of_the_papers():
    assert Acol.recipe_name("vgg16", 200) == "acol_cub"
    assert Acol.recipe_name("resnet50", 1000) == "acol_ilsvrc"
    assert Acol.recipe_name("tiny", 200) == "tiny"
    recipe = Acol.recipe_for("vgg16", 200, {})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.lr_factor(0.99)) == (60, 20, 1e-4, 1.0)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_a_threshold_that_erases_everything_is_refused(delta):
    with pytest.raises(UsageError, match="delta of method 'acol'"):
        acol(delta=delta)


def test_a_network_of_timm_is_enough():
    model = Acol(
        load_backbone("timm:resnet10t", weights="none", image_size=64), CLASSES, AcolConfig(width=16)
    ).eval()
    assert model.score_maps(torch.randn(2, 3, 64, 64), torch.tensor([[0], [1]])).shape == (2, 1, 4, 4)
