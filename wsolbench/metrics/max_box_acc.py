"""MaxBoxAcc and MaxBoxAccV2: share of images whose box overlaps the ground truth enough.

Both are read at one threshold of the map.

- MaxBoxAcc (Choe et al., CVPR 2020): delta 0.5, one box per image. Use `MaxBoxAcc(protocol, deltas=(0.5,))`,
  updated with `Sweep.single_iou`.
- MaxBoxAccV2 (Choe et al., TPAMI 2022): mean over deltas 0.3, 0.5, 0.7, any box of `protocol.components`. Use
  `MaxBoxAcc(protocol)`, updated with `Sweep.best_iou`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.hits import ORACLE, HitCounts
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol


@dataclass(frozen=True, kw_only=True)
class MaxBoxAccResult:
    """Result of `MaxBoxAcc.compute` over `n` images. Fractions are in [0, 1].

    `value` is the mean over the deltas. The tuples hold, for each delta, the fraction and its threshold.
    """

    value: float
    value_per_delta: tuple[float, ...]
    tau_per_delta: tuple[float, ...]
    deltas: tuple[float, ...]
    n: int


class MaxBoxAcc:
    """Accumulator over images; `compute` picks the thresholds.

    The state is integer counts, so order and sharding cannot change a bit. `deltas` replaces the protocol's.
    Raises `UsageError` for deltas outside (0, 1].

    >>> metric = MaxBoxAcc(EvalProtocol(taus=(0.1, 0.2)))
    >>> metric.update(np.array([0.4, 0.6]))
    >>> metric.update(np.array([0.8, 0.0]))
    >>> result = metric.compute()
    >>> result.value_per_delta, result.tau_per_delta
    ((1.0, 0.5, 0.5), (0.1, 0.1, 0.1))
    """

    def __init__(self, protocol: EvalProtocol, *, deltas: tuple[float, ...] | None = None) -> None:
        self.protocol = protocol
        self.deltas = tuple(protocol.deltas if deltas is None else deltas)
        if not self.deltas or not all(0.0 < delta <= 1.0 for delta in self.deltas):
            raise UsageError(f"deltas={self.deltas}; expected IoU thresholds in (0, 1]")
        self._counts = HitCounts(protocol, len(self.deltas))

    @property
    def n(self) -> int:
        """Number of images counted."""
        return self._counts.n

    @property
    def hits(self) -> Int64[np.ndarray, "d t"]:
        """Number of images whose IoU passes delta d at threshold t, (d, t)."""
        return self._counts.hits

    def update(self, best_iou: Float64[np.ndarray, " t"], label: int | None = None) -> None:
        """Count one image by its best IoU at every threshold of the protocol.

        `label` is its true class. It is required if the protocol averages over classes (else `UsageError`).
        Raises `DataError` for another length and for values outside [0, 1].
        """
        iou = check_iou(best_iou, (len(self.protocol.taus),))
        hits = [passes(iou, delta, self.protocol.iou_test) for delta in self.deltas]
        self._counts.add(np.stack(hits), label)

    def merge(self, other: MaxBoxAcc) -> None:
        """Add the counts of `other`. Raises `UsageError` if its protocol or deltas differ."""
        if self.deltas != other.deltas:
            raise UsageError(f"cannot merge results for deltas {other.deltas}; expected deltas {self.deltas}")
        self._counts.merge(other._counts)

    def curve(self) -> Float64[np.ndarray, "d t"]:
        """Return the fraction of images at every delta and threshold, (d, t).

        Raises `UsageError` if no image was counted.
        """
        return self._counts.rates()

    def compute(self, policy: ThresholdPolicy = ORACLE) -> MaxBoxAccResult:
        """Return the fractions at the thresholds that `policy` picks.

        There is one threshold for each delta, or one for all if `protocol.v2_tau` is "shared". Of equally
        good thresholds, the oracle takes the smallest. Raises `UsageError` if no image was counted.
        """
        curve, taus = self.curve(), np.array(self.protocol.taus)
        picked = policy.pick(self._counts.threshold_scores(), taus, shared=self.protocol.v2_tau == "shared")
        values = curve[np.arange(len(self.deltas)), picked]
        return MaxBoxAccResult(
            value=float(values.mean()),
            value_per_delta=tuple(values.tolist()),
            tau_per_delta=tuple(taus[picked].tolist()),
            deltas=self.deltas,
            n=self.n,
        )


def passes(iou: Float64[np.ndarray, "*s"], delta: float, test: str) -> Bool[np.ndarray, "*s"]:
    """Whether each IoU passes `delta` under the test ">" or ">="."""
    return np.asarray(iou > delta if test == ">" else iou >= delta)


def check_iou(iou: Float64[np.ndarray, "*s"], shape: tuple[int, ...]) -> Float64[np.ndarray, "*s"]:
    """Return `iou` as float64. Raises `DataError` unless it has `shape` and lies in [0, 1]."""
    values = np.asarray(iou, dtype=np.float64)
    if values.shape != shape:
        raise DataError(
            f"IoU per threshold has shape {values.shape}; expected {shape}, one value for each threshold "
            "of the protocol"
        )
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise DataError(
            f"IoU per threshold holds values from {values.min():g} to {values.max():g}; expected finite "
            "numbers in [0, 1]"
        )
    return values
