"""Formats of the board: no text leaves its cell or its comment, whatever it holds."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

from wsolbench.report.board.board import Cell, Table
from wsolbench.report.board.formats import render

AWKWARD = Table(
    path=("a|b", "50 %"),
    columns=("method", "x_1", "x_1"),
    rows=((Cell("a_b & 50 % #{~^}\\", "../r.json"), Cell("1†"), Cell("—")),),
    notes=("a_note",),
)


def test_markdown_escapes_and_links() -> None:
    text = render([AWKWARD, replace(AWKWARD, path=("a|b", "60 %"))], "markdown")
    assert text.count("## a\\|b\n") == 1  # a heading that two tables share stands once
    assert "### 50 %" in text
    assert "| [a\\_b &amp; 50 % \\#\\{\\~^\\}\\\\][1] | 1† | — |" in text
    assert text.count("../r.json") == 1  # once, however many tables link to it
    assert text.endswith("\n[1]: ../r.json\n")


def test_latex_is_a_booktabs_table_with_escaped_text() -> None:
    text = render([AWKWARD], "latex")
    assert text.splitlines()[1:4] == [r"\begin{tabular}{lll}", r"\toprule", r"method & x\_1 & x\_1 \\"]
    assert (
        r"a\_b \& 50 \% \#\{\textasciitilde{}\textasciicircum{}\}\textbackslash{} & 1$^\dagger$ & --- \\"
        in text
    )


def test_json_and_csv_hold_the_same_cells() -> None:
    (table,) = json.loads(render([AWKWARD], "json"))
    assert table["path"] == ["a|b", "50 %"]
    assert table["rows"] == [
        {"method": AWKWARD.rows[0][0].text, "x_1": "1†", "x_1 (2)": "—", "link": "../r.json"}
    ]
    header, row = csv.reader(io.StringIO(render([AWKWARD], "csv")))
    assert header == ["table", "method", "x_1", "x_1", "link"]
    assert row == ["a|b / 50 %", AWKWARD.rows[0][0].text, "1†", "—", "../r.json"]


HOSTILE = Table(
    path=("test\n\\input{/etc/hostname}\n% ", "b\u2028c\rd"),
    columns=("method", "=1+1"),
    rows=(
        (Cell("[x]"), Cell('=HYPERLINK("http://a.b")')),
        (Cell("*"), Cell("@a")),
        (Cell("+1.5"), Cell("-x\x1b[31m")),
    ),
    notes=("- a note\n\\end{document}", "1. www.x.org"),
)


"""Texts that each format could take for something else."""


def test_no_text_leaves_a_comment_or_a_cell_of_latex() -> None:
    lines = render([HOSTILE], "latex").splitlines()
    assert lines[0] == r"% test \textbackslash{}input\{/etc/hostname\} \% / b c d"
    assert [line for line in lines if line.startswith("%")] == [lines[0], *lines[-2:]]
    assert lines[5:8] == [
        r"{[}x{]} & =HYPERLINK(\symbol{34}http://a.b\symbol{34}) \\",
        r"{*} & @a \\",
        r"+1.5 & -x{[}31m \\",
    ]
    commands = {line.partition("{")[0] for line in lines if line.startswith("\\")}
    assert commands == {r"\begin", r"\toprule", r"\midrule", r"\bottomrule", r"\end"}


def test_no_text_is_a_formula_of_a_spreadsheet() -> None:
    header, *rows = csv.reader(io.StringIO(render([HOSTILE], "csv")))
    assert header == ["table", "method", "'=1+1", "link"]
    assert [row[1:3] for row in rows] == [
        ["[x]", '\'=HYPERLINK("http://a.b")'],
        ["*", "'@a"],
        ["+1.5", "'-x[31m"],
    ]
    assert all("\n" not in cell for row in rows for cell in row)


def test_no_text_is_markup_of_markdown() -> None:
    lines = render([HOSTILE], "markdown").splitlines()
    assert r"## test \\input\{/etc/hostname\} %" in lines
    assert "### b c d" in lines
    assert r"\- a note \\end\{document\}" in lines
    assert r"1\. www&#46;x.org" in lines
    assert '| \\[x\\] | =HYPERLINK("http&#58;//a.b") |' in lines
