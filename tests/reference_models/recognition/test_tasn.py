"""TASN: the trilinear product, the sampler against loops over pixels, and what teaches what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.backbone import load_backbone
from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.regions import PEAK_SIDE
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.tasn.attention import copy_trunk, trilinear
from reference_models.recognition.tasn.maps import distinct_maps, mean_map, pick_channel
from reference_models.recognition.tasn.method import Tasn, TasnConfig, soft_cross_entropy
from reference_models.recognition.tasn.sampler import (
    axis_densities,
    limit_zoom,
    limit_zoom_in_rounds,
    make_densities,
    normalise_density,
    places_in_view,
    released_positions,
    sample,
    sample_positions,
    sample_view,
)
from reference_models.training.checkpoint import load_checkpoint
from reference_models.training.loop import fit
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError

CLASSES = 4


def network(size: int = 32, **settings) -> Tasn:
    """A model whose classifiers are not near zero."""
    config = parse_settings(TasnConfig, {k: str(v) for k, v in settings.items()}, what="tasn")
    model = Tasn(toy_backbone(size), CLASSES, config)
    for classifier in (model.classifier, model.attention.classifier):
        torch.nn.init.normal_(classifier.weight, std=0.5)
    return model.eval()


def batch(count: int = 4, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


def shown(model: Tasn, run) -> list[torch.Tensor]:
    """All that the network of the views is given while `run` runs."""
    seen: list[torch.Tensor] = []
    handle = model.backbone.steps["one"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run()
    handle.remove()
    return seen


def random_maps(count: int = 3, side: int = 7, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed)).double() ** 3


# --- the trilinear product ----------------------------------------------------------------------------------


def trilinear_by_loops(x: torch.Tensor, scale: float) -> torch.Tensor:
    """M of one image (c, n), one sum after another."""
    channels, cells = x.shape
    first = [[math.exp(scale * x[a, i]) for i in range(cells)] for a in range(channels)]
    first = [[value / sum(row) for value in row] for row in first]
    result = torch.zeros_like(x)
    for a in range(channels):
        relation = [sum(first[a][i] * x[b, i].item() for i in range(cells)) for b in range(channels)]
        weights = [math.exp(value) for value in relation]
        for i in range(cells):
            result[a, i] = sum(w * x[b, i].item() for b, w in enumerate(weights)) / sum(weights)
    return result


def test_golden_values_of_the_trilinear_product():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    found = trilinear(x.view(1, 3, 1, 2), 1.0).view(3, 2)
    expected = [[0.785624, 0.659693], [0.659693, 0.785624], [0.725931, 0.725931]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 7.0])
def test_the_trilinear_product_is_the_loops(scale):
    x = torch.rand(2, 5, 2, 3, dtype=torch.float64)
    for one, found in zip(x, trilinear(x, scale), strict=True):
        torch.testing.assert_close(found.flatten(1), trilinear_by_loops(one.flatten(1), scale))


def test_each_map_is_a_mean_of_the_channels():
    x = torch.rand(2, 6, 4, 4, dtype=torch.float64)
    maps = trilinear(x, 7.0)
    assert (maps <= x.amax(1, keepdim=True)).all()
    assert (maps >= x.amin(1, keepdim=True)).all()
    # Rows of N2 sum to 1: constant channels stay.
    constant = torch.full((1, 6, 4, 4), 3.0, dtype=torch.float64)
    torch.testing.assert_close(trilinear(constant, 7.0), constant)
    assert (maps.std(1) > 0).any()  # the maps are not all the same


def test_maps_follow_permutations_of_channels_and_cells():
    x = torch.rand(1, 6, 1, 9, dtype=torch.float64)
    maps, channels, cells = trilinear(x, 7.0), torch.randperm(6), torch.randperm(9)
    torch.testing.assert_close(trilinear(x[:, channels], 7.0), maps[:, channels])
    torch.testing.assert_close(trilinear(x[..., cells], 7.0), maps[..., cells])


def test_large_features_make_equal_maps_of_which_one_counts():
    """A row of N2 is then the channel with the largest product, which many channels share."""
    x = 300 * torch.rand(2, 12, 5, 5, generator=torch.Generator().manual_seed(2))
    maps = trilinear(x, 7.0)
    kept = distinct_maps(maps)
    for one, which in zip(maps.flatten(2), kept, strict=True):
        for number in range(12):  # every map is that of exactly one kept channel
            same = (one[which] - one[number]).abs().amax(1) < 1e-3
            assert same.sum() == 1
        assert which.sum() < 12
    expected = torch.stack([one[which].mean(0) for one, which in zip(maps, kept, strict=True)])
    torch.testing.assert_close(mean_map(maps, kept), expected)
    assert not torch.allclose(mean_map(maps), expected, rtol=0.01)
    assert distinct_maps(torch.rand(1, 50, 3, 3)).all()
    assert distinct_maps(torch.zeros(1, 5, 3, 3)).sum() == 1


def test_one_of_the_distinct_maps_is_drawn_each_as_often():
    values = torch.tensor([0.0, 7, 7, 3, 3, 5])[None, :, None, None].expand(3000, 6, 2, 2)
    drawn = pick_channel(values, torch.Generator().manual_seed(1), distinct_maps(values))[:, 0, 0].long()
    counts = torch.bincount(drawn, minlength=8)[[0, 3, 5, 7]]
    assert counts.sum() == 3000
    assert ((counts - 750).abs() < 5 * (3000 * 3 / 16) ** 0.5).all()


def test_the_product_is_computed_in_single_precision():
    x = torch.rand(1, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trilinear(x, 7.0)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, trilinear(x, 7.0))


# --- densities ----------------------------------------------------------------------------------------------


def test_the_density_of_an_axis_is_the_maximum_over_the_other_one():
    maps = torch.tensor([[[1.0, 0, 2], [4, 0, 1], [1, 1, 1]]])
    x, y = axis_densities(maps, 3)
    torch.testing.assert_close(x, torch.tensor([[4.0, 1, 2]]).double() * 3 / 7)
    torch.testing.assert_close(y, torch.tensor([[2.0, 4, 1]]).double() * 3 / 7)
    x, _ = axis_densities(maps, 3, power=2)
    torch.testing.assert_close(x, torch.tensor([[16.0, 1, 4]]).double() * 3 / 21)


def test_a_map_of_zeros_is_sampled_evenly():
    x, y = make_densities(torch.zeros(2, 4, 4), 16, max_zoom=4.0)
    torch.testing.assert_close(x, torch.ones(2, 16).double())
    torch.testing.assert_close(y, torch.ones(2, 16).double())


def greatest_after_clipping(density: list[float], threshold: float) -> float:
    clipped = [min(value, threshold) for value in density]
    return max(clipped) + 1 - sum(clipped) / len(clipped)


@pytest.mark.parametrize("cap", [1.0, 1.3, 2.0, 4.0, 50.0])
def test_both_axes_end_with_the_same_magnification_within_the_limit(cap):
    densities = axis_densities(random_maps(), 40)
    x, y = limit_zoom(densities, cap)
    wanted = torch.stack([density.amax(1) for density in densities]).amin(0).clamp(max=cap)
    for before, after in zip(densities, (x, y), strict=True):
        torch.testing.assert_close(after.amax(1), wanted)
        torch.testing.assert_close(after.mean(1), torch.ones(3).double())
        # The threshold is the one that bisection finds.
        for one, found, goal in zip(before.tolist(), after.tolist(), wanted.tolist(), strict=True):
            low, high = 0.0, max(one)
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if greatest_after_clipping(one, middle) < goal else (low, middle)
            spread = 1 - sum(min(value, low) for value in one) / len(one)
            assert found == pytest.approx([min(value, low) + spread for value in one], abs=1e-9)


def test_a_flat_axis_switches_the_magnification_of_the_other_one_off():
    flat, steep = torch.ones(1, 8).double(), normalise_density(torch.tensor([[1.0, 1, 1, 9, 1, 1, 1, 1]]))
    x, y = limit_zoom((flat, steep), 4.0)
    torch.testing.assert_close(x, flat)
    torch.testing.assert_close(y, flat)
    assert limit_zoom((steep, steep), 4.0)[0].amax() == pytest.approx(4.0)


def test_rounds_of_the_released_code_equalise_the_axes_nearly_and_may_pass_the_limit():
    densities = axis_densities(random_maps(20, seed=5), 64)
    x, y = limit_zoom_in_rounds(densities, 4.0)
    assert ((x.amax(1) / y.amax(1)).log().abs() < 0.05).all()
    torch.testing.assert_close(x.mean(1), torch.ones(20).double())
    peak = normalise_density(F.one_hot(torch.tensor([5]), 100).float())
    assert limit_zoom_in_rounds((peak, peak), 4.0)[0].amax() == pytest.approx(4.96)  # 4 + (1 - 4 / 100)
    assert limit_zoom((peak, peak), 4.0)[0].amax() == pytest.approx(4.0)


# --- positions ----------------------------------------------------------------------------------------------


def positions_by_loop(density: list[float], size: int) -> list[float]:
    """Walk over the pixels until the running sum has passed each sample's share."""
    total, found = sum(density), []
    for i in range(size):
        left = (i + 0.5) / size * total
        for j, share in enumerate(density):  # noqa: B007 - used after the loop
            if left < share:
                break
            left -= share
        found.append(j + left / share)
    return found


