"""Tables of one record, for the terminal and as Markdown, and the formatting of their cells."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsolbench.methods.registry import group_of
from wsolbench.metrics.best_threshold import FEW_IMAGES
from wsolbench.metrics.catalog import all_metrics, metric_info, metric_title
from wsolbench.protocol import DetectionProtocol, EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.system.text import one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement
    from rich.table import Table

UNDEFINED = "—"

NO_THRESHOLD = "no threshold"
"""Heading of the column of metrics without a threshold."""

_GROUPS = (
    ("Classification", ("top1_cls", "top5_cls", "mean_class_accuracy")),
    ("Boxes", ("gt_known", "top1_loc", "top5_loc", "max_box_acc", "max_box_acc_v2")),
    ("Masks", ("pxap", "peak_iou", "peak_t", "mean_image_iou")),
    (
        "Proposals",
        (
            "keypoint_distance",
            "keypoint_distance_px",
            "keypoint_hit",
            "keypoint_distinct",
            "keypoint_covered",
        ),
    ),
    ("Detected boxes", tuple(f"box_ap{end}" for end in ("", "50", "75", "_small", "_medium", "_large"))),
    ("Detected masks", tuple(f"mask_ap{end}" for end in ("", "50", "75", "_small", "_medium", "_large"))),
    (
        "Error breakdown",
        ("error_right", "error_cls", "error_m_ins", "error_part", "error_more", "error_other"),
    ),
)
RANKED_BY = ("gt_known", "max_box_acc_v2", "pxap", "top1_cls", "box_ap")
"""Metrics that runs are ranked by. The first that exists is used."""
_OTHER_GROUP = "Other"
_POLICY_ORDER = ("oracle", "fixed", "transfer")


def _notes(record: RunRecord) -> list[str]:
    """Return the note below a table, and a warning if its intervals are too narrow."""
    if isinstance(record.protocol, DetectionProtocol):
        return ["Average precision as defined by COCO, in percent."]
    few = [
        metric
        for metric in record.metrics
        if metric.corrected_low is not None and metric.n < FEW_IMAGES and "@" not in metric.name
    ]
    if not few:
        return [value_note(record.metrics)]
    corrected = ", ".join(
        f"{metric_title(metric.name)} {_ends(metric.name, metric.corrected_low, metric.corrected_high)}"
        for metric in few
    )
    return [
        value_note(record.metrics),
        f"Fewer than {FEW_IMAGES} images: intervals of oracle numbers are too narrow. Intervals corrected "
        f"for the choice of tau: {corrected}.",
    ]


def value_note(metrics: Iterable[MetricValue]) -> str:
    """Return the units of the values and the meaning of the policies that occur among `metrics`.

    >>> value_note([MetricValue(name="pxap", value=0.5, n=9)])
    'Values in percent, with 95 % intervals over images.'
    """
    defined = [metric for metric in metrics if metric.value is not None]
    names, policies = {metric.name for metric in defined}, {metric.policy for metric in defined}
    notes = ["Values in percent, with 95 % intervals over images."]
    if "peak_t" in names:
        notes.append("Peak-T is a level from 0 to 255.")
    if "keypoint_distance_px" in names:
        notes.append("px: pixels of a 448-pixel input.")
    if "oracle" in policies:
        notes.append("oracle: threshold tuned on this split (upper bound).")
    return " ".join(notes)


def format_number(name: str, value: float) -> str:
    """Format a metric's value for tables: fractions in percent with one decimal, others in their unit.

    >>> format_number("gt_known", 0.6342), format_number("peak_t", 127.0)
    ('63.4', '127')
    """
    return metric_info(name).format(value)


def format_difference(name: str, value: float) -> str:
    """Format a difference with its sign. Values that round to zero are printed as +0.

    >>> format_difference("gt_known", 0.0312), format_difference("peak_t", -4.0)
    ('+3.1', '-4')
    >>> format_difference("pxap", -0.0001)
    '+0.0'
    """
    info = metric_info(name)
    return f"{round(info.scale * value, info.decimals) + 0.0:+.{info.decimals}f}"


def format_value(metric: MetricValue) -> str:
    """Format value and interval, `63.4 [61.0, 65.8]`, or a dash if the metric is undefined."""
    if metric.value is None:
        return UNDEFINED
    return f"{format_number(metric.name, metric.value)} {_interval(metric)}".rstrip()


def _interval(metric: MetricValue) -> str:
    return _ends(metric.name, metric.low, metric.high)


def _ends(name: str, low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{format_number(name, low)}, {format_number(name, high)}]"


def format_taus(metric: MetricValue) -> str:
    """Format the threshold, `tau 0.21`, or one threshold per delta, `tau 0.15 0.21 0.3`.

    Empty without a threshold, and for Peak-T, which is a threshold itself.
    """
    if not metric.tau or metric_info(metric.name).unit == "level":
        return ""
    return "tau " + " ".join(f"{round(tau, 3):g}" for tau in metric.tau)


def escape_markdown(text: Any) -> str:
    r"""Return text that Markdown shows literally: one line, no markup, no link, no HTML.

    It is safe in a paragraph, a heading and a table cell.

    >>> escape_markdown("a|b <i>*c*")
    'a\\|b &lt;i&gt;\\*c\\*'
    >>> escape_markdown("- see www.x.org"), escape_markdown("1. mail a@b.c"), escape_markdown("+1.5")
    ('\\- see www&#46;x.org', '1\\. mail a&#64;b.c', '+1.5')
    """
    shown = re.sub(r"([\\`*_{}\[\]#$~|!])", r"\\\1", html.escape(one_line(text), quote=False))
    shown = re.sub(r"(?<=\w)@(?=\w)", "&#64;", shown)
    shown = re.sub(r"(?i)\b(www)\.", r"\1&#46;", shown)
    shown = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1&#58;", shown)
    return re.sub(
        r"^(\d{1,9})([.)])(?=\s|$)|^([-+=])(?=\s|$|[-=])",
        lambda found: f"{found[1] or ''}\\{found[2] or found[3]}",
        shown,
    )


def disambiguate(texts: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return texts; those that occur more than once get their entry of `more`.

    >>> disambiguate(["cam", "cam", "spa"], ["a", "b", "c"])
    ['cam · a', 'cam · b', 'spa']
    """
    often = Counter(texts)
    return [text if often[text] == 1 else f"{text} · {own}" for text, own in zip(texts, more, strict=True)]


