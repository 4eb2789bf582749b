"""The first section of the page: the tables of the leaderboard's first page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report.page.made_up import HOSTILE, html_of, page_of
from report.page.page_parser import Page

from wsolbench.records import MetricValue
from wsolbench.report.board.board import Cell, Table
from wsolbench.report.board.front_page import NOT_COMPARABLE, DatasetSection
from wsolbench.report.board.leaderboard import leaderboard_files
from wsolbench.report.page.front import DOCUMENTATION, front_html

LOCALIZATION = "CUB-200-2011 · Localization"


def write_runs(write_record: Callable[..., Path], images: int = 5794) -> None:
    """Two seeds of one method, one of another, a floor, and a fine-grained classifier."""
    for name, seed, value in (("cam", 0, 0.5), ("cam", 1, 0.6), ("spa", 0, 0.4), ("center-box", None, 0.3)):
        metric = MetricValue(name="gt_known", value=value, n=images, policy="oracle", tau=(0.2,))
        training = {} if seed is None else {"seed": seed}
        data = {"name": "cub", "images": images}
        write_record(dataset=data, method={"name": name, "training": training}, metrics=(metric,))
    metric = MetricValue(name="top1_cls", value=0.7, n=images)
    write_record(dataset=data, method={"name": "lio", "training": {"seed": 0}}, metrics=(metric,))


def texts_of_markdown(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading of Markdown, without links, stars and escapes."""
    below = page[page.index(heading) :].split("\n\n")[1]
    rows = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in below.splitlines()]
    return [
        [
            cell.strip().replace("**", "").replace("\\", "").replace("\u00a0", " ")
            for cell in row.strip("|").split("|")
        ]
        for row in rows
        if not row.startswith("|---")
    ]


def test_the_first_section_has_the_tables_of_the_first_page(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    write_runs(write_record)
    page, first = page_of(tmp_path), leaderboard_files(tmp_path)["README.md"]
    assert next(found["id"] for tag, found in page.elements if tag == "section") == "front"
    for caption, heading in (
        (LOCALIZATION, "### Localization"),
        ("CUB-200-2011 · Fine-grained classification", "### Fine-grained classification"),
    ):
        shown = page.tables[caption]
        assert [shown.head, *shown.body] == texts_of_markdown(first, heading)
    assert page.tables[LOCALIZATION].cells("method", "runs", "GT-known")[1] == (
        "cam",
        "2 seeds",
        "55.0 ± 7.1",
    )


def test_the_best_is_bold_and_only_addresses_of_the_web_are_links(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    write_runs(write_record)
    section = html_of(tmp_path).partition('<section id="front"')[2].partition("</section>")[0]
    assert '<td data-sort="0.55"><strong>55.0 ± 7.1</strong></td>' in section
    assert section.count("<strong>") == 1
    assert f'<a href="{DOCUMENTATION}/cam.md">cam</a>' in section
    assert '<a href="#board" data-filter="cub">All 5 runs of cub</a>' in section
    assert ".json" not in section


@pytest.mark.parametrize(("images", "warning"), [(5794, ""), (10, "10 of 5,794 images of the split test")])
def test_a_warning_stands_above_what_published_numbers_cannot_stand_beside(
    tmp_path: Path, write_record: Callable[..., Path], images: int, warning: str
) -> None:
    write_runs(write_record, images=images)
    text = html_of(tmp_path)
    assert (f'<p class="warning"><strong>{NOT_COMPARABLE}</strong> {warning}' in text) == bool(warning)
    assert (NOT_COMPARABLE in text) == bool(warning)


def test_submitted_rows_are_a_body_of_their_own_and_texts_stay_texts() -> None:
    rows = ((Cell("cam"), Cell("1")), (Cell(HOSTILE, "javascript:alert(1)"), Cell("2")))
    table = Table(
        path=("Localization",),
        columns=("method", "x"),
        rows=rows,
        notes=(HOSTILE,),
        sections=((1, "Outside"),),
    )
    section = DatasetSection(
        dataset=HOSTILE, title=HOSTILE, banner=HOSTILE, is_comparable=False, tables=(table,), runs=2
    )
    text = front_html([section])
    (shown,) = Page(f'{text}<script id="data">{{}}</script>').tables.values()
    assert shown.body == [["cam", "1"], ["Outside"], [HOSTILE, "2"]]
    assert text.count("<tbody>") == 2
    assert "javascript" not in text
    assert "<img" not in text
    assert front_html([]) == ""
