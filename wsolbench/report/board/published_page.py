"""Published numbers of a data set in one unit: a row per source, method and backbone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from wsolbench.records.published import PublishedNumber, published_info
from wsolbench.report.board.board import DISPUTED, Cell, Numbers, Table
from wsolbench.report.board.method_rows import printed_on_scale

COLUMNS = (
    "top1_loc",
    "top5_loc",
    "gt_known",
    "max_box_acc",
    "max_box_acc_v2",
    "pxap",
    "peak_iou",
    "top1_cls",
    "top5_cls",
)
"""First columns of a table. Other metrics of the sources follow."""
_ONE_UNIT = (
    "Percent; sources that print an error are given as 100 minus it. Only the sources' own numbers, not what "
    "they quote from others."
)


def published_by_method(published: Numbers, dataset: str) -> list[Table]:
    """Return one table for each split of a data set, the latest source first."""
    disputed = published.disputed
    by_split: dict[str, list[PublishedNumber]] = defaultdict(list)
    for number in published.numbers:
        if number.dataset == dataset and number.evidence == "own":
            by_split[number.split].append(number)
    return [
        _table(dataset, split, numbers, published, disputed) for split, numbers in sorted(by_split.items())
    ]


def _table(
    dataset: str,
    split: str,
    numbers: Sequence[PublishedNumber],
    published: Numbers,
    disputed: set[tuple[Any, ...]],
) -> Table:
    metrics = {number.metric for number in numbers}
    names = [name for name in COLUMNS if name in metrics] + sorted(metrics.difference(COLUMNS))
    # One row per source, method, backbone and place: a source prints variants of a method under one name.
    rows: dict[tuple[Any, ...], dict[str, PublishedNumber]] = defaultdict(dict)
    for number in numbers:
        label = number.label if number.label and number.label != number.method else ""
        key = (number.paper, number.method, label, number.backbone)
        rows[key].setdefault(number.metric, number)

    def place(key: tuple[Any, ...]) -> tuple[Any, ...]:
        paper = published.papers[key[0]]
        return -(paper.year or 0), paper.name, key[1:]

    lines = []
    for key in sorted(rows, key=place):
        paper, of_row = published.papers[key[0]], rows[key]
        ours = next((number.ours for number in of_row.values() if number.ours), "")
        title = f"{key[1]} ({key[2]})" if key[2] else key[1]
        lines.append(
            (
                Cell(title, f"../../docs/methods/{ours}.md" if ours else ""),
                Cell(key[3]),
                Cell(paper.name, paper.address),
                Cell(paper.venue_and_year),
                *(
                    Cell(printed_on_scale(of_row[name]) + "†" * (of_row[name].key in disputed))
                    if name in of_row
                    else Cell("")
                    for name in names
                ),
            )
        )
    marked = any("†" in cell.text for row in lines for cell in row)
    return Table(
        path=(f"{dataset}/{split}",),
        columns=("method", "backbone", "source", "venue", *(published_info(name).title for name in names)),
        rows=tuple(lines),
        notes=(_ONE_UNIT, *([DISPUTED] if marked else [])),
    )
