"""The short table of a record: a title and at most four metrics, in lines of at most 80 characters.

`eval`, `score`, `merge` and the result of `wsolbench.evaluate` print it. `--full` prints the table of
`wsolbench.report.board.tables` in its place, which has all metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.system.text import cut, one_line

WIDTH = 80
"""Largest length of a line."""
ROWS = 4
"""Largest number of metrics."""
_SHOWN = ("top1_cls", "gt_known", "top1_loc", "max_box_acc_v2", "pxap", "peak_iou")
"""Metrics that are shown if the record has them, the most important first."""
_EXPECTED = ("top1_cls", "gt_known", "top1_loc")
"""Metrics whose absence is explained below the table."""
_POLICY_ORDER = ("oracle", "transfer", "fixed")
_FORMS = ((True, 9), (False, 9), (False, 1), (False, 0))
"""Whether thresholds are shown, and how many columns have intervals. The first that fits is used."""


def short_table(record: RunRecord, policy: str = "oracle") -> str:
    """Return title and metrics of a record. Metrics without a value are left out.

    Each metric has its value and 95 % interval under every threshold policy of the record, `policy` first.
    Thresholds are shown if all lines have room for them, and so are the intervals of further policies.
    """
    defined = [metric for metric in record.metrics if metric.value is not None]
    names = [name for name in _SHOWN if any(metric.name == name for metric in defined)]
    names = (names or list(dict.fromkeys(metric.name for metric in defined)))[:ROWS]
    policies = _sort_policies({metric.policy for metric in defined if metric.policy}, policy)
    rows = [_cells([each for each in defined if each.name == name], policies) for name in names]
    label = max((len(cells[0].policy or "") for cells in rows), default=0)
    lines: list[str] = []
    for taus, intervals in _FORMS:
        form = partial(_cell, label=label, taus=taus, intervals=intervals)
        texts = [map(form, range(len(cells)), cells) for cells in rows]
        lines = _aligned([[metric_title(name), *text] for name, text in zip(names, texts, strict=True)])
        if all(len(line) <= WIDTH for line in lines):
            break
    return "\n".join([_title(record), *(cut(line, WIDTH) for line in lines)])


def describe_missing(record: RunRecord) -> str:
    """Describe why the metrics that readers look for first have no value. Empty if they have one."""
    known = {metric.name for metric in record.metrics if metric.value is not None}
    missing: dict[str, list[str]] = {}
    for name, reason in dict.fromkeys((metric.name, metric.reason) for metric in record.metrics):
        if name in _EXPECTED and name not in known and reason:
            missing.setdefault(reason, []).append(metric_title(name))
    if not missing:
        return ""
    found = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in missing.items())
    return f"metrics without a value: {found}. --full shows all"


def _title(record: RunRecord) -> str:
    """Return method, data and protocol in one line. The backbone is left out if there is no room for it."""
    method, data, protocol = record.method, record.dataset, record.protocol
    is_changed = (
        isinstance(protocol, EvalProtocol)
        and protocol.name in EvalProtocol.presets()
        and protocol != EvalProtocol.preset(protocol.name)
    )
    where = " ".join(str(data[part]) for part in ("name", "split", "transform") if data.get(part))
    images = "" if data.get("images") is None else f": {data['images']:,} images"
    rest = f" on {where}{images}, protocol {protocol.name}{' (changed)' if is_changed else ''}"
    backbone = f" ({method['backbone']})" if method.get("backbone") not in (None, "none") else ""
    whole = one_line(f"{method['name']}{backbone}{rest}")
    return whole if len(whole) <= WIDTH else cut(one_line(f"{method['name']}{rest}"), WIDTH)


def _sort_policies(policies: set[str], first: str) -> list[str]:
    """Return the policies in the order of the columns."""

    def place(policy: str) -> tuple[bool, int, str]:
        kind = policy.partition(":")[0]
        rank = _POLICY_ORDER.index(kind) if kind in _POLICY_ORDER else len(_POLICY_ORDER)
        return policy != first, rank, policy

    return sorted(policies, key=place)


def _cells(found: Sequence[MetricValue], policies: Sequence[str]) -> list[MetricValue]:
    """Return the values of a metric, in the order of the columns."""
    by_policy = {metric.policy: metric for metric in found}
    return [by_policy[policy] for policy in (None, *policies) if policy in by_policy]


def _cell(column: int, metric: MetricValue, *, label: int, taus: bool, intervals: int) -> str:
    """Format a value: policy, number, interval in the first `intervals` columns, thresholds.

    `label` is the width of the policy in the first column, so that its numbers stand below each other.
    """
    info = metric_info(metric.name)
    value, low, high = map(partial(_number, metric.name), (metric.value, metric.low, metric.high))
    parts = [(metric.policy or "").ljust(label if column == 0 else 0), f"{value:>5}"]
    parts.append("%" if info.unit == "fraction" else " ")
    if column < intervals and low and high:
        parts.append(f"[{low}, {high}]")
    if taus and metric.tau and info.unit != "level":
        parts.append("tau " + ", ".join(f"{round(tau, 3):g}" for tau in metric.tau))
    return " ".join(filter(None, parts))


def _number(name: str, value: float | None) -> str:
    """Format a value in its unit, or return an empty text for None."""
    return "" if value is None else metric_info(name).format(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines whose columns begin at the same place."""
    columns = max(map(len, rows), default=0)
    filled = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*filled, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in filled
    ]
