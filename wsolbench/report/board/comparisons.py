"""Comparisons as files and tables: what two groups of runs differ in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsolbench.metrics.catalog import metric_title
from wsolbench.records.comparison import Comparison
from wsolbench.report.board.tables import format_difference, format_number, one_line

if TYPE_CHECKING:
    from rich.table import Table


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
        title=Text(
            one_line(
                f"{_called(comparison.b, comparison.a)} minus {_called(comparison.a, comparison.b)} on "
                f"{where}"
            )
        ),
    )
    for name in ("metric", "A", "B", "B - A", "95 % interval", "p", "per run"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in comparison.differences:
        low, difference, high = (
            format_difference(row.name, value) for value in (row.low, row.difference, row.high)
        )
        per_pair = (
            ""
            if row.per_pair is None or len(row.per_pair) < 2
            else ", ".join(format_difference(row.name, v) for v in row.per_pair)
        )
        values = (
            format_number(row.name, row.a),
            format_number(row.name, row.b),
            difference,
            f"[{low}, {high}]",
        )
        table.add_row(metric_title(row.name), *values, format_p_value(row.p_value), per_pair)
    return table


def _called(group: dict[str, Any], other: dict[str, Any]) -> str:
    """The name of a group, with what its runs and those of the other one, if they are of the same method,
    differ in.
    """
    ones, others = ({**each["config"], "transform": each.get("transform")} for each in (group, other))
    apart = [name for name in ones if group["name"] == other["name"] and ones[name] != others.get(name)]
    return " ".join(
        [group["name"], *(f"{name}={'none' if ones[name] is None else ones[name]}" for name in apart)]
    )
