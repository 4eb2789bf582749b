"""LOST: the steps written out patch by patch, and features that have no object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from reference_models.layers.maps import min_max
from reference_models.postprocess.lost import Lost, centred, find_seed, grow
from tests.reference_models.postprocess.feature_inputs import noisy_object, random_features, result

SEEDS = st.integers(0, 2**31)
ASKED = torch.zeros(2, 2, dtype=torch.long)


def by_hand(keys: np.ndarray, patches: int) -> tuple[int, np.ndarray]:
    """Seed and sums of (N, D) keys."""
    count = len(keys)
    similarity = [[float(keys[p] @ keys[q]) for q in range(count)] for p in range(count)]
    degrees = [sum(similarity[p][q] > 0 for q in range(count) if q != p) for p in range(count)]
    order = sorted(range(count), key=lambda p: (degrees[p], p))
    seed = order[0]
    chosen = [q for q in order[:patches] if similarity[seed][q] > 0]
    return seed, np.array([sum(similarity[q][p] for q in chosen) for p in range(count)])


@settings(max_examples=25)
@given(SEEDS, st.integers(1, 40))
def test_the_sums_are_those_of_each_patch(seed, patches):
    features = random_features(seed).double()
    vectors = features.flatten(2)
    similarity = vectors.mT @ vectors
    order = find_seed(similarity)
    sums = grow(similarity, order, patches)
    maps = Lost.create({"patches": str(patches), "centre": "false"}).maps(result(features), ASKED)
    for image in range(2):
        first, expected = by_hand(vectors[image].T.numpy(), patches)
        assert int(order[image, 0]) == first
        np.testing.assert_allclose(sums[image].numpy(), expected, atol=1e-9)
        assert sums[image, first] > 0  # the object is never empty
        np.testing.assert_allclose(maps[image, 1].flatten().numpy(), expected, atol=1e-5, rtol=1e-5)


def test_features_of_a_cnn_are_centred_and_keys_are_not():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 6, 6).relu()
    moved = features - features.mean(dim=(2, 3), keepdim=True)
    default = Lost.create({}).maps(result(features), ASKED)
    plain = Lost.create({"centre": "false"})
    torch.testing.assert_close(default, plain.maps(result(moved), ASKED), atol=1e-4, rtol=0)
    as_keys = Lost.create({}).maps(result(torch.zeros(2, 1, 6, 6), features), ASKED)
    assert torch.equal(as_keys, plain.maps(result(features), ASKED))
    assert not torch.equal(as_keys, default)
    centred_keys = Lost.create({"centre": "true"}).maps(result(torch.zeros(2, 1, 6, 6), features), ASKED)
    assert torch.equal(centred_keys, default)


def test_without_negative_correlations_every_patch_has_the_same_degree():
    torch.manual_seed(0)
    vectors = 0.1 + torch.rand(1, 4, 25)
    assert find_seed(vectors.mT @ vectors)[0].tolist() == list(range(25))


def test_the_length_of_a_patch_matters():
    features = random_features(0)
    scales = torch.linspace(0.1, 2, 25).reshape(5, 5)
    post = Lost.create({"centre": "false"})
    change = post.maps(result(features * scales), ASKED) - post.maps(result(features), ASKED)
    assert change.abs().max() > 0.1


def test_the_object_is_found_and_the_map_is_one_for_all_classes():
    torch.manual_seed(1)
    features = noisy_object(slice(2, 5), slice(3, 7))
    maps = Lost.create({"patches": "12"}).maps(result(features), ASKED[:1])
    assert torch.equal(maps[:, 0], maps[:, 1])
    maps = min_max(maps)
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:5, 3:7] = True
    assert maps[0, 0][truth].min() > maps[0, 0][~truth].max() + 0.3
    official = Lost.create({"patches": "12", "variant": "official"}).maps(result(features), ASKED[:1])
    assert torch.equal(official[0, 0] > 0, truth)


def test_the_official_map_is_the_component_of_the_seed():
    torch.manual_seed(0)
    features = torch.randn(3, 6, 7, 7)
    asked = ASKED[:1, :1].expand(3, 1)
    official = Lost.create({"patches": "20", "variant": "official"}).maps(result(features), asked)[:, 0]
    vectors = centred(features.double().flatten(2))
    for keys, one in zip(vectors.mT.numpy(), official.numpy(), strict=True):
        seed, sums = by_hand(keys, 20)
        labels, count = ndimage.label(sums.reshape(7, 7) > 0)
        assert count > 1
        np.testing.assert_array_equal(one, labels == labels.flat[seed])


@pytest.mark.parametrize("variant", ["soft", "official"])
@pytest.mark.parametrize("centre", ["true", "false"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_patches_that_are_all_alike_give_a_map_of_zeros(value, centre, variant):
    features = torch.full((2, 3, 6, 6), value)
    assert not Lost.create({"variant": variant, "centre": centre}).maps(result(features), ASKED).any()
