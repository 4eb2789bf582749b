"""The stored comparison of two runs, or of two groups of runs: one row per metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.catalog import metric_info
from wsolbench.metrics.seed_intervals import (
    CrossedInterval,
    SeedSpread,
    crossed_interval,
    independent_spread,
    paired_spread,
)
from wsolbench.records.budget import BudgetGap, Budgets
from wsolbench.records.checks import is_number, is_whole
from wsolbench.records.record import RunRecord
from wsolbench.system.files import file_name, sha256_of_json, write_json
from wsolbench.system.stored import read_json


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """Metric of group B minus that of group A.

    Attributes:
        name: the metric.
        policy: how its threshold was chosen, for each run separately.
        a: mean over the runs of group A.
        b: mean over the runs of group B.
        low: lower end of the 95 % interval of the difference, over images.
        high: upper end of it.
        p_value: two-sided p-value of the difference being 0, over images.
        n: number of images.
        per_pair: difference of each run of B and the run of A with the same seed, or None if the groups have
            different seeds.
        per_run: metric of each run of A, and of each run of B. None in comparisons of older versions.
        paired: whether runs of A and B with the same seed share weights, so that `spread` is that of
            `per_pair`. Otherwise the seeds of both groups are independent.
    """

    name: str
    policy: str | None
    a: float
    b: float
    low: float
    high: float
    p_value: float
    n: int
    per_pair: tuple[float, ...] | None
    per_run: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    paired: bool = True

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def spread(self) -> SeedSpread | None:
        """How the difference varies over seeds, or None if a group has one run."""
        if self.per_run is not None and not self.paired:
            return independent_spread(*self.per_run)
        return None if self.per_pair is None else paired_spread(self.per_pair)

    @property
    def crossed(self) -> CrossedInterval | None:
        """Interval and p-value over images and seeds, or None if a group has one run."""
        spread = self.spread
        if spread is None:
            return None
        return crossed_interval(self.difference, self.low, self.high, spread=spread)

    @property
    def ends(self) -> tuple[float, float]:
        """The interval over images and seeds, or over images if a group has one run."""
        return (self.low, self.high) if (crossed := self.crossed) is None else (crossed.low, crossed.high)

    @property
    def test(self) -> float:
        """The p-value that belongs to `ends`."""
        return self.p_value if (crossed := self.crossed) is None else crossed.p_value


SCHEMA = 1
_KINDS = {str: "a text", dict: "an object", list: "a list"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Group B minus group A on one data set under one protocol.

    A group is stored as its method and the digests of its records. `budget` states what else differs. It is
    None in comparisons of older versions, as is `resamples`, the number of resamples of the images.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    dataset: dict[str, Any]
    protocol: str
    differences: tuple[MetricDifference, ...]
    budget: BudgetGap | None = None
    resamples: int | None = None

    @classmethod
    def make(
        cls,
        a: Sequence[RunRecord],
        b: Sequence[RunRecord],
        differences: Sequence[MetricDifference],
        budget: BudgetGap | None = None,
        resamples: int | None = None,
    ) -> Comparison:
        """Build the comparison of two groups of records on the same images."""
        return cls(
            a=_group(a),
            b=_group(b),
            dataset=a[0].dataset,
            protocol=a[0].protocol.name,
            differences=tuple(differences),
            budget=budget,
            resamples=resamples,
        )

    def p_floor(self, difference: MetricDifference) -> float:
        """Return the smallest p-value that a difference can have: that of the resamples, or 0."""
        of_images = difference.crossed is None and self.resamples is not None
        return 2 / (self.resamples + 1) if of_images and self.resamples else 0.0

    def find(self, name: str) -> MetricDifference | None:
        """Return the difference of a metric, or None."""
        return next((difference for difference in self.differences if difference.name == name), None)

    def is_part_of(self, other: Comparison) -> bool:
        """Whether `other` has all these records and more, for instance because seeds were added."""
        mine, theirs = ((set(each.a["records"]), set(each.b["records"])) for each in (self, other))
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    def place(self, folder: Path) -> Path:
        """Return the file below `folder` that `write` writes.

        Its name says what is compared, down to a digest of the records' content.
        """
        parts = [
            self.a["name"],
            "to",
            self.b["name"],
            self.a["backbone"],
            self.dataset["split"],
            self.protocol,
            sha256_of_json([self.a, self.b])[:8],
        ]
        return (
            folder
            / file_name(self.dataset["name"])
            / f"{'_'.join(file_name(part) for part in parts if part)}.json"
        )

    def write(self, folder: Path) -> Path:
        """Write the comparison below `folder` and return its path."""
        path = self.place(folder)
        write_json(path, {"schema": SCHEMA, **asdict(self)})
        return path


def complete(
    comparison: Comparison, a: Sequence[RunRecord], b: Sequence[RunRecord], budgets: Budgets
) -> Comparison:
    """Add what comparisons of older versions do not state, from the records that they compare.

    The values of runs are added only if their means are those of the comparison.
    """
    paired = budgets.share_weights(a, b)

    def with_runs(difference: MetricDifference) -> MetricDifference:
        name, policy = difference.name, difference.policy
        found = [[record.metric(name, policy) for record in group] for group in (a, b)]
        left, right = (
            tuple(each.value for each in group if each and each.value is not None) for group in found
        )
        same = len(left) == len(a) and len(right) == len(b)
        for values, mean in ((left, difference.a), (right, difference.b)):
            same = same and abs(sum(values) - len(values) * mean) <= SAME * max(1.0, sum(values))
        known = difference.per_run is not None or not same
        return difference if known else replace(difference, per_run=(left, right), paired=paired)

    return replace(
        comparison,
        budget=budgets.gap(a, b),
        differences=tuple(map(with_runs, comparison.differences)),
    )


def _group(records: Sequence[RunRecord]) -> dict[str, Any]:
    method = records[0].method
    return {
        "name": method["name"],
        "backbone": method.get("backbone"),
        "config": records[0].settings,
        "post": method.get("post"),
        "start": records[0].start,
        "epochs": (records[0].training.get("recipe") or {}).get("epochs"),
        "transform": records[0].dataset.get("transform"),
        "seeds": [record.training.get("seed") for record in records],
        "records": [record.digest for record in records],
    }


def read_comparison(path: Path) -> Comparison:
    """Read what `Comparison.write` wrote.

    Raises `DataError` naming the file, also for values outside their ranges.
    """
    values = read_json(path, "comparison")
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise DataError(f"{path} is not a comparison of schema {SCHEMA}, the one that this version reads")
    # Build it, then check every value.
    try:
        rows = [
            {
                **row,
                "per_pair": None if row["per_pair"] is None else tuple(row["per_pair"]),
                "per_run": None if row.get("per_run") is None else tuple(map(tuple, row["per_run"])),
            }
            for row in values["differences"]
        ]
        budget = values.get("budget")
        comparison = Comparison(
            a=_checked_group(values["a"]),
            b=_checked_group(values["b"]),
            dataset=dict(values["dataset"]),
            protocol=str(values["protocol"]),
            differences=tuple(MetricDifference(**row) for row in rows),
            budget=None if budget is None else _checked_budget(**budget),
            resamples=values.get("resamples"),
        )
        for difference in comparison.differences:
            _check_difference(difference)
        if comparison.resamples is not None and not is_whole(comparison.resamples, 1):
            raise ValueError(f"it has {comparison.resamples!r} resamples; expected a whole number, 1 or more")
        if not all(isinstance(comparison.dataset.get(name), str) for name in ("name", "split")):
            raise ValueError(f"its data set is {comparison.dataset}; expected a name and a split")
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise DataError(f"{path} is not a comparison: {str(error) or type(error).__name__}") from error
    return comparison


def _checked_group(values: Any) -> dict[str, Any]:
    """Return a stored group. Raises `ValueError` for one without its method, seeds or records."""
    group = dict(values)
    for name, kind in (("name", str), ("config", dict), ("seeds", list), ("records", list)):
        if not isinstance(group.get(name), kind):
            raise ValueError(f"a group has {name} {group.get(name)!r}; expected {_KINDS[kind]}")
    if not group["records"] or len(group["seeds"]) != len(group["records"]):
        raise ValueError(
            f"a group has {len(group['records'])} records and {len(group['seeds'])} seeds; expected at "
            "least one record, and one seed per record"
        )
    group.setdefault("backbone", None)
    return group


def _checked_budget(images: Any, others: Any) -> BudgetGap:
    """Return a stored budget. Raises `ValueError` for counts that are not whole numbers."""
    if len(images) != 2 or not all(count is None or is_whole(count, 0) for count in images):
        raise ValueError(f"its budget has images {images!r}; expected two whole numbers, or null")
    return BudgetGap(images=(images[0], images[1]), others=tuple(map(str, others)))


def _check_difference(row: MetricDifference) -> None:
    """Raise `ValueError` for a difference outside its range."""
    if not isinstance(row.paired, bool):
        raise ValueError(f"{row.name} has paired {row.paired!r}; expected true or false")
    info = metric_info(row.name)
    top = math.inf if info.top is None else info.top + SAME
    if not all(is_number(value) and 0 <= value <= top for value in (row.a, row.b)):
        raise ValueError(f"{row.name} has a {row.a!r} and b {row.b!r}; expected values of the metric")
    if (
        not all(
            is_number(value) and abs(value) <= top
            for value in (row.low, row.high, *(row.per_pair or ()), *sum(row.per_run or (), ()))
        )
        or row.low > row.high
    ):
        raise ValueError(
            f"{row.name} has low {row.low!r}, high {row.high!r}, per pair {row.per_pair!r} and per run "
            f"{row.per_run!r}; expected numbers in the metric's range, and low not above high"
        )
    if not is_number(row.p_value) or not 0 <= row.p_value <= 1 or not is_whole(row.n, 1):
        raise ValueError(
            f"{row.name} has p value {row.p_value!r} and n {row.n!r}; expected a p-value in [0, 1] and 1 or "
            "more images"
        )


SAME = 1e-6
"""Largest relative difference of equal values: versions of numpy may add in different orders."""
