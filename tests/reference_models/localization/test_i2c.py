"""I2C: pairs, pixels, centres, and which gradient goes where."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.localization import i2c
from reference_models.localization.i2c import (
    I2C,
    I2cConfig,
    gather_vectors,
    local_distance,
    masked_mean,
    object_seeds,
    update_rate,
)
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError

CLASSES = 4


def model(**settings) -> I2C:
    """In evaluation mode, so that dropout and batch norm keep equal images equal."""
    return I2C(toy_backbone(), CLASSES, I2cConfig(**settings)).eval()


def batch(labels: list[int], images: torch.Tensor | None = None) -> Batch:
    return Batch(
        images=torch.randn(len(labels), 3, 32, 32) if images is None else images,
        labels=torch.tensor(labels),
        indices=torch.arange(len(labels)),
        epoch=0,
        epochs=1,
        step=0,
        generator=torch.Generator().manual_seed(0),
    )


def centres_of(network: I2C, given_batch: Batch) -> torch.Tensor:
    """The mean vector of each pair, with seeds that do not depend on a generator."""
    result = network(given_batch.images)
    maps = result.maps_of(given_batch.labels[:, None])[:, 0].detach()
    features = list(result.stages.values())[-1].detach()
    rows = []
    for number in range(len(maps)):
        low, high = maps[number].min(), maps[number].max()
        inside = (((maps[number] - low) / (high - low)) > 0.7).flatten().nonzero()[:, 0].tolist()
        chosen = [inside[k % len(inside)] for k in range(network.config.num_seeds)]
        rows.append(features[number].flatten(1)[:, chosen].mean(dim=1))
    return torch.stack(rows).reshape(-1, 2, features.shape[1]).mean(dim=1)


# --- which pixels -------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0.1, 0.95))
def test_seeds_are_object_pixels_and_come_twice_only_when_there_are_too_few(seed, count, threshold):
    maps = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(seed))
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    inside = ((maps - low) / (high - low)).flatten(1) > threshold
    for generator in (torch.Generator().manual_seed(seed), None):
        seeds = object_seeds(maps, count, threshold, generator)
        assert seeds.shape == (3, count)
        for row, allowed in zip(seeds.tolist(), inside, strict=True):
            assert allowed[row].all()
            assert len(set(row)) == min(count, int(allowed.sum()))


def test_too_few_object_pixels_come_again_in_the_same_order():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = maps[0, 3, 0] = 1.0
    assert object_seeds(maps, 5, 0.7, None).tolist() == [[6, 12, 6, 12, 6]]
    drawn = object_seeds(maps, 5, 0.7, torch.Generator().manual_seed(1))[0].tolist()
    assert drawn[:2] * 2 + drawn[:1] == drawn
    assert set(drawn) == {6, 12}


def test_first_seeds_are_those_in_raster_order_and_random_ones_are_all_over_the_object():
    maps = torch.zeros(1, 8, 8)
    maps[0, 2:6, 3:7] = 1.0
    object_pixels = [row * 8 + column for row in range(2, 6) for column in range(3, 7)]
    assert object_seeds(maps, 3, 0.7, None).tolist() == [object_pixels[:3]]
    generator = torch.Generator().manual_seed(0)
    counts = np.bincount(
        torch.cat([object_seeds(maps, 3, 0.7, generator) for _ in range(800)]).flatten().numpy(), minlength=64
    )
    assert counts.sum() == counts[object_pixels].sum() == 2400
    assert (
        abs(counts[object_pixels] - 150).max() < 60
    )  # each has a share of 1/16; five standard deviations are 56


def test_a_map_without_an_object_and_more_seeds_than_pixels_are_no_error():
    assert object_seeds(torch.ones(2, 3, 3), 4, 0.7, torch.Generator()).unique(dim=1).shape == (2, 1)
    assert object_seeds(torch.ones(2, 3, 3), 4, 0.7, None).max() < 9
    assert object_seeds(torch.tensor([[[0.0, 1.0]]]), 4, 0.7, None).tolist() == [[1, 1, 1, 1]]


def test_vectors_are_the_columns_of_the_features_by_pair():
    features = torch.arange(4 * 2 * 6.0).reshape(4, 2, 2, 3)
    vectors = gather_vectors(features, torch.tensor([[0], [5], [2], [3]]))
    assert vectors.shape == (2, 2, 1, 2)
    assert vectors[1, 0, 0].tolist() == [24 + 2, 24 + 8]
    assert gather_vectors(features[:3], torch.tensor([[0], [5], [2]])).shape[0] == 1


# --- the two losses -----------------------------------------------------------------------------------------


def test_the_local_distance_of_known_vectors():
    vectors = torch.tensor([[[[0.0, 0], [1, 1]], [[3, 4], [1, 1]]]])  # distances 5 and 0
    assert local_distance(vectors).tolist() == [2.5]


def test_a_pair_of_equal_images_has_no_local_distance_and_finite_gradients():
    network, image = model(seeds="first"), torch.randn(1, 3, 32, 32)
    terms = network.loss(batch([1, 1], image.repeat(2, 1, 1, 1)))
    assert terms["local"] == 0
    sum(terms.values()).backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters()
    )


def test_the_local_term_is_the_weighted_mean_distance_of_the_pairs():
    network, given_batch = model(seeds="first", local_weight=0.5), batch([2, 2, 0, 0])
    result = network(given_batch.images)
    seeds = object_seeds(result.maps_of(given_batch.labels[:, None])[:, 0].detach(), 3, 0.7, None)
    features = list(result.stages.values())[-1].flatten(2)
    distances = [
        (features[2 * pair, :, seeds[2 * pair, k]] - features[2 * pair + 1, :, seeds[2 * pair + 1, k]]).norm()
        for pair in range(2)
        for k in range(3)
    ]
    torch.testing.assert_close(network.loss(given_batch)["local"], 0.5 * torch.stack(distances).mean())


def test_the_map_chooses_pixels_and_gets_no_gradient():
    network = model(cold_start="random")
    terms = network.loss(batch([0, 0, 3, 3]))
    (terms["local"] + terms["global"]).backward()
    assert all(parameter.grad is None for parameter in network.head.parameters())
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in network.backbone.parameters()
    )


def test_pairs_of_two_classes_count_only_in_the_cross_entropy():
    network = model(cold_start="random")
    bank = network.bank.clone()
    terms = network.loss(batch([0, 1, 2, 3]))
    assert terms["local"] == terms["global"] == 0
    assert terms["cross_entropy"] > 0
    assert torch.equal(network.bank, bank)
    assert not network.counts.any()
    one = model(seeds="first")
    images = torch.randn(4, 3, 32, 32)
    alone = one.loss(batch([1, 1], images[:2]))["local"]
    torch.testing.assert_close(one.loss(batch([1, 1, 2, 3], images))["local"], alone)


def test_a_mean_over_nothing_is_zero():
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)) == 0
    assert masked_mean(torch.tensor([1.0, 5.0]), torch.tensor([True, False])) == 1


# --- the bank -----------------------------------------------------------------------------------------------


def test_the_rate_of_the_bank_falls_as_published():
    rates = update_rate(torch.tensor([0, 1, 100, 1000]), 0.002)
    torch.testing.assert_close(rates, torch.tensor([1.0, 0.998002, 0.818731, 0.135335]), atol=1e-4, rtol=0)
    many = update_rate(torch.arange(3000), 0.002)
    assert (many.diff() < 0).all()


def test_the_first_update_makes_the_centre_the_mean_of_the_pair_and_leaves_the_others():
    network, given_batch = model(seeds="first"), batch([2, 2])
    expected = centres_of(network, given_batch)
    network.loss(given_batch)
    torch.testing.assert_close(network.bank[2], expected[0])
    assert not network.bank[[0, 1, 3]].any()
    assert network.counts.tolist() == [0, 0, 1, 0]


def test_the_next_update_mixes_with_the_rate_of_the_count_and_the_loss_looks_at_the_bank_before_it():
    network, one, two = model(seeds="first", global_weight=1.0, decay=0.5), batch([2, 2]), batch([2, 2])
    first, second = centres_of(network, one)[0], centres_of(network, two)[0]
    assert network.loss(one)["global"] == 0
    torch.testing.assert_close(network.loss(two)["global"], (first - second).norm())
    eta = math.exp(-0.5)
    torch.testing.assert_close(network.bank[2], (1 - eta) * first + eta * second)
    assert network.counts.tolist() == [0, 0, 2, 0]


def test_two_pairs_of_a_class_in_a_batch_make_one_update_with_their_mean():
    network, given_batch = model(seeds="first"), batch([1, 1, 3, 3, 1, 1])
    centres = centres_of(network, given_batch)
    network.loss(given_batch)
    torch.testing.assert_close(network.bank[1], (centres[0] + centres[2]) / 2)
    torch.testing.assert_close(network.bank[3], centres[1])
    assert network.counts.tolist() == [0, 1, 0, 1]


def test_the_pairs_of_other_processes_are_in_the_same_update(monkeypatch):
    here, there = model(seeds="first"), model(seeds="first")
    there.load_state_dict(here.state_dict())
    whole = batch([1, 1, 3, 3, 1, 1])
    parts = [batch([1, 1], whole.images[:2]), batch([3, 3, 1, 1], whole.images[2:])]
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(i2c, "all_reduce_sum", lambda sums, world: sent.append(sums.clone()))
    there.loss(parts[1])
    monkeypatch.setattr(i2c, "all_reduce_sum", lambda sums, world: sums.add_(sent[0]))
    here.loss(parts[0])
    monkeypatch.undo()
    alone = model(seeds="first")
    alone.load_state_dict(
        {**here.state_dict(), "bank": torch.zeros_like(here.bank), "counts": torch.zeros_like(here.counts)}
    )
    alone.loss(whole)
    torch.testing.assert_close(here.bank, alone.bank)
    assert torch.equal(here.counts, alone.counts)


def test_a_class_without_a_centre_has_no_global_term_unless_the_bank_starts_with_noise():
    masked, noisy = model(), model(cold_start="random")
    assert not masked.bank.any()
    assert abs(float(noisy.bank.std()) - 1) < 0.3
    given_batch = batch([0, 0])
    assert masked.loss(given_batch)["global"] == 0
    assert masked.loss(given_batch)["global"] > 0
    assert noisy.loss(given_batch)["global"] > 0


def test_no_gradient_goes_into_the_bank():
    network = model(cold_start="random")
    network.loss(batch([0, 0]))["global"].backward()
    assert network.bank.grad_fn is None
    assert not network.bank.requires_grad
    assert {"bank", "counts"} <= network.state_dict().keys()


def test_mixed_precision_keeps_the_bank_in_float32():
    network = model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = network.loss(batch([0, 0, 1, 1]))
    assert all(term.isfinite() for term in terms.values())
    assert network.bank.dtype == torch.float32
    assert terms["local"].dtype == terms["global"].dtype == torch.float32


# --- batches and settings -----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 2**31))
def test_every_batch_is_made_of_pairs_of_one_class_and_shows_every_image(labels, size, seed):
    network, all_labels = model(), np.array(labels)
    parts = network.batches(all_labels, size, np.random.default_rng(seed))
    shown = np.concatenate(parts)
    assert all(len(part) % 2 == 0 and 2 <= len(part) <= max(2, size) for part in parts)
    assert (all_labels[shown[0::2]] == all_labels[shown[1::2]]).all()
    times = np.bincount(shown, minlength=len(labels))
    assert times.min() >= 1
    for label in set(labels):
        own = times[all_labels == label]
        assert own.sum() == len(own) + len(own) % 2
    assert all(
        a != b or (all_labels == all_labels[a]).sum() == 1
        for a, b in zip(shown[0::2], shown[1::2], strict=True)
    )


def test_pairs_are_others_in_each_epoch():
    network, labels = model(), np.zeros(40, dtype=np.int64)
    one, two = (np.concatenate(network.batches(labels, 8, np.random.default_rng(seed))) for seed in (0, 1))
    assert {frozenset(pair) for pair in one.reshape(-1, 2).tolist()} != {
        frozenset(pair) for pair in two.reshape(-1, 2).tolist()
    }


def test_the_places_and_recipes_are_those_of_the_released_code():
    assert I2C.grid_for("vgg16", I2cConfig()) == "acol28"
    assert I2C.grid_for("vgg16", I2cConfig(grid="std14")) == "std14"
    assert I2C.grid_for("resnet50", I2cConfig()) == "default"
    assert I2C.recipe_name("inception_v3", 1000) == "i2c_ilsvrc"
    assert (I2C.recipe_name("vgg16", 200), I2C.recipe_name("tiny", 1000)) == ("spa_cub", "tiny")
    recipe = I2C.recipe_for("inception_v3", 1000, {})
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (5, 80, 1e-3)
    assert [recipe.lr_factor((epoch + 0.5) / 5) for epoch in range(5)] == pytest.approx(
        [1, 1, 0.1, 0.01, 0.001]
    )
    official = parse_settings(I2cConfig, {"variant": "official"}, what="i2c")
    assert (official.seeds, official.cold_start) == ("first", "random")
    assert I2C(toy_backbone(), CLASSES, I2cConfig()).head.trunk[0].p == 0.5


@pytest.mark.parametrize(
    "changes",
    [{"num_seeds": 0}, {"threshold": 1.0}, {"threshold": -0.1}, {"local_weight": -1.0}, {"decay": -0.1}],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        model(**changes)