def test_golden_positions():
    density = torch.tensor([[1.0, 1, 1, 1, 4, 4, 1, 1]]).double()
    expected = [0.875, 2.625, 4.09375, 4.53125, 4.96875, 5.40625, 5.84375, 7.125]
    assert sample_positions(density, 8)[0].tolist() == pytest.approx(expected)


def released_positions_by_loop(densities: list[list[float]], size: int) -> list[list[float]]:
    """Walk as the released code does: the sums of a batch lie in memory one image after the other.

    Each sum starts at 1, and nothing keeps the walk from reading the sum before an image's first one.
    """
    pixels, memory = len(densities[0]), []
    for density in densities:
        memory.append(1.0)
        for share in density[1:]:
            memory.append(memory[-1] + share * size / pixels)
    found = []
    for start in range(0, len(memory), pixels):
        row, pixel, step = [], 0, memory[start + pixels - 1] / size
        for i in range(size):
            while memory[start + pixel] < i * step:
                pixel += 1
            end, before = memory[start + pixel], memory[start + pixel - 1]
            row.append(pixel + (i * step - end) / (end - before))
        found.append(row)
    return found


def test_positions_of_the_released_code_are_those_of_its_walk_through_memory():
    x, _ = make_densities(random_maps(4, seed=8), 40, max_zoom=4.0, kind="released")
    found = released_positions(x, 16) - 0.5  # the code counts from the first pixel's centre
    for row, expected in zip(found.tolist(), released_positions_by_loop(x.tolist(), 16), strict=True):
        assert row[1:] == pytest.approx(expected[1:])
        assert row[0] == pytest.approx(expected[0], abs=0.01)  # the sum of another image, nearly this one's
        assert 0 < row[0] < 0.1


