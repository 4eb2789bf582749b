from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.webdriver import CHROMIUM, DRIVER, Browser, browser

from wsolbench.exceptions import DataError
from wsolbench.maps import MapFolder
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, read_records
from wsolbench.report.board import Filters
from wsolbench.report.gallery import galleries
from wsolbench.report.leaderboard import board_tables
from wsolbench.report.page import page_html, write_page
from wsolbench.report.page_data import SCORES, gt_known_curve, precision_recall_curve, same_but_protocol

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "link", "input", "img", "br"}


class Page(HTMLParser):
    """Tables as lists of rows by caption, all elements with their attributes, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self._caption, self._rows, self._content = "", [[""]], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in {"th", "td", "caption"}:
            self._content = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in {"th", "td"}:
            self._rows[-1].append(self._content.strip())
        if tag == "caption":
            self._caption = self._content
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self._content += data

    def data(self, text: str) -> Any:
        return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def html_of(results: Path, **more: Any) -> str:
    return page_html(results, **{"galleries": (), "methods": 3, "resamples": 100, **more})[0]


@pytest.fixture
def results(tmp_path: Path, make_run: Callable[..., Any]) -> Path:
    """Three runs with scores under one protocol, and one of them under another."""
    for number, name in enumerate(("cam", "spa", "has")):
        run = make_run(16, method={"name": name}, seed=number)
        run.table.write(run.record.write(tmp_path / "measured").with_suffix(SCORES))
    other = EvalProtocol(name="union", taus=run.record.protocol.taus, frame_size=64, resize_size=80, components="union")
    make_run(16, method={"name": "has"}, seed=2, protocol=other).record.write(tmp_path / "measured")
    return tmp_path


def test_the_page_says_what_the_board_says(results: Path) -> None:
    page = Page(html_of(results))
    assert not page.open
    board = board_tables(results, Filters())
    assert board
    for table in board:
        head, *rows = page.tables[" · ".join((table.path[2], table.path[0], table.path[1]))]
        for shown, cells in zip(rows, table.rows, strict=True):
            found = dict(zip(head, shown, strict=True))
            expected = dict(zip(table.columns, (cell.text for cell in cells), strict=True))
            value, _, interval = expected.pop("measured").partition(" ")
            assert found["measured"] == value
            assert found.get("95 % interval", "") == interval.strip("[]").replace(", ", " to ")
            assert {name: found.get(name, "") for name in expected} == expected
            assert (results / found["record"]).is_file()


def test_published_numbers_have_tables_of_their_own() -> None:
    folder = Path(__file__).parents[2] / "results"
    text = html_of(folder, methods=0)
    page = Page(text)
    for table in board_tables(folder, Filters(dataset="cub")):
        if "published" not in table.columns:
            rows = page.tables[f"{table.path[2]} · {table.path[0]}/{table.path[1]}"]
            assert rows == [list(table.columns), *([cell.text for cell in row] for row in table.rows)]


def test_nothing_is_loaded_from_elsewhere_and_no_other_script_may_run(results: Path) -> None:
    text = html_of(results)
    for _, attributes in Page(text).elements:
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text


def test_every_table_can_be_read_aloud(results: Path) -> None:
    page = Page(html_of(results))
    assert all(caption for caption in page.tables)
    assert len(page.tables) == sum(tag == "table" for tag, _ in page.elements)
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in page.elements if tag == "th")


def test_text_of_records_stays_text(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    plain = write_record(method={"name": "plain"})
    known = {tag for tag, _ in Page(html_of(tmp_path)).elements}
    plain.unlink()
    write_record(method={"name": HOSTILE, "backbone": HOSTILE, "config": {HOSTILE: HOSTILE}}, dataset={"split": HOSTILE})
    text = html_of(tmp_path)
    page = Page(text)
    assert not page.open
    assert {tag for tag, _ in page.elements} == known
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert page.data(text)["runs"][0][0]["label"].startswith(HOSTILE)


def test_curves_pass_through_the_metrics(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run(20, masks=tmp_path)
    curve = gt_known_curve(run.table, run.record.protocol)
    metric = run.record.metric("gt_known", "oracle")
    assert curve is not None
    assert max(curve.y) == pytest.approx(metric.value, abs=1e-4)
    assert curve.x[int(np.argmax(curve.y))] == pytest.approx(metric.tau[0], abs=1e-4)
    line = precision_recall_curve(run.table)
    assert line is not None
    assert line.x[-1] == 1.0
    assert list(line.x) == sorted(line.x)
    area = float(np.sum(np.diff(line.x) * np.array(line.y[1:])))
    assert area == pytest.approx(run.record.metric("pxap").value, abs=0.1)


def test_runs_without_boxes_or_masks_have_no_such_curve(make_run: Callable[..., Any], run: Any) -> None:
    assert precision_recall_curve(run.table) is None
    bare = make_run(8, boxes=False)
    assert gt_known_curve(bare.table, bare.record.protocol) is None


def test_the_best_methods_are_compared_and_protocols_stand_side_by_side(results: Path) -> None:
    tables = Page(html_of(results)).tables
    pairs = [caption for caption in tables if "minus" in caption]
    assert len(pairs) == 3  # of three methods; the run under the other protocol is in none
    assert not any("minus" in caption for caption in Page(html_of(results, methods=0)).tables)
    (beside,) = (rows for caption, rows in tables.items() if caption.startswith("The same run under 2 protocols"))
    assert len(beside[0]) == 3


def test_maps_that_a_protocol_cuts_to_its_crop_stand_beside_whole_ones(tmp_path: Path, write_record: Callable[..., Path]) -> None:
    for protocol, maps in (("wsoleval", "stored"), ("bas", "stored, of the whole image, cut to the centre crop")):
        write_record(protocol=EvalProtocol.preset(protocol), method={"name": "spa", "maps": maps})
    ((first, second),) = same_but_protocol(list(read_records(tmp_path / "measured")))
    assert {first.protocol.name, second.protocol.name} == {"wsoleval", "bas"}


def test_scores_that_cannot_be_read_are_named_on_the_page(results: Path) -> None:
    broken = next(results.rglob(f"*{SCORES}"))
    broken.write_bytes(b"no scores")
    text, problems = page_html(results, galleries=(), methods=0, resamples=100)
    assert len(problems) == 1
    assert broken.name in problems[0]
    assert "1 files of scores cannot be read" in text


def test_the_same_files_give_the_same_page(results: Path) -> None:
    assert html_of(results) == html_of(results)


def test_an_empty_folder_of_records_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    assert "There is no record" in html_of(tmp_path)


def test_galleries_show_the_best_the_worst_and_the_disagreement(run: Any, tmp_path: Path) -> None:
    for name, maps in (("good", run.maps), ("flat", [np.ones_like(each) for each in run.maps])):
        for sample, raw in zip(run.dataset.samples, maps, strict=True):
            MapFolder(tmp_path / name).write(sample.id, raw)
    shown = galleries([tmp_path / "good", tmp_path / "flat"], run.dataset, run.record.protocol, count=3)
    best, worst = ([pictures[0].iou for _, _, pictures in gallery.items] for gallery in shown[:2])
    assert best == sorted(best, reverse=True)
    assert worst == sorted(worst)
    assert min(best) >= max(worst)
    assert len(shown[-1].items[0][2]) == 2
    (tmp_path / "measured").mkdir()
    page = Page(html_of(tmp_path, galleries=shown))
    assert sum(tag == "img" for tag, _ in page.elements) == 4 * 3 + 2 * 3
    with pytest.raises(DataError, match="a map in"):
        galleries([tmp_path], run.dataset, run.record.protocol, count=3)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (CHROMIUM.is_file() and DRIVER.is_file()):
        pytest.skip(f"{CHROMIUM} or {DRIVER} is not installed")
    with browser(tmp_path_factory.mktemp("profile")) as session:
        yield session


def test_a_browser_sorts_filters_draws_and_compares(chromium: Browser, results: Path, write_record: Callable[..., Path]) -> None:
    write_record(
        method={"name": HOSTILE},
        dataset={"name": "other"},
        metrics=(MetricValue(name="gt_known", value=0.1, n=2, policy="oracle", tau=(0.2,)),),
    )
    page, _ = write_page(results, results / "out", methods=3, resamples=100)
    chromium.open(page)
    visible = "return [...document.querySelectorAll('#board tbody tr')].filter(r => r.offsetParent).length"
    choose = "const s = document.querySelector('{}'); s.value = '{}'; s.dispatchEvent(new Event('change', {{bubbles: true}}));"

    assert chromium.run("return document.querySelector('select[name=metric]').value") == "GT-known"
    first = chromium.run(visible)
    assert chromium.run(choose.format("select[name=method]", "cam") + visible) < first
    chromium.run("document.querySelector('button[type=reset]').click()")
    assert chromium.run("return new Promise(done => setTimeout(() => done(0), 50)).then(() => { " + visible + " })") > first

    column = "const t = [...document.querySelectorAll('#board table')].find(t => t.tBodies[0].rows.length > 2);"
    at = "const n = [...t.tHead.rows[0].cells].findIndex(c => c.textContent === 'measured');"
    press = "t.tHead.rows[0].cells[n].querySelector('button').click();"
    read = "return [[...t.tBodies[0].rows].map(r => Number(r.cells[n].textContent)), t.tHead.rows[0].cells[n].getAttribute('aria-sort')]"
    for order in ("ascending", "descending"):
        values, said = chromium.run(column + at + press + read)
        assert said == order
        assert values == sorted(values, reverse=order == "descending")

    drawn = "return [document.querySelectorAll('.charts polyline').length, document.querySelectorAll('.charts rect').length]"
    titles = chromium.run("return [...document.querySelectorAll('#runs option')].map(o => o.textContent)")
    other = next(place for place, title in enumerate(titles) if title.startswith("squares") and "union" not in title)
    before = chromium.run(choose.format("#runs select", other) + drawn)
    assert before == [3, 18]
    assert chromium.run("document.querySelector(`[data-group='" + str(other) + "'] input`).click();" + drawn) == [2, 12]

    assert chromium.run(choose.format("#pairs select", 2) + "return document.querySelector('[data-pair=\"2\"]').offsetParent !== null")
    assert chromium.run("return document.querySelector('[data-pair=\"0\"]').offsetParent") is None

    for width in (360, 800, 1600):
        chromium.resize(width, 900)
        assert chromium.run("return document.documentElement.scrollWidth") <= width
    assert chromium.messages() == []
