"""Sphinx configuration: Markdown through MyST; the reference from docstrings and `--help`."""

import re
from pathlib import Path
from typing import Any

project = "wsolbench"
author = "The wsolbench authors"
copyright = "2026, the wsolbench authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]
default_role = "code"
"""Docstrings have names in single backticks."""
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
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


def setup(app: Any) -> None:
    """Show the examples of `--help` as code, and the leaderboard as a page."""

    def read(_app: Any, name: str, source: list[str]) -> None:
        if name == "leaderboard":
            source[0] = board_for_docs(_BOARD.read_text(encoding="utf-8"))

    app.connect("source-read", read)

    def rewrite(_app: Any, _context: Any, lines: list[str]) -> None:
        lines[:] = examples_as_code(lines)

    for part in ("description", "epilog"):
        app.connect(f"sphinx-click-process-{part}", rewrite)


napoleon_custom_sections = [("Class attributes", "params_style")]