def test_golden_positions_of_the_released_code():
    found = released_positions(torch.ones(1, 512).double(), 224)[0] - 0.5
    assert found[:3].tolist() == pytest.approx([1 / 223.5625, 0.00574, 2.2971], abs=1e-4)
    even = sample_positions(torch.ones(1, 512).double(), 224)[0]
    assert (even[1] - even[0]).item() == pytest.approx(512 / 224)


@pytest.mark.parametrize("size", [1, 5, 16, 40])
def test_positions_are_those_of_the_loop_and_increase_within_the_image(size):
    x, _ = make_densities(random_maps(), 16, max_zoom=4.0)
    found = sample_positions(x, size)
    for row, density in zip(found.tolist(), x.tolist(), strict=True):
        assert row == pytest.approx(positions_by_loop(density, size))
    assert (found.diff(dim=1) > 0).all()
    assert ((found > 0) & (found < 16)).all()


def test_places_in_a_view_invert_the_positions():
    x, _ = make_densities(random_maps(), 16, max_zoom=4.0)
    places = places_in_view(x, 16)  # of the centres of the pixels
    for density, row in zip(x.tolist(), places.tolist(), strict=True):
        assert row == pytest.approx([(sum(density[:j]) + density[j] / 2) / 16 for j in range(16)])
    # A view with many samples has a sample nearest to a pixel's centre at just this place.
    fine = sample_positions(x, 4000)
    nearest = (fine[:, :, None] - (torch.arange(16) + 0.5)).abs().argmin(1)
    torch.testing.assert_close((nearest.double() + 0.5) / 4000, places, atol=5e-4, rtol=0)


# --- views --------------------------------------------------------------------------------------------------


