"""PxAP: area under the pixel precision-recall curve, pixels pooled over the whole data set.

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, section 4;
counts and sums as the evaluator clovaai/wsolevaluation makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.histograms import binning_of, histograms
from wsolbench.protocol import EvalProtocol
from wsolbench.types import UnitMap


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
    """Accumulates pixel histograms over images; states are integer counts, so order and sharding cannot
    change a bit.

    >>> metric = PxAP(EvalProtocol())
    >>> metric.update(np.array([[0.9, 0.1]]), np.array([[True, False]]))
    >>> metric.compute().value
    1.0
    """

    def __init__(self, protocol: EvalProtocol) -> None:
        self.protocol = protocol
        self.histogram: Int64[np.ndarray, "2 bins"] = np.zeros((2, number_of_bins(protocol)), dtype=np.int64)
        self.n = 0

    def update(
        self, score_map: UnitMap, mask: Bool[np.ndarray, "h w"], ignore: Bool[np.ndarray, "h w"] | None = None
    ) -> None:
        """Count one image; see `pixel_histogram` for shapes and errors."""
        self.update_histogram(pixel_histogram(score_map, mask, ignore, self.protocol))

    def update_histogram(self, histogram: Int64[np.ndarray, "2 bins"]) -> None:
        """Count one image by its histogram, for instance a stored one."""
        if histogram.shape != self.histogram.shape:
            raise UsageError(
                f"histogram of shape {histogram.shape}; this protocol's thresholds give "
                f"{self.histogram.shape}"
            )
        self.histogram += histogram
        self.n += 1

    def merge(self, other: PxAP) -> None:
        """Add the images of another shard. Raises `UsageError` when it was counted under another protocol."""
        if other.protocol != self.protocol:
            raise UsageError(
                f"cannot merge PxAP of protocol {other.protocol.name!r} into one of "
                f"{self.protocol.name!r}: they differ"
            )
        self.histogram += other.histogram
        self.n += other.n

    def compute(self) -> PxAPResult:
        """Average precision of all pixels so far. Raises `DataError` when none of them is an object pixel."""
        return PxAPResult(
            value=float(average_precision(self.histogram)), n=self.n, n_pixels=int(self.histogram.sum())
        )


def pixel_histogram(
    score_map: UnitMap,
    mask: Bool[np.ndarray, "h w"],
    ignore: Bool[np.ndarray, "h w"] | None,
    protocol: EvalProtocol,
) -> Int64[np.ndarray, "2 bins"]:
    """Pixel counts of one image by score, the first of `histograms`, which says what the bins and the errors
    are.
    """
    return histograms(score_map, mask, ignore, protocol)[0]


def number_of_bins(protocol: EvalProtocol) -> int:
    """Columns of `pixel_histogram` under this protocol."""
    return binning_of(protocol.taus).n_bins


def average_precision(histogram: Num[np.ndarray, "*r 2 bins"]) -> Float64[np.ndarray, "*r"]:
    """Average precision in [0, 1] of pixel histograms (or of their means over images); leading axes are
    independent.

    Sum over thresholds, from the highest down, of precision x gain in recall; a threshold that selects
    nothing has precision 0. Raises `DataError` where a histogram has no object pixel: recall is undefined.
    """
    cumulated = np.cumsum(histogram[..., ::-1], axis=-1)
    true_positives, selected = cumulated[..., 0, :], cumulated.sum(axis=-2)
    positives = true_positives[..., -1:]
    if not np.all(positives > 0):
        raise DataError(
            "average precision is undefined: no object pixel in any mask. Check the masks and their "
            "threshold."
        )
    precision = np.divide(true_positives, selected, out=np.zeros(selected.shape), where=selected > 0)
    return np.asarray((precision[..., 1:] * np.diff(true_positives / positives, axis=-1)).sum(axis=-1))
