"""The page: the board, curves, comparisons and galleries as one HTML file that needs nothing but a browser.

Styles, script and data are inside; a content security policy forbids everything else, so the page loads nothing and sends
nothing. Every text from a record is escaped. Without scripts all tables are there; with them they are sorted, filtered, drawn.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wsolbench.files import write_text
from wsolbench.metrics.catalog import METRICS, metric_info, metric_title
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.records import MetricValue, RunRecord, read_records
from wsolbench.report.board import Cell, Filters, MeasuredTable, Table, measured_tables, published_tables
from wsolbench.report.gallery import Gallery
from wsolbench.report.leaderboard import read_results
from wsolbench.report.page_data import Group, Pair, ShownRun, groups_of, same_but_protocol
from wsolbench.report.tables import describe_protocol, format_number, format_taus, format_value, run_title, sort_policies

_BAR = 120
"""Width of a drawn interval in pixels."""


def write_page(
    results: Path, out: Path, *, galleries: Sequence[Gallery] = (), methods: int = 5, resamples: int = 1000
) -> tuple[Path, list[str]]:
    """Write `out / "index.html"`; its path, and what is wrong with scores that cannot be read.

    Args:
        results: a results folder, see `wsolbench.report.leaderboard`.
        galleries: of `wsolbench.report.gallery`.
        methods: best methods of every data set and protocol that are compared in pairs.
        resamples: of the intervals of these comparisons.

    Raises as `wsolbench.report.leaderboard.read_results`, and `UsageError` when the folder cannot be written.
    """
    text, problems = page_html(results, galleries=galleries, methods=methods, resamples=resamples)
    write_text(out / "index.html", text)
    return out / "index.html", problems


def page_html(results: Path, *, galleries: Sequence[Gallery], methods: int, resamples: int) -> tuple[str, list[str]]:
    """The page, and what is wrong with scores that cannot be read. The same files give the same page."""
    runs, published = read_results(results)
    names = sorted({str(run.record.dataset["name"]) for run in runs})
    measured = [(name, table) for name in names for table in measured_tables(runs, published, Filters(dataset=name))]
    printed = [(table.path[0], table) for table in published_tables(published, Filters())]
    records = read_records(results / "measured")
    groups, problems = groups_of(records, methods=methods, resamples=resamples)
    protocols = same_but_protocol(records)
    sections = [
        ("board", "Measured", _board(measured, runs_count=len(runs))),
        ("published", "Published", _published(printed)),
        ("runs", "Curves and errors", _runs(groups, results, problems)),
        ("pairs", "Comparisons", _pairs([pair for group in groups for pair in group.pairs], groups, methods, resamples)),
        ("protocols", "Protocols", "".join(map(_protocol_table, protocols))),
        ("galleries", "Galleries", "".join(map(_gallery, galleries))),
    ]
    return _document([section for section in sections if section[2]], {"runs": _curves(groups)}), problems


def _document(sections: Sequence[tuple[str, str, str]], data: dict[str, Any]) -> str:
    style, script = ((files("wsolbench.report") / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    policy = f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"
    links = "".join(f'<li><a href="#{key}">{_text(title)}</a></li>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{_text(title)}</h2>{inner}</section>'
        for key, title, inner in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer"><title>wsolbench: results</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style></head>'
        '<body><a class="skip" href="#main">Skip to the tables</a><header><h1>wsolbench: results</h1>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main id="main">{body}</main>'
        f'<script type="application/json" id="data">{_json(data)}</script><script>{script}</script></body></html>\n'
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[str], *, sortable: bool = True, attributes: str = "", notes: Sequence[str] = ()
) -> str:
    """A table that scrolls sideways where there is no room; `rows` are `tr` elements."""
    heads = "".join(f'<th scope="col">{_text(column)}</th>' for column in columns)
    kind = ' class="sortable"' if sortable else ""
    below = "".join(f'<p class="note">{_text(note)}</p>' for note in notes)
    return (
        f'<div class="block"{attributes}><div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table{kind}>'
        f"<caption>{_text(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{below}</div>"
    )


def _row(cells: Sequence[str], attributes: str = "") -> str:
    """Cells are HTML; the first names the row."""
    first, *others = cells
    return f'<tr{attributes}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _facets(**values: str) -> str:
    return "".join(f' data-{name}="{_text(value)}"' for name, value in values.items())


# --- the board -----------------------------------------------------------------------------------------------------------


def _board(tables: Sequence[tuple[str, MeasuredTable]], *, runs_count: int) -> str:
    if not tables:
        return "<p>There is no record with a value yet. <code>wsolbench eval</code> writes one.</p>"
    metrics = [metric_title(info.name) for info in METRICS]
    seen = [(name, table.protocol, table.metric) for name, table in tables]
    choices = {
        "dataset": list(dict.fromkeys(name for name, _, _ in seen)),
        "metric": sorted({metric for _, _, metric in seen}, key=lambda title: (metrics.index(title.partition(" @ ")[0]), title)),
        "protocol": sorted({protocol for _, protocol, _ in seen}),
        "method": sorted({row[0].text for _, table in tables for row in table.rows}),
        "backbone": sorted({row[2].text for _, table in tables for row in table.rows}),
    }
    titles = {"dataset": "Data set", "metric": "Metric", "protocol": "Protocol", "method": "Method", "backbone": "Backbone"}
    controls = "".join(
        f'<label>{titles[name]} <select name="{name}"><option value="">all</option>'
        f"{''.join(f'<option>{_text(value)}</option>' for value in values)}</select></label>"
        for name, values in choices.items()
    )
    text = (
        f"<p>{runs_count} records. A table holds only what may be compared: the same images, protocol and threshold policy. "
        "Percent, with 95 % bootstrap intervals over images; runs that differ in nothing but their seed are one row, "
        "with the mean of their intervals, which says nothing of other seeds. Published numbers "
        "stand in columns of their own. <code>oracle</code>: the threshold is chosen on the evaluated images, an upper bound.</p>"
    )
    form = (
        f'<form class="filters js-only" aria-label="Filter the tables">{controls}<button type="reset">Show all</button>'
        '<p class="count" role="status"></p></form>'
    )
    return text + form + "".join(_measured(name, table) for name, table in tables)


def _measured(name: str, table: MeasuredTable) -> str:
    ends = [float(text) for estimate in table.estimates for text in estimate]
    low, high = min(ends), max(ends)
    lines = []
    for cells, estimate in zip(table.rows, table.estimates, strict=True):
        method, settings, backbone, start, _, group, published, paper, difference = (_text(cell.text) for cell in cells)
        drawn = f"{_interval([float(text) for text in estimate], low, high)} {estimate[1]} to {estimate[2]}" if len(estimate) > 1 else ""
        link = f"<code>{_text(_record_path(cells))}</code>"
        lines.append((method, estimate[0], drawn, backbone, settings, start, group, published, paper, difference, link))
    columns = ("method", "measured", "95 % interval", "backbone", "settings", "start", *table.columns[5:], "record")
    kept = [
        place for place in range(len(columns)) if any(line[place] for line in lines)
    ]  # there is little room on a phone, so the number is second, too
    rows = [
        _row([line[place] for place in kept], _facets(method=cells[0].text, backbone=cells[2].text))
        for line, cells in zip(lines, table.rows, strict=True)
    ]
    columns = tuple(columns[place] for place in kept)
    facets = _facets(dataset=name, metric=table.metric, protocol=table.protocol)
    return _table(" · ".join((table.path[2], table.path[0], table.path[1])), columns, rows, attributes=facets, notes=table.notes)


def _record_path(cells: Sequence[Cell]) -> str:
    """Below the results folder; the board's links start at its folder `leaderboard`."""
    return unquote(cells[0].link).removeprefix("../")


