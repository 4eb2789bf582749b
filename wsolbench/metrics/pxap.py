"""PxAP: area under the pixel precision-recall curve, pixels pooled over the whole data set.

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, section 4; counts and sums
as the evaluator clovaai/wsolevaluation makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.masks import counted_pixels
from wsolbench.protocol import EvalProtocol
from wsolbench.types import UnitMap

# Cells of the look-up table from score to bin. A power of two, so that score x cells is exact.
_CELLS = 4096


@dataclass(frozen=True, kw_only=True)
class PxAPResult:
    """What `PxAP.compute` gives."""

    value: float
    """Average precision in [0, 1]."""
    n: int
    """Images."""
    n_pixels: int
    """Pixels that counted: neither ignored nor left out."""


class PxAP:
    """Accumulates pixel histograms over images; states are integer counts, so order and sharding cannot change a bit.

    >>> metric = PxAP(EvalProtocol())
    >>> metric.update(np.array([[0.9, 0.1]]), np.array([[True, False]]))
    >>> metric.compute().value
    1.0
    """

    def __init__(self, protocol: EvalProtocol) -> None:
        self.protocol = protocol
        self.histogram: Int64[np.ndarray, "2 bins"] = np.zeros((2, _binning(protocol.taus).n_bins), dtype=np.int64)
        self.n = 0

    def update(self, score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None = None) -> None:
        """Count one image; see `pixel_histogram` for shapes and errors."""
        self.update_histogram(pixel_histogram(score_map, mask, ignore, self.protocol))

    def update_histogram(self, histogram: Int64[np.ndarray, "2 bins"]) -> None:
        """Count one image by its histogram, for instance a stored one."""
        if histogram.shape != self.histogram.shape:
            raise UsageError(f"histogram of shape {histogram.shape}; this protocol's thresholds give {self.histogram.shape}")
        self.histogram += histogram
        self.n += 1

    def merge(self, other: PxAP) -> None:
        """Add the images of another shard. Raises `UsageError` when it was counted under another protocol."""
        if other.protocol != self.protocol:
            raise UsageError(f"cannot merge PxAP of protocol {other.protocol.name!r} into one of {self.protocol.name!r}: they differ")
        self.histogram += other.histogram
        self.n += other.n

    def compute(self) -> PxAPResult:
        """Average precision of all pixels so far. Raises `DataError` when none of them is an object pixel."""
        return PxAPResult(value=float(average_precision(self.histogram)), n=self.n, n_pixels=int(self.histogram.sum()))


def pixel_histogram(
    score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None, protocol: EvalProtocol
) -> Int64[np.ndarray, "2 bins"]:
    """Pixel counts of one image by score: row 0 object pixels, row 1 background pixels.

    Bin i holds scores in [edge_i, edge_(i+1)); the edges are 0 (where the protocol's thresholds start higher), the
    thresholds, 1, 2 and 3, compared in float64. Scores lie in [0, 1], or are 8-bit levels that stand for level / 255.
    Pixels of `ignore` outside of the object do not count. Raises `DataError` as `counted_pixels` does.
    """
    binning = _binning(protocol.taus)
    scores, is_object = counted_pixels(score_map, mask, ignore)
    bins = binning.of_level[scores] if scores.dtype == np.uint8 else binning.of_score(scores)
    counts = np.bincount(bins + binning.n_bins * ~is_object, minlength=2 * binning.n_bins)
    return counts.reshape(2, binning.n_bins).astype(np.int64, copy=False)


def number_of_bins(protocol: EvalProtocol) -> int:
    """Columns of `pixel_histogram` under this protocol."""
    return _binning(protocol.taus).n_bins


def average_precision(histogram: Num[np.ndarray, "*r 2 bins"]) -> Float64[np.ndarray, "*r"]:
    """Average precision in [0, 1] of pixel histograms (or of their means over images); leading axes are independent.

    Sum over thresholds, from the highest down, of precision x gain in recall; a threshold that selects nothing has
    precision 0. Raises `DataError` where a histogram has no object pixel: recall is undefined.
    """
    cumulated = np.cumsum(histogram[..., ::-1], axis=-1)
    true_positives, selected = cumulated[..., 0, :], cumulated.sum(axis=-2)
    positives = true_positives[..., -1:]
    if not np.all(positives > 0):
        raise DataError("average precision is undefined: no object pixel in any mask. Check the masks and their threshold.")
    precision = np.divide(true_positives, selected, out=np.zeros(selected.shape), where=selected > 0)
    return np.asarray((precision[..., 1:] * np.diff(true_positives / positives, axis=-1)).sum(axis=-1))


@dataclass(frozen=True)
class _Binning:
    """Exact bins without a search: the bin at which a score's cell starts, then a step over each edge inside the cell."""

    edges: Float64[np.ndarray, " edges"]
    of_level: Int64[np.ndarray, " 256"]
    of_cell: Int64[np.ndarray, " cells"]
    steps: int

    @property
    def n_bins(self) -> int:
        return len(self.edges) - 1

    def of_score(self, scores: Float64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        bins = self.of_cell[(scores * _CELLS).astype(np.intp)]
        for _ in range(self.steps):
            bins += scores >= self.edges[bins + 1]
        return bins


@lru_cache(maxsize=8)
def _binning(taus: tuple[float, ...]) -> _Binning:
    edges = np.array(([] if taus[0] == 0 else [0.0]) + [*taus, 1.0, 2.0, 3.0])
    of_cell = np.searchsorted(edges, np.arange(_CELLS + 1) / _CELLS, side="right") - 1
    of_level = np.searchsorted(edges, np.arange(256) / 255.0, side="right") - 1
    return _Binning(edges, of_level.astype(np.int64), of_cell.astype(np.int64), int(np.diff(of_cell).max()))
