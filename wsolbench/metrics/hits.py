"""Counting hits over images: the state that box metrics share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from wsolbench.exceptions import UsageError
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol

ORACLE = ThresholdPolicy.oracle()

_EVERY_IMAGE = -1  # the one group when averaging is over images; labels are never negative


class HitCounts:
    """Hits per row (a delta, or a metric) and threshold; one group for all images, or one a class where the
    protocol averages classes.

    State: integer counts, so the order of updates and merges cannot change a bit.
    """

    def __init__(self, protocol: EvalProtocol, n_rows: int) -> None:
        self.protocol = protocol
        self._shape = (n_rows, len(protocol.taus))
        self._hits: dict[int, Int64[np.ndarray, "d t"]] = {}
        self._n: dict[int, int] = {}

    @property
    def n(self) -> int:
        """Images counted."""
        return sum(self._n.values())

    @property
    def hits(self) -> Int64[np.ndarray, "d t"]:
        """Hits over all images."""
        return sum(self._hits.values(), np.zeros(self._shape, dtype=np.int64))

    def add(self, hits: Bool[np.ndarray, "d t"], label: int | None) -> None:
        """Count one image. Raises `UsageError` without a label where the protocol averages classes."""
        group = _EVERY_IMAGE
        if self.protocol.averaging == "class":
            if label is None:
                raise UsageError(
                    f"protocol {self.protocol.name!r} averages classes, so every image needs its label"
                )
            group = int(label)
        self._add(group, hits.astype(np.int64), 1)

    def merge(self, other: HitCounts) -> None:
        """Add the counts of `other`. Raises `UsageError` when its protocol or number of rows differs."""
        if self.protocol != other.protocol:
            raise UsageError(
                f"results of protocols {self.protocol.name!r} and {other.protocol.name!r} do not merge: a "
                "field differs"
            )
        if self._shape != other._shape:
            raise UsageError(f"results with {self._shape[0]} and {other._shape[0]} rows do not merge")
        for group, hits in list(other._hits.items()):
            self._add(group, hits, other._n[group])

    def rates(self) -> Float64[np.ndarray, "d t"]:
        """Share of hits in [0, 1], averaged as the protocol says. Raises `UsageError` when no image was
        counted.
        """
        if not self._hits:
            raise UsageError(
                "no image was counted, so the share of hits is undefined; update the metric first"
            )
        per_group = [self._hits[group] / self._n[group] for group in sorted(self._hits)]
        return np.asarray(np.mean(per_group, axis=0))

    def comparable(self) -> Num[np.ndarray, "d t"]:
        """What thresholds are chosen by: proportional to `rates`, and exact integers where averaging is over
        images.
        """
        return self.hits if self.protocol.averaging == "image" else self.rates()

    def _add(self, group: int, hits: Int64[np.ndarray, "d t"], n: int) -> None:
        self._hits[group] = hits + self._hits.get(group, np.zeros(self._shape, dtype=np.int64))
        self._n[group] = self._n.get(group, 0) + n
