"""Rows of a table of methods: measured ones with all seeds of a method, and published ones of a source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import fmean, stdev
from typing import Any, Literal

from wsolbench.evaluation.score_table import find_scores
from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.records import MetricValue
from wsolbench.records.published import Paper, PublishedNumber
from wsolbench.report.board.board import Cell, Numbers
from wsolbench.report.board.repetitions import Run, different_settings, settings_of
from wsolbench.report.board.tables import format_number, place_of, supervision_text
from wsolbench.system.files import canonical_json

Spread = Literal["sd", "interval", "none"]
"""What follows a mean."""

TIE = "*"
"""Mark of a value that a test does not separate from the best one of its column."""


@dataclass
class MethodRow:
    """A row before it is laid out. `runs` is empty for a published one.

    `labels` are the texts of the columns that name it; `cells` and `means` are by metric.
    """

    labels: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    cells: dict[str, Cell] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)

    @property
    def can_be_best(self) -> bool:
        """Whether it is measured, and neither a floor nor a ceiling."""
        return bool(self.runs) and place_of(self.runs[0].record) == 1

    @property
    def can_be_tested(self) -> bool:
        """Whether it is compared with the best row: measured, and no ceiling."""
        return bool(self.runs) and place_of(self.runs[0].record) < 2

    @property
    def checkpoints(self) -> dict[int | None, str]:
        """Digests of the checkpoints that the runs were trained from, by seed."""
        return {
            run.seed: str(run.record.training["weights"]).rpartition(" ")[2][:8]
            for run in self.runs
            if run.record.start == "checkpoint"
        }

    def starts_with(self, other: MethodRow) -> bool:
        """Return whether runs of both with one seed were trained from one checkpoint, or from none."""
        ones, others = self.checkpoints, other.checkpoints
        return all(ones[seed] == others[seed] for seed in ones.keys() & others.keys())

    @property
    def has_scores(self) -> bool:
        """Whether each run has per-image scores next to its record."""
        return all(find_scores(run.path).is_file() for run in self.runs)


def value_of(run: Run, name: str, policy: str | None) -> MetricValue | None:
    """Return a metric of a run under the policy, or None if it is absent or undefined."""
    metric = run.metric(name, policy)
    return None if metric is None or metric.value is None else metric


def measured_rows(
    runs: Sequence[Run], names: Sequence[str], policy: str | None, spread: Spread
) -> list[MethodRow]:
    """Return one row per group of seeds, in the order of the runs."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[canonical_json(settings_of(run))].append(run)
    firsts = [group[0] for group in groups.values()]
    rows = []
    for group in groups.values():
        record = group[0].record
        labels = {
            "method": str(record.method["name"]),
            "settings": different_settings(group[0], firsts),
            "supervision": supervision_text(record),
            "backbone": str(record.method.get("backbone") or ""),
            "init": record.init or "",
        }
        row = MethodRow(labels, group)
        for name in names:
            values = [found for run in group if (found := value_of(run, name, policy)) is not None]
            if values:
                row.means[name] = fmean(each.value for each in values if each.value is not None)
                row.cells[name] = _cell(name, row.means[name], values, spread)
        rows.append(row)
    # Where checkpoints differ, their digests say which rows can be compared.
    digests = [next(iter(row.checkpoints.values()), "") for row in rows]
    if len({*filter(None, digests)}) > 1:
        for row, digest in zip(rows, digests, strict=True):
            row.labels["init"] += f" {digest}" if digest else ""
    # Rows with equal labels get the digest of their first record.
    count: dict[str, int] = defaultdict(int)
    for row in rows:
        count[canonical_json(row.labels)] += 1
    for row in [row for row in rows if count[canonical_json(row.labels)] > 1]:
        settings = [row.labels["settings"], f"record={row.runs[0].record.digest[:8]}"]
        row.labels["settings"] = ", ".join(filter(None, settings))
    return rows


