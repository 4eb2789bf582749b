"""TokenCut: identities of the normalised cut, scipy as the reference, and graphs that cannot be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, ndimage

from reference_models.layers.maps import min_max
from reference_models.postprocess.tokencut import (
    Tokencut,
    edges,
    second_vector,
    toward_the_extreme,
)
from tests.reference_models.postprocess.feature_inputs import noisy_object, random_features, result
from wsolbench.exceptions import UsageError

SEEDS = st.integers(0, 2**31)
ASKED = torch.zeros(2, 3, dtype=torch.long)


def groups(sizes: tuple[int, ...]) -> torch.Tensor:
    """Edges of groups without strong edges between them."""
    member = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    same = member[:, None] == member
    return torch.where(same, 1.0, 1e-5).double()[None]


@settings(max_examples=25)
@given(SEEDS)
def test_edges_join_patches_whose_cosine_is_above_the_threshold(seed):
    features = random_features(seed).flatten(2)
    cosines = torch.nn.functional.cosine_similarity(
        features.mT[:, :, None].double(), features.mT[:, None].double(), dim=-1
    )
    found = edges(features, 0.1)
    expected = torch.where(cosines > 0.1, 1.0, 1e-5).double()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert torch.equal(found, found.mT)


@settings(max_examples=25)
@given(SEEDS)
def test_the_vector_is_that_of_the_generalised_problem(seed):
    graph = edges(random_features(seed, count=1).flatten(2), 0.1)
    degrees = graph[0].sum(dim=1)
    values, vectors = linalg.eigh((degrees.diag() - graph[0]).numpy(), degrees.diag().numpy())
    y = second_vector(graph)[0].numpy()
    expected = vectors[:, 1]
    assert 0 < values[1] <= 1 + 1e-12
    np.testing.assert_allclose(y * np.sign(y @ expected), expected, atol=1e-6)
    assert abs(y @ degrees.numpy()) < 1e-8  # y^T D 1 = 0


@pytest.mark.parametrize(("first", "second"), [(3, 9), (9, 3), (5, 6), (11, 1)])
def test_of_two_perfect_groups_the_smaller_one_is_the_object(first, second):
    y = toward_the_extreme(second_vector(groups((first, second))))[0]
    foreground = y > y.mean()
    expected = torch.arange(first + second) < first
    assert torch.equal(foreground, expected if first < second else ~expected)


def test_of_two_equal_groups_that_of_the_first_patch_is_background():
    y = second_vector(groups((6, 6)))
    for one in (y, -y):
        assert (toward_the_extreme(one)[0] > 0).tolist() == [False] * 6 + [True] * 6


@settings(max_examples=25)
@given(SEEDS)
def test_the_sign_is_that_of_the_released_rule(seed):
    y = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for one, found in zip(y, toward_the_extreme(y), strict=True):
        foreground, seed_patch = one > one.mean(), one.abs().argmax()
        assert torch.equal(found, one if foreground[seed_patch] else -one)
        assert found[seed_patch] > 0
    assert torch.equal(toward_the_extreme(y), toward_the_extreme(-y))


@settings(max_examples=25)
@given(SEEDS)
def test_permuted_patches_have_a_permuted_vector(seed):
    features = random_features(seed, count=1).flatten(2)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    plain = toward_the_extreme(second_vector(edges(features, 0.1)))
    moved = toward_the_extreme(second_vector(edges(features[..., order], 0.1)))
    torch.testing.assert_close(moved, plain[:, order], atol=1e-9, rtol=0)


@settings(max_examples=25)
@given(SEEDS)
def test_lengths_and_the_sign_of_all_features_do_not_matter(seed):
    features = random_features(seed)
    scales = 0.1 + torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    post = Tokencut.create({"threshold": "0.1"})
    plain = post.maps(result(features), ASKED)
    torch.testing.assert_close(post.maps(result(scales * features), ASKED), plain, atol=1e-7, rtol=0)
    assert torch.equal(post.maps(result(-features), ASKED), plain)


def test_the_object_is_found_and_the_map_is_one_for_all_classes():
    torch.manual_seed(1)
    features = noisy_object(slice(2, 5), slice(3, 7))
    maps = Tokencut.create({"threshold": "0.5"}).maps(result(features), ASKED[:1])
    assert torch.equal(maps[:, 0], maps[:, 2])
    maps = min_max(maps)
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[2:5, 3:7] = True
    assert maps[0, 0][truth].min() > 0.9
    assert maps[0, 0][~truth].max() < 0.1


def test_the_official_map_is_the_component_of_the_most_extreme_patch():
    torch.manual_seed(0)
    features = torch.randn(3, 6, 7, 7)
    soft = Tokencut.create({"threshold": "0.1"}).maps(result(features), ASKED[:1, :1].expand(3, 1))[:, 0]
    official = Tokencut.create({"threshold": "0.1", "variant": "official"})
    found = official.maps(result(features), ASKED[:1, :1].expand(3, 1))[:, 0]
    for y, one in zip(soft.numpy(), found.numpy(), strict=True):
        labels, count = ndimage.label(y > y.mean())
        assert count > 1  # else the component is all of it
        np.testing.assert_array_equal(one, labels == labels.flat[y.argmax()])


def test_keys_are_taken_where_there_are_tokens():
    torch.manual_seed(0)
    features, keys = torch.randn(2, 2, 4, 6, 6).unbind(0)
    default = Tokencut.create({}).maps(result(features, keys), ASKED)
    assert torch.equal(default, Tokencut.create({}).maps(result(keys), ASKED))
    stage = Tokencut.create({"features": "-1"}).maps(result(features, keys), ASKED)
    assert torch.equal(stage, Tokencut.create({}).maps(result(features), ASKED))
    assert not torch.equal(stage, default)
    with pytest.raises(UsageError, match=r"'tokencut' needs the tokens.*features=-1"):
        Tokencut.create({"features": "keys"}).maps(result(features), ASKED)


@pytest.mark.parametrize("variant", ["soft", "official"])
@pytest.mark.parametrize("side", [1, 2, 6])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_patches_that_are_all_alike_give_a_map_of_zeros(value, side, variant):
    features = torch.full((2, 4, side, side), value)
    assert not Tokencut.create({"variant": variant}).maps(result(features), ASKED).any()


def test_graphs_with_an_arbitrary_vector_give_zeros():
    assert not second_vector(groups((4, 4, 4))).any()  # two equal eigenvalues
    assert not second_vector(groups((1,) * 9)).any()  # no strong edge
    assert not second_vector(groups((9,))).any()  # all alike
    assert second_vector(groups((4, 4, 3))).any()


def test_half_of_the_map_is_that_of_float64():
    """The three groups that float32 turns: the map has each group at one level."""
    y = second_vector(groups((40, 30, 20)))[0]
    for part in y.split([40, 30, 20]):
        assert float(part.max() - part.min()) < 1e-9 * float(y.abs().max())


def test_the_map_is_the_vector_and_has_both_signs():
    torch.manual_seed(0)
    features = torch.randn(1, 5, 4, 4)
    y = toward_the_extreme(second_vector(edges(features.flatten(2), 0.2)))
    maps = Tokencut.create({}).maps(result(features), ASKED[:1, :1])
    torch.testing.assert_close(maps[0, 0], y.reshape(4, 4).float())
    assert maps.min() < 0 < maps.max()
