"""Validation of object masks against a score map."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Shaped

from wsolbench.exceptions import DataError
from wsolbench.maps.masks import check_mask
from wsolbench.types import UnitMap


def matching_maps(
    score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None
) -> tuple[Shaped[np.ndarray, "h w"], Bool[np.ndarray, "h w"], Bool[np.ndarray, "h2 w2"]]:
    """Return scores (uint8, float32 or float64), object mask and ignore mask, which is empty if None.

    Raises `DataError` if the shapes differ or a mask is not boolean.
    """
    scores, object_ = np.asarray(score_map), check_mask(mask, "mask")
    ignored = None if ignore is None else check_mask(ignore, "ignore mask")
    for other in (object_, ignored):
        if other is not None and (scores.ndim != 2 or other.shape != scores.shape):
            raise DataError(
                f"score map {scores.shape} and mask {other.shape} differ in shape; expected both in one "
                "(height, width) frame"
            )
    if scores.dtype not in (np.uint8, np.float32):
        scores = scores.astype(np.float64, copy=False)
    return scores, object_, np.zeros((0, 0), dtype=np.bool_) if ignored is None else ignored
