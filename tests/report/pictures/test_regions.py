"""The picture of proposed parts: where boxes, centres, lines and key points are drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up import dataset

from wsolbench.maps.sources import ProposedParts
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures.regions import RANK_COLORS, regions_panel
from wsolbench.types import Sample

SIDE = 128  # of the network's input; images have 64 pixels, the picture has 320
POINTS = np.array([[20.0, 20.0, 1.0], [48.0, 52.0, 1.0], [50.0, 10.0, 0.0]])  # the last one is not visible
BOXES = np.array([[28.0, 28, 60, 60], [80, 80, 120, 120], [70, 0, 127, 27], [10, 90, 40, 120]])


def panel(points: np.ndarray | None = POINTS, padded: tuple[bool, ...] = (False,) * 4, frame: str = "square"):
    sample: Sample = replace(dataset(1).samples[0], key_points=points, boxes=np.array([[0.0, 0, 30, 40]]))
    protocol = EvalProtocol() if frame == "square" else replace(EvalProtocol(), frame="center_crop")
    return regions_panel(sample, ProposedParts(boxes=BOXES, padded=np.array(padded), side=SIDE), protocol)


def of_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((pixels == np.array(color, dtype=np.uint8)).all(axis=-1))


def test_boxes_have_the_colour_of_their_rank_where_they_are_in_the_picture():
    pixels = panel(points=None).pixels
    for box, color in zip(BOXES * 320 / SIDE, RANK_COLORS, strict=True):
        rows, columns = np.nonzero(of_color(pixels, color))
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(found) - box).max() <= 1


def test_a_line_leads_from_each_centre_to_the_nearest_visible_point():
    pixels = panel().pixels
    first, second = of_color(pixels, RANK_COLORS[0]), of_color(pixels, RANK_COLORS[1])
    halfway = (np.array([44.0, 44]) + POINTS[0, :2] * 2) / 2 * 320 / SIDE
    assert first[int(halfway[1]) - 2 : int(halfway[1]) + 3, int(halfway[0]) - 2 : int(halfway[0]) + 3].any()
    halfway = (np.array([100.0, 100]) + POINTS[1, :2] * 2) / 2 * 320 / SIDE
    assert second[int(halfway[1]) - 2 : int(halfway[1]) + 3, int(halfway[0]) - 2 : int(halfway[0]) + 3].any()
    white = of_color(pixels, (255, 255, 255))
    for x, y, visible in POINTS:
        row, column = round(y * 5), round(x * 5)
        assert white[row - 2 : row + 2, column - 2 : column + 2].all() == bool(visible)


def test_the_caption_is_the_mean_distance_in_parts_of_the_true_diagonal():
    centres = (BOXES[:, :2] + BOXES[:, 2:]) / 4  # in pixels of the image
    distances = np.hypot(*(centres[:, None] - POINTS[None, :2, :2]).transpose(2, 0, 1)).min(axis=1) / 50
    assert panel().caption == (f"{100 * distances.mean():.0f} % away",)
    only = (False, True, True, True)
    assert panel(padded=only).caption == (f"{100 * distances[0]:.0f} % away",)


@pytest.mark.parametrize(
    "points", [None, POINTS * np.array([1, 1, 0])], ids=["no key points", "none visible"]
)
def test_without_a_visible_point_the_boxes_alone_are_drawn(points):
    drawn = panel(points=points)
    assert drawn.caption == ()
    assert of_color(drawn.pixels, RANK_COLORS[0]).any()


def test_boxes_that_fill_up_the_number_are_left_out():
    pixels = panel(padded=(False, True, False, True)).pixels
    assert [bool(of_color(pixels, color).any()) for color in RANK_COLORS] == [True, False, True, False]


def test_under_a_centre_crop_boxes_are_where_the_network_saw_them():
    pixels = panel(points=None, frame="center_crop").pixels
    rows, columns = np.nonzero(of_color(pixels, RANK_COLORS[1]))
    assert np.abs(np.array([columns.min(), rows.min()]) - (80 + 9) * 320 / 146).max() <= 1
