"""Comparisons as files and tables: what two groups of runs differ in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.compare import MetricDifference, compare
from wsolbench.exceptions import DataError
from wsolbench.files import file_name, sha256_of_json, write_json
from wsolbench.metrics.catalog import metric_title
from wsolbench.records import RunRecord
from wsolbench.report.tables import format_difference, format_number
from wsolbench.score_table import SCORES, ScoreTable

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
    """The per-image scores beside a record. Raises `DataError` naming both files when they are missing, broken, or of another run."""
    scores = ScoreTable.read(path.with_suffix(SCORES))
    (part,) = scores
    for what, found, expected in (
        ("images", len(part), record.dataset.get("images")),
        ("thresholds", part.single_iou.shape[1], len(record.map_protocol.taus)),
    ):
        if expected is not None and found != expected:
            raise DataError(f"{path.with_suffix(SCORES)} has scores of {found} {what}, but its record {path} is of {expected}")
    return scores


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
    """Read what `Comparison.write` wrote. Raises `DataError` naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("schema") != SCHEMA:
            raise DataError(f"{path} is of another schema; this version reads schema {SCHEMA}")
        rows = [{**row, "per_pair": None if row["per_pair"] is None else tuple(row["per_pair"])} for row in values.pop("differences")]
        return Comparison(**values, differences=tuple(MetricDifference(**row) for row in rows))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not a comparison: {error}") from error


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

    data = comparison.dataset
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{_called(comparison.b, comparison.a)} minus {_called(comparison.a, comparison.b)} on {data['name']}/{data['split']}",
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
