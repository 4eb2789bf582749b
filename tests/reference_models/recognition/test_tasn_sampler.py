"""TASN's sampler: densities of both axes, positions, and views, against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

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


def random_maps(count: int = 3, side: int = 7, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed)).double() ** 3


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
