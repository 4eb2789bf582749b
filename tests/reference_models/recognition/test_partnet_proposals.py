"""Discretized Part Proposals: the cells where channels peak, the boxes around them, and the bins of a box."""

from __future__ import annotations

import math

import pytest
import torch

from reference_models.layers.regions import first_maximum
from reference_models.recognition.partnet.part_proposals import (
    SHAPES,
    centre_cells,
    part_boxes,
    pool_boxes,
    shape_corners,
    truncated_maximum,
)


def released_search(values: list[float]) -> int:
    """Position at which a search stops that keeps its maximum as an int."""
    best, place = 0, 0
    for position, value in enumerate(values):
        if value > best:
            best, place = int(value), position
    return place


def centres_by_loops(features: torch.Tensor, rule: str) -> list[list[int]]:
    """Centres of one image (C, h, w) as (column, row), square by square."""
    _, height, width = features.shape
    official = rule == "official"
    votes, sums = [[0] * width for _ in range(height)], features.double().sum(0).tolist()
    for channel in features.double().tolist():
        cells = [value for row in channel for value in row]
        if not official and max(cells) <= 0:
            continue
        place = released_search(cells) if official else cells.index(max(cells))
        votes[place // width][place % width] += 1
    rows, columns = ([min(7, count) * i // count for i in range(count)] for count in (height, width))
    found = []
    for down in range(max(rows) + 1):
        for across in range(max(columns) + 1):
            cells = [
                (y, x) for y in range(height) if rows[y] == down for x in range(width) if columns[x] == across
            ]
            best = max(cells, key=lambda cell: votes[cell[0]][cell[1]])
            if votes[best[0]][best[1]] == 0:
                of_cells = [sums[y][x] for y, x in cells]
                if not official:
                    best = cells[of_cells.index(max(of_cells))]
                elif max(of_cells) <= 0:
                    best = (0, 0)
                else:
                    best = cells[released_search(of_cells)]
            found.append([best[1], best[0]])
    return found


# --- centres ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["repaired", "official"])
@pytest.mark.parametrize("scale", [0.5, 8.0])
@pytest.mark.parametrize("shape", [(9, 28, 28), (12, 16, 16), (5, 4, 8), (3, 1, 1)])
@pytest.mark.parametrize("kind", ["relu", "signed", "negative", "sparse"])
def test_centres_are_those_of_a_search_channel_by_channel(shape, scale, rule, kind):
    noise = torch.randn(2, *shape)
    features = (
        scale
        * {
            "relu": noise.relu(),
            "signed": noise,
            "negative": -noise.abs(),
            "sparse": noise.relu()
            * (torch.rand(2, *shape) < 0.02)
            * (torch.arange(shape[0]) % 2)[:, None, None],
        }[kind]
    )
    expected = [centres_by_loops(one, rule) for one in features]
    assert centre_cells(features, rule).tolist() == expected


def test_there_are_49_centres_one_in_each_square_of_4x4_cells():
    centres = centre_cells(torch.rand(2, 64, 28, 28))
    squares = (centres // 4).tolist()
    assert squares == [[[x, y] for y in range(7) for x in range(7)]] * 2


def test_the_released_search_stops_behind_the_peak_of_a_weak_channel():
    weak = torch.tensor([0.2, 0.9, 0.5, 0.0])
    assert truncated_maximum(weak).item() == 2
    assert first_maximum(weak).item() == 1
    # Above 1 it takes any later value above the whole part.
    assert truncated_maximum(torch.tensor([1.9, 1.2, 0.9])).item() == 1
    assert truncated_maximum(torch.tensor([-1.0, -2.0])).item() == 0


def test_the_first_of_equal_cells_is_the_centre():
    features = torch.zeros(1, 2, 7, 7)
    features[0, :, 3, 3] = 1
    assert centre_cells(features)[0].tolist() == [[x, y] for y in range(7) for x in range(7)]
    blocks = torch.ones(1, 1, 14, 14)
    assert centre_cells(blocks)[0].tolist() == [[2 * x, 2 * y] for y in range(7) for x in range(7)]


def test_half_precision_does_not_change_the_centres_of_its_values():
    features = torch.rand(2, 32, 28, 28).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = centre_cells(features)
    assert torch.equal(found, centre_cells(features.float()))


# --- boxes --------------------------------------------------------------------------------------------------


def test_1372_boxes_around_49_centres_are_clipped_to_the_image():
    centres = centre_cells(torch.rand(2, 16, 28, 28))
    boxes = part_boxes(centres, shape_corners("repaired"), (28, 28), 448)
    assert boxes.shape == (2, 1372, 4)
    assert boxes.min() == 0
    assert boxes.max() == 448
    assert ((boxes[..., 2:] - boxes[..., :2]).prod(-1) > 0).all()
    # Box by box: 28 shapes around the middle of each cell, 16 pixels to the unit.
    for number in (0, 27, 28, 700, 1371):
        (column, row), (half_x, half_y) = centres[1, number // 28].tolist(), SHAPES[number % 28]
        x, y = 16 * column + 8, 16 * row + 8
        box = [x - 16 * half_x, y - 16 * half_y, x + 16 * half_x, y + 16 * half_y]
        assert boxes[1, number].tolist() == [min(max(end, 0), 448) for end in box]


def test_the_shapes_grow_and_come_in_pairs():
    assert len(SHAPES) == 28
    assert set(SHAPES) == {(y, x) for x, y in SHAPES}
    assert (SHAPES[0], SHAPES[-1]) == ((1, 1), (14, 7))


def test_the_released_boxes_lie_half_a_cell_off_and_one_shape_is_too_tall():
    centres = torch.tensor([[[14, 14]]])
    repaired, official = (
        part_boxes(centres, shape_corners(rule), (28, 28), 448, rule)[0] for rule in ("repaired", "official")
    )
    off = (repaired - official)[:26]  # the largest boxes are clipped
    assert off.unique().tolist() == [-72.0, 8.0]
    assert off.eq(-72).nonzero().tolist() == [[24, 3]]
    width, height = (official[24, 2:] - official[24, :2]).tolist()
    assert width * height / 16**2 == 456


def test_boxes_are_fractions_of_the_image_on_every_grid():
    centres = torch.tensor([[[3, 5]]])
    corners = shape_corners("repaired")
    one, half = (part_boxes(centres, corners, (14, 14), size) for size in (448, 224))
    torch.testing.assert_close(one, 2 * half)
    sides = (one[..., 2:] - one[..., :2])[0, 0]
    assert sides.tolist() == [32, 32]  # 2 of 28 units


# --- pooling ------------------------------------------------------------------------------------------------


def bins_by_loops(features: torch.Tensor, first: tuple[int, int], last: tuple[int, int]) -> list[float]:
    """Maxima of 3x3 bins of the cells from `first` to `last` (column, row), both included; empty bins are 0."""
    channels, height, width = features.shape
    sides = [last[axis] - first[axis] + 1 for axis in (0, 1)]
    values = []
    for channel in range(channels):
        for down in range(3):
            for across in range(3):
                inside = [
                    features[channel, first[1] + y, first[0] + x].item()
                    for y in range(math.floor(down * sides[1] / 3), math.ceil((down + 1) * sides[1] / 3))
                    for x in range(math.floor(across * sides[0] / 3), math.ceil((across + 1) * sides[0] / 3))
                    if first[1] + y < height and first[0] + x < width
                ]
                values.append(max(inside, default=0.0))
    return values


@pytest.mark.parametrize("rule", ["repaired", "official"])
def test_bins_hold_the_maxima_of_the_cells_around_the_centre(rule):
    features = torch.randn(1, 2, 28, 28)
    centres = torch.tensor([[[0, 0], [14, 9], [27, 20]]])
    boxes = part_boxes(centres, shape_corners(rule), (28, 28), 448, rule)
    pooled = pool_boxes(features, boxes, 448, rule)
    assert pooled.shape == (1, 84, 18)
    for number in range(84):
        (column, row), (half_x, half_y) = centres[0, number // 28].tolist(), SHAPES[number % 28]
        down = 12 if rule == "official" and number % 28 == 24 else half_y
        border = 28 if rule == "official" else 27  # the cell behind the border is empty
        first = max(column - half_x, 0), max(row - half_y, 0)
        last = min(column + half_x, border), min(row + down, border)
        expected = bins_by_loops(features[0], first, last)
        assert pooled[0, number].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_cells_of_a_box_are_all_that_it_reaches_into_on_any_grid():
    features = torch.randn(1, 3, 10, 13)
    boxes = torch.tensor([[[0.0, 0, 130, 100], [21, 33, 24, 36], [15, 22, 99, 100]]]) / 130 * 64
    boxes[..., 1::2] *= 1.3  # a cell is 64 / 13 wide and 64 / 10 high
    pooled = pool_boxes(features, boxes, 64)
    for number, (first, last) in enumerate([((0, 0), (12, 9)), ((2, 3), (2, 3)), ((1, 2), (9, 9))]):
        expected = bins_by_loops(features[0], first, last)
        assert pooled[0, number].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("size", "cells"), [(448, 28), (448, 14), (224, 14), (160, 10), (128, 16)])
def test_a_mirrored_image_has_mirrored_bins(size, cells):
    features, corners = torch.rand(1, 4, cells, cells), shape_corners("repaired")
    centres = torch.tensor([[[cells // 2, cells // 2 - 1]]])
    mirrored = torch.stack([cells - 1 - centres[..., 0], centres[..., 1]], dim=-1)
    one, other = (
        pool_boxes(maps, part_boxes(place, corners, (cells, cells), size), size).view(28, 4, 3, 3)
        for maps, place in ((features, centres), (features.flip(3), mirrored))
    )
    assert torch.equal(other.flip(3), one)


@pytest.mark.parametrize("size", [224, 448, 449])
def test_a_box_of_one_cell_holds_that_cell_alone(size):
    features = torch.rand(1, 2, 14, 14)
    centres = torch.tensor([[[x, y] for y in range(14) for x in range(14)]])
    boxes = part_boxes(centres, shape_corners("repaired")[:1], (14, 14), size)
    assert pool_boxes(features, boxes, size)[0].tolist() == [
        [value for channel in features[0, :, y, x].tolist() for value in [channel] * 9]
        for y in range(14)
        for x in range(14)
    ]


def test_a_gradient_reaches_the_maximum_of_each_bin():
    features = torch.rand(1, 1, 28, 28, requires_grad=True)
    boxes = torch.tensor([[[0.0, 0, 448, 448]]])
    pool_boxes(features, boxes, 448).sum().backward()
    assert features.grad.sum() == 9
    assert features.grad.flatten()[features.flatten().argmax()] >= 1
