"""Comparisons as files and tables: what two groups of runs differ in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.compare import MetricDifference, compare
from wsolbench.exceptions import DataError, UsageError
from wsolbench.files import file_name, sha256_of_json, write_json
from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.record_checks import is_number, is_whole
from wsolbench.records import RunRecord
from wsolbench.report.tables import format_difference, format_number, one_line
from wsolbench.score_table import SCORES, ScoreTable, are_scores_of
from wsolbench.split_scores import Metric, SplitScores
from wsolbench.stored import read_json
from wsolbench.summary import metrics_of

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Group B minus group A on one data set under one protocol. A group is its method and the digests of its records."""

    a: dict[str, Any]
    b: dict[str, Any]
    dataset: dict[str, Any]
    protocol: str
    differences: tuple[MetricDifference, ...]

    @classmethod
    def make(cls, a: Sequence[RunRecord], b: Sequence[RunRecord], differences: Sequence[MetricDifference]) -> Comparison:
        """Of two groups of records on the same images."""
        return cls(a=_group(a), b=_group(b), dataset=a[0].dataset, protocol=a[0].protocol.name, differences=tuple(differences))

    def find(self, name: str) -> MetricDifference | None:
        """The difference of a metric, or None."""
        return next((difference for difference in self.differences if difference.name == name), None)

    def is_part_of(self, other: Comparison) -> bool:
        """Whether `other` is of the same records and more, as when seeds have been added."""
        mine, theirs = ((set(each.a["records"]), set(each.b["records"])) for each in (self, other))
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    def place(self, folder: Path) -> Path:
        """The file below `folder` that `write` writes: named by what is compared, down to the content of the records."""
        parts = [
            self.a["name"],
            "to",
            self.b["name"],
            self.a["backbone"],
            self.dataset["split"],
            self.protocol,
            sha256_of_json([self.a, self.b])[:8],
        ]
        return folder / file_name(self.dataset["name"]) / f"{'_'.join(file_name(part) for part in parts if part)}.json"

    def write(self, folder: Path) -> Path:
        """Write below `folder`; the path."""
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


def read_scores(path: Path, record: RunRecord) -> ScoreTable:
    """Read the per-image scores beside a record. Raises `DataError` naming both files when they are missing, broken, or of another run.

    Scores belong to a record when they name it, or, for files that name none, when they give the record's values.
    """
    file, protocol = path.with_suffix(SCORES), record.map_protocol
    images, thresholds = ScoreTable.sizes_in(file)
    for what, found, expected in (("images", images, record.dataset.get("images")), ("thresholds", thresholds, len(protocol.taus))):
        if expected is not None and found != expected:
            raise DataError(f"{file} has scores of {found} {what}, but its record {path} is of {expected}")
    scores = ScoreTable.read(file)
    if scores.written_with and not are_scores_of(scores, record):
        raise DataError(f"{file} has scores of other images or values than its record {path}; evaluate again with --save-scores")
    if not scores.written_with:
        _check_values(scores, record, f"{file} has scores that do not give the values of its record {path}")
    return scores


def _check_values(scores: ScoreTable, record: RunRecord, what: str) -> None:
    """Raise `DataError` for scores that do not give a record's values, thresholds of other splits apart."""
    split = SplitScores(scores)
    metrics = [metric for metric in metrics_of(split, record.map_protocol, None, None) if isinstance(metric, Metric)]
    means = split.means(list(dict.fromkeys(metric.rows for metric in metrics)))
    for metric in metrics:
        stored = next((m for m in record.metrics if (m.name, m.policy) == (metric.name, metric.policy and str(metric.policy))), None)
        found = float(metric.value(means[metric.rows][None])[0])
        if stored is not None and stored.value is not None and abs(found - stored.value) > _SAME * max(1.0, stored.value):
            raise DataError(f"{what}: {metric.name} is {found:.6g}, the record says {stored.value:.6g}. Evaluate again with --save-scores")


_SAME = 1e-6
"""Largest relative difference of equal values: versions of numpy may add in another order."""


