"""Masks in the evaluation frame."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from wsolbench.exceptions import DataError


def resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """Mask at `size` = (width, height) by nearest neighbour: target pixel i takes source pixel floor(i x
    source / target).

    Equal to OpenCV's `INTER_NEAREST`. It only picks pixels, so it commutes with union and difference:
    resizing the union of instance masks is resizing each of them. Raises `DataError` on an empty mask or
    size.
    """
    mask = _bool_mask(mask, "mask")
    if mask.size == 0 or min(size) < 1:
        raise DataError(f"cannot resize a mask of shape {mask.shape} to {size[0]}x{size[1]}")
    return np.asarray(mask[np.ix_(_nearest(mask.shape[0], size[1]), _nearest(mask.shape[1], size[0]))])


def _nearest(source: int, target: int) -> Int[np.ndarray, " t"]:
    # The scale is the inverse of an inverse, as in OpenCV: source / target rounds to another double now and
    # then.
    return np.asarray(
        np.minimum(np.floor(np.arange(target) * (1.0 / (target / source))), source - 1).astype(np.intp)
    )


def _bool_mask(mask: Bool[np.ndarray, "h w"], what: str) -> Bool[np.ndarray, "h w"]:
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise DataError(
            f"{what} has dtype {mask.dtype} and shape {mask.shape}; expected a boolean (height, width) array"
        )
    return mask
