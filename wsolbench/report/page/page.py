"""The report page: leaderboard, curves, comparisons and galleries in one HTML file for any browser.

Styles, script and data are part of the file. A content security policy forbids everything else, so the page
loads nothing and sends nothing. Every text from a record is escaped. All tables are shown without scripts.
Scripts add sorting, filters and charts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from wsolbench.metrics.catalog import all_metrics, metric_info, metric_title
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.records import MetricValue
from wsolbench.report.board.board import (
    Cell,
    Filters,
    MeasuredTable,
    PublishedTable,
    measured_tables,
    published_tables,
)
from wsolbench.report.board.comparisons import format_p_value
from wsolbench.report.board.front_page import front_sections
from wsolbench.report.board.repetitions import Run, one_of_each_seed
from wsolbench.report.board.results import Results, read_results
from wsolbench.report.board.tables import (
    describe_protocol,
    format_difference,
    format_number,
    format_taus,
    format_value,
    sort_policies,
    value_note,
)
from wsolbench.report.board.ties import TieTests
from wsolbench.report.page.front import front_html
from wsolbench.report.page.gallery import Gallery, gallery_html
from wsolbench.report.page.html import Td, data_attributes, document, escape, filled, row_of, table_block
from wsolbench.report.page.page_data import Group, Pair, chart_data, groups_of, same_but_protocol
from wsolbench.report.page.training import read_trainings, training_html
from wsolbench.system.files import write_text

_BAR = 120
"""Width of a drawn interval in pixels."""


def write_page(
    results: Path,
    out: Path,
    *,
    galleries: Sequence[Gallery] = (),
    methods: int = 5,
    resamples: int = 1000,
    read: Results | None = None,
    run_folders: Sequence[Path] = (),
) -> tuple[Path, list[str]]:
    """Write `out / "index.html"`. Returns its path, and a message for each file that was skipped.

    Args:
        results: a results folder, see `wsolbench.report.board.results`.
        galleries: galleries from `wsolbench.report.page.gallery`.
        methods: number of best methods of each data set and protocol that are compared in pairs.
        resamples: number of resamples for the intervals of these comparisons.
        read: content of the folder, if it has been read already.
        run_folders: run folders, or folders of them, whose training logs are shown.

    Raises as `wsolbench.report.board.results.read_results`, and `UsageError` if the file cannot be written
    or one of `run_folders` has no log.
    """
    text, problems = page_html(
        results, galleries=galleries, methods=methods, resamples=resamples, read=read, run_folders=run_folders
    )
    write_text(out / "index.html", text)
    return out / "index.html", problems


def page_html(
    results: Path,
    *,
    galleries: Sequence[Gallery],
    methods: int,
    resamples: int,
    read: Results | None = None,
    run_folders: Sequence[Path] = (),
) -> tuple[str, list[str]]:
    """Return the page, and a message for each file that was skipped. The same files give the same page."""
    # Read everything that the page shows.
    read = read or read_results(results)
    every, published = read.runs, read.published
    runs = one_of_each_seed(every)
    names = sorted({str(run.record.dataset["name"]) for run in (*runs, *read.submitted)})
    measured = [
        (name, table)
        for name in names
        for table in measured_tables(runs, published, Filters(dataset=name), read.submitted)
    ]
    printed = [(table.path[0], table) for table in published_tables(published, Filters())]
    groups, unusable = groups_of(every, methods=methods, resamples=resamples)
    opened = _opened(measured, printed)
    ties = TieTests(results / "leaderboard", [run.record for run in every])
    front = front_sections(every, published, ties, read.submitted)
    logs = read_trainings(run_folders, every)
    # Build the sections. Those without content are left out.
    sections = [
        ("front", "Leaderboard", front_html(front)),
        ("board", "All runs", _board(measured, printed, opened, _introduction(read, runs))),
        ("published", "Published", _published(printed)),
        ("runs", "Curves and errors", _runs(groups, results, unusable, opened)),
        ("training", "Training curves", training_html(logs)),
        ("pairs", "Comparisons", _pairs(groups, methods, resamples, opened)),
        (
            "protocols",
            "Protocols",
            "".join(_protocol_table(title, of) for title, of in same_but_protocol(every)),
        ),
        ("galleries", "Galleries", "".join(map(gallery_html, galleries))),
    ]
    data = {"runs": chart_data(groups), "errors": [metric_title(f"error_{name}") for name in ERROR_NAMES]}
    return document([section for section in sections if section[2]], data), [
        *read.problems,
        *unusable,
        *logs.problems,
    ]


# --- the board ----------------------------------------------------------------------------------------------


def _board(
    tables: Sequence[tuple[str, MeasuredTable]],
    published: Sequence[tuple[str, PublishedTable]],
    opened: str,
    introduction: str,
) -> str:
    if not tables:
        none = "<p>There is no record with a value yet. <code>wsolbench eval</code> writes one.</p>"
        return none + introduction + _filters(tables, published, opened)
    shown = "".join(_measured(name, table) for name, table in tables)
    return introduction + _filters(tables, published, opened) + shown


def _introduction(read: Results, runs: Sequence[Run]) -> str:
    """Return the paragraph above the tables: number of records, skipped files, and how to read a row."""
    explained = (
        "<p>All runs of a table share the images, the protocol and the threshold policy. Runs that differ "
        "only in the seed share a row: its interval is the mean of theirs and covers test images, not seeds. "
        f"{value_note(metric for run in runs for metric in run.record.metrics)}</p>"
    )
    return _left_out(read, len(runs)) + (explained if runs else "")


def _left_out(read: Results, shown: int) -> str:
    """Return the number of runs in the tables, and the files that they leave out."""
    counts = (
        (len(read.runs) - shown, "superseded"),
        (len(read.notes) - (len(read.runs) - shown), "copied"),
        (len(read.problems), "unusable"),
    )
    others = ", ".join(f"{number} {what}" for number, what in counts if number > 0)
    text = f"<p>{_count(shown, 'run')}{f' ({others})' if others else ''}.</p>"
    lines = [f"<li>{escape(line)}</li>" for line in (*read.problems, *read.notes)]
    return text + (
        f"<details><summary>Left out: {len(lines)}</summary><ul>{''.join(lines)}</ul></details>"
        if lines
        else ""
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _opened(
    tables: Sequence[tuple[str, MeasuredTable]], published: Sequence[tuple[str, PublishedTable]]
) -> str:
    """Return the data set to open first: the one with most measured rows, preferring published numbers."""
    rows = Counter(name for name, table in tables for _ in table.rows)
    printed = Counter(name for name, table in published for _ in table.rows)
    return min(
        rows or printed, key=lambda name: (name not in printed, -rows[name], -printed[name], name), default=""
    )


def _filters(
    tables: Sequence[tuple[str, MeasuredTable]], published: Sequence[tuple[str, PublishedTable]], opened: str
) -> str:
    """Return the form that filters measured and published tables."""
    if not tables and not published:
        return ""
    metrics = [metric_title(info.name) for info in all_metrics()]

    def place(title: str) -> tuple[int, str]:
        name = title.partition(" @ ")[0]
        return metrics.index(name) if name in metrics else len(metrics), title

    rows = [(name, table.metric, row[0].text, row[3].text) for name, table in tables for row in table.rows]
    printed = [
        (name, table.path[2], method, row[1].text)
        for name, table in published
        for method, row in zip(table.methods, table.rows, strict=True)
    ]
    datasets, metric, methods, backbones = (
        sorted({row[column] for row in (*rows, *printed)}) for column in range(4)
    )
    choices = {
        "Data set": ("dataset", datasets),
        "Metric": ("metric", sorted(metric, key=place)),
        "Protocol": ("protocol", sorted({table.protocol for _, table in tables})),
        "Method": ("method", methods),
        "Backbone": ("backbone", backbones),
    }
    controls = "".join(
        f'<label>{title} <select name="{name}"><option value="">all</option>'
        f"{''.join(f'<option>{escape(value)}</option>' for value in values)}</select></label>"
        for title, (name, values) in choices.items()
    )
    shown = [row[1] for row in rows or printed if row[0] == opened]
    first = min(shown, key=lambda title: (title != metric_title("gt_known"), place(title)))
    return (
        '<form class="filters js-only" autocomplete="off" aria-label="Filter the '
        f'tables"{data_attributes(dataset=opened, metric=first)}>'
        f'{controls}<button type="reset">Show all</button><p class="count" role="status"></p></form>'
    )


def _measured(name: str, table: MeasuredTable) -> str:
    ends = [float(text) for estimate in table.estimates for text in estimate]
    low, high = min(ends), max(ends)
    lines = []
    for cells, estimate in zip(table.rows, table.estimates, strict=True):
        method, settings, supervision, backbone, start, _, *others = (
            Td(escape(cell.text), cell.order) for cell in cells
        )
        drawn = (
            f"{_interval([float(text) for text in estimate], low, high)} {estimate[1]} to {estimate[2]}"
            if len(estimate) > 1
            else ""
        )
        link = Td(f"<code>{escape(_record_path(cells))}</code>")
        facts = (backbone, settings, supervision, start)
        lines.append((method, Td(estimate[0]), Td(drawn), *facts, *others, link))
    first = ("method", "measured", "95 % interval", "backbone", "settings", "supervision", "init")
    columns = (*first, *table.columns[6:], "record")
    kept = filled(lines)
    rows = [
        row_of([line[place] for place in kept], data_attributes(method=cells[0].text, backbone=cells[3].text))
        for line, cells in zip(lines, table.rows, strict=True)
    ]
    facets = data_attributes(dataset=name, metric=table.metric, protocol=table.protocol)
    caption = " · ".join((table.path[2], table.path[0], table.path[1]))
    return table_block(
        caption, [columns[place] for place in kept], rows, attributes=facets, notes=table.notes
    )


def _record_path(cells: Sequence[Cell]) -> str:
    """Return the path of a record below the results folder. The links start at its folder `leaderboard`."""
    return unquote(cells[0].link).removeprefix("../")


def _interval(estimate: Sequence[float], start: float, end: float, *, zero: bool = False) -> str:
    """Return a drawing of a value and its interval on an axis from `start` to `end`.

    With `zero`, a line marks the middle.
    """
    span = (end - start) or 1.0
    middle = f'<path class="zero" d="M{_BAR / 2} 0V12"/>' if zero else ""
    x, left, right = (round(4 + (_BAR - 8) * (place - start) / span, 1) for place in estimate)
    return (
        f'<svg class="ci" width="{_BAR}" height="12" viewBox="0 0 {_BAR} 12" aria-hidden="true">'
        f'{middle}<path d="M{left} 6H{right}M{left} 2V10M{right} 2V10"/><circle cx="{x}" cy="6" r="3"/></svg>'
    )


def _published(tables: Sequence[tuple[str, PublishedTable]]) -> str:
    if not tables:
        return ""
    shown = []
    for name, table in tables:
        rows = [
            row_of(
                [Td(escape(cell.text), cell.order) for cell in row],
                data_attributes(method=method, backbone=row[1].text),
            )
            for method, row in zip(table.methods, table.rows, strict=True)
        ]
        attributes = data_attributes(dataset=name, metric=table.path[2], protocol="")
        caption = " · ".join((table.path[2], "/".join(table.path[:2])))
        shown.append(table_block(caption, table.columns, rows, attributes=attributes, notes=table.notes))
    text = (
        "<p>Numbers that papers and repositories print for their own methods, with table and row. They "
        "were not measured here, and their protocols differ. The filters above also apply to these tables, "
        "except the protocol filter. Filter by the name that a method has in wsolbench.</p>"
        '<p class="count js-only" role="status"></p>'
    )
    return text + "".join(shown)


# --- runs ---------------------------------------------------------------------------------------------------


def _runs(groups: Sequence[Group], results: Path, problems: Sequence[str], opened: str) -> str:
    if not groups:
        return ""
    first = max(groups, key=lambda group: (_is_of(group, opened), sum(shown.scored for shown in group.runs)))
    text = (
        "<p>Select up to six runs of one table to plot GT-known by threshold, precision by recall of pixels, "
        "and the error breakdown with 95 % intervals. Curves need per-image scores "
        "(<code>--save-scores</code> or "
        "<code>--save-outcomes</code>). The label of a run lists its initial weights, the settings in which "
        "it differs from other runs of its method, and its seed.</p>"
        '<form class="js-only" autocomplete="off" aria-label="Choose runs">'
        f"<label>Images and protocol {_choice(groups, first)}</label><label>Method <select "
        'name="method"></select></label>'
        '<p class="count" role="status"></p></form><div class="charts js-only"></div>'
    )
    left_out = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    if left_out:
        text += f"<details><summary>Unusable scores: {len(problems)}</summary><ul>{left_out}</ul></details>"
    return text + "".join(_run_table(number, group, results) for number, group in enumerate(groups))


def _is_of(group: Group, dataset: str) -> bool:
    return bool(group.runs[0].run.record.dataset["name"] == dataset)


def _choice(groups: Sequence[Group], opened: Group) -> str:
    """Return a select element with the groups."""
    options = (
        f'<option value="{number}"{" selected" if group is opened else ""}>{escape(group.title)}</option>'
        for number, group in enumerate(groups)
    )
    return f'<select name="group">{"".join(options)}</select>'


def _run_table(number: int, group: Group, results: Path) -> str:
    lines, facets = [], []
    for place, shown in enumerate(group.runs):
        record = shown.run.record
        name, _, described = shown.label.partition(" · ")
        box = f'<input type="checkbox" class="js-only" autocomplete="off" value="{place}">'
        gt_known = record.metric("gt_known", "oracle")
        tau = (
            Td(escape(format_taus(gt_known)), gt_known.tau[0] if gt_known.tau else None)
            if gt_known
            else Td("")
        )
        errors = (_value(record.metric(f"error_{name}", "oracle")) for name in ERROR_NAMES)
        curves = Td("yes" if shown.gt_known or shown.precision_recall else "no")
        path = Td(f"<code>{escape(shown.run.path.relative_to(results).as_posix())}</code>")
        first = Td(
            f'<label class="pick">{box}<span>{escape(name)} <span '
            f'class="how">{escape(described)}</span></span></label>'
        )
        lines.append((first, _value(gt_known), tau, _value(record.metric("pxap")), *errors, curves, path))
        facets.append(data_attributes(method=str(record.method["name"])))
    titles = (metric_title(f"error_{name}") for name in ERROR_NAMES)
    columns = (
        "run",
        metric_title("gt_known"),
        "threshold",
        metric_title("pxap"),
        *titles,
        "curves",
        "record",
    )
    kept = filled(lines)
    rows = [row_of([line[place] for place in kept], facet) for line, facet in zip(lines, facets, strict=True)]
    caption = f"Runs · {group.title} · threshold: oracle"
    return table_block(
        caption, [columns[place] for place in kept], rows, attributes=f' data-group="{number}"'
    )


def _value(metric: MetricValue | None) -> Td:
    if metric is None or metric.value is None:
        return Td("")
    value, _, ends = escape(format_value(metric)).partition(" ")
    return Td(f'{value} <span class="ends">{ends}</span>' if ends else value)


def _pairs(groups: Sequence[Group], methods: int, resamples: int, opened: str) -> str:
    having = [group for group in groups if group.pairs]
    if not having:
        return ""
    first = max(having, key=lambda group: (_is_of(group, opened), len(group.pairs)))
    pairs = [(number, group, pair) for number, group in enumerate(having) for pair in group.pairs]
    names = "".join(
        f'<option value="{place}" '
        f'data-of="{number}">{escape(f"{pair.b.method} minus {pair.a.method}")}</option>'
        for place, (number, _, pair) in enumerate(pairs)
    )
    text = (
        "<p>Paired differences on the same images under the same protocol, with two-sided p-values and 95 % "
        f"intervals from {resamples} resamples of the images. They also cover seeds if both methods have "
        "several. ↓: lower is better. "
        "<code>wsolbench compare</code> compares any other runs.</p>"
        "<details><summary>Which runs are compared, and how to read the p-values</summary><ul>"
        f"<li>The {methods} best methods of each data set and protocol are compared, ranked by oracle "
        "GT-known, then MaxBoxAccV2, PxAP and Top-1 Cls. Each method enters with all its seeds that have "
        "scores.</li>"
        "<li>A method with several settings, backbones or initial weights enters with those that have the "
        "most seeds, then the best mean. If this choice used the same test images, differences are biased "
        "and p-values too small.</li>"
        f"<li>p-values of one seed cannot fall below {2 / (resamples + 1):.1g}. No p-value is corrected for "
        "multiple comparisons. Ties count for both sides, so a p-value can exceed 0.05 although the "
        "interval just excludes 0.</li></ul></details>"
        '<form class="js-only" autocomplete="off" aria-label="Choose a comparison">'
        f"<label>Images and protocol {_choice(having, first)}</label>"
        f'<label>Compare <select name="pair">{names}</select></label></form>'
    )
    return text + "".join(
        _pair_table(place, pair, group.title) for place, (_, group, pair) in enumerate(pairs)
    )


def _pair_table(number: int, pair: Pair, title: str) -> str:
    lines = []
    ends: dict[float, float] = {}
    for row in pair.differences:  # metrics of the same scale share an axis
        scale = metric_info(row.name).scale
        ends[scale] = max(ends.get(scale, 0.0), *map(abs, row.ends))
    same_seeds = pair.a.seeds == pair.b.seeds and len(pair.a.seeds) > 1
    for row in pair.differences:
        info = metric_info(row.name)
        end = info.scale * ends[info.scale]
        drawn = _interval([info.scale * value for value in (row.difference, *row.ends)], -end, end, zero=True)
        low, high = (format_difference(row.name, value) for value in row.ends)
        interval = f"{drawn} {low} to {high}"
        name = (
            metric_title(row.name)
            + (f", {row.policy}" if row.policy else "")
            + " ↓" * (info.better == "lower")
        )
        values = (
            format_number(row.name, row.a),
            format_number(row.name, row.b),
            format_difference(row.name, row.difference),
        )
        by_seed = (
            ", ".join(format_difference(row.name, value) for value in row.per_pair or ())
            if same_seeds
            else ""
        )
        texts = (escape(name), *values, interval, escape(format_p_value(row.test)), by_seed, str(row.n))
        lines.append([Td(text) for text in texts])
    columns = ("metric", "A", "B", "B − A", "95 % interval", "p", "seed by seed", "images")
    kept = filled(lines)
    notes = (f"A: {pair.a.label}", f"B: {pair.b.label}", *([pair.budget] if pair.budget else []))
    return table_block(
        f"{pair.b.method} (B) minus {pair.a.method} (A) · {title}",
        [columns[place] for place in kept],
        [row_of([line[place] for place in kept]) for line in lines],
        sortable=False,
        attributes=f' data-pair="{number}"',
        notes=notes,
    )


def _protocol_table(title: str, runs: Sequence[Run]) -> str:
    """Return a table of the same maps under several protocols, one column per protocol."""
    keys: dict[tuple[str, str | None], None] = {}
    for run in runs:
        for metric in run.record.metrics:
            if metric.value is not None:
                keys[metric.name, metric.policy] = None
    order = [info.name for info in all_metrics()]
    policies: list[str | None] = [None, *sort_policies(policy for _, policy in keys if policy is not None)]
    rows = []
    for name, policy in sorted(
        keys, key=lambda key: (order.index(metric_info(key[0]).name), key[0], policies.index(key[1]))
    ):
        found = [
            next((m for m in run.record.metrics if (m.name, m.policy) == (name, policy)), None)
            for run in runs
        ]
        rows.append(
            row_of([Td(escape(metric_title(name) + (f", {policy}" if policy else ""))), *map(_value, found)])
        )
    columns = ("metric", *(describe_protocol(run.record.protocol) for run in runs))
    return table_block(f"The same maps under {len(runs)} protocols · {title}", columns, rows, sortable=False)
