"""Tables of a paper in their own layout, with the measured numbers next to the published ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from wsolbench.records import RunRecord
from wsolbench.records.published import Paper, PublishedNumber, published_info
from wsolbench.report.board.board import DISPUTED, Cell, Numbers, Table, is_official
from wsolbench.report.board.repetitions import Run
from wsolbench.report.board.tables import format_number


def paper_tables(
    paper: Paper,
    runs: Sequence[Run],
    published: Numbers,
    matches: Callable[[PublishedNumber, RunRecord], bool],
) -> list[Table]:
    """Return the tables of a paper in their layout: each column has the published and the measured numbers.

    `matches(number, record)` says whether a record is a run of the number's method. Only runs with the same
    backbone, on all images of the same split, under an oracle threshold, appear next to a number. `runs` must
    have one run per seed.
    """
    disputed, tables = published.disputed, []
    own = [number for number in published.numbers if number.paper == paper.key]
    # Layout of the paper's table.
    for table in dict.fromkeys(number.table for number in own):
        cells = [number for number in own if number.table == table]
        columns = list(dict.fromkeys((number.dataset, number.split, number.metric) for number in cells))
        lines = list(
            dict.fromkeys((number.row, number.label or number.method, number.backbone) for number in cells)
        )
        found = {
            (number.row, number.label or number.method, number.backbone, *_column_of(number)): number
            for number in cells
        }
        # Each row: a published and a measured cell per column.
        rows = []
        for line in lines:
            row = [Cell(line[1]), Cell(line[2])]
            for column in columns:
                number = found.get((*line, *column))
                row.append(Cell("" if number is None else number.value + "†" * (number.key in disputed)))
                row.append(Cell("") if number is None else _measured_cell(number, runs, matches))
            rows.append(tuple(row))
        # Headings and notes.
        units = {(number.dataset, number.split, number.metric): number.unit for number in cells}
        heads = [
            f"{published_info(metric).title}, {dataset}/{split}{_error(units[dataset, split, metric])}"
            for dataset, split, metric in columns
        ]
        notes = ["Published values are as printed."]
        if any(cell.text for row in rows for cell in row[3::2]):
            notes.append(
                "`measured`: the mean over seeds in percent, as an error where the paper prints one."
            )
        if any("†" in cell.text for row in rows for cell in row):
            notes.append(DISPUTED)
        tables.append(
            Table(
                path=(paper.name, table),
                columns=("row", "backbone", *(text for head in heads for text in (head, "measured"))),
                rows=tuple(rows),
                notes=tuple(notes),
            )
        )
    return tables


def _measured_cell(
    number: PublishedNumber, runs: Sequence[Run], matches: Callable[[PublishedNumber, RunRecord], bool]
) -> Cell:
    """Return the measured counterpart of a published number, in the paper's unit."""
    values = []
    link = ""
    for run in runs:
        data = run.record.dataset
        if (
            (data["name"], data["split"]) == (number.dataset, number.split)
            and is_official(run.record)
            and matches(number, run.record)
        ):
            metric = run.metric(number.metric, "oracle")
            if metric is not None and metric.value is not None:
                values.append(metric.value)
                link = link or run.link
    if not values:
        return Cell("")
    mean = fmean(values)
    if number.unit == "percent_error" and number.better == "higher":
        mean = 1 - mean
    return Cell(format_number(number.metric, mean), link)


def _column_of(number: PublishedNumber) -> tuple[str, str, str]:
    return number.dataset, number.split, number.metric


def _error(unit: str) -> str:
    return " (error)" if unit == "percent_error" else ""
