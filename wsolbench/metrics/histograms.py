"""Object and background pixel counts of a score map by score and by 8-bit level, in one pass (numba)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8, UInt32
from numba import njit

from wsolbench.exceptions import DataError
from wsolbench.metrics.masks import matching_maps
from wsolbench.protocol import EvalProtocol
from wsolbench.types import UnitMap

LEVELS = 256

# Cells of the look-up table from score to bin. A power of two, so that score x cells is exact.
_CELLS = 4096


def histograms(
    score_map: UnitMap,
    mask: Bool[np.ndarray, "h w"],
    ignore: Bool[np.ndarray, "h w"] | None,
    protocol: EvalProtocol,
) -> tuple[Int64[np.ndarray, "2 bins"], Int64[np.ndarray, "2 256"]]:
    """Count the pixels of one image by score (for PxAP) and by 8-bit level (for Peak-IoU).

    Row 0 counts object pixels, row 1 background pixels. Scores lie in [0, 1], or are 8-bit levels that
    stand for level / 255. Pixels of `ignore` outside the object are not counted.

    By score: bin i contains scores in [edge_i, edge_(i+1)), compared in float64. The edges are 0 (if the
    protocol's thresholds start higher), the thresholds, 1, 2 and 3.

    By level: a float score has the level trunc(255 x score), the product in float64.

    Raises `DataError` if the shapes differ, a mask is not boolean, or a score is not a number in [0, 1].
    """
    scores, *masks = matching_maps(score_map, mask, ignore)
    is_object, ignored = (each.ravel() for each in masks)
    binning = binning_of(protocol.taus)
    pixel, level = np.zeros((2, binning.n_bins), dtype=np.int64), np.zeros((2, LEVELS), dtype=np.int64)
    if scores.dtype == np.uint8:
        _count_levels(scores.ravel(), is_object, ignored, level)
        np.add.at(pixel.T, binning.of_level, level.T)
    elif not _count_scores(
        scores.ravel(), is_object, ignored, binning.edges, binning.of_cell, binning.steps, pixel, level
    ):
        raise DataError(
            f"scores must lie in [0, 1], got {scores.min():g} to {scores.max():g}; normalise the map first"
        )
    return pixel, level


@dataclass(frozen=True)
class Binning:
    """Exact bins without a search: look up the bin at the start of a score's cell, then step over edges."""

    edges: Float64[np.ndarray, " edges"]
    of_level: Int64[np.ndarray, " 256"]
    of_cell: UInt32[np.ndarray, " cells"]
    steps: int
    """Largest number of edges inside one cell."""

    @property
    def n_bins(self) -> int:
        """Number of columns of the histogram by score."""
        return len(self.edges) - 1


@lru_cache(maxsize=8)
def binning_of(taus: tuple[float, ...]) -> Binning:
    """Build the bins by score of `histograms`."""
    edges = np.array(([] if taus[0] == 0 else [0.0]) + [*taus, 1.0, 2.0, 3.0])
    of_cell = np.searchsorted(edges, np.arange(_CELLS + 1) / _CELLS, side="right") - 1
    of_level = np.searchsorted(edges, np.arange(LEVELS) / 255.0, side="right") - 1
    return Binning(edges, of_level, of_cell.astype(np.uint32), int(np.diff(of_cell).max()))


# Indices are unsigned: a signed index costs a test for negative values at each look-up.
@njit(cache=True, nogil=True)
def _count_scores(
    scores: Float[np.ndarray, " p"],
    is_object: Bool[np.ndarray, " p"],
    ignored: Bool[np.ndarray, " i"],
    edges: Float64[np.ndarray, " e"],
    of_cell: UInt32[np.ndarray, " c"],
    steps: int,
    pixel: Int64[np.ndarray, "2 bins"],
    level: Int64[np.ndarray, "2 256"],
) -> bool:
    """Fill in the counts of a float map. Returns False if a score is not a number in [0, 1]."""
    for p in range(scores.size):
        score = np.float64(scores[p])
        if not (score >= 0.0 and score <= 1.0):  # also for NaN
            return False
        row = np.uint32(not is_object[p])
        if row and ignored.size and ignored[p]:
            continue
        bin_ = of_cell[np.uint32(score * _CELLS)]
        for _ in range(steps):  # a fixed number of steps: a branch on the score would be mispredicted
            bin_ += np.uint32(score >= edges[bin_ + np.uint32(1)])
        pixel[row, bin_] += 1
        level[row, np.uint32(score * 255.0)] += 1
    return True


@njit(cache=True, nogil=True)
def _count_levels(
    scores: UInt8[np.ndarray, " p"],
    is_object: Bool[np.ndarray, " p"],
    ignored: Bool[np.ndarray, " i"],
    level: Int64[np.ndarray, "2 256"],
) -> None:
    """Fill in the counts of an 8-bit map."""
    for p in range(scores.size):
        row = np.uint32(not is_object[p])
        if not (row and ignored.size and ignored[p]):
            level[row, scores[p]] += 1