def _interval(estimate: Sequence[float], start: float, end: float) -> str:
    """A picture of a value and the ends of its interval on an axis from `start` to `end`."""
    span = (end - start) or 1.0
    x, left, right = (round(4 + (_BAR - 8) * (place - start) / span, 1) for place in estimate)
    return (
        f'<svg class="ci" width="{_BAR}" height="12" viewBox="0 0 {_BAR} 12" aria-hidden="true">'
        f'<path d="M{left} 6H{right}M{left} 2V10M{right} 2V10"/><circle cx="{x}" cy="6" r="3"/></svg>'
    )


def _published(tables: Sequence[tuple[str, Table]]) -> str:
    if not tables:
        return ""
    shown = []
    for name, table in tables:
        rows = [_row([_text(cell.text) for cell in row], _facets(method=row[0].text, backbone=row[1].text)) for row in table.rows]
        attributes = _facets(dataset=name, metric=table.path[2], protocol="")
        shown.append(
            _table(" · ".join((table.path[2], "/".join(table.path[:2]))), table.columns, rows, attributes=attributes, notes=table.notes)
        )
    text = (
        "<p>Numbers that papers and repositories print of their own methods, as printed, with table and row. They are not measured here "
        'and their protocols differ. The filters above hold here, too.</p><p class="count js-only" role="status"></p>'
    )
    return text + "".join(shown)