def view_by_loop(image: torch.Tensor, x: list[float], y: list[float]) -> torch.Tensor:
    """Bilinear values of a (S, S) image at each pair of positions, with repeated borders."""
    side = len(image)
    result = torch.zeros(len(y), len(x), dtype=image.dtype)
    for row, vertical in enumerate(y):
        for column, horizontal in enumerate(x):
            total = 0.0
            top, left = math.floor(vertical - 0.5), math.floor(horizontal - 0.5)
            for i in (top, top + 1):
                for j in (left, left + 1):
                    weight = (1 - abs(vertical - 0.5 - i)) * (1 - abs(horizontal - 0.5 - j))
                    total += weight * image[min(max(i, 0), side - 1), min(max(j, 0), side - 1)].item()
            result[row, column] = total
    return result


def test_a_view_is_the_loop_over_its_pixels():
    images = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    x, y = make_densities(random_maps(), 16, max_zoom=4.0)
    view = sample_view(images, (x, y), 9)
    for number in range(3):
        across, down = (positions_by_loop(d[number].tolist(), 9) for d in (x, y))
        for channel in range(2):
            expected = view_by_loop(images[number, channel], across, down)
            torch.testing.assert_close(view[number, channel], expected)


def test_a_uniform_map_gives_the_resized_image():
    images = torch.randn(2, 3, 32, 32)
    view = sample_view(images, make_densities(torch.ones(2, 4, 4), 32, max_zoom=4.0), 16)
    expected = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(view, expected, atol=1e-5, rtol=1e-5)


def test_attended_pixels_are_enlarged():
    images = torch.zeros(1, 1, 32, 32)
    images[..., 20:24, 8:12] = 1.0
    maps = torch.full((1, 32, 32), 0.01)
    maps[:, 20:24, 8:12] = 1.0
    share = images.mean().item()
    view = sample_view(images, make_densities(maps, 32, max_zoom=4.0), 32)
    # 4 of 32 columns at 4 times the density of the image.
    assert view.mean().item() == pytest.approx(16 * share, rel=0.15)


def test_the_first_two_rows_and_columns_of_the_released_code_are_the_same():
    images = torch.randn(1, 1, 32, 32)
    densities = make_densities(torch.ones(1, 4, 4), 32, max_zoom=4.0, kind="released")
    view = sample_view(images, densities, 16, "released")[0, 0]
    torch.testing.assert_close(view[0], view[1], atol=0.01, rtol=0)
    torch.testing.assert_close(view[:, 0], view[:, 1], atol=0.01, rtol=0)
    assert (view[1] - view[2]).abs().max() > 0.5
    plain = sample_view(images, make_densities(torch.ones(1, 4, 4), 32, max_zoom=4.0), 16)[0, 0]
    assert (plain[0] - plain[1]).abs().max() > 0.5


def test_the_released_code_puts_corner_cells_on_corner_pixels():
    """A peak in a corner cell is in the corner pixel; the cell's own middle is further inside."""
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 3] = 1.0
    (x, y), (own_x, own_y) = (axis_densities(maps, 33, corners=corners) for corners in (True, False))
    assert (x.argmax(), y.argmax()) == (32, 0)
    assert (x[0] == x.max()).sum() == (y[0] == y.max()).sum() == 1
    assert (own_x[0] == own_x.max()).sum() == (own_y[0] == own_y.max()).sum() == 4  # half a cell is flat
    released = make_densities(maps, 33, max_zoom=100.0, kind="released")
    assert released[0].argmax() == 32


def test_a_map_of_a_view_is_moved_back_to_the_place_it_came_from():
    grid = (torch.arange(64) + 0.5) / 64
    smooth = torch.exp(-(((grid[:, None] - 0.3) / 0.2) ** 2) - ((grid - 0.6) / 0.25) ** 2)[None, None]
    densities = make_densities(random_maps(1), 64, max_zoom=4.0)
    view = sample_view(smooth, densities, 128)
    x, y = (places_in_view(density, 64) for density in densities)
    torch.testing.assert_close(sample(view, x, y), smooth, atol=0.02, rtol=0)
    assert (F.interpolate(view, size=(64, 64), mode="bilinear") - smooth).abs().max() > 0.1


# --- what the network sees ----------------------------------------------------------------------------------


