"""Tables of the leaderboard as Markdown, CSV, LaTeX (booktabs) and JSON, with the same cells."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from wsolbench.exceptions import unknown_name
from wsolbench.report.board.board import Cell, Table
from wsolbench.report.board.tables import escape_markdown
from wsolbench.system.text import one_line

_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\textasciigrave{}",
    "†": r"$^\dagger$",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "→": r"$\to$",
    "²": r"\textsuperscript{2}",
    "³": r"\textsuperscript{3}",
    # LaTeX stops at a Greek letter outside of formulas. Those that are not here equal Latin ones.
    **{letter: rf"$\{name}$" for letter, name in zip(_GREEK, _GREEK_NAMES.split(), strict=True)},
    # After the end of a row, LaTeX would read `[` as a distance and `*` as a ban on a page break.
    **{character: f"{{{character}}}" for character in "[]*"},
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def render(tables: Sequence[Table], kind: str) -> str:
    """Render all tables as one text. Raises `UsageError` for a format that is not in `FORMATS`."""
    if kind not in FORMATS:
        raise unknown_name("format", kind, FORMATS)
    return FORMATS[kind](tables)


def _markdown(tables: Sequence[Table]) -> str:
    """Render Markdown. Addresses are listed once at the end, because every metric's table links a record."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    shown: tuple[str, ...] = ()
    for table in tables:
        same = next(
            (place for place, (old, new) in enumerate(zip(shown, table.path, strict=False)) if old != new),
            len(shown),
        )
        for depth, heading in enumerate(table.path[same:], start=same):
            lines += [f"{'#' * (depth + 2)} {escape_markdown(heading)}", ""]
        shown = table.path
        lines += markdown_rows(table, labels)
        lines += ["", *(line for note in table.notes for line in (escape_markdown(note), ""))]
    return "\n".join(
        [*lines, *(f"[{label}]: {link}" for link, label in labels.items()), *([""] if labels else [])]
    )


def markdown_rows(table: Table, labels: dict[str, int] | None = None) -> list[str]:
    """Return the lines of a table without its headings and notes.

    `labels` numbers the addresses that are listed elsewhere; None puts them into the cells.
    """
    lines = [f"| {' | '.join(map(escape_markdown, table.columns))} |", f"|{'---|' * len(table.columns)}"]
    headings = dict(table.sections)
    for place, row in enumerate(table.rows):
        if place in headings:
            first = f"*{escape_markdown(headings[place])}*"
            lines.append(f"| {first} |{' |' * (len(table.columns) - 1)}")
        lines.append(f"| {' | '.join(_markdown_cell(cell, labels) for cell in row)} |")
    return lines


def _markdown_cell(cell: Cell, labels: dict[str, int] | None) -> str:
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.bold else text
    if not cell.link:
        return text
    if labels is None:
        return f"[{text}]({cell.link})"
    return f"[{text}][{labels.setdefault(cell.link, len(labels) + 1)}]"


def _csv(tables: Sequence[Table]) -> str:
    """Render CSV, one line per row. Tables with other columns than the one before begin with a header.

    A column of numbers becomes one column per number: `gt_known_mean`, `gt_known_low`. Texts that a
    spreadsheet would compute are marked as texts (`escape_formula`).
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header: tuple[str, ...] | None = None
    for table in tables:
        numeric, section = table.numeric, ["section"] if table.sections else []
        columns = [
            f"{key}_{number}" if number else key
            for key, numbers in zip(table.keys or table.columns, numeric, strict=True)
            for number in numbers or ("",)
        ]
        names = ("table", *section, *columns, "link")
        if names != header:
            header = names
            writer.writerow(map(escape_formula, names))
        for place, row in enumerate(table.rows):
            values = (
                " / ".join(table.path),
                *(table.section_of(place) for _ in section),
                *(
                    (cell.numbers or {}).get(number) if number else cell.text
                    for cell, numbers in zip(row, numeric, strict=True)
                    for number in numbers or ("",)
                ),
                next((cell.link for cell in row if cell.link), ""),
            )
            writer.writerow(map(escape_formula, values))
    return stream.getvalue()


def escape_formula(value: Any) -> Any:
    """Return text in one line that a spreadsheet shows instead of computing it. Numbers stay unchanged.

    >>> escape_formula("=1+1"), escape_formula("+1.5"), escape_formula("-x")
    ("'=1+1", '+1.5', "'-x")
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    is_formula = (
        text.startswith(("=", "+", "-", "@")) and re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text) is None
    )
    return f"'{text}" if is_formula else text


def _latex(tables: Sequence[Table]) -> str:
    """Render `tabular` environments for booktabs, with the caption in a comment.

    Columns of numbers are aligned to the right.
    """
    lines: list[str] = []
    for table in tables:
        lines += [
            f"% {escape_latex(' / '.join(table.path))}",
            rf"\begin{{tabular}}{{{''.join('r' if numbers else 'l' for numbers in table.numeric)}}}",
            r"\toprule",
        ]
        lines += [" & ".join(map(escape_latex, table.columns)) + r" \\", r"\midrule"]
        headings = dict(table.sections)
        for place, row in enumerate(table.rows):
            if place in headings:
                heading = rf"\emph{{{escape_latex(headings[place])}}}"
                lines += [r"\midrule", rf"\multicolumn{{{len(row)}}}{{l}}{{{heading}}} \\"]
            lines.append(" & ".join(map(_latex_cell, row)) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", *(f"% {escape_latex(note)}" for note in table.notes), ""]
    return "\n".join(lines)


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text


def escape_latex(text: str) -> str:
    r"""Return text in one line that LaTeX prints literally, in a cell or a comment.

    >>> escape_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return re.sub("[" + re.escape("".join(_TEX)) + "]", lambda match: _TEX[match[0]], one_line(text))


def _json(tables: Sequence[Table]) -> str:
    """Render a list of tables, each row an object by column. Repeated `measured` columns are numbered.

    The value of a column of numbers is an object of numbers by name, or null for an empty cell.
    """
    out = []
    for table in tables:
        keys, numeric = table.keys or table.columns, table.numeric
        names = [
            name if keys.index(name) == place else f"{name} ({place})" for place, name in enumerate(keys)
        ]
        rows = [
            {
                **({"section": table.section_of(place)} if table.sections else {}),
                **{
                    name: (None if cell.numbers is None else dict(cell.numbers)) if numbers else cell.text
                    for name, cell, numbers in zip(names, row, numeric, strict=True)
                },
                "link": next((cell.link for cell in row if cell.link), None),
            }
            for place, row in enumerate(table.rows)
        ]
        out.append({"path": list(table.path), "rows": rows, "notes": list(table.notes)})
    return json.dumps(out, indent=2, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
SUFFIXES = {"markdown": ".md", "csv": ".csv", "latex": ".tex", "json": ".json"}
