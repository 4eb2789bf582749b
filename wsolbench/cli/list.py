"""`wsolbench list`: the names that options accept, with a summary of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import plugin_option

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


def _settings(name: str, *, post: bool) -> Rows:
    """Settings of a method or post-process. A setting that a trained model accepts ends with a star."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import load_method, load_post
    from wsolbench.methods.settings import list_settings

    kind = getattr(load_post(name) if post else load_method(name), "Config", None)
    if kind is None:
        raise UsageError(f"{name!r} does not list its settings; expected a class with the attribute Config")
    return ("setting", "default", "value", "meaning and source"), [
        (row.name + "*" * row.at_test, row.default, row.allowed, row.text) for row in list_settings(kind)
    ]


_LISTS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "posts": _posts,
    "detectors": _detectors,
    "datasets": _datasets,
    "metrics": _metrics,
    "protocols": _protocols,
    "backbones": _backbones,
}


SETTINGS = "settings"

_CAPTIONS = {
    "metrics": "bold: name for --extra-metrics, which computes the metrics below it",
    SETTINGS: "*: can be changed on a trained model. Change one with --set NAME=VALUE, one of a post-process "
    "with --post-set POST.NAME=VALUE, and a field of the training recipe with --set recipe.NAME=VALUE",
}


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench list methods\n\nSettings of a method or of a post-process:  wsolbench list "
    "settings --method spa",
)
@click.argument("what", type=click.Choice([*_LISTS, SETTINGS]))
@option("Model", "--method", help="Method whose settings are listed.")
@option("Model", "--post", help="Post-process whose settings are listed.")
@plugin_option
def command(what: str, method: str | None, post: str | None) -> None:
    """List the names that options accept, with a summary of each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from wsolbench.exceptions import UsageError

    names = [name for name in (method, post) if name is not None]
    if len(names) != (1 if what == SETTINGS else 0):
        raise UsageError(
            "`wsolbench list settings` needs the name of what has the settings: --method NAME or --post NAME"
            if what == SETTINGS
            else f"--method and --post are of `wsolbench list {SETTINGS}`; leave them out"
        )
    header, rows = _settings(names[0], post=post is not None) if what == SETTINGS else _LISTS[what]()
    table = Table(box=box.SIMPLE_HEAD, caption=_CAPTIONS.get(what), caption_justify="left")
    for name in header:
        # A narrow column of papers leaves room for summaries of two lines in a terminal of 80 columns.
        table.add_column(
            name, overflow="fold", no_wrap=name == header[0], max_width=13 if name == "paper" else None
        )
    for row in rows:
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    Console().print(table)
