"""Masks are resized as in OpenCV; boxes are filled exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from wsolbench.exceptions import DataError
from wsolbench.maps.masks import fill_boxes, has_target, resize_mask, target_mask
from wsolbench.types import Sample

SIDES = st.integers(1, 300)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32))
@example(6, 6, 106, 260, 0)  # 6 x (target / 6) rounds: the scale is not source / target
def test_resizing_a_mask_is_opencv_nearest_neighbour(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
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


def test_an_empty_mask_or_size_cannot_be_resized() -> None:
    with pytest.raises(DataError, match="cannot be resized"):
        resize_mask(np.zeros((0, 5), bool), (4, 4))
    with pytest.raises(DataError, match="cannot be resized"):
        resize_mask(np.zeros((5, 5), bool), (0, 4))


def test_filled_boxes_have_the_covered_share_of_each_pixel() -> None:
    box = np.array([[1.25, 0.5, 3.5, 3.0]])
    shares = fill_boxes(box, (5, 4))
    assert shares.shape == (4, 5)
    assert shares.sum() == pytest.approx(2.25 * 2.5)
    np.testing.assert_allclose(shares[0], [0, 0.375, 0.5, 0.25, 0])
    np.testing.assert_allclose(shares[1], [0, 0.75, 1, 0.5, 0])
    two = fill_boxes(np.concatenate([box, [[0, 0, 5, 1]]]), (5, 4))
    assert np.all(two[0] == 1)  # of two boxes the larger share
    np.testing.assert_array_equal(two[1:], shares[1:])
    assert not fill_boxes(np.zeros((0, 4)), (5, 4)).any()


def test_the_object_of_an_image_is_its_mask_or_its_boxes(tmp_path: Path) -> None:
    drawn = np.zeros((4, 8), dtype=np.uint8)
    drawn[1:3, 2:4] = 255
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    box = np.array([[4.0, 0.0, 8.0, 2.0]])
    both = Sample(id="a", label=0, size=(8, 4), boxes=box, mask_paths=(tmp_path / "mask.png",))
    boxed, masked = replace(both, mask_paths=()), replace(both, boxes=np.zeros((0, 4)))
    mask, filled = np.zeros((8, 16)), np.zeros((8, 16))
    mask[2:6, 4:8], filled[:4, 8:] = 255, 255
    for sample, source, expected in (
        (both, "mask", mask),
        (both, "box", filled),
        (both, "any", mask),
        (boxed, "any", filled),
        (boxed, "mask", None),
        (masked, "box", None),
    ):
        found = target_mask(sample, source, (16, 8))
        assert has_target(sample, source) is (expected is not None)
        assert (found is None) if expected is None else np.array_equal(found, expected)