def sort_policies(policies: Iterable[str]) -> list[str]:
    """Return distinct policies in table order: oracle, fixed (by threshold), transfer, then the others."""

    def place(policy: str) -> tuple[int, float, str]:
        kind, _, tau = policy.partition(":")
        rank = _POLICY_ORDER.index(kind) if kind in _POLICY_ORDER else len(_POLICY_ORDER)
        try:
            return rank, float(tau or 0), policy
        except ValueError:
            return rank, 0.0, policy

    return sorted(set(policies), key=place)


def supervision_text(record: RunRecord) -> str:
    """Return the ground truth that a method reads besides labels of training images, or an empty text."""
    return "" if record.supervision is None else str(record.supervision)


def place_of(record: RunRecord) -> int:
    """Return the place of a run in a table: floors first, ceilings last, all others between them.

    A method that reads the ground truth of the evaluated images is a ceiling, unless it is a floor.
    """
    reads_truth = record.supervision is not None and record.supervision.used_for == "prediction"
    return {"floor": 0, "ceiling": 2}.get(group_of(record.method["name"]), 2 if reads_truth else 1)


def describe_protocol(protocol: EvalProtocol | DetectionProtocol) -> str:
    """Return the preset's name and every field that differs from it: `wsoleval, components='union'`.

    If the name is not a preset, the defaults are the base: `mine (wsoleval, components='union')`.
    """
    if isinstance(protocol, DetectionProtocol):
        return protocol.name
    is_preset = protocol.name in EvalProtocol.presets()
    base = EvalProtocol.preset(protocol.name if is_preset else "wsoleval")
    mine, theirs = ({**vars(each), "taus": each.to_json()["taus"]} for each in (protocol, base))
    changed = [
        f"{name}={_compact(mine[name])}" for name in mine if name != "name" and mine[name] != theirs[name]
    ]
    text = ", ".join([base.name, *changed])
    return text if is_preset else f"{protocol.name} ({text})"