def _cell(name: str, mean: float, values: Sequence[MetricValue], spread: Spread) -> Cell:
    """Return mean and spread of a metric over the runs of a row."""
    numbers = [each.value for each in values if each.value is not None]
    ends = [(each.low, each.high) for each in values if each.low is not None and each.high is not None]
    low = fmean(each for each, _ in ends) if len(ends) == len(values) else None
    high = fmean(each for _, each in ends) if len(ends) == len(values) else None
    sd = stdev(numbers) if len(numbers) > 1 else None
    text = format_number(name, mean)
    if spread == "interval" and low is not None and high is not None:
        text += f" [{format_number(name, low)}, {format_number(name, high)}]"
    if spread == "sd" and sd is not None:
        text += f" ± {format_number(name, sd)}"
    found = {"mean": mean, "low": low, "high": high, "sd": sd, "n": len(values), "images": values[0].n}
    return Cell(text, order=mean, numbers={**found, "best": False, "tie": None})


def mark_cell(cell: Cell, *, best: bool = False, tie: bool | None = None) -> Cell:
    """Return the cell as the best of its column, or with the result of its test."""
    numbers = {**(cell.numbers or {}), "best": best, "tie": tie}
    return Cell(cell.text + TIE * bool(tie), cell.link, cell.order, best, numbers)


def find_paper(source: str, published: Numbers | None) -> Paper:
    """Return the source with this key or name. Raises `UsageError` with the nearest key."""
    papers = {} if published is None else {key: each for key, each in published.papers.items() if each.file}
    for key, paper in papers.items():
        if source.lower() in (key, paper.name.lower()):
            return paper
    raise unknown_name("source", source, papers)


def published_rows(
    paper: Paper, published: Numbers | None, run: Run, names: Sequence[str]
) -> list[MethodRow]:
    """Return the rows of a source for the data of a run: each row of its tables is one.

    Raises `UsageError` if it has none.
    """
    numbers = [] if published is None else [each for each in published.numbers if each.paper == paper.key]
    disputed = set() if published is None else published.disputed
    where = str(run.record.dataset["name"]), str(run.record.dataset["split"])
    rows: dict[tuple[Any, ...], MethodRow] = {}
    for number in numbers:
        if (number.dataset, number.split) != where or number.metric not in names:
            continue
        key = (number.table, number.row, number.label, number.method, number.backbone, number.evidence)
        source = number.table if number.evidence == "own" else f"{number.table}, {number.evidence}"
        row = rows.setdefault(
            key, MethodRow({"method": number.method, "backbone": number.backbone, "source": source})
        )
        text = printed_on_scale(number) + "†" * (number.key in disputed)
        found = {"mean": number.as_recorded, **dict.fromkeys(("low", "high", "sd", "n", "images"))}
        row.cells[number.metric] = Cell(
            text, order=number.as_recorded, numbers={**found, "best": False, "tie": None}
        )
    if not rows:
        there = sorted({f"{each.metric} on {each.dataset}/{each.split}" for each in numbers})
        raise UsageError(
            f"{paper.name} prints none of {', '.join(names)} for {'/'.join(where)}; it prints "
            f"{', '.join(there)}"
        )
    return list(rows.values())


def printed_on_scale(number: PublishedNumber) -> str:
    """Return the printed value on the scale of the table, with all its digits.

    >>> from wsolbench.records.published import PublishedNumber
    >>> texts = dict.fromkeys(("label", "ours", "protocol", "note"), "")
    >>> cell = {"paper": "x", "table": "Table 1", "row": 1, "dataset": "cub", "split": "test"}
    >>> cell |= {"method": "CAM", "backbone": "vgg16", "metric": "top1_loc", "evidence": "own", **texts}
    >>> printed_on_scale(PublishedNumber(value="39.70", unit="percent_error", **cell))
    '60.30'
    """
    value = Decimal(number.value)
    if number.unit == "percent_error" and number.better == "higher":
        value = 100 - value
    return str(value.scaleb(2) if number.unit == "fraction" else value)
