"""The stored comparison of two runs, or of two groups of runs: one row per metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.catalog import metric_info
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
        p_value: two-sided p-value of the difference being 0.
        n: number of images.
        per_pair: difference of each run of B and the run of A at the same position, or None if the groups
            have different sizes.
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

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a


SCHEMA = 1
_KINDS = {str: "a text", dict: "an object", list: "a list"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Group B minus group A on one data set under one protocol.

    A group is stored as its method and the digests of its records.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    dataset: dict[str, Any]
    protocol: str
    differences: tuple[MetricDifference, ...]

    @classmethod
    def make(
        cls, a: Sequence[RunRecord], b: Sequence[RunRecord], differences: Sequence[MetricDifference]
    ) -> Comparison:
        """Build the comparison of two groups of records on the same images."""
        return cls(
            a=_group(a),
            b=_group(b),
            dataset=a[0].dataset,
            protocol=a[0].protocol.name,
            differences=tuple(differences),
        )

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
            {**row, "per_pair": None if row["per_pair"] is None else tuple(row["per_pair"])}
            for row in values["differences"]
        ]
        comparison = Comparison(
            a=_checked_group(values["a"]),
            b=_checked_group(values["b"]),
            dataset=dict(values["dataset"]),
            protocol=str(values["protocol"]),
            differences=tuple(MetricDifference(**row) for row in rows),
        )
        for difference in comparison.differences:
            _check_difference(difference)
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


def _check_difference(row: MetricDifference) -> None:
    """Raise `ValueError` for a difference outside its range."""
    info = metric_info(row.name)
    top = math.inf if info.top is None else info.top + SAME
    if not all(is_number(value) and 0 <= value <= top for value in (row.a, row.b)):
        raise ValueError(f"{row.name} has a {row.a!r} and b {row.b!r}; expected values of the metric")
    if (
        not all(
            is_number(value) and abs(value) <= top for value in (row.low, row.high, *(row.per_pair or ()))
        )
        or row.low > row.high
    ):
        raise ValueError(
            f"{row.name} has low {row.low!r}, high {row.high!r} and per pair {row.per_pair!r}; expected "
            "differences in the metric's range, and low not above high"
        )
    if not is_number(row.p_value) or not 0 <= row.p_value <= 1 or not is_whole(row.n, 1):
        raise ValueError(
            f"{row.name} has p value {row.p_value!r} and n {row.n!r}; expected a p-value in [0, 1] and 1 or "
            "more images"
        )


SAME = 1e-6
"""Largest relative difference of equal values: versions of numpy may add in different orders."""
