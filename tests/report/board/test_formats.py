"""Formats of the board: no text leaves its cell or its comment, whatever it holds."""

from __future__ import annotations

import csv
import io

from wsolbench.report.board.board import Cell, Table
from wsolbench.report.board.formats import render

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
