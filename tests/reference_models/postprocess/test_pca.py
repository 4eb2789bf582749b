"""PCA: identities of the principal direction, and another implementation of it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

from reference_models.layers.maps import min_max
from reference_models.postprocess.pca import Pca, pixel_pattern
from tests.reference_models.postprocess.feature_inputs import noisy_object, random_features, result
from wsolbench.exceptions import UsageError

SEEDS = st.integers(0, 2**31)
ASKED = torch.zeros(2, 2, dtype=torch.long)


def up_to_sign(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return found * (found * expected).sum(dim=-1, keepdim=True).sign()


@settings(max_examples=25)
@given(SEEDS)
def test_the_pattern_is_that_of_eigen_cam_up_to_its_sign(seed):
    features = random_features(seed)
    expected = torch.from_numpy(get_2d_projection(features.numpy().copy())).flatten(1).double()
    found = pixel_pattern(features.flatten(2))
    torch.testing.assert_close(up_to_sign(found, expected), expected, atol=1e-4, rtol=0)


@settings(max_examples=25)
@given(SEEDS)
def test_a_rotation_of_the_channels_and_a_shift_change_nothing(seed):
    features = random_features(seed)
    source = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=source)).Q
    moved = torch.einsum("cd,bdhw->bchw", turn, features) + torch.randn(1, 6, 1, 1, generator=source)
    plain = Pca.create({}).maps(result(features), ASKED)
    torch.testing.assert_close(Pca.create({}).maps(result(moved), ASKED), plain, atol=1e-3, rtol=0)
    torch.testing.assert_close(Pca.create({}).maps(result(-features), ASKED), plain, atol=1e-5, rtol=0)


@settings(max_examples=25)
@given(SEEDS)
def test_a_pattern_that_all_channels_share_is_found(seed):
    source = torch.Generator().manual_seed(seed)
    channels, pixels = torch.randn(7, 1, generator=source), torch.rand(1, 16, generator=source)
    found = pixel_pattern((channels * pixels)[None])
    expected = (pixels - pixels.mean()) * channels.norm()
    torch.testing.assert_close(up_to_sign(found, expected.double()), expected.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("polarity", ["border", "largest", "cam"])
def test_the_object_is_found_and_not_the_background(polarity):
    torch.manual_seed(1)
    features = noisy_object(slice(2, 5), slice(3, 7))
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:5, 3:7] = True
    hint = truth.float() + 0.5 * torch.rand(8, 8)
    known = replace(result(features), maps_of=lambda ids: hint.expand(*ids.shape, -1, -1))
    for one in (known, replace(known, stages=OrderedDict(last=-features))):
        maps = Pca.create({"polarity": polarity}).maps(one, ASKED[:1])
        assert torch.equal(maps[:, 0], maps[:, 1])
        maps = min_max(maps)
        assert maps[0, 0][truth].min() > maps[0, 0][~truth].max() + 0.3


def test_with_the_methods_map_each_class_has_its_own_sign():
    features, signs = random_features(0), torch.tensor([1.0, -1.0])
    hint = torch.randn(5, 5)
    known = replace(
        result(features), maps_of=lambda ids: signs[ids][..., None, None] * hint.expand(*ids.shape, -1, -1)
    )
    maps = Pca.create({"polarity": "cam"}).maps(known, torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(maps[:, 0], -maps[:, 1])
    assert ((maps[:, 0] * hint).sum(dim=(1, 2)) * torch.tensor([1, -1]) > 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_equal_features_give_a_map_of_zeros(value):
    assert not Pca.create({}).maps(result(torch.full((2, 3, 4, 5), value)), ASKED).any()


def test_two_directions_of_equal_strength_give_a_map_of_zeros():
    pixels = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    assert not pixel_pattern(pixels[None]).any()
    assert pixel_pattern(pixels[None] * torch.tensor([1.0, 1.1])[:, None]).any()


def test_a_grid_without_inner_cells_is_refused():
    with pytest.raises(UsageError, match="polarity=largest"):
        Pca.create({}).maps(result(torch.randn(2, 3, 2, 5)), ASKED)
    maps = Pca.create({"polarity": "largest"}).maps(result(torch.randn(2, 3, 2, 5)), ASKED)
    assert np.isfinite(maps.numpy()).all()


def test_more_channels_than_pixels_and_fewer_give_the_same():
    """Zero channels change nothing, and decide which Gram matrix is taken."""
    features = random_features(3)
    wide = torch.cat([features, torch.zeros(2, 40, 5, 5)], dim=1)
    found = [Pca.create({}).maps(result(each), ASKED) for each in (features, wide)]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
