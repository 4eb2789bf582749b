"""The scores of a split as means over its images, and metrics as functions of these means.

A few tables hold numbers per image (`ImageRows`): hits at each threshold, error categories, pixel histograms.
A metric is a function of the image means of one table (`Metric`): the best of the hit rates, an average
precision. The same function gives the number and, applied to resampled means, its bootstrap interval. All
tables are resampled together, chunk by chunk. So memory does not grow with the number of images or metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from wsolbench.evaluation.score_table import ScoreTable, check_scores
from wsolbench.evaluation.scores import ImageScores
from wsolbench.exceptions import DataError
from wsolbench.metrics.best_threshold import Curves
from wsolbench.metrics.confidence import Bootstrap
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol

Rates = Float64[np.ndarray, "r s"]
"""Image means of each column of a table, one row per resample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRows:
    """A table of per-image numbers, and the images that it is defined on."""

    images: str
    """Name of the set of images, a key of `_WHICH`."""
    of: Callable[[ImageScores], Shaped[np.ndarray, "m s"]]
    by_class: bool = False
    """Whether the means are averaged per class first, and then over classes."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: `value` maps (r, s) means of the table `rows` to (r,) numbers."""

    name: str
    rows: ImageRows
    value: Callable[[Rates], Float64[np.ndarray, " r"]]
    policy: ThresholdPolicy | None = None
    tau: tuple[float, ...] | None = None
    curves: Curves | None = None
    """The curves over thresholds, for a metric at its best threshold, or None.

    `value` is then `best_value(curves(...))`.
    """
    n: int | None = None
    """Number of images, if it is smaller than the number of rows."""


_WHICH: dict[str, Callable[[ImageScores], Bool[np.ndarray, " m"]]] = {
    "all": lambda part: np.ones(len(part), dtype=np.bool_),
    "with boxes": lambda part: part.has_boxes,
    "with mask": lambda part: part.has_mask,
    "with object": lambda part: part.has_object,
    "with parts": lambda part: part.has_parts,
}
"""Named sets of images, by what an image must have."""
_WIDER = {"with boxes": "all", "with mask": "all", "with object": "with mask", "with parts": "all"}


class SplitScores:
    """The scores of a split: sizes and labels of its image sets, and means of tables over them."""

    def __init__(self, scores: ScoreTable) -> None:
        self.scores = scores
        self.count = dict.fromkeys(_WHICH, 0)
        labels: dict[str, list[Int64[np.ndarray, " m"]]] = {which: [] for which in _WHICH}
        self.ranks = 0
        """Number of predicted labels per image."""
        self.extra: tuple[str, ...] = ()
        """Names of the extra metrics whose numbers the scores hold."""
        # Read every chunk once: check it, count the image sets, and find the distinct thresholds.
        new: Bool[np.ndarray, " t"] | None = None
        for part in scores:
            check_scores(part)
            if new is not None and part.ranked.shape[1] != self.ranks:
                raise DataError(
                    f"some images have {self.ranks} predicted labels and others {part.ranked.shape[1]}; "
                    "expected the same number for all"
                )
            self.ranks = part.ranked.shape[1]
            self.extra = tuple(part.extra)
            new = part.new_at_tau() if new is None else new | part.new_at_tau()
            for which, of in _WHICH.items():
                chosen = of(part)
                self.count[which] += int(chosen.sum())
                labels[which].append(part.labels[chosen])
        assert new is not None
        self.labels = {which: np.concatenate(parts) for which, parts in labels.items()}
        self.first: Int64[np.ndarray, " u"] = np.flatnonzero(new)
        """Thresholds at which the scores of any image change: the columns of the hit tables."""
        self.column: Int64[np.ndarray, " t"] = np.cumsum(new) - 1
        """Column of each threshold."""

        self._means: dict[ImageRows, Float64[np.ndarray, " s"]] = {}

    def means(self, rows: Sequence[ImageRows]) -> dict[ImageRows, Float64[np.ndarray, " s"]]:
        """Return the image means of each table. Means are computed once and kept."""
        for bootstrap, tables in self._together([table for table in rows if table not in self._means], 1, 0):
            self._means.update(
                zip(tables, bootstrap.means(self.blocks(tables), self.groups(tables)), strict=True)
            )
        return {table: self._means[table] for table in rows}

    def resample(
        self, rows: Sequence[ImageRows], resamples: int, seed: int
    ) -> dict[ImageRows, tuple[Rates, Bootstrap]]:
        """Return the resampled means of each table, and the bootstrap that made them."""
        return {
            table: (rates, bootstrap)
            for bootstrap, tables in self._together(rows, resamples, seed)
            for table, rates in zip(
                tables, bootstrap.rates(self.blocks(tables), self.groups(tables)), strict=True
            )
        }

    def _together(
        self, rows: Sequence[ImageRows], resamples: int, seed: int
    ) -> Iterator[tuple[Bootstrap, list[ImageRows]]]:
        """Group the tables that are defined on the same images, so that they share their resamples."""
        shared: dict[str, list[ImageRows]] = {}
        for table in rows:
            shared.setdefault(self._same(table.images), []).append(table)
        for which, tables in shared.items():
            yield Bootstrap(self.count[which], n_resamples=resamples, seed=seed), tables

    def _same(self, which: str) -> str:
        """Return the largest named image set with the same images as `which`."""
        wider = _WIDER.get(which)
        return which if wider is None or self.count[wider] > self.count[which] else self._same(wider)

    def blocks(self, tables: Sequence[ImageRows]) -> Iterator[list[Shaped[np.ndarray, "m _"]]]:
        """Yield tables that are defined on the same images, chunk by chunk."""
        which = self._same(tables[0].images)
        for part in self.scores:
            chosen = part if self.count[which] == self.count["all"] else part.select(_WHICH[which](part))
            yield [table.of(chosen) for table in tables]

    def groups(self, tables: Sequence[ImageRows]) -> list[Int64[np.ndarray, " n"] | None]:
        """Return for each table the classes to average over, or None."""
        return [self.labels[table.images] if table.by_class else None for table in tables]

    def by_threshold(self, means: Float64[np.ndarray, " s"]) -> Float64[np.ndarray, "d t"]:
        """Return the hit rates at each delta and each threshold of the protocol, (D, T)."""
        curve: Float64[np.ndarray, "d t"] = means.reshape(-1, len(self.first))[:, self.column]
        return curve


def ratio(rates: Rates, above: int = 0, below: int = 1, scale: float = 1.0) -> Float64[np.ndarray, " r"]:
    """Return one column divided by another, times `scale`, or NaN for a resample with a zero divisor."""
    out = np.full(len(rates), np.nan)
    return np.asarray(scale * np.divide(rates[:, above], rates[:, below], out=out, where=rates[:, below] > 0))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the metrics of a split are made from.

    Attributes:
        split: scores of the evaluated split.
        other: scores of the split that thresholds are transferred from, or None.
        protocol: the protocol of both.
        fixed_tau: threshold of the policy `fixed`, or None.
    """

    split: SplitScores
    other: SplitScores | None
    protocol: EvalProtocol
    fixed_tau: float | None
