"""Counts of hits over images: the state that all box metrics share."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from wsolbench.exceptions import UsageError
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol

ORACLE = ThresholdPolicy.oracle()

_EVERY_IMAGE = -1  # the only group if the average is over images; labels are never negative


class HitCounts:
    """Hits per row (a delta or a metric) and threshold, counted over all images or per class.

    They are counted per class if the protocol averages over classes.
    The state is integer counts, so the order of updates and merges cannot change a bit.
    """

    def __init__(self, protocol: EvalProtocol, n_rows: int) -> None:
        self.protocol = protocol
        self._shape = (n_rows, len(protocol.taus))
        self._hits: dict[int, Int64[np.ndarray, "d t"]] = {}
        self._n: dict[int, int] = {}

    @property
    def n(self) -> int:
        """Number of images counted."""
        return sum(self._n.values())

    @property
    def hits(self) -> Int64[np.ndarray, "d t"]:
        """Hits over all images, (d, t)."""
        return sum(self._hits.values(), np.zeros(self._shape, dtype=np.int64))

    def add(self, hits: Bool[np.ndarray, "d t"], label: int | None) -> None:
        """Count one image. Raises `UsageError` without a label if the protocol averages over classes."""
        group = _EVERY_IMAGE
        if self.protocol.averaging == "class":
            if label is None:
                raise UsageError(
                    f"image has no label; protocol {self.protocol.name!r} averages over classes. Pass `label`"
                )
            group = int(label)
        self._add(group, hits.astype(np.int64), 1)

    def merge(self, other: HitCounts) -> None:
        """Add the counts of `other`. Raises `UsageError` if its protocol or number of rows differs."""
        if self.protocol != other.protocol:
            raise UsageError(
                f"cannot merge results of protocol {other.protocol.name!r} into those of "
                f"{self.protocol.name!r}; expected equal protocols, but a field differs"
            )
        if self._shape != other._shape:
            raise UsageError(f"cannot merge results with {other._shape[0]} rows; expected {self._shape[0]}")
        for group, hits in list(other._hits.items()):
            self._add(group, hits, other._n[group])

    def rates(self) -> Float64[np.ndarray, "d t"]:
        """Return the share of hits in [0, 1], (d, t), averaged over images or classes as the protocol says.

        Raises `UsageError` if no image was counted.
        """
        if not self._hits:
            raise UsageError("no image was counted, so the share of hits is undefined; call update first")
        per_group = [self._hits[group] / self._n[group] for group in sorted(self._hits)]
        return np.asarray(np.mean(per_group, axis=0))

    def threshold_scores(self) -> Num[np.ndarray, "d t"]:
        """Return the scores that thresholds are chosen by, (d, t): proportional to `rates`.

        They are exact integers if the average is over images.
        """
        return self.hits if self.protocol.averaging == "image" else self.rates()

    def _add(self, group: int, hits: Int64[np.ndarray, "d t"], n: int) -> None:
        self._hits[group] = hits + self._hits.get(group, np.zeros(self._shape, dtype=np.int64))
        self._n[group] = self._n.get(group, 0) + n