# --- runs ----------------------------------------------------------------------------------------------------------------


def _runs(groups: Sequence[Group], results: Path, problems: Sequence[str]) -> str:
    if not groups:
        return ""
    options = "".join(f'<option value="{number}">{_text(group.title)}</option>' for number, group in enumerate(groups))
    text = (
        "<p>Choose up to six runs of one table: GT-known over the threshold tau, precision over recall of pixels, and the error "
        "breakdown with 95 % intervals. Curves need the per-image scores beside a record (<code>--save-scores</code>).</p>"
        f'<form class="js-only" aria-label="Choose runs"><label>Images and protocol <select name="group">{options}</select></label></form>'
        '<div class="charts js-only" aria-live="polite"></div>'
    )
    left_out = "".join(f"<li>{_text(problem)}</li>" for problem in problems)
    if left_out:
        text += f"<details><summary>{len(problems)} files of scores cannot be read</summary><ul>{left_out}</ul></details>"
    return text + "".join(_run_table(number, group, results) for number, group in enumerate(groups))


def _run_table(number: int, group: Group, results: Path) -> str:
    rows = []
    for place, run in enumerate(group.runs):
        box = f'<input type="checkbox" class="js-only" value="{place}" aria-label="{_text(f"draw {run.label}")}">'
        gt_known = run.record.metric("gt_known", "oracle")
        texts = [f"{box} {_text(run.label)}", _value(gt_known), _text(format_taus(gt_known)) if gt_known else ""]
        texts.append(_value(run.record.metric("pxap")))
        texts += [_value(run.record.metric(f"error_{name}", "oracle")) for name in ERROR_NAMES]
        texts += [
            "yes" if run.gt_known or run.precision_recall else "no",
            f"<code>{_text(run.path.relative_to(results).as_posix())}</code>",
        ]
        rows.append(_row(texts))
    errors = (metric_title(f"error_{name}") for name in ERROR_NAMES)
    columns = ("run", metric_title("gt_known"), "at", metric_title("pxap"), *errors, "curves", "record")
    return _table(f"Runs · {group.title} · threshold: oracle", columns, rows, attributes=f' data-group="{number}"')


def _value(metric: MetricValue | None) -> str:
    return "" if metric is None or metric.value is None else _text(format_value(metric))


