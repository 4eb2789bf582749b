"""Invalid boxes and sizes are rejected by every function that takes them, with a message that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wsolbench.exceptions import DataError
from wsolbench.maps import frame_boxes, image_boxes, to_frame
from wsolbench.metrics import (
    best_iou_per_tau,
    error_codes,
    iob_matrix,
    iog_matrix,
    iou_matrix,
    keypoint_distance,
    localization_error,
)
from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import EvalProtocol

SIZE = (120, 80)
SPA, WSOLEVAL = EvalProtocol.preset("spa"), EvalProtocol.preset("wsoleval")
MAP = np.eye(8)
GOOD = np.array([[4.0, 4.0, 40.0, 30.0]])
POINTS = np.array([[10.0, 10.0, 1.0]])

TAKERS: dict[str, Callable[[Any], Any]] = {
    "frame_boxes": lambda boxes: frame_boxes(boxes, SIZE, WSOLEVAL),
    "frame_boxes, spa": lambda boxes: frame_boxes(boxes, SIZE, SPA),
    "image_boxes": lambda boxes: image_boxes(boxes, SIZE, WSOLEVAL),
    "best_iou_per_tau": lambda boxes: best_iou_per_tau(MAP, boxes, WSOLEVAL),
    "sweep": lambda boxes: sweep(MAP, boxes, WSOLEVAL),
    "error_codes of predicted": lambda boxes: error_codes(boxes, GOOD, WSOLEVAL),
    "error_codes of true": lambda boxes: error_codes(GOOD, boxes, WSOLEVAL),
    "localization_error": lambda boxes: localization_error(GOOD[0], boxes, class_correct=True, protocol=SPA),
    "iou_matrix": lambda boxes: iou_matrix(boxes, GOOD, plus_one=False),
    "iog_matrix": lambda boxes: iog_matrix(GOOD, boxes, plus_one=False),
    "iob_matrix": lambda boxes: iob_matrix(boxes, GOOD, plus_one=True),
    "keypoint_distance": lambda boxes: keypoint_distance(boxes, POINTS, GOOD[0], side=448),
}
BROKEN: dict[str, Any] = {
    "x, y, width, height": [[60.0, 50.0, 20.0, 25.0]],
    "end before start in y": [[10.0, 50.0, 30.0, 20.0]],
    "the second row": [[4.0, 4.0, 40.0, 30.0], [9.0, 9.0, 4.0, 12.0]],
    "NaN": [[4.0, np.nan, 40.0, 30.0]],
    "Inf": [[4.0, 4.0, np.inf, 30.0]],
    "three columns": [[4.0, 4.0, 40.0]],
    "one box without its axis": [4.0, 4.0, 40.0, 30.0],
    "text": [["4", "4", "40", "30"]],
    "complex": [[4j, 4, 40, 30]],
}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("boxes", BROKEN.values(), ids=BROKEN)
def test_every_function_that_takes_boxes_refuses_broken_ones(
    unchecked_shapes: None, taker: str, boxes: Any
) -> None:
    with pytest.raises(DataError):
        TAKERS[taker](np.array(boxes))


@pytest.mark.parametrize("taker", TAKERS)
def test_every_function_that_takes_boxes_takes_good_ones(taker: str) -> None:
    TAKERS[taker](GOOD)


def test_rows_of_different_lengths_are_refused(unchecked_shapes: None) -> None:
    with pytest.raises(DataError, match=r"expected \(n, 4\)"):
        iou_matrix([[0, 0, 4, 4], [0, 0]], GOOD, plus_one=False)


def test_x_y_width_height_is_named_as_the_likely_cause() -> None:
    with pytest.raises(DataError, match=r"ground-truth boxes: row 0 is .*is it x, y, width, height"):
        frame_boxes(np.array([[60.0, 50.0, 20.0, 25.0]]), SIZE, WSOLEVAL)


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 0.5], [0.25, 0.0, 1.0, 1.0]])
def test_boxes_as_fractions_of_the_image_are_refused(box: list[float]) -> None:
    with pytest.raises(DataError, match="fractions of the image"):
        frame_boxes(np.array([box]), SIZE, WSOLEVAL)


def test_a_box_of_one_pixel_and_small_images_are_no_fractions() -> None:
    assert len(frame_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), SIZE, WSOLEVAL)) == 1
    assert len(frame_boxes(np.array([[0.0, 0.0, 0.5, 1.0]]), (2, 1), WSOLEVAL)) == 1
    assert len(frame_boxes(np.array([[0.2, 0.2, 0.8, 0.8], [3.0, 3.0, 20.0, 20.0]]), SIZE, WSOLEVAL)) == 2


@pytest.mark.parametrize(
    "box", [[130.0, 10.0, 140.0, 20.0], [10.0, 81.0, 20.0, 90.0], [-9.0, 0.0, -1.0, 5.0]]
)
def test_a_box_outside_its_image_is_refused(box: list[float]) -> None:
    with pytest.raises(DataError, match="outside the image of 120 x 80"):
        frame_boxes(np.array([box]), SIZE, WSOLEVAL)


@pytest.mark.parametrize(
    "size",
    [(0, 80), (120, -1), (120.5, 80), (120,), (120, 80, 3), ("120", "w"), None, (np.inf, 80), (np.nan, 80)],
)
def test_a_size_that_is_none_is_refused(unchecked_shapes: None, size: Any) -> None:
    for use in (frame_boxes, image_boxes):
        with pytest.raises(DataError, match=r"expected \(width, height\)"):
            use(GOOD, size, WSOLEVAL)
    with pytest.raises(DataError, match=r"expected \(width, height\)"):
        to_frame(MAP, size, SPA)


def test_an_image_without_boxes_has_none_in_the_frame() -> None:
    assert frame_boxes(np.zeros((0, 4)), SIZE, WSOLEVAL).shape == (0, 4)


def test_the_boxes_that_are_given_are_not_changed() -> None:
    given = GOOD.copy()
    frame_boxes(given, SIZE, SPA)
    image_boxes(given, SIZE, SPA)
    assert np.array_equal(given, GOOD)
