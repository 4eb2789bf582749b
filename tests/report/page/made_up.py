"""The page of a results folder, and published numbers for tests of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from report.page.page_parser import Page

from wsolbench.records import RunRecord, read_records
from wsolbench.records.published import COLUMNS
from wsolbench.report.page.page import page_html

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def html_of(results: Path, **more: Any) -> str:
    return page_html(results, **{"galleries": (), "methods": 3, "resamples": 100, **more})[0]


def page_of(results: Path, **more: Any) -> Page:
    return Page(html_of(results, **more))


def write_published(results: Path, *numbers: dict[str, str]) -> None:
    """A paper called Birds with these numbers."""
    (results / "published").mkdir(parents=True, exist_ok=True)
    (results / "papers.toml").write_text(
        '[birds]\nname = "Birds"\ntitle = "On birds"\nyear = 2021\nfile = "published/birds.csv"\n'
    )
    usual = dict.fromkeys(COLUMNS, "") | {
        "table": "Table 1",
        "split": "test",
        "metric": "gt_known",
        "unit": "percent",
        "evidence": "own",
    }
    rows = [usual | {"row": str(place)} | number for place, number in enumerate(numbers, start=1)]
    lines = [",".join(COLUMNS), *(",".join(row[name] for name in COLUMNS) for row in rows)]
    (results / "published" / "birds.csv").write_text("\n".join(lines) + "\n")


def records_of(results: Path, protocol: str = "wsoleval") -> list[tuple[Path, RunRecord]]:
    return [
        (path, record)
        for path, record in read_records(results / "measured")
        if record.protocol.name == protocol
    ]