def _curves(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """Of every group and run what charts are drawn from."""
    return [[_curves_of(run) for run in group.runs] for group in groups]


def _curves_of(run: ShownRun) -> dict[str, Any]:
    curves = {"gt_known": run.gt_known, "pr": run.precision_recall}
    errors = [run.record.metric(f"error_{name}", "oracle") for name in ERROR_NAMES]
    shares = [[m.value, m.low, m.high] for m in errors if m is not None and m.value is not None]
    return {
        "label": run.label,
        **{name: [list(curve.x), list(curve.y)] for name, curve in curves.items() if curve is not None},
        **({"errors": shares} if len(shares) == len(ERROR_NAMES) else {}),
    }


def _pairs(pairs: Sequence[Pair], groups: Sequence[Group], methods: int, resamples: int) -> str:
    if not pairs:
        return ""
    numbers = {id(pair): number for number, pair in enumerate(pairs)}
    options = "".join(
        f'<optgroup label="{_text(group.title)}">'
        + "".join(f'<option value="{numbers[id(pair)]}">{_text(_pair_name(pair))}</option>' for pair in group.pairs)
        + "</optgroup>"
        for group in groups
        if group.pairs
    )
    text = (
        f"<p>Differences image by image, on the same images under the same protocol, with 95 % intervals over {resamples} resamples and "
        f"two-sided p-values. Of every data set and protocol the {methods} best methods are compared, each by its best run (by the oracle "
        "GT-known, then MaxBoxAccV2, PxAP, Top-1 Cls) that has scores; a best run is chosen on these images, the luckiest of its seeds, "
        f"so differences are biased and p-values too small; no p-value is below {2 / (resamples + 1):.3f}, and of so many some are small "
        "by chance. <code>wsolbench compare</code> compares any runs and groups of seeds.</p>"
        f'<form class="js-only" aria-label="Choose a comparison"><label>Compare <select name="pair">{options}</select></label></form>'
    )
    titles = [group.title for group in groups for _ in group.pairs]
    return text + "".join(_pair_table(number, pair, title) for number, (pair, title) in enumerate(zip(pairs, titles, strict=True)))


def _signed(value: float, decimals: int) -> str:
    """With its sign; what rounds to 0 is no minus 0."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def _pair_name(pair: Pair) -> str:
    return f"{pair.b.label} minus {pair.a.label}"


def _pair_table(number: int, pair: Pair, title: str) -> str:
    rows = []
    ends: dict[float, float] = {}
    for row in pair.differences:  # metrics with one scale share an axis
        scale = metric_info(row.name).scale
        ends[scale] = max(ends.get(scale, 0.0), abs(row.low), abs(row.high))
    for row in pair.differences:
        info = metric_info(row.name)
        end = info.scale * ends[info.scale]
        low, middle, high = info.scale * row.low, info.scale * row.difference, info.scale * row.high
        drawn = _interval((middle, low, high), -end, end).replace("<path", f'<path class="zero" d="M{_BAR / 2} 0V12"/><path', 1)
        interval = f"{drawn} {_signed(low, info.decimals)} to {_signed(high, info.decimals)}"
        name = metric_title(row.name) + (f", {row.policy}" if row.policy else "")
        values = (format_number(row.name, row.a), format_number(row.name, row.b), _signed(middle, info.decimals))
        rows.append(_row([_text(name), *map(_text, values), interval, f"{row.p_value:.3f}", str(row.n)]))
    columns = ("metric", "A", "B", "B − A", "95 % interval", "p", "images")
    caption = f"{_pair_name(pair)} (B minus A) · {title}"
    return _table(caption, columns, rows, sortable=False, attributes=f' data-pair="{number}"')


def _protocol_table(records: Sequence[RunRecord]) -> str:
    """The same maps under several protocols, a column for each."""
    keys: dict[tuple[str, str | None], None] = {}
    for record in records:
        for metric in record.metrics:
            if metric.value is not None:
                keys[metric.name, metric.policy] = None
    order = [info.name for info in METRICS]
    policies: list[str | None] = [None, *sort_policies(policy for _, policy in keys if policy is not None)]
    rows = []
    for name, policy in sorted(keys, key=lambda key: (order.index(metric_info(key[0]).name), key[0], policies.index(key[1]))):
        found = [next((m for m in record.metrics if (m.name, m.policy) == (name, policy)), None) for record in records]
        rows.append(_row([_text(metric_title(name) + (f", {policy}" if policy else "")), *map(_value, found)]))
    columns = ("metric", *(describe_protocol(record.protocol) for record in records))
    title = run_title(records[0]).removesuffix(f" · {columns[1]}")
    return _table(f"The same run under {len(records)} protocols · {title}", columns, rows, sortable=False)


def _gallery(gallery: Gallery) -> str:
    figures = []
    for image_id, class_name, pictures in gallery.items:
        shown = "".join(
            f'<span class="picture"><img src="data:image/jpeg;base64,{picture.jpeg}" loading="lazy" '
            f'alt="{_text(f"map of {picture.name} over {image_id} with true and predicted box")}">'
            f"<span>{_text(picture.name)}: IoU {picture.iou:.2f}</span></span>"
            for picture in pictures
        )
        figures.append(f"<li><figure>{shown}<figcaption>{_text(image_id)}<br>{_text(class_name)}</figcaption></figure></li>")
    legend = "True boxes: solid, green; predicted: dashed, red."
    return f'<h3>{_text(gallery.title)}</h3><p class="note">{_text(gallery.note)} {legend}</p><ul class="gallery">{"".join(figures)}</ul>'
