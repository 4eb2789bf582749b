"""DCL: a shuffle that loses no patch, labels that are true, and a classifier that is left alone at test."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reference_models.core.config import parse_settings
from reference_models.core.recipes import FINE_GRAINED
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.dcl.method import Dcl, DclConfig, place_loss, place_targets
from reference_models.recognition.dcl.region_confusion import (
    colour_source,
    draw_keys,
    exchanged_order,
    exchanged_source,
    move_patches,
    move_patches_as_released,
    sorted_source,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

CLASSES = 4
ROW_KEYS = torch.tensor([[[0.9, 0.2, 2.0], [0.0, 1.0, 2.0], [1.5, 0.5, 1.0]]])
COLUMN_KEYS = torch.tensor([[[0.0, 1.0, 2.0], [1.2, 0.1, 2.2], [0.0, 2.5, 1.4]]])


def dcl(**settings) -> Dcl:
    given = {"cells": "4", **{name: str(value) for name, value in settings.items()}}
    return Dcl(toy_backbone(), CLASSES, parse_settings(DclConfig, given, what="dcl")).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(count: int, cells: int, reach: float, seed: int = 0) -> torch.Tensor:
    source = generator(seed)
    return sorted_source(*(draw_keys(count, cells, float(reach), source) for _ in range(2)))


# --- region confusion ---------------------------------------------------------------------------------------


def test_golden_values_of_the_sorted_shuffle():
    identity = torch.arange(3.0).expand(1, 3, 3)
    assert sorted_source(ROW_KEYS, identity).tolist() == [[[1, 0, 2], [3, 4, 5], [7, 8, 6]]]
    assert sorted_source(ROW_KEYS, COLUMN_KEYS).tolist() == [[[1, 4, 2], [3, 0, 6], [7, 8, 5]]]


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.floats(0, 8), st.integers(0, 2**31))
def test_no_patch_is_lost_and_none_moves_as_far_as_2k(cells, reach, seed):
    source = draw(5, cells, reach, seed)
    assert (source.flatten(1).sort(dim=1).values == torch.arange(cells**2)).all()
    rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    for moved in (source // cells - rows, source % cells - columns):
        assert moved.abs().max() <= max(2 * reach - 1e-6, 0)


@pytest.mark.parametrize(("reach", "farthest"), [(0, 0), (0.5, 0), (1, 1), (2, 3), (3, 5)])
def test_the_farthest_move_is_2k_less_1_and_is_reached(reach, farthest):
    source = draw(4000, 7, reach)
    columns = torch.arange(7).expand(7, 7)
    assert (source % 7 - columns).abs().max() == farthest
    assert (source // 7 - columns.T).abs().max() == farthest


def test_printed_equation_3_loses_patches():
    """Both orders drawn for the original places, as (3) is printed: no bijection in 500 draws."""
    numbers = random.Random(0)

    def order() -> list[int]:
        keys = [place + numbers.uniform(-2, 2) for place in range(7)]
        return sorted(range(7), key=keys.__getitem__)

    found = []
    for _ in range(500):
        rows, columns = [order() for _ in range(7)], [order() for _ in range(7)]
        found.append(len({(columns[j][i], rows[i][j]) for i, j in itertools.product(range(7), range(7))}))
    assert max(found) < 49
    assert 38 < sum(found) / len(found) < 40


def test_the_draws_follow_the_generator_and_differ_between_images():
    first, again, other = draw(6, 7, 2, 3), draw(6, 7, 2, 3), draw(6, 7, 2, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(source.flatten().tolist()) for source in first}) == 6


@pytest.mark.parametrize(("size", "cells"), [(12, 3), (14, 4), (7, 7), (9, 2), (5, 1)])
def test_patches_move_as_in_a_loop_over_pixels(size, cells):
    images, source = torch.randn(3, 2, size, size), draw(3, cells, 2)
    patch = size // cells
    start = (size - cells * patch) // 2
    expected = images.clone()
    for image, row, column in itertools.product(range(3), range(cells), range(cells)):
        taken = int(source[image, row, column])
        for y, x in itertools.product(range(patch), range(patch)):
            at = (start + row * patch + y, start + column * patch + x)
            of = (start + taken // cells * patch + y, start + taken % cells * patch + x)
            expected[image, :, at[0], at[1]] = images[image, :, of[0], of[1]]
    assert torch.equal(move_patches(images, source), expected)


def test_the_inverse_shuffle_restores_the_image():
    images, source = torch.randn(4, 3, 30, 30), draw(4, 7, 3)
    inverse = source.flatten(1).argsort(dim=1).view_as(source)
    assert not torch.equal(move_patches(images, source), images)
    assert torch.equal(move_patches(move_patches(images, source), inverse), images)


# --- the released shuffle -----------------------------------------------------------------------------------


def exchange(items: list[int], coins: list[bool]) -> list[int]:
    """The released loop: a list grows, and its last two items are exchanged or not."""
    grown: list[int] = []
    for item, coin in zip(items, coins, strict=True):
        grown.append(item)
        if coin and len(grown) > 1:
            grown[-2:] = reversed(grown[-2:])
    return grown


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_released_orders_are_those_of_a_growing_list(coins):
    expected = exchange(list(range(len(coins))), coins)
    assert exchanged_order(torch.tensor(coins)).tolist() == expected


@given(st.lists(st.booleans(), min_size=12, max_size=12))
def test_released_rows_move_as_a_whole(coins):
    patch_coins = torch.tensor(coins[:9]).view(1, 3, 3)
    row_coins = torch.tensor(coins[9:]).view(1, 3)
    rows = [
        exchange([3 * row + place for place in range(3)], coins[3 * row : 3 * row + 3]) for row in range(3)
    ]
    expected = [rows[row] for row in exchange([0, 1, 2], coins[9:])]
    assert exchanged_source(patch_coins, row_coins)[0].tolist() == expected


def test_released_patches_drift_beyond_the_bound_to_one_side():
    model = dcl(variant="official", cells=7)
    source = model.draw_source(4000, generator())
    assert (source.flatten(1).sort(dim=1).values == torch.arange(49)).all()
    place = torch.arange(7).expand(7, 7)
    for taken, here in ((source // 7, place.T), (source % 7, place)):
        moved = here - taken
        assert (moved.min(), moved.max()) == (-1, 6)
        assert 0.01 < (moved > 3).float().mean() < 0.03


def test_the_released_shuffle_cuts_a_border_and_repeats_pixels_as_pillow_does():
    pixels = np.random.default_rng(0).integers(256, size=(56, 56, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels).crop((1, 1, 55, 55)).resize((56, 56), PIL.Image.Resampling.NEAREST)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    identity = torch.arange(36).view(1, 6, 6)
    moved = move_patches_as_released(images, identity)[0].permute(1, 2, 0)
    assert np.array_equal(moved.numpy(), np.asarray(picture))
    # Of 448 pixels, 10 are cut off at each side, and 428 are not a multiple of 7.
    ramp = torch.arange(448.0).expand(1, 1, 448, 448)
    moved = move_patches_as_released(ramp, torch.arange(49).view(1, 7, 7))
    assert moved.shape == ramp.shape
    assert (moved.min(), moved.max()) == (10, 436)


def test_released_labels_of_a_constant_image_are_its_first_patch():
    images = torch.full((2, 3, 29, 29), 0.3)
    found = colour_source(images, images, 7, InputSpec())
    assert found.shape == (2, 7, 7)
    assert (found == 0).all()


def levels(*shape: int) -> torch.Tensor:
    """Normalised images of random levels of 255, as training has them."""
    spec = InputSpec()
    mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
    return (torch.randint(256, shape, generator=generator()) / 255 - mean) / std


def test_labels_by_colour_are_true_as_long_as_the_grid_has_not_moved():
    images, source = levels(3, 3, 56, 56), draw(3, 7, 2)
    assert torch.equal(colour_source(images, move_patches(images, source), 7, InputSpec()), source)


def test_labels_by_colour_are_mostly_wrong_after_the_released_cut():
    """Even if nothing is shuffled, on smooth images: means of patches change with the grid."""
    rough = torch.rand(20, 3, 12, 12, generator=generator())
    images = F.interpolate(rough, size=448, mode="bicubic")
    identity = torch.arange(49).view(1, 7, 7).expand(20, 7, 7)
    found = colour_source(images, move_patches_as_released(images, identity), 7, InputSpec())
    assert (found != identity).float().mean() > 0.4


# --- places -------------------------------------------------------------------------------------------------


def test_the_location_loss_of_a_constant_prediction():
    identity = torch.arange(9).view(1, 3, 3)
    source = sorted_source(ROW_KEYS, COLUMN_KEYS)
    for each in (identity, source):
        targets = place_targets(each, "coordinates", in_cells=True)
        assert place_loss(torch.full((1, 2, 3, 3), 2.0), targets, "sum") == 12
    unit = place_targets(identity, "coordinates")
    assert place_loss(torch.full((1, 2, 3, 3), 2 / 3), unit, "mean").item() == pytest.approx(12 / 18 / 3)


def test_the_location_loss_is_0_for_the_true_places_alone():
    source = draw(3, 7, 2)
    identity = torch.arange(49).view(1, 7, 7).expand(3, 7, 7)
    own = place_targets(identity, "coordinates")
    moved = move_patches(own, source)  # predictions that follow their patches
    assert place_loss(moved, place_targets(source, "coordinates"), "mean") == 0
    assert place_loss(own, place_targets(source, "coordinates"), "mean") > 0
    assert (own > 0).all()
    assert own.amax() == 1
    assert own[0, :, 2, 4].tolist() == pytest.approx([3 / 7, 5 / 7])  # row, then column


def test_a_head_that_knows_its_own_place_has_a_low_location_loss():
    """Without a look at the image: patches move by less than a place on average."""
    source = draw(2000, 7, 2)
    own = torch.arange(49).view(1, 7, 7).expand_as(source)
    own_places = place_targets(own, "coordinates")
    both = place_targets(torch.cat([own, source]), "coordinates")
    loss = place_loss(own_places.repeat(2, 1, 1, 1), both, "mean")
    assert loss.item() == pytest.approx(0.047, abs=0.001)
    guess = place_loss(torch.full_like(own_places, 4 / 7), own_places, "mean")
    assert guess.item() == pytest.approx(12 / 49)


def test_released_places_are_indices_around_0():
    targets = place_targets(torch.arange(49).view(1, 7, 7), "index").flatten()
    assert targets.tolist() == pytest.approx([(index - 24) / 49 for index in range(49)])


def test_places_start_at_the_mean_of_their_targets_and_no_relu_is_dead():
    for reduction, middle in (("mean", 5 / 8), ("sum", 5 / 2)):
        head = dcl(loc_reduction=reduction).place_head
        assert head.conv.bias.tolist() == [middle, middle]
        torch.testing.assert_close(head(torch.zeros(1, 16, 8, 8)), torch.full((1, 2, 4, 4), middle))


# --- the method ---------------------------------------------------------------------------------------------


def features_of(model: Dcl, images: torch.Tensor) -> torch.Tensor:
    return model.backbone.run(images)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_terms_are_means_over_both_views(variant):
    model, batch = dcl(variant=variant, swap_weight=0.5, place_weight=0.25), toy_batch(6, classes=CLASSES)
    batch = replace(batch, images=levels(6, 3, 32, 32))
    terms = model.loss(batch)
    source = model.draw_source(6, generator())
    move = move_patches if variant == "paper" else move_patches_as_released
    shuffled = move(batch.images, source)
    views = [features_of(model, images) for images in (batch.images, shuffled)]
    pooled = [view.mean(dim=(2, 3)) for view in views]
    classes = [F.cross_entropy(each @ model.classifier.weight.T, batch.labels) for each in pooled]
    torch.testing.assert_close(terms["cross_entropy"], sum(classes) / 2)
    second = batch.labels + CLASSES if variant == "official" else torch.ones(6, dtype=torch.int64)
    first = batch.labels if variant == "official" else torch.zeros(6, dtype=torch.int64)
    swaps = [
        F.cross_entropy(each @ model.swap_classifier.weight.T, target)
        for each, target in zip(pooled, (first, second), strict=True)
    ]
    torch.testing.assert_close(terms["swap"], 0.5 * sum(swaps) / 2)
    places = []
    if variant == "official":
        source = colour_source(batch.images, shuffled, 4, model.input_spec)
    for view, taken in zip(views, (torch.arange(16).view(1, 4, 4).expand(6, 4, 4), source), strict=True):
        values = F.conv2d(view, model.place_head.conv.weight, model.place_head.conv.bias)
        if variant == "official":
            error = F.avg_pool2d(values, 2).tanh()[:, 0] - (taken - 8) / 16
        else:
            error = F.avg_pool2d(values.relu(), 2) - torch.stack([taken // 4 + 1, taken % 4 + 1], dim=1) / 4
        places.append(error.abs().mean())
    torch.testing.assert_close(terms["place"], 0.25 * sum(places) / 2)


def test_heads_of_weight_0_are_not_there():
    batch = toy_batch(4, classes=CLASSES)
    model = dcl(swap_weight=0, place_weight=0, neighbourhood=0)
    terms = model.loss(batch)
    assert set(terms) == {"cross_entropy"}
    assert {name.partition(".")[0] for name, _ in model.named_parameters()} == {"backbone", "classifier"}
    # Nothing is shuffled: every image twice.
    torch.testing.assert_close(
        terms["cross_entropy"], F.cross_entropy(model(batch.images).logits, batch.labels)
    )


def test_the_location_loss_moves_its_head_and_the_features_but_no_classifier():
    model, batch = dcl().train(), toy_batch(4, classes=CLASSES)
    model.loss(batch)["place"].backward()
    assert model.classifier.weight.grad is None
    assert model.swap_classifier.weight.grad is None
    assert model.place_head.conv.weight.grad.abs().sum() > 0
    assert next(model.backbone.parameters()).grad.abs().sum() > 0


def test_all_losses_are_minimised_together():
    """No gradient is reversed: a step down the gradient of the swap loss lowers it."""
    model, batch = dcl().train(), toy_batch(8, classes=CLASSES)
    before = model.loss(batch)["swap"]
    gradients = torch.autograd.grad(before, list(model.backbone.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.backbone.parameters(), gradients, strict=True):
            parameter.sub_(0.1 * gradient)
    assert model.loss(replace(batch, generator=generator()))["swap"] < before


def test_at_test_only_the_classifier_is_left():
    model, images = dcl(), torch.randn(2, 3, 32, 32)
    result = model.localize(images)
    torch.testing.assert_close(
        result.logits, features_of(model, images).mean(dim=(2, 3)) @ model.classifier.weight.T
    )
    with torch.no_grad():
        for head in (model.swap_classifier, model.place_head.conv):
            head.weight.add_(1.0)
    assert torch.equal(model.localize(images).logits, result.logits)
    assert not result.extra_maps


def test_the_official_logits_add_both_halves_of_the_swap_head():
    model, images = dcl(variant="official"), torch.randn(2, 3, 32, 32)
    pooled = features_of(model, images).mean(dim=(2, 3))
    swap = pooled @ model.swap_classifier.weight.T
    expected = pooled @ model.classifier.weight.T + swap[:, :CLASSES] + swap[:, CLASSES:]
    torch.testing.assert_close(model.localize(images).logits, expected)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_mean_of_a_class_s_map_is_its_score(variant):
    model, images = dcl(variant=variant), torch.randn(2, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(2, CLASSES))
    torch.testing.assert_close(maps.mean(dim=(2, 3)), result.logits, atol=1e-5, rtol=1e-4)
    assert result.propose().boxes.shape == (2, 4, 4)  # the peaks of its map


def test_shuffled_views_have_statistics_of_their_own_if_asked():
    batch = toy_batch(6, classes=CLASSES)
    model = dcl(norm_statistics="per_input").train()
    layer = model.backbone.get_submodule("steps.one.1")
    first = model.backbone.get_submodule("steps.one.0")
    model.loss(batch)
    own = model.part_statistics.layers["steps/one/1"]
    shuffled = move_patches(batch.images, model.draw_source(6, generator()))
    for statistics, images in ((layer, batch.images), (own, shuffled)):
        torch.testing.assert_close(statistics.running_mean, 0.1 * first(images).mean(dim=(0, 2, 3)))
    shared = dcl().train()
    shared.loss(replace(batch, generator=generator()))
    assert shared.backbone.get_submodule("steps.one.1").num_batches_tracked == 1  # one batch of both views


def test_losses_repeat_with_the_generator():
    model = dcl()
    first, again, other = (model.loss(toy_batch(4, classes=CLASSES, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["place"], other["place"])


def test_the_recipes_are_the_paper_s_and_the_released_code_s():
    assert Dcl.recipe_for("resnet50", 200, {}) == FINE_GRAINED["dcl"]
    official = Dcl.recipe_for("resnet50", 200, {"variant": "official"})
    assert (
        official
        == FINE_GRAINED["dcl_official"]
        == Baseline.recipe_for("resnet50", 200, {"recipe": "dcl_official"})
    )
    rates = [official.lr * official.lr_factor(epoch / 359) for epoch in (0, 59, 60, 119, 120, 300, 358)]
    assert rates == pytest.approx([8e-4, 8e-4, 8e-5, 8e-5, 8e-6, 8e-9, 8e-9])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": "33"}, "cells of method 'dcl' is 33, but images have 32 pixels .* expected at most 32"),
        ({"cells": "31", "variant": "official"}, "is 31, but images have 30 pixels"),
        ({"cells": "0"}, "cells of dcl is 0; expected a whole number"),
        ({"neighbourhood": "-1"}, "neighbourhood of dcl is -1"),
        ({"places": "index", "loc_reduction": "sum"}, "places=index and loc_reduction=sum of method 'dcl'"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        dcl(**settings)


def test_a_config_names_its_method():
    with pytest.raises(UsageError, match="setting swap_weight of method 'dcl' is -1"):
        DclConfig(swap_weight=-1.0)
