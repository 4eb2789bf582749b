"""Tables of the leaderboard: published and measured numbers of every method side by side.

There is one table per data set, metric and protocol. A table holds only what may be compared: the same images
and annotations, the same transform, protocol and threshold policy. Runs that differ only in their seed share
a row. Published numbers have columns of their own. A difference is printed only if the whole official split
was measured.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from wsolbench.datasets import dataset_info, list_datasets
from wsolbench.methods import list_detectors, list_methods, list_posts
from wsolbench.metrics.catalog import all_metrics, metric_info, metric_title
from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.published import Paper, PublishedNumber, conflicts, published_info
from wsolbench.records.submission import TRAINED
from wsolbench.report.board.repetitions import (
    Run,
    data_of,
    different_settings,
    grouped,
    one_of_each_seed,
    settings_of,
    source_of,
    source_title,
)
from wsolbench.report.board.submitted import BELOW_MEASURED, notes_on
from wsolbench.report.board.tables import (
    UNDEFINED,
    describe_protocol,
    format_number,
    place_of,
    sort_policies,
    supervision_text,
)

DISPUTED = "† Another table prints a different value."
"""Note of a table with a number that sources print differently."""
NOT_WHOLE = (
    "The images are not the full, unchanged official split, so no difference to published numbers is given."
)
"""Note of a table whose measured numbers cannot be compared with the published ones next to them."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    `link` is an address that formats with links show. `order` is the sort key, or None to sort by `text`.
    """

    text: str
    link: str = ""
    order: float | None = None
    bold: bool = False
    numbers: Mapping[str, float | bool | None] | None = None
    """Numbers by name, which CSV and JSON hold in place of the text. None: they hold the text."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as all formats print it: headings, rows of cells, and notes below.

    `path` is its place in the leaderboard, for headings.
    """

    path: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Names of the columns in CSV and JSON. Empty: they are `columns`."""
    sections: tuple[tuple[int, str], ...] = ()
    """Row that a section begins with, and its heading. Rows before the first section have none."""

    @property
    def numeric(self) -> tuple[tuple[str, ...], ...]:
        """Names of the numbers in each column, empty for a column of texts."""
        columns = zip(*self.rows, strict=True) if self.rows else [() for _ in self.columns]
        return tuple(
            tuple(dict.fromkeys(name for cell in column for name in cell.numbers or ())) for column in columns
        )

    def section_of(self, row: int) -> str:
        """Return the heading of a row's section, or an empty text."""
        return next((heading for first, heading in reversed(self.sections) if first <= row), "")


