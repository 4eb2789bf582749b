"""First section of the page: the tables of the leaderboard's first page, from the same code."""

from __future__ import annotations

from collections.abc import Sequence

from wsolbench.report.board.board import Cell, Table
from wsolbench.report.board.front_page import (
    INTRODUCTION,
    METHOD_PAGES,
    NOT_COMPARABLE,
    SUBMITTED,
    DatasetSection,
)
from wsolbench.report.page.html import Td, data_attributes, escape, row_of, table_block

DOCUMENTATION = "https://github.com/wsolbench/wsolbench/blob/main/docs/methods"
"""Address of the methods' pages, to which the page can link wherever it is stored."""


def front_html(sections: Sequence[DatasetSection]) -> str:
    """Return the tables with a heading and a banner per data set, or an empty text without a table.

    Addresses of the web are links. Files of the results folder are not, because the page may be elsewhere.
    """
    if not sections:
        return ""
    introduction = INTRODUCTION.format(submitted=f"<em>{SUBMITTED}</em>")
    text = f"<p>{introduction} Published numbers have a section of their own.</p>"
    return text + "".join(map(_section, sections))


def _section(section: DatasetSection) -> str:
    banner = f"<p>{escape(section.banner)}</p>"
    if not section.is_comparable:
        banner = f'<p class="warning"><strong>{NOT_COMPARABLE}</strong> {escape(section.banner)}</p>'
    tables = "".join(_table(section, table) for table in section.tables)
    all_runs = ""
    if section.runs:
        count = f"All {section.runs} runs" if section.runs > 1 else "The run"
        of_dataset = data_attributes(filter=section.dataset)
        all_runs = f'<p><a href="#board"{of_dataset}>{count} of {escape(section.dataset)}</a></p>'
    return f"<h3>{escape(section.title)}</h3>{banner}{tables}{all_runs}"


def _table(section: DatasetSection, table: Table) -> str:
    rows = [row_of([_cell(cell) for cell in row]) for row in table.rows]
    return table_block(
        f"{section.title} · {table.path[-1]}",
        table.columns,
        rows,
        notes=table.notes,
        sections=table.sections,
    )


def _cell(cell: Cell) -> Td:
    text = escape(cell.text)
    if address := _address(cell.link):
        text = f'<a href="{escape(address)}">{text}</a>'
    return Td(f"<strong>{text}</strong>" if cell.bold else text, cell.order)


def _address(link: str) -> str:
    """Return an address of the web, or an empty text for a file."""
    if link.startswith(f"{METHOD_PAGES}/"):
        return DOCUMENTATION + link.removeprefix(METHOD_PAGES)
    return link if link.startswith(("https://", "http://")) else ""
