"""PxAP: area under the pixel precision-recall curve, with the pixels of the whole data set pooled.

Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, section 4.
Counts and sums are those of the evaluator clovaai/wsolevaluation.
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
    """Result of `PxAP.compute`."""

    value: float
    """Average precision in [0, 1]."""
    n: int
    """Number of images."""
    n_pixels: int
    """Number of pixels that counted, without ignored pixels."""


class PxAP:
    """Accumulator of pixel histograms over images.

    The state is integer counts, so order and sharding cannot change a bit.

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
                f"histogram has shape {histogram.shape}; expected {self.histogram.shape} for the thresholds "
                "of this protocol"
            )
        self.histogram += histogram
        self.n += 1

    def merge(self, other: PxAP) -> None:
        """Add the images of another shard. Raises `UsageError` if its protocol differs."""
        if other.protocol != self.protocol:
            raise UsageError(
                f"cannot merge PxAP of protocol {other.protocol.name!r} into one of {self.protocol.name!r}; "
                "expected equal protocols, but a field differs"
            )
        self.histogram += other.histogram
        self.n += other.n

    def compute(self) -> PxAPResult:
        """Return the average precision of all pixels so far. Raises `DataError` without an object pixel."""
        return PxAPResult(
            value=float(average_precision(self.histogram)), n=self.n, n_pixels=int(self.histogram.sum())
        )


def pixel_histogram(
    score_map: UnitMap,
    mask: Bool[np.ndarray, "h w"],
    ignore: Bool[np.ndarray, "h w"] | None,
    protocol: EvalProtocol,
) -> Int64[np.ndarray, "2 bins"]:
    """Count the pixels of one image by score, (2, bins): object, background.

    It is the first result of `histograms`, which documents the bins and the errors.
    """
    return histograms(score_map, mask, ignore, protocol)[0]


def number_of_bins(protocol: EvalProtocol) -> int:
    """Return the number of columns of `pixel_histogram` under this protocol."""
    return binning_of(protocol.taus).n_bins


def average_precision(histogram: Num[np.ndarray, "*r 2 bins"]) -> Float64[np.ndarray, "*r"]:
    """Average precision in [0, 1] of pixel histograms, or of their means over images.

    It is the sum over thresholds, from the highest down, of precision x gain in recall. A threshold that
    selects no pixel has precision 0. Leading axes are independent. Raises `DataError` if a histogram has no
    object pixel, because recall is then undefined.
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