def compare_records(a: Mapping[Path, RunRecord], b: Mapping[Path, RunRecord], *, resamples: int) -> Comparison:
    """Group B minus group A: records of the same images counted alike, by their paths, with their scores beside them.

    Raises `DataError` naming the files whose scores cannot be used, or that differ in more than the method.
    """
    paths, records = [*a, *b], [*a.values(), *b.values()]
    protocol = records[0].map_protocol
    for path, record in zip(paths, records, strict=True):
        for what, names in (("data set", ("name", "split", "fingerprint")), ("protocol", None)):
            mine, theirs = (each.protocol if names is None else [each.dataset.get(name) for name in names] for each in (record, records[0]))
            if mine != theirs:
                raise DataError(f"{path} has another {what} than {paths[0]}; only runs on the same images, counted alike, can be compared")
    scores = [read_scores(path, record) for path, record in zip(paths, records, strict=True)]
    try:
        differences = compare(scores[: len(a)], scores[len(a) :], protocol, resamples=resamples)
    except DataError as error:
        raise DataError(f"{', '.join(map(str, paths))}: {error}") from error
    return Comparison.make(records[: len(a)], records[len(a) :], differences)


def read_comparison(path: Path) -> Comparison:
    """Read what `Comparison.write` wrote. Raises `DataError` naming the file, also for values outside their ranges."""
    values = read_json(path, "comparison")
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise DataError(f"{path} is not a comparison of schema {SCHEMA}, the one that this version reads")
    try:
        rows = [{**row, "per_pair": None if row["per_pair"] is None else tuple(row["per_pair"])} for row in values["differences"]]
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
    """A stored group. Raises `ValueError` for one without its method, seeds and records."""
    group = dict(values)
    for name, kind in (("name", str), ("config", dict), ("seeds", list), ("records", list)):
        if not isinstance(group.get(name), kind):
            raise ValueError(f"a group has {name} {group.get(name)!r}")
    if not group["records"] or len(group["seeds"]) != len(group["records"]):
        raise ValueError(f"a group has {len(group['records'])} records and {len(group['seeds'])} seeds")
    group.setdefault("backbone", None)
    return group


def _check_difference(row: MetricDifference) -> None:
    """Raise `ValueError` for a difference outside its range."""
    info = metric_info(row.name)
    top = math.inf if info.top is None else info.top + _SAME
    if not all(is_number(value) and 0 <= value <= top for value in (row.a, row.b)):
        raise ValueError(f"{row.name} has a {row.a!r} and b {row.b!r}; expected values of the metric")
    if not all(is_number(value) and abs(value) <= top for value in (row.low, row.high, *(row.per_pair or ()))) or row.low > row.high:
        raise ValueError(f"{row.name} has low {row.low!r}, high {row.high!r} and per pair {row.per_pair!r}; expected differences in order")
    if not is_number(row.p_value) or not 0 <= row.p_value <= 1 or not is_whole(row.n, 1):
        raise ValueError(f"{row.name} has p value {row.p_value!r} and n {row.n!r}; expected a share and a number of images")


def format_p_value(value: float) -> str:
    """Three decimals.

    >>> format_p_value(0.0312), format_p_value(0.0004)
    ('0.031', '< 0.001')
    """
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def comparison_table(comparison: Comparison) -> Table:
    """The differences in percentage points, or in the metric's unit, for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    where = f"{comparison.dataset['name']}/{comparison.dataset['split']}"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(one_line(f"{_called(comparison.b, comparison.a)} minus {_called(comparison.a, comparison.b)} on {where}")),
    )
    for name in ("metric", "A", "B", "B - A", "95 % interval", "p", "per run"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in comparison.differences:
        low, difference, high = (format_difference(row.name, value) for value in (row.low, row.difference, row.high))
        per_pair = "" if row.per_pair is None or len(row.per_pair) < 2 else ", ".join(format_difference(row.name, v) for v in row.per_pair)
        values = (format_number(row.name, row.a), format_number(row.name, row.b), difference, f"[{low}, {high}]")
        table.add_row(metric_title(row.name), *values, format_p_value(row.p_value), per_pair)
    return table


def _called(group: dict[str, Any], other: dict[str, Any]) -> str:
    """The name of a group, with what its runs and those of the other one, if they are of the same method, differ in."""
    ones, others = ({**each["config"], "transform": each.get("transform")} for each in (group, other))
    apart = [name for name in ones if group["name"] == other["name"] and ones[name] != others.get(name)]
    return " ".join([group["name"], *(f"{name}={'none' if ones[name] is None else ones[name]}" for name in apart)])
