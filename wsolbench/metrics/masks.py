"""Object masks: brought to the frame of a score map, and checked against it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Shaped

from wsolbench.exceptions import DataError
from wsolbench.maps.masks import _bool_mask
from wsolbench.types import UnitMap


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
            raise DataError(
                f"score map {scores.shape} and mask {other.shape} differ; bring both to one (height, "
                "width) frame first"
            )
    if scores.dtype not in (np.uint8, np.float32):
        scores = scores.astype(np.float64, copy=False)
    return scores, object_, np.zeros((0, 0), dtype=np.bool_) if ignored is None else ignored
