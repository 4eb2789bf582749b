"""Masks in the evaluation frame."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from wsolbench.exceptions import DataError


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
