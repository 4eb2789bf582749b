"""Comparisons of two groups of runs as terminal tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsolbench.metrics.catalog import metric_title
from wsolbench.records.comparison import Comparison
from wsolbench.report.board.tables import format_difference, format_number, one_line

if TYPE_CHECKING:
    from rich.table import Table


def format_p_value(value: float) -> str:
    """Format a p-value with three decimals.

    >>> format_p_value(0.0312), format_p_value(0.0004)
    ('0.031', '< 0.001')
    """
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def comparison_table(comparison: Comparison) -> Table:
    """Return a terminal table of the differences, in percentage points or in the metric's unit."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Title and columns.
    where = f"{comparison.dataset['name']}/{comparison.dataset['split']}"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(
            one_line(
                f"{_group_title(comparison.b, comparison.a)} minus "
                f"{_group_title(comparison.a, comparison.b)} on {where}"
            )
        ),
    )
    for name in ("metric", "A", "B", "B - A", "95 % interval", "p", "per run"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    # One row per metric.
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


def _group_title(group: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the name of a group, and the settings that differ if the other group has the same method."""
    ones, others = ({**each["config"], "transform": each.get("transform")} for each in (group, other))
    different = [name for name in ones if group["name"] == other["name"] and ones[name] != others.get(name)]
    return " ".join(
        [group["name"], *(f"{name}={'none' if ones[name] is None else ones[name]}" for name in different)]
    )
