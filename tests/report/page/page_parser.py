"""A page as tests read it: tables by caption, with what their rows and cells are marked with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "input", "img", "br"}


@dataclass
class TableOnPage:
    """Texts of head and body, what cells are sorted by, and the attributes of body rows and of the block
    around."""

    block: dict[str, str | None]
    head: list[str] = field(default_factory=list)
    body: list[list[str]] = field(default_factory=list)
    sort: list[list[str | None]] = field(default_factory=list)
    rows: list[dict[str, str | None]] = field(default_factory=list)

    def cells(self, *columns: str) -> list[tuple[str, ...]]:
        """The body's cells below these heads."""
        places = [self.head.index(column) for column in columns]
        return [tuple(row[place] for place in places) for row in self.body]


class Page(HTMLParser):
    """Tables by caption, all elements with their attributes, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, TableOnPage] = {}
        self.open: list[str] = []
        self.data: Any = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
        self._table, self._caption, self._content = TableOnPage({}), "", ""
        self._block: dict[str, str | None] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if found.get("class") == "block":
            self._block = found
        if tag == "table":
            self._table = TableOnPage(self._block)
        if tag == "tr" and "thead" not in self.open:
            self._table.rows.append(found)
            self._table.body.append([])
            self._table.sort.append([])
        if tag in {"th", "td"} and "thead" not in self.open:
            self._table.sort[-1].append(found.get("data-sort"))
        if tag in {"th", "td", "caption"}:
            self._content = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in {"th", "td"}:
            (self._table.head if "thead" in self.open else self._table.body[-1]).append(self._content.strip())
        if tag == "caption":
            self._caption = self._content
        if tag == "table":
            assert self._caption not in self.tables, f"two tables are called {self._caption!r}"
            self.tables[self._caption] = self._table

    def handle_data(self, data: str) -> None:
        self._content += data

    def choices(self, name: str) -> list[str]:
        """The options of a select element of the filters."""
        inside = self.source.partition(f'<select name="{name}">')[2].partition("</select>")[0]
        return [part.partition(">")[2].partition("<")[0] for part in inside.split("<option")[1:]]