def _compact(value: Any) -> str:
    if isinstance(value, dict):  # a threshold grid
        return f"{value['start']:g} to {value['stop']:g} by {value['step']:g}"
    value = list(value) if isinstance(value, tuple) else value
    if isinstance(value, list) and len(value) > 4:
        return f"[{value[0]}, ..., {value[-1]}] ({len(value)} values)"
    return repr(value)


def run_title(record: RunRecord) -> str:
    """Return method, backbone, data set and protocol in one line.

    For instance `cam · resnet50 · cub/test · 5,794 images · wsoleval`.
    """
    method, dataset = record.method, record.dataset
    variant = method.get("variant")
    data = f"{dataset['name']}/{dataset['split']}"
    parts = [
        method["name"],
        None if variant == "default" else variant,
        method.get("backbone"),
        data,
        dataset.get("transform"),
    ]
    if dataset.get("images") is not None:
        parts.append(f"{dataset['images']:,} images")
    return " · ".join(str(part) for part in [*parts, describe_protocol(record.protocol)] if part)


@dataclass(frozen=True)
class _Row:
    """A metric under every policy of the record. Cells are in the order of the columns, or None."""

    name: str
    cells: tuple[MetricValue | None, ...]


@dataclass(frozen=True)
class _Grid:
    """The layout of a record's table.

    `columns` are policies, or None for metrics without one. `groups` are the rows by group. `reasons` are
    the footnotes of undefined metrics.
    """

    columns: tuple[str | None, ...]
    groups: tuple[tuple[str, tuple[_Row, ...]], ...]
    reasons: tuple[str, ...]

    @property
    def headings(self) -> list[str]:
        return [NO_THRESHOLD if column is None else column for column in self.columns]

    def note(self, metric: MetricValue) -> str:
        """Return the footnote mark of an undefined metric, or an empty string."""
        return f"({self.reasons.index(metric.reason) + 1})" if metric.value is None and metric.reason else ""


def _grid(record: RunRecord) -> _Grid:
    # Columns.
    defined = [metric for metric in record.metrics if metric.value is not None or metric.policy is not None]
    policies: list[str | None] = list(
        sort_policies(metric.policy for metric in defined if metric.policy is not None)
    )
    columns = (*([None] if any(metric.policy is None for metric in defined) else []), *policies) or (None,)
    # Rows by group.
    groups: dict[str, list[_Row]] = {title: [] for title in (*dict(_GROUPS), _OTHER_GROUP)}
    for name in _in_table_order(metric.name for metric in record.metrics):
        found = {metric.policy: metric for metric in record.metrics if metric.name == name}
        cells = [found.get(column) for column in columns]
        if not any(cells):  # undefined under every policy, so it goes into the first column
            cells[0] = found[None]
        groups[_group_of(name)].append(_Row(name, tuple(cells)))
    # Footnotes.
    shown = [cell for rows in groups.values() for row in rows for cell in row.cells if cell is not None]
    reasons = tuple(dict.fromkeys(cell.reason for cell in shown if cell.value is None and cell.reason))
    return _Grid(columns, tuple((title, tuple(rows)) for title, rows in groups.items() if rows), reasons)


def _in_table_order(names: Iterable[str]) -> list[str]:
    order = [info.name for info in all_metrics()]
    return sorted(set(names), key=lambda name: (order.index(metric_info(name).name), name))


