"""Ground truth in the frame of a network's input, for methods that read it: controls and upper bounds."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from wsolbench.exceptions import DataError
from wsolbench.maps.frame import map_to_view
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Sample


def true_box(sample: Sample, side: int, protocol: EvalProtocol) -> Float64[np.ndarray, " 4"]:
    """Return the first box of an image, xyxy in pixels of the view, or the whole view if it has none."""
    if not len(sample.boxes):
        return np.array([0.0, 0.0, side, side])
    return map_to_view(sample.boxes[0].reshape(2, 2), sample.size, side, protocol).reshape(4)


def true_mask(sample: Sample, side: int, protocol: EvalProtocol) -> Bool[np.ndarray, "s s"]:
    """Return the mask of an image, sampled at the pixel centres of the view; False beyond the image.

    Raises `DataError` if the image has no mask.
    """
    mask = sample.mask()
    if mask is None:
        raise DataError(
            f"image {sample.id!r} has no mask, which the method reads; use a data set with masks, or "
            "ground-truth boxes instead"
        )
    outer, start = protocol.view_of(side)
    rows, columns = (_source(side, size, outer, start) for size in mask.shape)
    inside = (rows >= 0)[:, None] & (columns >= 0)
    return np.asarray(mask[rows[:, None], columns] & inside)


def _source(side: int, size: int, outer: int, start: int) -> Int64[np.ndarray, " s"]:
    """Return the pixel of the image under each pixel of the view along one axis, or -1 beyond the image."""
    place = np.floor((np.arange(side) + 0.5 + start) * size / outer).astype(np.int64)
    return np.where((place >= 0) & (place < size), place, -1)
