"""F-CAM's pixels: Otsu's threshold, the eroded region, draws, and the squares that are learned from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from reference_models.localization.f_cam.seeds import (
    draw_seeds,
    foreground_region,
    otsu_threshold,
    pick_lowest,
    pick_member,
    squares_around,
    to_levels,
)

ALMOST_ONE = 1 - 2**-24
OPTIONS = {"erosion": 3, "background": 0.1, "side": 3}


def bumps(count: int, side: int = 24, seed: int = 0) -> torch.Tensor:
    """Maps in [0, 1]: a smooth bump at a random place, with noise."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 2, 1, 1, generator=generator) * side
    rows, columns = torch.arange(side)[:, None], torch.arange(side)
    distance = (rows - places[:, 0]) ** 2 + (columns - places[:, 1]) ** 2
    maps = torch.exp(-distance / 40) + 0.1 * torch.rand(count, side, side, generator=generator)
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def levels_of(kind: str, seed: int) -> np.ndarray:
    """Levels of one image, uint8."""
    rng = np.random.default_rng(seed)
    return (
        {
            "uniform": lambda: rng.integers(0, 256, 300),
            "two modes": lambda: np.where(
                rng.random(300) < 0.2, rng.normal(200, 9, 300), rng.normal(40, 15, 300)
            ),
            "few levels": lambda: rng.choice([0, 3, 90, 91, 255], 300),
            "two levels": lambda: rng.choice([0, 255], 300, p=[0.9, 0.1]),
            "rare peak": lambda: np.r_[np.zeros(299), 255.0],
            "dark": lambda: rng.integers(0, 4, 300),
        }[kind]()
        .clip(0, 255)
        .astype(np.uint8)
    )


def spread_within(levels: np.ndarray, threshold: int) -> float:
    """Sum of the squared distances of the pixels to the mean of their side of a threshold."""
    sides = [levels[levels <= threshold].astype(float), levels[levels > threshold].astype(float)]
    return sum(((side - side.mean()) ** 2).sum() for side in sides if len(side))


