from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsolbench.exceptions import DataError
from wsolbench.report.pictures.overlays import (
    PREDICTED_COLOR,
    TRUE_COLOR,
    drawable,
    mark_point,
    overlay,
)
from wsolbench.report.pictures.overlays import gray as without_color
from wsolbench.types import no_boxes

BOX = np.array([[10.0, 20.0, 50.0, 44.0]])


def is_color(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.asarray((picture == np.array(color, dtype=np.uint8)).all(axis=-1))


def gray(value: int = 128, shape: tuple[int, int] = (64, 96)) -> np.ndarray:
    return np.full((*shape, 3), value, dtype=np.uint8)


def drawn(true: np.ndarray, predicted: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    image = gray() if image is None else image
    return overlay(image, np.zeros(image.shape[:2], dtype=np.float32), true, predicted)


def test_a_true_box_is_a_closed_line_on_the_outermost_pixels_inside_of_the_box() -> None:
    green = is_color(drawn(BOX, no_boxes()), TRUE_COLOR)
    expected = np.zeros((64, 96), dtype=bool)
    expected[20:44, 10:50] = True
    expected[21:43, 11:49] = False
    np.testing.assert_array_equal(green, expected)


def test_a_predicted_box_is_a_broken_line_on_the_outermost_pixels_inside_of_the_box() -> None:
    red = is_color(drawn(no_boxes(), BOX), PREDICTED_COLOR)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 43, 10, 49)
    assert not red[21:43, 11:49].any()
    assert 0.3 < red[20, 10:50].mean() < 0.7


@pytest.mark.parametrize(
    "background", [(0, 0, 0), (255, 255, 255), (128, 128, 128), TRUE_COLOR, PREDICTED_COLOR]
)
def test_both_kinds_of_lines_stand_out_from_any_background(background: tuple[int, int, int]) -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    image = np.broadcast_to(np.array(background, dtype=np.uint8), (64, 96, 3)).copy()
    for true, predicted, share in ((BOX, no_boxes(), 1.0), (no_boxes(), BOX, 0.5)):
        picture = overlay(image, np.zeros((64, 96), dtype=np.float32), true, predicted, strength=0.0)
        contrast = np.abs(picture @ weights - np.array(background) @ weights)
        assert (contrast[19:22, 10:50].max(axis=0) > 60).mean() >= share  # the line or its casing


def test_a_predicted_box_on_top_of_the_true_one_leaves_both_visible() -> None:
    picture = drawn(BOX, BOX)
    green, red = is_color(picture, TRUE_COLOR), is_color(picture, PREDICTED_COLOR)
    assert green[20, 10:50].any()
    assert red[20, 10:50].any()


def test_a_box_that_sticks_out_is_cut_at_the_edge_of_the_picture() -> None:
    green = is_color(drawn(np.array([[-20.0, -5.0, 200.0, 30.0]]), no_boxes()), TRUE_COLOR)
    assert green[:30, 0].all()
    assert green[:30, 95].all()
    assert green[29].all()
    assert not green[30:].any()


@given(st.lists(st.tuples(*[st.floats(-50, 150)] * 4), max_size=3))
def test_any_boxes_can_be_drawn_and_leave_the_size_of_the_picture(boxes: list[tuple[float, ...]]) -> None:
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    assert drawn(array, array).shape == (64, 96, 3)


def test_a_high_score_makes_the_picture_brighter_than_a_low_one() -> None:
    unit_map = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (64, 1))
    picture = overlay(gray(), unit_map, no_boxes(), no_boxes())
    luminance = picture.astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance[0]) >= -1).all()
    assert luminance[0, -1] - luminance[0, 0] > 80


def test_without_strength_the_picture_shows_through_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        overlay(image, np.ones((64, 96)), no_boxes(), no_boxes(), strength=0.0), image
    )


def test_pixels_without_a_map_keep_their_own_colour() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    unit_map = np.full((64, 96), np.nan)
    unit_map[10:20, 30:50] = 1.0
    picture = overlay(image, unit_map, no_boxes(), no_boxes(), strength=1.0)
    covered = ~np.isnan(unit_map)
    np.testing.assert_array_equal(picture[~covered], image[~covered])
    assert len(np.unique(picture[covered], axis=0)) == 1


def test_a_mask_is_outlined_on_its_own_outermost_pixels() -> None:
    mask = np.zeros((64, 96), dtype=bool)
    mask[20:44, 10:50] = True
    zeros = np.zeros((64, 96), dtype=np.float32)
    green = is_color(overlay(gray(), zeros, no_boxes(), no_boxes(), true_mask=mask), TRUE_COLOR)
    np.testing.assert_array_equal(green, is_color(drawn(BOX, no_boxes()), TRUE_COLOR))
    red = is_color(overlay(gray(), zeros, no_boxes(), no_boxes(), predicted_mask=mask), PREDICTED_COLOR)
    assert red.any()
    assert not (red & ~green).any()


def test_a_line_is_as_wide_as_asked_for() -> None:
    green = is_color(overlay(gray(), np.zeros((64, 96)), BOX, no_boxes(), line_width=7.0), TRUE_COLOR)
    expected = np.zeros((64, 96), dtype=bool)
    expected[20:44, 10:50] = True
    expected[24:40, 14:46] = False
    np.testing.assert_array_equal(green, expected)


def test_a_marked_point_is_the_middle_of_a_cross_that_is_cut_at_the_edge() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    before = image.copy()
    for point in ((40.9, 20.2), (0.0, 0.0), (95.9, 63.9)):
        marked = mark_point(image, point)
        red = is_color(marked, PREDICTED_COLOR)
        column, row = int(point[0]), int(point[1])
        rows, columns = np.nonzero(red)
        assert set(rows[columns != column]) == {row}
        assert set(columns[rows != row]) == {column}
        touched = (marked != image).any(axis=2)
        assert not touched[np.abs(np.arange(64) - row) > 7].any()
        assert red.sum() >= 11
    np.testing.assert_array_equal(image, before)


def test_a_grey_picture_has_the_brightness_and_no_colour() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    levels = np.array(Image.fromarray(image).convert("L")).astype(int)
    assert np.abs(without_color(image).astype(int) - levels[..., None]).max() <= 1


@pytest.mark.parametrize("what", ["score map", "true mask", "predicted mask"])
def test_a_map_or_mask_of_another_size_than_the_image_is_an_error(what: str) -> None:
    arrays: dict[str, Any] = {"unit_map": np.zeros((64, 96))}
    arrays |= (
        {"unit_map": np.zeros((32, 48))}
        if what == "score map"
        else {what.replace(" ", "_"): np.zeros((32, 48), dtype=bool)}
    )
    with pytest.raises(DataError, match=f"{what} has shape .32, 48."):
        overlay(gray(), true_boxes=no_boxes(), predicted_boxes=no_boxes(), **arrays)


def test_boxes_with_inclusive_ends_are_drawn_to_the_end_of_their_last_pixel() -> None:
    boxes = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(drawable(boxes, "inclusive"), [[1, 2, 4, 5]])
    np.testing.assert_array_equal(drawable(boxes, "exclusive"), [[1, 2, 3, 4]])
