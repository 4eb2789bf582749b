"""Comparisons as files and tables: what two groups of runs differ in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.compare import MetricDifference
from wsolbench.exceptions import DataError
from wsolbench.files import file_name, sha256_of_json, write_json
from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.records import RunRecord

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
        scale = metric_info(row.name).scale
        per_pair = "" if row.per_pair is None or len(row.per_pair) < 2 else ", ".join(f"{scale * value:+.1f}" for value in row.per_pair)
        table.add_row(
            metric_title(row.name),
            f"{scale * row.a:.1f}",
            f"{scale * row.b:.1f}",
            f"{scale * row.difference:+.1f}",
            f"[{scale * row.low:+.1f}, {scale * row.high:+.1f}]",
            f"{row.p_value:.3f}",
            per_pair,
        )
    return table


def _called(group: dict[str, Any], other: dict[str, Any]) -> str:
    """The name of a group, with what its runs and those of the other one, if they are of the same method, differ in."""
    ones, others = ({**each["config"], "transform": each.get("transform")} for each in (group, other))
    apart = [name for name in ones if group["name"] == other["name"] and ones[name] != others.get(name)]
    return " ".join([group["name"], *(f"{name}={'none' if ones[name] is None else ones[name]}" for name in apart)])
