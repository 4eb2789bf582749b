"""SEM: the identities of its similarities, and worked examples."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.outputs import ForwardPass
from reference_models.layers.correlation import unit_pixels
from reference_models.layers.maps import min_max
from reference_models.postprocess.sem import Sem, pick_seeds, seed_similarity
from wsolbench.exceptions import UsageError

SEEDS = st.integers(0, 2**31)
F4 = torch.tensor([[1.0, 0], [1, 1], [0, 1], [1, 0.5]]).T.reshape(1, 2, 2, 2)
M4 = torch.tensor([1.0, 0.5, 0, 0.2]).reshape(1, 1, 2, 2)


def sem(seeds: int, of: int, **settings: str) -> Sem:
    return Sem.create({"seeds": str(seeds), "seeds_of": str(of), **settings})


def every_map(post: Sem, features: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    asked = torch.arange(coarse.shape[1]).expand(len(coarse), -1)
    result = ForwardPass(
        logits=None,
        maps_of=lambda class_ids: coarse.take_along_dim(class_ids[:, :, None, None], dim=1),
        stages=OrderedDict(one=torch.zeros(len(coarse), 1, 2, 2), two=2 * features.roll(1, 0)),
        penultimate=features,
    )
    return post.maps(result, asked)


def random_inputs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two images and maps of three classes."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(2, 6, 4, 5, generator=source), torch.randn(2, 3, 4, 5, generator=source)


def test_four_pixels_worked_out_by_hand():
    one = every_map(sem(1, 4), F4, M4)
    torch.testing.assert_close(one.flatten(), torch.tensor([1, 0.707107, 0, 0.894427]), atol=1e-4, rtol=0)
    seeds = pick_seeds(M4, 2)
    assert seeds.tolist() == [[[0, 1]]]
    similarity = seed_similarity(F4, seeds, "max")
    torch.testing.assert_close(
        similarity.flatten(), torch.tensor([1, 1, 0.707107, 0.948683]), atol=1e-4, rtol=0
    )
    two = every_map(sem(2, 4), F4, M4)
    torch.testing.assert_close(two.flatten(), torch.tensor([1, 1, 0, 0.824794]), atol=1e-4, rtol=0)


@given(SEEDS, st.integers(1, 19))
def test_every_pixel_has_its_similarity_to_the_nearest_seed_and_seeds_have_1(seed, count):
    features, coarse = random_inputs(seed)
    maps = every_map(sem(count, 20), features, coarse)
    phi = features.flatten(2).mT
    cosines = F.cosine_similarity(phi[:, :, None], phi[:, None], dim=-1)  # (B, N, N)
    for image in range(2):
        for one in range(3):
            chosen = coarse[image, one].flatten().topk(count).indices
            expected = cosines[image][:, chosen].amax(1).reshape(4, 5)
            torch.testing.assert_close(maps[image, one], min_max(expected), atol=1e-4, rtol=0)
            assert (maps[image, one].flatten()[chosen] > 1 - 1e-6).all()


@given(SEEDS, st.integers(1, 19))
def test_the_mean_over_the_seeds(seed, count):
    features, coarse = random_inputs(seed)
    phi = unit_pixels(features)
    seeds = coarse.flatten(2).topk(count).indices
    expected = torch.stack([(phi[i] @ phi[i][seeds[i, 0]].T).mean(1) for i in range(2)]).reshape(2, 4, 5)
    maps = every_map(sem(count, 20, aggregate="mean"), features, coarse)
    torch.testing.assert_close(maps[:, 0], min_max(expected), atol=1e-4, rtol=0)


def test_one_seed_gives_the_similarity_to_the_highest_pixel():
    features, coarse = random_inputs(0)
    phi = unit_pixels(features)
    expected = torch.stack([phi[i] @ phi[i, coarse[i, 2].argmax()] for i in range(2)]).reshape(2, 4, 5)
    torch.testing.assert_close(
        every_map(sem(1, 20), features, coarse)[:, 2], min_max(expected), atol=1e-5, rtol=0
    )


@given(SEEDS)
def test_the_length_of_a_pixel_s_features_and_the_scale_of_the_map_do_not_matter(seed):
    features, coarse = random_inputs(seed)
    scale = 0.1 + torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(seed))
    maps = every_map(sem(3, 20), features, coarse)
    torch.testing.assert_close(
        every_map(sem(3, 20), features * scale, 2.0 * coarse - 1), maps, atol=1e-4, rtol=0
    )


@given(SEEDS, st.integers(-4, 4), st.integers(-5, 5))
def test_maps_roll_with_the_features(seed, down, right):
    features, coarse = random_inputs(seed)
    rolled = [each.roll((down, right), dims=(2, 3)) for each in (features, coarse)]
    maps = every_map(sem(4, 20), features, coarse).roll((down, right), dims=(2, 3))
    torch.testing.assert_close(every_map(sem(4, 20), *rolled), maps, atol=1e-5, rtol=0)


def test_where_every_pixel_is_a_seed_the_map_is_constant_and_so_zero():
    features, coarse = random_inputs(1)
    assert not every_map(sem(20, 20), features, coarse).any()


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_rounding_does_not_show_as_structure_where_all_pixels_are_alike(aggregate):
    _, coarse = random_inputs(2)
    alike = torch.rand(2, 33, 1, 1).expand(2, 33, 4, 5) * (0.5 + torch.rand(2, 1, 4, 5))
    assert not every_map(sem(3, 20, aggregate=aggregate), alike, coarse).any()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_class_whose_map_is_constant_has_no_highest_pixels(value):
    features, coarse = random_inputs(3)
    coarse[0, 1] = value
    maps = every_map(sem(3, 20), features, coarse)
    assert not maps[0, 1].any()
    assert (maps.amax((2, 3)).flatten() > 0.99).sum() == 5


def test_features_that_are_all_zero_give_maps_of_zeros():
    _, coarse = random_inputs(4)
    assert not every_map(sem(3, 20), torch.zeros(2, 6, 4, 5), coarse).any()


@given(st.integers(1, 25))
def test_of_equal_pixels_the_first_are_seeds(count):
    coarse = torch.zeros(1, 1, 5, 5)
    coarse[0, 0, 2, 2] = 1.0
    expected = [12, *(number for number in range(25) if number != 12)][:count]
    assert pick_seeds(coarse, count).flatten().tolist() == expected


def seeds_on(side: int, settings: dict[str, str]) -> int:
    """How many pixels of a map on side x side random features are seeds, whose similarity is 1."""
    features, coarse = torch.randn(1, 6, side, side), torch.randn(1, 1, side, side)
    maps = every_map(Sem.create(settings), features, coarse)
    return int((maps == maps.max()).sum())


@pytest.mark.parametrize("side", [8, 10, 14, 16, 28, 31])
def test_there_are_60_seeds_on_any_grid_as_released(side):
    assert seeds_on(side, {}) == seeds_on(side, {"variant": "official"}) == 60
    assert seeds_on(side, {"seeds": "20"}) == 20


@pytest.mark.parametrize(("side", "count"), [(28, 60), (16, 20), (14, 15), (7, 4), (2, 1)])
def test_the_variant_scaled_follows_the_grid(side, count):
    assert seeds_on(side, {"variant": "scaled"}) == count


def test_the_record_names_the_variant_and_the_number_of_seeds():
    described = [
        Sem.create(settings).describe()["config"] for settings in ({}, {"seeds": "20"}, {"variant": "scaled"})
    ]
    assert [(config["variant"], config["seeds"], config["seeds_of"]) for config in described] == [
        ("official", 60, 0),
        ("official", 20, 0),
        ("scaled", 60, 784),
    ]


@pytest.mark.parametrize(("side", "cells"), [(7, 49), (4, 16), (1, 1)])
def test_a_grid_with_fewer_pixels_than_seeds_is_refused_with_the_way_out(side, cells):
    with pytest.raises(
        UsageError,
        match=rf"seeds=60 .* {cells} pixels.*--post-set sem\.seeds=N.*--post-set sem\.variant=scaled",
    ):
        seeds_on(side, {})


def test_the_features_can_be_a_stage_of_the_backbone():
    features, coarse = random_inputs(5)
    maps = every_map(sem(3, 20, features="-1"), features, coarse)
    torch.testing.assert_close(maps, every_map(sem(3, 20), features.roll(1, 0), coarse), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("seeds", "of"), [(0, 784), (0, 0), (60, 59), (-1, 0), (3, -1)])
def test_impossible_settings_are_refused(seeds, of):
    with pytest.raises(UsageError, match="post-process 'sem'"):
        sem(seeds, of)
