"""PC1: the class in the signs of its weights, rows of channels, and channels that show nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.core.outputs import ForwardPass
from reference_models.layers.maps import min_max
from reference_models.postprocess.pc1 import Pc1, pixel_axis, rescale_channels
from tests.reference_models.postprocess.feature_inputs import random_features
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method

SEEDS = st.integers(0, 2**31)
ASKED = torch.tensor([[0, 1], [2, 0]])


def result(features: torch.Tensor, weights: torch.Tensor) -> ForwardPass:
    return ForwardPass(
        logits=None,
        maps_of=lambda class_ids: pytest.fail("the method's own maps are not needed"),
        penultimate=features,
        weights_of=lambda class_ids: weights[class_ids],
    )


def random_inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two images and weights of three classes."""
    return random_features(seed), torch.randn(3, 6, generator=torch.Generator().manual_seed(seed + 1))


@settings(max_examples=25)
@given(SEEDS)
def test_rows_are_the_rescaled_products_of_weights_and_features(seed):
    features, weights = random_inputs(seed)
    rows = rescale_channels(features.flatten(2), weights[ASKED])
    products = weights[ASKED][..., None] * features.flatten(2)[:, None]  # (B, K, D, N)
    low, high = products.amin(dim=3, keepdim=True), products.amax(dim=3, keepdim=True)
    torch.testing.assert_close(rows, (products - low) / (high - low), atol=1e-4, rtol=0)


@settings(max_examples=25)
@given(SEEDS)
def test_the_axis_is_that_of_the_covariance_of_the_pixels_over_channels(seed):
    rows = torch.rand(1, 1, 8, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = pixel_axis(rows)[0, 0]
    covariance = torch.cov(rows[0, 0].T)
    values, vectors = torch.linalg.eigh(covariance)
    expected = vectors[:, -1] * (7 * values[-1]).sqrt()
    torch.testing.assert_close(found * (found @ expected).sign(), expected, atol=1e-9, rtol=0)


@settings(max_examples=25)
@given(SEEDS)
def test_the_size_of_a_weight_does_not_matter_and_its_sign_does(seed):
    features, weights = random_inputs(seed)
    post = Pc1.create({})
    maps = post.maps(result(features, weights), ASKED)
    assert torch.equal(post.maps(result(features, weights.sign()), ASKED), maps)
    assert torch.equal(post.maps(result(features, 3 * weights), ASKED), maps)
    # All signs turned: every row becomes 1 minus itself, and the axis keeps its line.
    torch.testing.assert_close(post.maps(result(features, -weights), ASKED), maps, atol=1e-5, rtol=0)
    turned = weights * torch.tensor([1, 1, 1, -1, -1, -1])
    assert not torch.allclose(post.maps(result(features, turned), ASKED), maps, atol=1e-3)


@settings(max_examples=25)
@given(SEEDS)
def test_positive_factors_and_shifts_of_channels_do_not_matter(seed):
    features, weights = random_inputs(seed)
    source = torch.Generator().manual_seed(seed)
    factors = 0.5 + torch.rand(1, 6, 1, 1, generator=source)
    moved = factors * features + torch.randn(1, 6, 1, 1, generator=source)
    post = Pc1.create({})
    plain = post.maps(result(features, weights), ASKED)
    torch.testing.assert_close(post.maps(result(moved, weights), ASKED), plain, atol=1e-3, rtol=0)
    torch.testing.assert_close(post.maps(result(-features, weights), ASKED), plain, atol=1e-5, rtol=0)


def test_channels_for_and_against_the_object_give_the_object():
    torch.manual_seed(0)
    pattern = torch.zeros(6, 6)
    pattern[1:4, 2:5] = 1.0
    signs = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])[:, None, None]
    features = (signs * pattern)[None]
    maps = Pc1.create({"weights": "none"}).maps(result(features, torch.ones(3, 5)), ASKED[:1])
    torch.testing.assert_close(min_max(maps), pattern.expand(1, 2, -1, -1), atol=1e-5, rtol=0)
    # With the signs of its channels as weights all rows are equal, and there is no axis.
    blind = Pc1.create({}).maps(result(features, signs[:, :, 0].T.expand(3, -1)), ASKED[:1])
    assert not blind.any()


def test_channels_that_are_constant_or_have_no_weight_are_zero():
    features, weights = random_inputs(0)
    features[:, 2] = 5.0
    weights[:, 4] = 0.0
    rows = rescale_channels(features.flatten(2), weights[ASKED])
    assert not rows[:, :, [2, 4]].any()
    assert (rows[:, :, [0, 1, 3, 5]].amax(dim=3) == 1).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_equal_features_give_a_map_of_zeros(value):
    maps = Pc1.create({}).maps(result(torch.full((2, 6, 5, 5), value), random_inputs(0)[1]), ASKED)
    assert not maps.any()


def test_without_weights_every_class_has_the_map_of_positive_weights():
    features, weights = random_inputs(0)
    found = Pc1.create({"weights": "none"}).maps(replace(result(features, weights), weights_of=None), ASKED)
    expected = Pc1.create({}).maps(result(features, weights.abs()), ASKED)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(found[:, 0], found[:, 1])
    with pytest.raises(UsageError, match=r"'pc1' needs the weights.*weights=none"):
        Pc1.create({}).maps(replace(result(features, weights), weights_of=None), ASKED)


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        ("cam", {"head": "fc"}),
        ("cam", {"head": "conv", "width": "8"}),
        ("cam", {"head": "conv1x1"}),
        ("nl-ccam", {}),
        ("spg", {}),
        ("acol", {}),
        ("caam", {}),
        ("cutmix", {}),
    ],
)
def test_the_weights_of_a_method_are_those_of_its_scores(method, chosen):
    """Scores are the weights times the mean of the penultimate features, plus a bias."""
    model = load_method(method).create(
        backbone="tiny", num_classes=3, weights="none", settings=chosen, image_size=64
    )
    found = model.localize(torch.randn(2, 3, 64, 64))
    weights = found.weights_of(torch.arange(3).expand(2, 3))
    assert weights.shape == (2, 3, found.penultimate.shape[1])
    assert torch.equal(weights[0], weights[1])
    scores = torch.einsum("bkd,bd->bk", weights, found.penultimate.mean(dim=(2, 3)))
    torch.testing.assert_close(scores[0] - scores[1], found.logits[0] - found.logits[1])  # without the bias


def test_the_map_is_on_the_grid_of_the_features():
    model = load_method("cam").create(
        backbone="tiny", num_classes=3, weights="none", settings={"head": "fc"}, image_size=64
    )
    found = model.localize(torch.randn(2, 3, 64, 64))
    maps = Pc1.create({}).maps(found, ASKED)
    assert maps.shape[2:] == found.penultimate.shape[2:]
