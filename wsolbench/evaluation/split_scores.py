"""The scores of a split as means over its images: tables of per-image numbers, and metrics that are functions
of their means.

Per image there are a few tables of numbers (`ImageRows`): hits at each threshold, error categories, pixel
histograms. A metric is a function of the means over images of one table (`Metric`): the best of the hit
rates, an average precision. The same function gives the number and, over resampled means, its bootstrap
interval. All tables are resampled together, chunk by chunk, so neither the number of images nor that of
metrics asks for memory.
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

Rates = Float64[np.ndarray, "r s"]
"""Means over images of each column of a table, one row for each resample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRows:
    """A table of per-image numbers, and the images that it is defined on."""

    images: str
    """A key of `_WHICH`."""
    of: Callable[[ImageScores], Shaped[np.ndarray, "m s"]]
    by_class: bool = False
    """Whether its means are means over classes of the class's mean."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: `value(means of rows) -> (r,)`."""

    name: str
    rows: ImageRows
    value: Callable[[Rates], Float64[np.ndarray, " r"]]
    policy: ThresholdPolicy | None = None
    tau: tuple[float, ...] | None = None
    curves: Curves | None = None
    """For a metric at its best threshold: the curves over thresholds, so that `value` is
    `best_value(curves(...))`.
    """


_WHICH: dict[str, Callable[[ImageScores], Bool[np.ndarray, " m"]]] = {
    "all": lambda part: np.ones(len(part), dtype=np.bool_),
    "with boxes": lambda part: part.has_boxes,
    "with mask": lambda part: part.has_mask,
    "with object": lambda part: part.has_object,
    "with parts": lambda part: part.has_parts,
}
"""Which images count, by what they must have."""
_WIDER = {"with boxes": "all", "with mask": "all", "with object": "with mask", "with parts": "all"}


class SplitScores:
    """The scores of a split: what is known of all images, and means of tables over them."""

    def __init__(self, scores: ScoreTable) -> None:
        self.scores = scores
        self.count = dict.fromkeys(_WHICH, 0)
        labels: dict[str, list[Int64[np.ndarray, " m"]]] = {which: [] for which in _WHICH}
        self.ranks = 0
        """Predicted labels of each image."""
        new: Bool[np.ndarray, " t"] | None = None
        for part in scores:
            check_scores(part)
            if new is not None and part.ranked.shape[1] != self.ranks:
                raise DataError(
                    f"some images have {self.ranks} predicted labels and others {part.ranked.shape[1]}; "
                    "score all with the same"
                )
            self.ranks = part.ranked.shape[1]
            new = part.new_at_tau() if new is None else new | part.new_at_tau()
            for which, of in _WHICH.items():
                chosen = of(part)
                self.count[which] += int(chosen.sum())
                labels[which].append(part.labels[chosen])
        assert new is not None
        self.labels = {which: np.concatenate(parts) for which, parts in labels.items()}
        self.first: Int64[np.ndarray, " u"] = np.flatnonzero(new)
        """Thresholds at which some image's scores differ from those at the one before: the columns of
        hits.
        """
        self.column: Int64[np.ndarray, " t"] = np.cumsum(new) - 1
        """For each threshold its column."""

        self._means: dict[ImageRows, Float64[np.ndarray, " s"]] = {}

    def means(self, rows: Sequence[ImageRows]) -> dict[ImageRows, Float64[np.ndarray, " s"]]:
        """Means over images of each table; what was asked before is remembered."""
        for bootstrap, tables in self._together([table for table in rows if table not in self._means], 1, 0):
            self._means.update(
                zip(tables, bootstrap.means(self.blocks(tables), self.groups(tables)), strict=True)
            )
        return {table: self._means[table] for table in rows}

    def resample(
        self, rows: Sequence[ImageRows], resamples: int, seed: int
    ) -> dict[ImageRows, tuple[Rates, Bootstrap]]:
        """Resampled means of each table, and the bootstrap that made them."""
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
        """Tables that are defined on the same images share their resamples."""
        shared: dict[str, list[ImageRows]] = {}
        for table in rows:
            shared.setdefault(self._same(table.images), []).append(table)
        for which, tables in shared.items():
            yield Bootstrap(self.count[which], n_resamples=resamples, seed=seed), tables

    def _same(self, which: str) -> str:
        """The widest set of images that holds no more than this one."""
        wider = _WIDER.get(which)
        return which if wider is None or self.count[wider] > self.count[which] else self._same(wider)

    def blocks(self, tables: Sequence[ImageRows]) -> Iterator[list[Shaped[np.ndarray, "m _"]]]:
        """Tables that are defined on the same images, chunk by chunk."""
        which = self._same(tables[0].images)
        for part in self.scores:
            chosen = part if self.count[which] == self.count["all"] else part.select(_WHICH[which](part))
            yield [table.of(chosen) for table in tables]

    def groups(self, tables: Sequence[ImageRows]) -> list[Int64[np.ndarray, " n"] | None]:
        """The classes over which means of each table are averaged, if any."""
        return [self.labels[table.images] if table.by_class else None for table in tables]

    def by_threshold(self, means: Float64[np.ndarray, " s"]) -> Float64[np.ndarray, "d t"]:
        """Hit rates at each delta and each threshold of the protocol."""
        curve: Float64[np.ndarray, "d t"] = means.reshape(-1, len(self.first))[:, self.column]
        return curve
