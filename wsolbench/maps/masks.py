"""Masks in the evaluation frame, and masks that training learns from."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt8

from wsolbench.exceptions import DataError
from wsolbench.types import Sample

MaskSource = Literal["mask", "box", "any"]
"""Ground truth that becomes the mask of a training image: its mask, its filled boxes, or the boxes only if it
has no mask."""


def resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """Resize a mask to `size` = (width, height) by nearest neighbour, as OpenCV's `INTER_NEAREST`.

    Target pixel i takes source pixel floor(i x source / target). Resizing only picks pixels, so it commutes
    with union and difference: resizing the union of instance masks equals resizing each of them. Raises
    `DataError` for an empty mask or size.
    """
    mask = check_mask(mask, "mask")
    if mask.size == 0 or min(size) < 1:
        raise DataError(
            f"mask of shape {mask.shape} cannot be resized to {size[0]}x{size[1]}; expected at least "
            "one pixel in both"
        )
    return np.asarray(mask[np.ix_(_nearest(mask.shape[0], size[1]), _nearest(mask.shape[1], size[0]))])


def has_target(sample: Sample, source: MaskSource) -> bool:
    """Whether an image has the ground truth that `target_mask` reads."""
    return (source != "box" and sample.has_mask) or (source != "mask" and len(sample.boxes) > 0)


def target_mask(sample: Sample, source: MaskSource, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"] | None:
    """Return the object of an image resized to `size` = (width, height), or None without ground truth.

    255 is object. A mask is resized as `resize_mask`. Filled boxes have the covered share of each pixel.
    """
    mask = None if source == "box" else sample.mask()
    if mask is not None:
        return np.asarray(np.where(resize_mask(mask, size), 255, 0), dtype=np.uint8)
    if source == "mask" or not len(sample.boxes):
        return None
    scale = np.tile(np.divide(size, sample.size), 2)
    return np.asarray(np.rint(255 * fill_boxes(sample.boxes * scale, size)), dtype=np.uint8)


def fill_boxes(boxes: Float64[np.ndarray, "r 4"], size: tuple[int, int]) -> Float64[np.ndarray, "h w"]:
    """Return the share of each pixel that one of the boxes covers, for an image of `size` = (width, height).

    The share is exact for one box. A pixel of several boxes has its largest share.
    """
    covered = np.zeros((size[1], size[0]))
    for x0, y0, x1, y1 in boxes:
        columns, rows = _overlaps(x0, x1, size[0]), _overlaps(y0, y1, size[1])
        np.maximum(covered, rows[:, None] * columns, out=covered)
    return covered


def _overlaps(low: float, high: float, side: int) -> Float64[np.ndarray, " s"]:
    """Return the length of [low, high] in each pixel of an axis."""
    first = np.arange(side, dtype=np.float64)
    return np.asarray(np.clip(np.minimum(high, first + 1) - np.maximum(low, first), 0, None))


def _nearest(source: int, target: int) -> Int[np.ndarray, " t"]:
    # The scale is the inverse of an inverse, as in OpenCV: source / target sometimes rounds differently.
    return np.asarray(
        np.minimum(np.floor(np.arange(target) * (1.0 / (target / source))), source - 1).astype(np.intp)
    )


def check_mask(mask: Bool[np.ndarray, "h w"], what: str) -> Bool[np.ndarray, "h w"]:
    """Return `mask` as an array. Raises `DataError` unless it is boolean and two-dimensional."""
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise DataError(
            f"{what} has dtype {mask.dtype} and shape {mask.shape}; expected a boolean (height, width) array"
        )
    return mask
