"""`wsolbench list`: the names that options accept, with a summary of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from wsolbench.cli.groups import GroupedCommand

if TYPE_CHECKING:
    from wsolbench.methods import MethodInfo
    from wsolbench.metrics.catalog import MetricInfo


Rows = tuple[tuple[str, ...], Iterable[tuple[str, ...]]]
"""Header and rows of a table. A row of one cell is the title of the rows that follow."""


def _methods() -> Rows:
    from wsolbench.methods import list_methods
    from wsolbench.methods.registry import GROUPS

    rows = list_methods()
    return ("method", "paper", "summary"), [
        cells
        for group in GROUPS
        if (of_group := [row for row in rows if row.group == group])
        for cells in ((group,), *_with_papers(of_group))
    ]


def _with_papers(rows: Iterable[MethodInfo]) -> list[tuple[str, ...]]:
    """Return name, venue and year of the paper, and summary.

    An unknown key of a paper is printed as it is.
    """
    from wsolbench.records.published import read_papers

    papers = read_papers()
    return [
        (row.name, papers[row.paper].venue_and_year if row.paper in papers else row.paper, row.summary)
        for row in rows
    ]


def _datasets() -> Rows:
    from wsolbench.datasets import list_datasets

    return ("data set", "splits", "summary"), [
        (row.name, ", ".join(row.splits), row.summary) for row in list_datasets()
    ]


def _metrics() -> Rows:
    from wsolbench.metrics.catalog import METRICS, offered_metrics

    def cells(row: MetricInfo) -> tuple[str, ...]:
        return (row.name, row.title, row.needs, row.summary)

    extra = offered_metrics().items()
    return ("metric", "title", "needs", "summary"), [
        *map(cells, METRICS),
        *(line for name, metric in extra for line in ((name,), *map(cells, metric.infos))),
    ]


def _protocols() -> Rows:
    from wsolbench.protocol import EvalProtocol

    presets = [EvalProtocol.preset(name) for name in EvalProtocol.presets()]
    header = ("protocol", "frame", "boxes", "threshold", "box end", "IoU test", "classifier")
    return header, [
        (
            p.name,
            p.frame,
            p.components,
            f"{p.foreground} {p.threshold_basis}",
            p.box_end,
            p.iou_test,
            p.classifier,
        )
        for p in presets
    ]


def _posts() -> Rows:
    from wsolbench.methods import list_posts

    return ("post-process", "paper", "summary"), _with_papers(list_posts())


def _detectors() -> Rows:
    from wsolbench.methods import list_detectors

    return ("detector", "paper", "summary"), _with_papers(list_detectors())


def _backbones() -> Rows:
    from wsolbench.methods import list_backbones

    return ("backbone", "summary"), [(row.name, row.summary) for row in list_backbones()]


_LISTS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "posts": _posts,
    "detectors": _detectors,
    "datasets": _datasets,
    "metrics": _metrics,
    "protocols": _protocols,
    "backbones": _backbones,
}


_CAPTIONS = {"metrics": "bold: name for --extra-metrics, which computes the metrics below it"}


@click.command(cls=GroupedCommand, epilog="Example:  wsolbench list methods")
@click.argument("what", type=click.Choice(list(_LISTS)))
def command(what: str) -> None:
    """List the names that options accept, with a summary of each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, rows = _LISTS[what]()
    table = Table(box=box.SIMPLE_HEAD, caption=_CAPTIONS.get(what), caption_justify="left")
    for name in header:
        # A narrow column of papers leaves room for summaries of two lines in a terminal of 80 columns.
        table.add_column(
            name, overflow="fold", no_wrap=name == header[0], max_width=13 if name == "paper" else None
        )
    for row in rows:
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    Console().print(table)
