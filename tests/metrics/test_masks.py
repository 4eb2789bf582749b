"""Masks are resized as in OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsolbench.exceptions import DataError
from wsolbench.maps.masks import resize_mask

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
