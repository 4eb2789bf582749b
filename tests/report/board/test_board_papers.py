"""The board names the papers of methods, also of those without published numbers."""

from __future__ import annotations

from tests.report.board.test_board import published, run, texts
from wsolbench.records.published import read_papers
from wsolbench.report.board.board import Filters, Numbers, measured_tables


def test_a_row_names_the_papers_of_its_method_and_post_process() -> None:
    papers = {**published().papers, **{key: read_papers()[key] for key in ("cam", "sem", "spa")}}
    numbers = Numbers(numbers=[], papers=papers)
    runs = [run(0.4, name=name) for name in ("cam", "cam+sem", "spa+scg", "lio:oel_7", "mine")]
    rows = texts(measured_tables(runs, numbers, Filters())[0])
    assert {row["method"]: row["paper"] for row in rows} == {
        "cam": "CAM 2016",
        "cam+sem": "CAM 2016 / SEM 2020",
        "spa+scg": "SPA 2021",
        "lio:oel_7": "",
        "mine": "",
    }