# --- Otsu's threshold and the region ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "two modes", "few levels", "two levels", "rare peak", "dark"])
def test_no_threshold_leaves_less_variance_within_its_sides(kind):
    rows = [levels_of(kind, seed) for seed in range(4)]
    found = otsu_threshold(torch.from_numpy(np.stack(rows)).long()).tolist()
    for levels, threshold in zip(rows, found, strict=True):
        costs = np.array([spread_within(levels, each) for each in range(256)])
        assert costs[threshold] <= costs.min() * (1 + 1e-9) + 1e-6
        assert (costs[:threshold] > costs.min() + 1e-6).all()  # the lowest of equal ones
        # OpenCV separates the pixels in the same way.
        other, _ = cv2.threshold(levels[None], 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        assert np.array_equal(levels > other, levels > threshold)


def test_a_single_level_has_the_threshold_0_and_no_region():
    levels = torch.tensor([0, 7, 255])[:, None, None].expand(3, 6, 6)
    assert otsu_threshold(levels.flatten(1)).tolist() == [0, 0, 0]
    assert not foreground_region(levels, 3)[0].any()


@pytest.mark.parametrize("erosion", [1, 3, 11])
def test_the_region_is_eroded_inside_the_image_unless_it_would_vanish(erosion):
    levels = to_levels(bumps(12, seed=erosion))
    found = foreground_region(levels, erosion)
    vanished = 0
    for image, region in zip(levels.numpy(), found.numpy(), strict=True):
        inside = image > otsu_threshold(torch.from_numpy(image.reshape(1, -1))).item()
        eroded = ndimage.binary_erosion(inside, np.ones((erosion, erosion)), border_value=1)
        vanished += not eroded.any()
        assert np.array_equal(region, eroded if eroded.any() else inside)
        assert region.any()
    assert vanished == 0 or erosion == 11


def test_levels_are_those_of_8_bits_rounded_down():
    values = torch.tensor([[[0.0, 0.0039, 0.5, 0.99999, 1.0]]])
    assert to_levels(values)[0, 0].tolist() == [0, 0, 127, 254, 255]


# --- draws --------------------------------------------------------------------------------------------------


def test_equal_steps_of_a_draw_give_each_member_once():
    members = torch.rand(7, 50) < torch.linspace(0.1, 1, 7)[:, None]
    members[:, 13] = True
    for row in members:
        total = int(row.sum())
        draws = (torch.arange(total) + 0.5) / total
        found = pick_member(row.expand(total, -1), draws)
        assert found.tolist() == row.nonzero()[:, 0].tolist()
    for draw in (0.0, ALMOST_ONE):
        found = pick_member(members, torch.full((7,), draw))
        assert members[torch.arange(7), found].all()


def test_a_draw_from_an_empty_set_or_a_large_one_stays_in_the_image():
    assert pick_member(torch.zeros(2, 9, dtype=torch.bool), torch.tensor([0.0, ALMOST_ONE])).tolist() == [
        0,
        0,
    ]
    large = torch.ones(1, 448 * 448, dtype=torch.bool)
    assert pick_member(large, torch.tensor([ALMOST_ONE])).item() >= large.numel() - 2


def test_equal_steps_of_a_draw_give_each_of_the_lowest_pixels_once():
    maps = torch.rand(40).round(decimals=1)  # with equal values
    draws = (torch.arange(8) + 0.5) / 8
    found = pick_lowest(maps.expand(8, -1), 0.2, draws)
    assert found.tolist() == np.argsort(maps.numpy(), kind="stable")[:8].tolist()
    last = pick_lowest(maps[None], 0.2, torch.tensor([ALMOST_ONE]))
    assert last == found[-1]
    assert pick_lowest(maps[None], 0.001, torch.tensor([0.9])) == maps.argmin()  # at least one


def test_squares_are_cut_at_the_border():
    found = squares_around(torch.tensor([0, 2 * 5 + 3, 4 * 5 + 4]), 3, 5, 5)
    expected = torch.zeros(3, 5, 5, dtype=torch.bool)
    expected[0, :2, :2] = True
    expected[1, 1:4, 2:5] = True
    expected[2, 3:, 3:] = True
    assert torch.equal(found, expected)


# --- all of it ----------------------------------------------------------------------------------------------


def test_drawn_pixels_lie_in_their_regions_and_their_squares_do_not_meet():
    maps, generator = bumps(6), torch.Generator().manual_seed(0)
    regions = foreground_region(to_levels(maps), 3).numpy()
    order = maps.flatten(1).argsort(dim=1, stable=True)[:, : int(0.1 * 24 * 24)]
    lowest = (
        torch.zeros(6, 24 * 24, dtype=torch.bool).scatter_(1, order, value=True).reshape(6, 24, 24).numpy()
    )
    seen = np.zeros_like(regions)
    for _ in range(40):
        inside, outside = draw_seeds(maps, generator, erosion=3, background=0.1, side=1)
        assert (inside.sum(dim=(1, 2)) == 1).all()
        assert (outside.sum(dim=(1, 2)) == 1).all()
        assert (inside.numpy() <= regions).all()
        assert (outside.numpy() <= lowest).all()
        seen |= inside.numpy()
        # Squares of three pixels reach one pixel further.
        inside, outside = draw_seeds(maps, generator, **OPTIONS)
        assert not (inside & outside).any()
        assert (inside.sum(dim=(1, 2)) <= 9).all()
        for found, whole in ((inside, regions), (outside, lowest)):
            grown = [ndimage.binary_dilation(each, np.ones((3, 3))) for each in whole]
            assert (found.numpy() <= np.stack(grown)).all()
    assert (seen.sum(axis=(1, 2)) > 15).all()  # each step draws other pixels


def test_pixels_of_both_squares_are_dropped():
    maps = torch.tensor([[0.9, 0.0, 1.0, 0.9]])[None].expand(1, 1, 4).contiguous()
    # Background is around the second pixel, and foreground around the first, the third or the last.
    expected = {
        ((0, 0, 0, 0), (0, 0, 1, 0)),
        ((0, 0, 0, 1), (1, 0, 0, 0)),
        ((0, 0, 0, 1), (1, 1, 0, 0)),
    }
    drawn, generator = set(), torch.Generator().manual_seed(0)
    for _ in range(30):
        found = draw_seeds(maps, generator, erosion=1, background=0.25, side=3)
        drawn.add(tuple(tuple(each[0, 0].int().tolist()) for each in found))
    assert drawn == expected


def test_equal_seeds_give_equal_pixels_and_every_map_takes_as_many_draws():
    generators = [torch.Generator().manual_seed(5) for _ in range(3)]
    one, two = (draw_seeds(bumps(4), generator, **OPTIONS) for generator in generators[:2])
    assert all(torch.equal(first, second) for first, second in zip(one, two, strict=True))
    draw_seeds(torch.zeros(4, 24, 24), generators[2], **OPTIONS)
    following = {float(torch.rand((), generator=generator)) for generator in generators}
    assert len(following) == 1


def test_pixels_of_an_image_do_not_depend_on_those_beside_it():
    maps = bumps(4)
    one, _ = draw_seeds(maps, torch.Generator().manual_seed(1), **OPTIONS)
    maps[2] = 0.5
    two, outside = draw_seeds(maps, torch.Generator().manual_seed(1), **OPTIONS)
    assert torch.equal(one[[0, 1, 3]], two[[0, 1, 3]])
    assert not two[2].any()  # a constant map has neither
    assert not outside[2].any()
    assert outside[[0, 1, 3]].flatten(1).any(dim=1).all()