def test_the_structure_is_sampled_by_the_mean_map_and_the_detail_by_one_channel():
    model, given = network(), batch()
    structure, detail = shown(model, lambda: model.loss(given))
    assert structure.shape == detail.shape == (4, 3, 16, 16)
    maps = model.attend(model.attention(given.images)[1])
    expected = sample_view(given.images, make_densities(maps.mean(1), 32, max_zoom=4.0), 16)
    torch.testing.assert_close(structure, expected)
    channel = torch.randint(maps.shape[1], (4,), generator=torch.Generator().manual_seed(0))
    chosen = torch.stack([maps[number, one] for number, one in enumerate(channel.tolist())])
    torch.testing.assert_close(
        detail, sample_view(given.images, make_densities(chosen, 32, max_zoom=4.0), 16)
    )


def test_every_channel_can_be_the_detail_s_and_the_generator_decides():
    maps = torch.arange(6.0)[None, :, None, None].expand(2000, 6, 1, 1)
    drawn = pick_channel(maps, torch.Generator().manual_seed(1)).flatten().long()
    counts = torch.bincount(drawn, minlength=6)
    assert ((counts - 2000 / 6).abs() < 5 * (2000 * 5 / 36) ** 0.5).all()
    assert torch.equal(drawn, pick_channel(maps, torch.Generator().manual_seed(1)).flatten().long())
    model, before = network(), torch.get_rng_state()
    model.loss(batch())
    assert torch.equal(before, torch.get_rng_state())


def test_the_master_alone_predicts_from_one_view_at_test():
    model, images = network(), torch.randn(3, 3, 32, 32)
    seen = shown(model, lambda: model.localize(images))
    assert [one.shape for one in seen] == [(3, 3, 16, 16)]
    pooled = model.backbone.run(seen[0]).mean((2, 3))
    torch.testing.assert_close(model.localize(images).logits, model.classifier(pooled))
    assert torch.equal(model.localize(images).logits, model.localize(images).logits)


def test_class_maps_have_the_scores_of_the_attention_network_as_their_means():
    model, images = network(predict="attention"), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(
        maps.mean((2, 3)) + model.attention.classifier.bias, result.logits, atol=1e-4, rtol=1e-4
    )


def test_proposals_are_squares_around_the_peaks_of_the_mean_map():
    result = network().localize(torch.randn(3, 3, 32, 32))
    found = result.propose()
    assert found.boxes.shape == (3, 4, 4)
    torch.testing.assert_close(found.boxes[..., 2] - found.boxes[..., 0], torch.full((3, 4), 32 * PEAK_SIDE))
    assert torch.equal(found.scores[:, 0], result.extra_maps["attention"].amax((1, 2)))


