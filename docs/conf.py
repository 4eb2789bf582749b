"""Sphinx configuration: Markdown through MyST; the reference from docstrings and `--help`."""

import re
from pathlib import Path
from typing import Any

project = "wsolbench"
author = "The wsolbench authors"
copyright = "2026, the wsolbench authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_click",
]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_dmath_double_inline = False
myst_dmath_allow_space = False
myst_dmath_allow_digits = False
"""`$$` on a line of its own is an equation; dollars in text and in paths are dollars."""
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing", "ref.python"]
"""Links to files of the repository; short names in docstrings that several classes have."""
default_role = "code"
"""Docstrings have names in single backticks."""
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
"""Types stand with the arguments that a docstring explains; signatures have names and defaults."""
add_module_names = False
smartquotes_action = "qe"
"""Quotes and ellipses, but no dashes: `--data-root` begins with two hyphens."""

_EXAMPLE = re.compile(r"(?P<before>.*?)(?:^|\s{2,})(?P<example>(?:wsolbench|torchrun) .+)")


def examples_as_code(lines: list[str]) -> list[str]:
    """Put every example of a help text into a block of its own, which can be copied."""
    found: list[str] = []
    for line in lines:
        if match := _EXAMPLE.fullmatch(line.rstrip()):
            before = match["before"].strip()
            found += [
                *([before, ""] if before else []),
                ".. code-block:: console",
                "",
                f"   {match['example']}",
                "",
            ]
        else:
            found.append(line)
    return found


_FILES = "https://github.com/wsolbench/wsolbench/blob/main/results"
_BOARD = Path(__file__).parents[1] / "results/leaderboard/README.md"


def board_for_docs(text: str) -> str:
    """Return the first page of the leaderboard with the links that it needs in this folder."""
    text = re.sub(r"\]\(\.\./\.\./docs/", "](", text)
    text = re.sub(r"\]\(\.\./(?=\w)", f"]({_FILES}/", text)
    return re.sub(r"\]\((?=[\w.%+-]+\.(?:md|csv)\))(?!methods/)", f"]({_FILES}/leaderboard/", text)


LONGEST_SIGNATURE = 240
"""Characters, about three lines of a page."""


def short_signature(signature: str | None, kind: str) -> str | None:
    """Return a signature that is not longer than three lines.

    The fields of a class are listed below it. A function keeps the names of its arguments.
    """
    if signature is None or len(signature) <= LONGEST_SIGNATURE:
        return signature
    if kind in ("class", "exception"):
        return "(...)"
    text = signature[1:-1]
    while (plain := re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|'[^']*'", "", text)) != text:
        text = plain  # without defaults and types that have commas
    return f"({', '.join(re.split('[:=]', part)[0].strip() for part in text.split(','))})"


def setup(app: Any) -> None:
    """Show the examples of `--help` as code, short signatures, and the leaderboard as a page."""

    def shorten(
        _app: Any,
        what: str,
        _name: str,
        _object: Any,
        _options: Any,
        signature: str | None,
        returns: str | None,
    ) -> tuple[str | None, str | None]:
        return short_signature(signature, what), returns

    app.connect("autodoc-process-signature", shorten)

    def read(app: Any, name: str, source: list[str]) -> None:
        if name == "leaderboard":
            app.env.note_dependency(_BOARD)  # a later build reads the page again if this file changes
            source[0] = board_for_docs(_BOARD.read_text(encoding="utf-8"))

    app.connect("source-read", read)

    def rewrite(_app: Any, _context: Any, lines: list[str]) -> None:
        lines[:] = examples_as_code(lines)

    for part in ("description", "epilog"):
        app.connect(f"sphinx-click-process-{part}", rewrite)


napoleon_custom_sections = [("Class attributes", "params_style")]