@dataclass(frozen=True, kw_only=True)
class MeasuredTable(Table):
    """A table of measured numbers.

    `estimates[i]` is the value of row i and the ends of its interval, if any.
    """

    protocol: str
    metric: str
    estimates: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class PublishedTable(Table):
    """A table of published numbers.

    `methods[i]` is the wsolbench method that row i refers to, or the name printed in the paper.
    """

    methods: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters of the leaderboard. None selects everything.

    `since` is a year, of the paper and of the run. `parts` says whether a part of a metric
    (`max_box_acc_v2@0.3`) has a table of its own.
    """

    dataset: str | None = None
    metric: str | None = None
    method: str | None = None
    backbone: str | None = None
    since: int | None = None
    parts: bool = True

    def takes_run(self, run: Run) -> bool:
        """Whether a run passes the filters."""
        record = run.record
        date = str(record.provenance.get("date", ""))[:4]
        return (
            self.dataset in (None, record.dataset["name"])
            and self.method in (None, record.method["name"])
            and self.backbone in (None, run.backbone)
            and (self.since is None or (date.isdigit() and int(date) >= self.since))
        )

    def takes_number(self, number: PublishedNumber, paper: Paper) -> bool:
        """Whether a published number passes the filters."""
        return (
            self.dataset in (None, number.dataset)
            and self.metric in (None, number.metric)
            and self.method in (None, number.ours, number.method)
            and self.backbone in (None, number.backbone)
            and (self.since is None or (paper.year is not None and paper.year >= self.since))
        )

    def takes_metric(self, name: str) -> bool:
        """Whether a metric passes the filters. `max_box_acc_v2` includes its parts."""
        return (self.parts or "@" not in name) and self.metric in (None, name, name.partition("@")[0])


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The published numbers and their sources."""

    numbers: Sequence[PublishedNumber]
    papers: dict[str, Paper]

    @cached_property
    def disputed(self) -> set[tuple[Any, ...]]:
        """Keys of the numbers that other tables print differently."""
        return {number.key for conflict in conflicts(self.numbers) for number in conflict.numbers}

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Keys of papers by the name of a method or post-process."""
        return {row.name: row.paper for row in (*list_methods(), *list_posts(), *list_detectors())}

    def papers_of(self, name: str) -> dict[str, Paper]:
        """Return the papers of a recorded method by key: of the method, then of its post-process, if any."""
        keys = [self._keys.get(part, "") for part in re.split(r"[+:]", name)]
        return {key: self.papers[key] for key in keys if key in self.papers}


def measured_tables(
    runs: Sequence[Run], published: Numbers, filters: Filters, submitted: Sequence[Run] = ()
) -> list[MeasuredTable]:
    """Return one table per data set, protocol, policy and metric.

    A metric without a threshold has one table, whatever the policies. Submitted results of the same images
    and protocol come after the measured rows, and a table with some has a column for the source of each row.
    """
    tables = []
    of_dataset = [run for run in runs if filters.dataset in (None, run.record.dataset["name"])]
    for same_data in grouped(
        [run for run in (*one_of_each_seed(of_dataset), *submitted) if filters.takes_run(run)], data_of
    ):
        for same_protocol in grouped(same_data, lambda run: run.record.protocol.to_json()):
            policies = sort_policies(
                m.policy for run in same_protocol for m in run.record.metrics if m.policy
            )
            for policy in (None, *policies):
                for title, comparable in _split_by_source(same_protocol, policy):
                    for name in _metrics(comparable, policy):
                        if filters.takes_metric(name):
                            tables.append(_measured_table(comparable, name, policy, title, published))
    return tables


def published_tables(published: Numbers, filters: Filters) -> list[PublishedTable]:
    """Return one table of the sources' own numbers per data set, split and metric."""
    disputed = published.disputed
    # Group the numbers.
    groups: dict[tuple[str, str, str], list[PublishedNumber]] = defaultdict(list)
    for number in published.numbers:
        if number.evidence == "own" and filters.takes_number(number, published.papers[number.paper]):
            groups[number.dataset, number.split, number.metric].append(number)
    tables = []
    # One table per group, the best number first.
    for (dataset, split, metric), numbers in sorted(groups.items()):
        higher = -1 if published_info(metric).better != "lower" else 1
        rows, methods = [], []
        for number in sorted(numbers, key=lambda number: (higher * number.as_recorded, number.key[:4])):
            paper = published.papers[number.paper]
            place = ", ".join(filter(None, (number.table, f"row {number.row}" if number.row else "")))
            printed = Cell(number.printed + "†" * (number.key in disputed), order=number.as_recorded)
            others = (Cell(text) for text in (paper.name, str(paper.year or ""), place))
            rows.append((Cell(number.method), Cell(number.backbone), printed, *others))
            methods.append(number.ours or number.method)
        notes = (DISPUTED,) if any("†" in row[2].text for row in rows) else ()
        columns = ("method", "backbone", published_info(metric).title, "paper", "year", "where")
        path = (dataset, split, published_info(metric).title)
        tables.append(
            PublishedTable(path=path, columns=columns, rows=tuple(rows), notes=notes, methods=tuple(methods))
        )
    return tables


def official_images(name: str, split: str) -> int | None:
    """Return the number of images of an official split, or None if it is unknown."""
    return dataset_info(name).expected.get(split) if name in {info.name for info in list_datasets()} else None


def is_official(record: RunRecord) -> bool:
    """Whether a run scored all images of the official split, untransformed."""
    data = record.dataset
    images = official_images(str(data["name"]), str(data["split"]))
    return data.get("transform") is None and images is not None and data.get("images") == images


# --- measured rows ------------------------------------------------------------------------------------------


def _split_by_source(runs: Sequence[Run], policy: str | None) -> list[tuple[str | None, list[Run]]]:
    """Group the runs that are comparable under a threshold policy, with a title each.

    Transferred thresholds are comparable only if they come from the same split.
    """
    if policy != "transfer":
        return [(policy, list(runs))]
    groups = grouped([run for run in runs if any(m.policy == policy for m in run.record.metrics)], source_of)
    return [
        (policy if len(groups) == 1 else f"{policy}{source_title(source_of(group[0]))}", group)
        for group in groups
    ]


def _metrics(runs: Sequence[Run], policy: str | None) -> list[str]:
    """Return the metrics that any run has a value of under the policy, in table order."""
    order = [info.name for info in all_metrics()]
    names = {m.name for run in runs for m in run.record.metrics if m.value is not None and m.policy == policy}
    return sorted(names, key=lambda name: (order.index(metric_info(name).name), name))