def test_the_master_s_map_without_attention_is_that_of_the_resized_image():
    model, images = network(attention="uniform"), torch.randn(2, 3, 32, 32)
    result = model.localize(images)
    small = F.interpolate(images, size=(16, 16), mode="bilinear")
    features = model.backbone.run(small)
    predicted = result.logits.argmax(1)
    maps = torch.einsum("bd,bdhw->bhw", model.classifier.weight[predicted], features)[:, None]
    expected = F.interpolate(maps, size=(8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(result.extra_maps["master"], expected, atol=1e-4, rtol=1e-4)
    # Both views are the resized image.
    for view in shown(model, lambda: model.loss(replace(batch(2), images=images))):
        torch.testing.assert_close(view, small, atol=1e-5, rtol=1e-5)


def test_maps_without_mixing_are_the_features():
    model, images = network(attention="features"), torch.randn(2, 3, 32, 32)
    features = model.attention(images)[1]
    torch.testing.assert_close(model.localize(images).extra_maps["attention"], features.mean(1))
    mixed = network().localize(images).extra_maps["attention"]
    assert not torch.allclose(mixed, features.mean(1))


def test_convolutions_share_their_weights_over_dilations():
    model, images = network(), torch.randn(2, 3, 32, 32)
    stages, found = model.attention(images)
    x = list(stages.values())[-1]
    for layer, dilations in ((model.attention.first, (1, 2)), (model.attention.second, (1, 2, 3))):
        total = 0.0
        for dilation in dilations:
            one = torch.nn.Conv2d(*layer.weight.shape[1::-1], 3, padding=dilation, dilation=dilation)
            one.load_state_dict(layer.state_dict())
            total = total + one(x).relu()
        x = total
    torch.testing.assert_close(found, x)


# --- the loss -----------------------------------------------------------------------------------------------


def test_golden_value_and_gradient_of_the_soft_cross_entropy():
    student = torch.tensor([[1.0, 2, 0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1, 0]])
    loss = soft_cross_entropy(student, teacher, 10.0)
    assert loss.item() == pytest.approx(1.0987813, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[0].tolist() == pytest.approx([-0.00349404, 0.00349404, 0], abs=1e-7)


def test_the_soft_cross_entropy_is_least_where_the_student_is_the_teacher():
    teacher = torch.randn(5, 7)
    probabilities = (teacher / 3).softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(teacher + 2, teacher, 3.0), entropy)
    assert soft_cross_entropy(torch.randn(5, 7), teacher, 3.0) > entropy


def test_terms_are_the_cross_entropies_and_twice_the_distillation():
    model, given = network(), batch()
    terms = model.loss(given)
    assert list(terms) == ["master", "part", "attention", "distill"]
    views = shown(model, lambda: model.loss(batch()))
    master, part = (model.classifier(model.backbone.run(view).mean((2, 3))) for view in views)
    own = model.attention.classifier(model.attention(given.images)[1].mean((2, 3)))
    torch.testing.assert_close(terms["master"], F.cross_entropy(master, given.labels))
    torch.testing.assert_close(terms["part"], F.cross_entropy(part, given.labels))
    torch.testing.assert_close(terms["attention"], F.cross_entropy(own, given.labels))
    targets = (part / 10).softmax(1)
    expected = -2 * (targets * (master / 10).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["distill"], expected)


def gradient_of(model: Tasn, *names: str) -> set[str]:
    """Modules that the gradient of some terms reaches."""
    model.zero_grad()
    terms = model.loss(batch())
    sum(terms[name] for name in names).backward()
    reached = {
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    return {".".join(name.split(".")[:2]) for name in reached}


def test_attention_learns_from_its_own_cross_entropy_alone():
    model = network()
    assert all(name.startswith("attention") for name in gradient_of(model, "attention"))
    assert not any(name.startswith("attention") for name in gradient_of(model, "master", "part", "distill"))


def test_the_teacher_gets_no_gradient_unless_the_released_code_is_asked_for():
    model = network(heads="separate")
    assert "distilled.part" not in gradient_of(model, "distill")
    assert "distilled.part" in gradient_of(network(heads="separate", teacher_gradient=True), "distill")
    assert "distilled.master" in gradient_of(model, "distill")


def test_the_released_variant_has_three_classifiers_with_half_the_weight():
    model, given = network(variant="official"), batch()
    with torch.no_grad():
        model.attention.second.weight.mul_(100)  # large features, so that some maps are equal
    terms = model.loss(given)
    assert list(terms) == ["master", "part", "attention", "master_distilled", "part_distilled", "distill"]
    pooled = [model.backbone.run(view).mean((2, 3)) for view in shown(model, lambda: model.loss(batch()))]
    for name, head, features in (
        ("master", model.classifier, pooled[0]),
        ("part", model.classifier, pooled[1]),
        ("master_distilled", model.distilled["master"], pooled[0]),
        ("part_distilled", model.distilled["part"], pooled[1]),
    ):
        torch.testing.assert_close(terms[name], F.cross_entropy(head(features), given.labels) / 2)
    student, teacher = (
        model.distilled[name](one) for name, one in zip(("master", "part"), pooled, strict=True)
    )
    torch.testing.assert_close(terms["distill"], soft_cross_entropy(student, teacher, 10.0))
    assert model.config.structure_power == 2
    # The structure is sampled by the square of the resized mean of the distinct maps.
    maps = model.attend(model.attention(given.images)[1])
    kept = distinct_maps(maps)
    assert not kept.all()
    maps = torch.stack([one[which].mean(0) for one, which in zip(maps, kept, strict=True)])
    resized = F.interpolate(maps[:, None], size=(32, 32), mode="bilinear", align_corners=True)[:, 0] ** 2
    densities = limit_zoom_in_rounds(
        (normalise_density(resized.amax(1)), normalise_density(resized.amax(2))), 4.0
    )
    expected = sample_view(given.images, densities, 16, "released")
    torch.testing.assert_close(shown(model, lambda: model.localize(given.images))[0], expected)


def test_without_details_the_network_sees_the_structure_alone():
    model = network(views="structure")
    assert list(model.loss(batch())) == ["master", "attention"]
    assert len(shown(model, lambda: model.loss(batch()))) == 1


@pytest.mark.parametrize(
    "settings", [{}, {"variant": "official"}, {"views": "structure"}, {"distill_weight": 0}]
)
def test_every_parameter_gets_a_gradient(settings):
    model = network(**settings).train()
    sum(model.loss(batch()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- networks -----------------------------------------------------------------------------------------------


def test_a_copied_trunk_ends_at_sixteen_pixels_per_cell():
    backbone = load_backbone("efficientnet_lite0", weights="none", grid="stock", image_size=64)
    trunk = copy_trunk(backbone).eval()
    assert trunk.layout[-1].stride == 16
    images = torch.randn(1, 3, 64, 64)
    (*_, last) = trunk.stages(images).values()
    name = list(trunk.stages(images))[-1]
    torch.testing.assert_close(last, backbone.eval().stages(images)[name])
    assert len(trunk.steps) < len(backbone.steps)
    trunk.steps[name].requires_grad_(False)
    assert all(parameter.requires_grad for parameter in backbone.parameters())  # nothing is shared


def test_next_to_the_paper_s_network_attention_is_a_resnet18():
    model = Tasn.create(backbone="resnet50", num_classes=CLASSES, weights="none", settings={}, image_size=64)
    assert model.attention.trunk.name == "timm:resnet18"
    assert model.attention(torch.zeros(1, 3, 64, 64))[1].shape == (1, 512, 4, 4)
    assert model.view_size == 32
    recipe = Tasn.recipe_for("resnet50", 200, {})
    assert not model.is_new("attention.trunk.steps.net.conv1.weight", recipe)
    assert model.is_new("attention.first.weight", recipe)


def test_a_copy_keeps_frozen_what_is_frozen():
    model = network()
    model.backbone.weights = replace(model.backbone.weights, sha256="0" * 64)
    model.backbone.freeze(2)
    model.train().on_epoch(0, 10)
    trunk = model.attention.trunk
    frozen = {name for name, step in trunk.steps.items() if not step.training}
    assert frozen == {"one", "two"}
    learning = {name.split(".")[1] for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    assert learning == {"three"}
    network().train().on_epoch(0, 10)  # without frozen stages


def test_the_view_has_the_size_that_is_asked_for():
    model = network(view_scale=0.75)
    assert [view.shape[-1] for view in shown(model, lambda: model.loss(batch()))] == [24, 24]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view_scale": 0.1}, "views of 3 pixels; expected at least 4"),
        ({"max_zoom": 0.5}, "max_zoom"),
        ({"temperature": 0}, "temperature"),
        ({"attention_backbone": "nonesuch"}, "nonesuch"),
        ({"attention_backbone": "efficientnet_lite0"}, "attention_backbone=copy"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        network(**settings)


def test_the_recipe_is_the_released_one():
    recipe = Tasn.recipe_for("resnet50", 200, {})
    assert recipe == FINE_GRAINED["tasn"] == Baseline.recipe_for("resnet50", 200, {"recipe": "tasn"})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (300, 96, 0.1, 0)
    factors = [recipe.lr_factor(epoch / 300) for epoch in (0, 99, 100, 199, 200, 299)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Tasn.recipe_for("tiny", 12, {}).optimizer == "adamw"


# --- runs ---------------------------------------------------------------------------------------------------


def test_eight_images_are_learned():
    data = squares(8)
    images = torch.stack(
        [torch.from_numpy(sample.array).permute(2, 0, 1) / 127.5 - 1 for sample in data.samples]
    )
    labels = torch.tensor([sample.label for sample in data.samples])
    model = Tasn(toy_backbone(), 3, TasnConfig()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for seed in range(40):
        terms = model.loss(replace(batch(8, seed), images=images, labels=labels))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    assert all(losses[-1][name] < 0.5 * losses[0][name] for name in ("master", "part", "attention"))


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    settings = {"recipe.lr": "0.01", "norm_statistics": "per_input"}
    whole = fit(
        Tasn, request(tmp_path / "whole", train=squares(8), epochs=2, batch_size=4, settings=settings)
    )
    parts = request(tmp_path / "parts", train=squares(8), epochs=2, batch_size=4, settings=settings)
    after_epoch = Tasn.on_epoch

    def stop(self: Tasn, epoch: int, epochs: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        after_epoch(self, epoch, epochs)

    with monkeypatch.context() as patch:
        patch.setattr(Tasn, "on_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(Tasn, parts)
    one, two = (load_checkpoint(Tasn, path).state_dict() for path in (whole, fit(Tasn, parts)))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
