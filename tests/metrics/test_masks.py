"""Masks meet maps: resizing as OpenCV does, and which pixels count."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsolbench.exceptions import DataError
from wsolbench.metrics.masks import counted_pixels, resize_mask

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32))
@example(6, 6, 106, 260, 0)  # 6 x (target / 6) rounds: the scale is not source / target
def test_resizing_a_mask_is_opencv_nearest_neighbour(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    expected = cv2.resize(mask.astype(np.uint8), (new_width, new_height), interpolation=cv2.INTER_NEAREST) > 0
    assert np.array_equal(resize_mask(mask, (new_width, new_height)), expected)


@pytest.mark.parametrize("case", range(4))
def test_recorded_masks_of_the_official_evaluator_are_matched(golden_folder: Path, case: int) -> None:
    with np.load(golden_folder / "pxap.npz") as golden:
        width = int(golden[f"gm_shape_{case:02d}"][2])
        instances = np.unpackbits(golden[f"gm_instances_{case:02d}"], axis=-1, count=width).astype(bool)
        ignore = np.unpackbits(golden[f"gm_ignore_{case:02d}"], axis=-1, count=width).astype(bool)
        expected = golden[f"gm_expected_{case:02d}"]
    mask = resize_mask(instances.any(axis=0), (224, 224))
    ignored = resize_mask(ignore, (224, 224)) & ~mask
    assert np.array_equal(mask, expected == 1)
    assert np.array_equal(ignored, expected == 255)


def test_ignored_pixels_do_not_count_unless_they_belong_to_the_object() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.4]])
    mask = np.array([[True, True, False, False]])
    ignore = np.array([[True, False, True, False]])
    counted, is_object = counted_pixels(scores, mask, ignore)
    assert counted.tolist() == [0.1, 0.2, 0.4]
    assert is_object.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("scores", "mask", "ignore", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2), bool), None, r"\(2, 3\) and mask \(3, 2\) differ"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), np.zeros((2, 2), bool), "differ"),
        (np.zeros((1, 2, 3)), np.zeros((2, 3), bool), None, "differ"),
        (np.zeros((2, 3)), np.full((2, 3), 255, np.uint8), None, "dtype uint8"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), np.zeros((2, 3)), "ignore mask has dtype float64"),
        (np.full((2, 3), 1.5), np.zeros((2, 3), bool), None, r"\[0, 1\], got 1.5 to 1.5"),
        (np.full((2, 3), -0.1), np.zeros((2, 3), bool), None, r"\[0, 1\]"),
        (np.array([[0.0, np.nan, 1.0]]), np.zeros((1, 3), bool), None, r"\[0, 1\], got nan"),
    ],
)
def test_maps_and_masks_that_do_not_fit_are_refused(unchecked_shapes: None, scores, mask, ignore, message: str) -> None:
    with pytest.raises(DataError, match=message):
        counted_pixels(scores, mask, ignore)


def test_an_empty_mask_or_size_cannot_be_resized() -> None:
    with pytest.raises(DataError, match="cannot resize"):
        resize_mask(np.zeros((0, 5), bool), (4, 4))
    with pytest.raises(DataError, match="cannot resize"):
        resize_mask(np.zeros((5, 5), bool), (0, 4))
