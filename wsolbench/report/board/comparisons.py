"""Comparisons of two groups of runs as terminal tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsolbench.metrics.catalog import metric_title
from wsolbench.metrics.seed_intervals import holm
from wsolbench.records.comparison import Comparison, MetricDifference
from wsolbench.report.board.tables import format_difference, format_number
from wsolbench.system.text import one_line

if TYPE_CHECKING:
    from rich.table import Table


SIGNIFICANT = 0.05
"""Level of the tests: a corrected p-value below it is marked."""


def format_p_value(value: float, floor: float = 0.0) -> str:
    """Format a p-value with three decimals.

    Resampling cannot give a p-value below `floor`. Such a value is printed as below the next thousandth.

    >>> format_p_value(0.0312), format_p_value(0.0004), format_p_value(2 / 1001, floor=2 / 1001)
    ('0.031', '< 0.001', '< 0.002')
    """
    if value <= floor < 1:
        return f"< {math.ceil(1000 * floor) / 1000:g}"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def comparison_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return terminal tables of the differences, in percentage points or in the metric's unit.

    The tests of all tables are one family: `p Holm` is corrected for their number.
    """
    tests = [row.test for comparison in comparisons for row in comparison.differences]
    corrected = iter(holm(tests))
    return [
        _table(comparison, [next(corrected) for _ in comparison.differences], len(tests), len(comparisons))
        for comparison in comparisons
    ]


def _table(comparison: Comparison, corrected: Sequence[float], tests: int, tables: int) -> Table:
    """Return the table of one comparison. `corrected` are its p-values, corrected for all `tests`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Title and columns.
    where = f"{comparison.dataset['name']}/{comparison.dataset['split']}"
    rows = comparison.differences
    crossed = any(row.crossed is not None for row in rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(
            one_line(
                f"{_group_title(comparison.b, comparison.a)} minus "
                f"{_group_title(comparison.a, comparison.b)} on {where}"
            )
        ),
        caption=Text(" ".join(_caption(comparison, tests, tables))),
    )
    columns = ["metric", "A", "B", "B - A", "95 % interval"]
    columns += ["over images", "sd", "per seed"] if crossed else []
    for name in (*columns, "p", "p Holm"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    # One row per metric.
    for row, p_holm in zip(rows, corrected, strict=True):
        cells = [metric_title(row.name), format_number(row.name, row.a), format_number(row.name, row.b)]
        cells += [format_difference(row.name, row.difference), _ends(row, row.ends)]
        if crossed:
            sd = "" if row.spread is None else format_difference(row.name, row.spread.sd).removeprefix("+")
            per_pair = ", ".join(format_difference(row.name, value) for value in row.per_pair or ())
            cells += [_ends(row, (row.low, row.high)), sd, per_pair]
        floor = comparison.p_floor(row)
        at_floor = 0.0 if row.test > floor else p_holm
        mark = " *" if p_holm < SIGNIFICANT else "  "
        table.add_row(*cells, format_p_value(row.test, floor), format_p_value(p_holm, at_floor) + mark)
    return table


def _caption(comparison: Comparison, tests: int, tables: int) -> list[str]:
    """Return the sentences below a table: budget, what the intervals cover, and the family of the tests."""
    rows = comparison.differences
    budget = "" if comparison.budget is None else str(comparison.budget)
    sentences = [f"{budget.capitalize()}."] if budget else []
    if any(row.crossed is not None for row in rows):
        sentences.append("95 % interval and p: over images and seeds. sd: of the difference, over seeds.")
    else:
        sentences.append("95 % interval and p: over images. They do not cover other seeds.")
    family = "this table" if tables == 1 else f"these {tables} comparisons"
    count = "1 test" if tests == 1 else f"{tests} tests"
    sentences.append(f"p Holm: corrected for the {count} of {family}. *: p Holm below {SIGNIFICANT:g}.")
    lowest = tests * min((comparison.p_floor(row) for row in rows), default=0.0)
    if tables == 1 and lowest >= SIGNIFICANT:
        sentences.append(
            f"With {comparison.resamples:,} resamples, no p Holm can be below {min(1.0, lowest):.3f}; use "
            "more --resamples."
        )
    return sentences


def _ends(row: MetricDifference, ends: tuple[float, float]) -> str:
    return "[{}, {}]".format(*(format_difference(row.name, value) for value in ends))


def _group_title(group: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the name of a group, and the settings that differ if the other group has the same method."""
    ones, others = ({**each["config"], "transform": each.get("transform")} for each in (group, other))
    different = [name for name in ones if group["name"] == other["name"] and ones[name] != others.get(name)]
    return " ".join(
        [group["name"], *(f"{name}={'none' if ones[name] is None else ones[name]}" for name in different)]
    )