def _group_of(name: str) -> str:
    base = metric_info(name).name
    return next((title for title, members in _GROUPS if base in members), _OTHER_GROUP)


def _count(rows: Iterable[_Row]) -> str:
    """Return the number of images that a group's numbers were computed on. Empty if all are undefined."""
    counts = sorted(
        {cell.n for row in rows for cell in row.cells if cell is not None and cell.value is not None}
    )
    if not counts:
        return ""
    return f"{counts[0]:,} images" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} images"


def metrics_table(record: RunRecord) -> Table:
    """Return a record's metrics as a table for the terminal (`rich.console.Console().print(table)`).

    Each threshold policy has one column, in percent with the 95 % interval and the threshold below. Rows are
    in the order of the catalog. An undefined metric is a dash with a footnote that gives the reason. Raises
    `UsageError` for a metric that is not in the catalog.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Title and footnotes.
    grid = _grid(record)
    notes = _notes(record)
    notes += [f"({number}) {reason}" for number, reason in enumerate(grid.reasons, start=1)]
    table = Table(
        title=Text(one_line(run_title(record)), style="bold"),
        caption=Text("\n".join(map(one_line, notes)), style="dim"),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    # Columns, and rows by group.
    table.add_column("metric", no_wrap=True)
    for heading in grid.headings:
        table.add_column(Text(one_line(heading)))
    for title, rows in grid.groups:
        table.add_section()
        table.add_row(Text(title, style="bold"), Text(_count(rows), style="dim"))
        for row in rows:
            table.add_row(
                Text(f" {metric_title(row.name)}"),
                *(_Cell(cell, grid.note(cell)) if cell else "" for cell in row.cells),
            )
    return table


@dataclass(frozen=True)
class _Cell:
    """A number in the terminal: value, interval and threshold. In a narrow column they are stacked."""

    metric: MetricValue
    note: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        narrow = max(len(_interval(self.metric)), len(self._value), 6)
        return Measurement(narrow, max(len(self._line), len(format_taus(self.metric)), narrow))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if len(self._line) <= options.max_width:
            yield Text(self._line)
        else:
            yield Text(self._value)
            yield Text(_interval(self.metric))
        if taus := format_taus(self.metric):
            yield Text(taus, style="dim")

    @property
    def _value(self) -> str:
        value = self.metric.value
        return f"{UNDEFINED} {self.note}" if value is None else format_number(self.metric.name, value)

    @property
    def _line(self) -> str:
        return f"{self._value} {_interval(self.metric)}".rstrip()


def metrics_markdown(record: RunRecord) -> str:
    """Return the same table in Markdown, with the title in bold. Raises as `metrics_table`."""
    grid = _grid(record)
    lines = [f"**{escape_markdown(run_title(record))}**", ""]
    lines += [
        "| metric | " + " | ".join(escape_markdown(heading) for heading in grid.headings) + " |",
        "|---" * (len(grid.columns) + 1) + "|",
    ]
    for title, rows in grid.groups:
        lines.append(f"| **{title}** | {_count(rows)} |" + " |" * (len(grid.columns) - 1))
        for row in rows:
            cells = [markdown_cell(cell, grid.note(cell)) if cell else "" for cell in row.cells]
            lines.append(f"| {escape_markdown(metric_title(row.name))} | " + " | ".join(cells) + " |")
    lines += ["", "\n\n".join(_notes(record))]
    lines += [
        f"\n({number}) {escape_markdown(reason)}" for number, reason in enumerate(grid.reasons, start=1)
    ]
    return "\n".join(lines) + "\n"


def markdown_cell(metric: MetricValue, note: str = "") -> str:
    """Format value, interval and threshold for a Markdown table: `63.4 [61.0, 65.8], tau 0.21`."""
    value = " ".join(part for part in (format_value(metric), note) if part)
    return ", ".join(part for part in (value, format_taus(metric)) if part)