def _measured_table(
    runs: Sequence[Run], name: str, policy: str | None, title: str | None, published: Numbers
) -> MeasuredTable:
    # Group the runs that differ only in their seed: one row each.
    data, info = runs[0].record.dataset, metric_info(name)
    whole = is_official(runs[0].record)
    groups = grouped(
        [run for run in runs if run.submission is None and _has_value(run, name, policy)], settings_of
    )
    submitted = [run for run in runs if run.submission is not None and _has_value(run, name, policy)]
    rows = []
    for group in groups:
        # The mean over seeds, and the published numbers of the method.
        values = [m for run in group if (m := run.metric(name, policy)) is not None]
        mean = fmean(m.value for m in values if m.value is not None)
        numbers = _own_numbers(group[0].record, name, published.numbers)
        papers = published.papers_of(group[0].record.method["name"])
        papers |= {number.paper: published.papers[number.paper] for number in numbers}
        comparable = [
            number
            for number in numbers
            if whole and number.backbone == group[0].record.method.get("backbone")
        ]
        difference = " / ".join(f"{info.scale * (mean - number.as_recorded):+.1f}" for number in comparable)
        estimate = _estimate(name, mean, values)
        cells = (
            Cell(str(group[0].record.method["name"]), group[0].link),
            Cell(different_settings(group[0], [other[0] for other in groups])),
            Cell(supervision_text(group[0].record)),
            Cell(str(group[0].record.method.get("backbone") or UNDEFINED)),
            Cell(str(group[0].record.init or UNDEFINED)),
            Cell("{} [{}, {}]".format(*estimate) if len(estimate) > 1 else estimate[0]),
            Cell(_runs(name, group, values)),
            Cell(
                " / ".join(f"{number.printed} ({number.backbone})" for number in numbers),
                order=max((number.as_recorded for number in numbers), default=None),
            ),
            Cell(" / ".join(f"{paper.name} {paper.year or ''}".strip() for paper in papers.values())),
            Cell(difference),
            *((Cell(TRAINED),) if submitted else ()),
        )
        place = place_of(group[0].record)
        rows.append(((place, -mean if info.better != "lower" else mean), cells, estimate))
    rows += [_submitted_row(run, name, policy) for run in submitted]
    # Floors, then the best row first, then ceilings, then submitted rows. Headings and notes.
    rows.sort(key=lambda row: (row[0], row[1][0].link))
    images = f"{data.get('images')} images, fingerprint {str(data.get('fingerprint'))[:12]}"
    where = ", ".join(filter(None, (f"{data['name']}/{data['split']}", data.get("transform"), images)))
    printed = any(cells[7].text for _, cells, _ in rows)
    notes = ((NOT_WHOLE,) if printed and not whole else ()) + notes_on(submitted)
    protocol, metric = describe_protocol(runs[0].record.protocol), metric_title(name)
    return MeasuredTable(
        path=(where, f"Protocol {protocol}", metric if title is None else f"{metric}, threshold: {title}"),
        columns=(
            "method",
            "settings",
            "supervision",
            "backbone",
            "init",
            "measured",
            "runs",
            "published",
            "paper",
            "difference",
            *(("source",) if submitted else ()),
        ),
        rows=tuple(cells for _, cells, _ in rows),
        notes=notes,
        protocol=protocol,
        metric=metric,
        estimates=tuple(estimate for _, _, estimate in rows),
    )


def _has_value(run: Run, name: str, policy: str | None) -> bool:
    metric = run.metric(name, policy)
    return metric is not None and metric.value is not None


def _submitted_row(
    run: Run, name: str, policy: str | None
) -> tuple[tuple[int, float], tuple[Cell, ...], tuple[str, ...]]:
    """Return sort key, cells and estimate of a result from outside. Published numbers are not put next to it.

    Its place is below all measured rows.
    """
    metric, submission = run.metric(name, policy), run.submission
    assert metric is not None
    assert metric.value is not None
    assert submission is not None
    estimate = _estimate(name, metric.value, [metric])
    source = ", ".join(filter(None, (submission.metadata.paper, submission.metadata.venue)))
    cells = (
        Cell(str(run.record.method["name"]), run.link),
        Cell(""),
        Cell(supervision_text(run.record)),
        Cell(str(run.backbone)),
        Cell(str(run.record.init or UNDEFINED)),
        Cell("{} [{}, {}]".format(*estimate) if len(estimate) > 1 else estimate[0]),
        Cell(UNDEFINED),
        Cell(""),
        Cell(source, submission.metadata.url or ""),
        Cell(""),
        Cell(run.badge),
    )
    order = metric.value if metric_info(name).better == "lower" else -metric.value
    return (BELOW_MEASURED, order), cells, estimate


def _estimate(name: str, mean: float, values: Sequence[MetricValue]) -> tuple[str, ...]:
    """Format the mean, and the mean ends of the intervals if all runs have one."""
    lows, highs = [m.low for m in values if m.low is not None], [m.high for m in values if m.high is not None]
    whole = len(lows) == len(highs) == len(values)
    return tuple(
        format_number(name, number) for number in ((mean, fmean(lows), fmean(highs)) if whole else (mean,))
    )


def _runs(name: str, group: Sequence[Run], values: Sequence[MetricValue]) -> str:
    """Format the number of runs, and their range."""
    if len(group) == 1:
        return "1" if group[0].record.training else UNDEFINED
    numbers = [m.value for m in values if m.value is not None]
    return f"{len(group)}: {format_number(name, min(numbers))} to {format_number(name, max(numbers))}"


def _own_numbers(record: RunRecord, metric: str, numbers: Iterable[PublishedNumber]) -> list[PublishedNumber]:
    """Return the numbers that the method's own paper prints for the data set.

    These are numbers of the full method, only those on the run's backbone if there are any.
    """
    data, method = record.dataset, record.method
    wanted = (data["name"], data["split"], metric, method["name"])
    own = [number for number in numbers if number.evidence == "own" and "[" not in number.method]
    found = [number for number in own if (number.dataset, number.split, number.metric, number.ours) == wanted]
    same = [number for number in found if number.backbone == method.get("backbone")]
    return same or found
