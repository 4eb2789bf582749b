"""`wsolbench list`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click


def _methods() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    from wsolbench.methods import list_methods

    return ("method", "task", "what"), [(row.name, row.task, row.summary) for row in list_methods()]


def _datasets() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    from wsolbench.datasets import list_datasets

    return ("data set", "splits", "what"), [
        (row.name, ", ".join(row.splits), row.summary) for row in list_datasets()
    ]


def _metrics() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    from wsolbench.metrics.catalog import METRICS

    return ("metric", "title", "needs", "what"), [
        (row.name, row.title, row.needs, row.summary) for row in METRICS
    ]


def _protocols() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
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


def _posts() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    from wsolbench.methods import list_posts

    return ("post-process", "what"), [(row.name, row.summary) for row in list_posts()]


def _detectors() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    from wsolbench.methods import list_detectors

    return ("detector", "what"), [(row.name, row.summary) for row in list_detectors()]


def _backbones() -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    from wsolbench.methods import list_backbones

    return ("backbone", "what"), [(row.name, row.summary) for row in list_backbones()]


_LISTS: dict[str, Callable[[], tuple[tuple[str, ...], Iterable[tuple[str, ...]]]]] = {
    "methods": _methods,
    "posts": _posts,
    "detectors": _detectors,
    "datasets": _datasets,
    "metrics": _metrics,
    "protocols": _protocols,
    "backbones": _backbones,
}


@click.command(epilog="Example:  wsolbench list methods")
@click.argument("what", type=click.Choice(list(_LISTS)))
def command(what: str) -> None:
    """List methods, post-processes, detectors, datasets, metrics, protocols or backbones."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, rows = _LISTS[what]()
    table = Table(box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name == header[0])
    for row in rows:
        table.add_row(*row)
    Console().print(table)
