"""Object masks: brought to the frame of a score map, and checked against it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, Shaped

from wsolbench.exceptions import DataError
from wsolbench.types import UnitMap


def resize_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    """Mask at `size` = (width, height) by nearest neighbour: target pixel i takes source pixel floor(i x source / target).

    Equal to OpenCV's `INTER_NEAREST`. It only picks pixels, so it commutes with union and difference: resizing the union of
    instance masks is resizing each of them. Raises `DataError` on an empty mask or size.
    """
    mask = _bool_mask(mask, "mask")
    if mask.size == 0 or min(size) < 1:
        raise DataError(f"cannot resize a mask of shape {mask.shape} to {size[0]}x{size[1]}")
    return np.asarray(mask[np.ix_(_nearest(mask.shape[0], size[1]), _nearest(mask.shape[1], size[0]))])


def _nearest(source: int, target: int) -> Int[np.ndarray, " t"]:
    # The scale is the inverse of an inverse, as in OpenCV: source / target rounds to another double now and then.
    return np.asarray(np.minimum(np.floor(np.arange(target) * (1.0 / (target / source))), source - 1).astype(np.intp))


def matching_maps(
    score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None
) -> tuple[Shaped[np.ndarray, "h w"], Bool[np.ndarray, "h w"], Bool[np.ndarray, "h2 w2"]]:
    """Scores as uint8, float32 or float64, object mask, and ignore mask, which is empty where there is none.

    Raises `DataError` when the shapes differ or a mask is not boolean.
    """
    scores, object_ = np.asarray(score_map), _bool_mask(mask, "mask")
    ignored = None if ignore is None else _bool_mask(ignore, "ignore mask")
    for other in (object_, ignored):
        if other is not None and (scores.ndim != 2 or other.shape != scores.shape):
            raise DataError(f"score map {scores.shape} and mask {other.shape} differ; bring both to one (height, width) frame first")
    if scores.dtype not in (np.uint8, np.float32):
        scores = scores.astype(np.float64, copy=False)
    return scores, object_, np.zeros((0, 0), dtype=np.bool_) if ignored is None else ignored


def _bool_mask(mask: Bool[np.ndarray, "h w"], what: str) -> Bool[np.ndarray, "h w"]:
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise DataError(f"{what} has dtype {mask.dtype} and shape {mask.shape}; expected a boolean (height, width) array")
    return mask
