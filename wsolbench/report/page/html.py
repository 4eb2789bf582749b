"""Elements of the page: the document around its sections, tables, rows and cells.

Styles, script and data are part of the file. A content security policy forbids everything else, so the page
loads nothing and sends nothing.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from wsolbench.report.board.tables import UNDEFINED
from wsolbench.system.text import one_line


def document(sections: Sequence[tuple[str, str, str]], data: dict[str, Any]) -> str:
    """Return the whole page from key, title and HTML of each section, and the data of the script."""
    style, script = (
        (files("wsolbench.report.page") / f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js")
    )
    allowed = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    policy = f"default-src 'none'; img-src data:; {allowed}; base-uri 'none'; form-action 'none'"
    links = "".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 '
        f'id="{key}-title">{escape(title)}</h2>{inner}</section>'
        for key, title, inner in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        'content="light dark">'
        '<meta name="referrer" content="no-referrer"><title>wsolbench: results</title>'
        f'<link rel="icon" href="data:,"><style>{style}</style></head>'
        '<body><a class="skip" href="#main">Skip to the tables</a><header><h1>wsolbench: results</h1>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main id="main">{body}</main>'
        '<script type="application/json" '
        f'id="data">{_json(data)}</script><script>{script}</script></body></html>\n'
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def escape(value: object) -> str:
    """Return text in one line, escaped for elements and attributes."""
    return html.escape(one_line(value), quote=True)


def _json(value: Any) -> str:
    """Return JSON that cannot close the element that contains it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table_block(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[str],
    *,
    sortable: bool = True,
    attributes: str = "",
    notes: Sequence[str] = (),
    sections: Sequence[tuple[int, str]] = (),
) -> str:
    """Return a table that scrolls sideways if it is too wide, with notes below. `rows` are `tr` elements.

    `sections` are those of `wsolbench.report.board.board.Table`: row that a section begins with, and its
    heading. Sorting leaves their rows where they are.
    """
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    kind = ' class="sortable"' if sortable else ""
    below = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<div class="block"{attributes}><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}"><table{kind}>'
        f"<caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"{_bodies(list(rows), sections, len(columns))}</table></div>{below}</div>"
    )


def _bodies(rows: Sequence[str], sections: Sequence[tuple[int, str]], columns: int) -> str:
    """Return the `tbody` elements: rows before the first section, and one element per section."""
    ends = [*(start for start, _ in sections), len(rows)]
    text = f"<tbody>{''.join(rows[: ends[0]])}</tbody>"
    for (start, heading), end in zip(sections, ends[1:], strict=True):
        head = f'<tr><th scope="rowgroup" colspan="{columns}">{escape(heading)}</th></tr>'
        text += f"<tbody>{head}{''.join(rows[start:end])}</tbody>"
    return text


@dataclass(frozen=True)
class Td:
    """HTML of a table's cell, and its sort key, or None if the text begins with the number to sort by."""

    html: str
    by: float | None = None

    def __str__(self) -> str:
        sort = "" if self.by is None else f' data-sort="{self.by:.6g}"'
        return f"<td{sort}>{self.html}</td>"


def row_of(cells: Sequence[Td], attributes: str = "") -> str:
    """Return a `tr` element. The first cell is the heading of the row."""
    first, *others = cells
    return f'<tr{attributes}><th scope="row">{first.html}</th>{"".join(map(str, others))}</tr>'


def filled(lines: Sequence[Sequence[Td]]) -> list[int]:
    """Return the indices of the columns that have content in any line.

    Empty ones would waste narrow screens.
    """
    return [
        place
        for place, column in enumerate(zip(*lines, strict=True))
        if any(cell.html not in ("", UNDEFINED) for cell in column)
    ]


def data_attributes(**values: str) -> str:
    """Return `data-` attributes, which the filters use."""
    return "".join(f' data-{name}="{escape(value)}"' for name, value in values.items())
