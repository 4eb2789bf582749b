"""The tables of the page, and the page as a whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report.page.made_up import HOSTILE, html_of, page_of, records_of, write_published
from report.page.page_parser import Page

from wsolbench.evaluation.score_table import SCORES
from wsolbench.maps import MapFolder
from wsolbench.report.board.board import Filters
from wsolbench.report.board.leaderboard import board_tables
from wsolbench.report.page.gallery import galleries
from wsolbench.report.page.page import page_html


def test_the_page_says_what_the_board_says(results: Path) -> None:
    page = page_of(results)
    assert not page.open
    board = board_tables(results, Filters())
    assert board
    for table in board:
        shown = page.tables[" · ".join((table.path[2], table.path[0], table.path[1]))]
        for texts, marks, cells in zip(shown.body, shown.rows, table.rows, strict=True):
            found = dict(zip(shown.head, texts, strict=True))
            expected = dict(zip(table.columns, (cell.text for cell in cells), strict=True))
            value, _, interval = expected.pop("measured").partition(" ")
            assert found["measured"] == value
            assert found.get("95 % interval", "") == interval.strip("[]").replace(", ", " to ")
            assert {name: found.get(name, "").strip("—") for name in expected} == {
                n: text.strip("—") for n, text in expected.items()
            }
            assert (marks["data-method"], marks["data-backbone"]) == (found["method"], found["backbone"])
            assert (results / found["record"]).is_file()
        assert shown.block["data-dataset"] == "squares"
        assert shown.block["data-metric"] in str(table.path[2])
        assert str(shown.block["data-protocol"]) in table.path[1]


def test_intervals_are_drawn_to_scale(results: Path) -> None:
    text = (
        html_of(results)
        .partition("<caption>GT-known, threshold: oracle · squares")[2]
        .partition("</table>")[0]
    )
    rows = re.findall(
        r'<td>([\d.]+)</td><td><svg.*?M([\d.]+) 6H([\d.]+)M.*?cx="([\d.]+)".*?</svg> ([\d.]+) to ([\d.]+)',
        text,
    )
    assert len(rows) == 3
    numbers = [[float(part) for part in row] for row in rows]
    low, high = min(row[4] for row in numbers), max(row[5] for row in numbers)
    for value, left, right, x, start, end in numbers:
        for drawn, meant in ((left, start), (x, value), (right, end)):
            assert drawn == pytest.approx(4 + 112 * (meant - low) / (high - low), abs=0.1)


def test_records_of_one_seed_are_counted_once_and_the_others_are_named(results: Path) -> None:
    path, record = records_of(results)[0]
    versions = {"versions": {"wsolbench": "9.0"}}
    replace(record, provenance={**record.provenance, **versions}, metrics=record.metrics[:-1]).write(
        results / "measured"
    )
    text = html_of(results)
    assert "<p>6 runs (1 superseded).</p>" in text
    assert "<summary>Left out: 1</summary>" in text
    assert text.count(path.name) == 1


def test_a_broken_record_is_named_on_the_page_and_hides_no_other(results: Path) -> None:
    path, _ = records_of(results)[0]
    (results / "measured/broken.json").write_text("{")
    (results / "measured/copy.json").write_bytes(path.read_bytes())
    text, problems = page_html(results, galleries=(), methods=0, resamples=100)
    assert "<p>6 runs (1 copied, 1 unusable).</p>" in text
    assert problems[0].startswith(f"record {results / 'measured/broken.json'} is not JSON")
    assert "copy.json is a copy of" in text


def test_published_numbers_have_tables_of_their_own(results: Path) -> None:
    write_published(
        results,
        {"dataset": "cub", "method": "SPA", "ours": "spa", "backbone": "vgg16", "value": "72.5"},
        {
            "dataset": "cub",
            "method": "CAM",
            "ours": "cam",
            "backbone": "vgg16",
            "value": "39.73",
            "unit": "percent_error",
        },
        {"dataset": "cub", "method": "TS-CAM", "backbone": "DeiT-S", "value": "0.877", "unit": "fraction"},
    )
    page = page_of(results)
    shown = page.tables["GT-known · cub/test"]
    (table,) = [
        table for table in board_tables(results, Filters(dataset="cub")) if "published" not in table.columns
    ]
    assert shown.head == list(table.columns)
    assert shown.body == [[cell.text for cell in row] for row in table.rows]
    assert shown.cells("method", "GT-known") == [
        ("TS-CAM", "0.877"),
        ("SPA", "72.5 %"),
        ("CAM", "39.73 % error"),
    ]
    assert [row[2] for row in shown.sort] == ["0.877", "0.725", "0.6027"]
    assert [(row["data-method"], row["data-backbone"]) for row in shown.rows] == [
        ("TS-CAM", "DeiT-S"),
        ("spa", "vgg16"),
        ("cam", "vgg16"),
    ]
    assert (shown.block["data-dataset"], shown.block["data-metric"], shown.block["data-protocol"]) == (
        "cub",
        "GT-known",
        "",
    )


def test_choices_are_among_what_is_measured_and_what_is_printed(results: Path) -> None:
    write_published(
        results,
        {"dataset": "cub", "method": "TS-CAM", "backbone": "DeiT-S", "value": "0.877", "unit": "fraction"},
    )
    page = page_of(results)
    assert page.choices("dataset") == ["all", "cub", "squares"]
    assert page.choices("method") == ["all", "TS-CAM", "cam", "has", "spa"]
    assert page.choices("backbone") == ["all", "DeiT-S", "tiny"]
    titles = page.choices("metric")[1:]
    assert set(titles) == {
        table.block["data-metric"] for table in page.tables.values() if "data-metric" in table.block
    }
    assert titles.index("Top-1 Cls") < titles.index("GT-known") < titles.index("PxAP")
    assert len(page.choices("protocol")) == 3


@pytest.mark.parametrize("printed", ["squares", "others"])
def test_opened_is_a_data_set_with_published_numbers_else_the_one_most_is_measured_of(
    results: Path, write_record: Callable[..., Path], printed: str
) -> None:
    write_record(dataset={"name": "a few"}, method={"name": "cam"})
    write_record(dataset={"name": "others"}, method={"name": "cam"})
    write_published(
        results, {"dataset": printed, "method": "SPA", "ours": "spa", "backbone": "vgg16", "value": "72.5"}
    )
    (form,) = [
        found
        for tag, found in page_of(results).elements
        if tag == "form" and found.get("class", "").startswith("filters")
    ]
    assert (form["data-dataset"], form["data-metric"]) == (printed, "GT-known")
    (results / "papers.toml").unlink()
    (form,) = [
        found
        for tag, found in page_of(results).elements
        if tag == "form" and found.get("class", "").startswith("filters")
    ]
    assert form["data-dataset"] == "squares"


def test_all_sections_open_with_one_data_set(results: Path, make_run: Callable[..., Any]) -> None:
    for number, name in enumerate(
        ("cam", "spa", "has", "acol", "adl")
    ):  # more runs and pairs than of squares
        run = make_run(8, method={"name": name, "training": {"seed": 0}}, seed=number)
        record = replace(run.record, dataset={**run.record.dataset, "name": "more"})
        run.table.write(record.write(results / "measured").with_suffix(SCORES))

    def opened() -> list[str]:
        return re.findall(r'<option value="\d+" selected>(\w+)/', html_of(results, methods=5))

    write_published(
        results, {"dataset": "squares", "method": "SPA", "ours": "spa", "backbone": "vgg16", "value": "72.5"}
    )
    assert opened() == ["squares", "squares"]
    write_published(
        results, {"dataset": "more", "method": "SPA", "ours": "spa", "backbone": "vgg16", "value": "72.5"}
    )
    assert opened() == ["more", "more"]


def test_nothing_is_loaded_from_elsewhere_and_no_other_script_may_run(results: Path) -> None:
    text = html_of(results)
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "action", "srcset"):
            outside = ("https://",) if (tag, name) == ("a", "href") else ()  # followed only by a click
            assert (attributes.get(name) or "#").startswith(("#", "data:", *outside))
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "@import" not in text


def test_every_table_can_be_read_aloud(results: Path) -> None:
    page = page_of(results)
    assert all(caption for caption in page.tables)
    assert len(page.tables) == sum(tag == "table" for tag, _ in page.elements)
    assert all(
        attributes.get("scope") in {"col", "row", "rowgroup"}
        for tag, attributes in page.elements
        if tag == "th"
    )


def test_text_of_records_stays_text(tmp_path: Path, make_run: Callable[..., Any]) -> None:
    def write(text: str) -> Path:
        for number in (0, 1):
            method = {
                "name": f"{text}{number}",
                "backbone": text,
                "config": {text: text * number},
                "training": {"weights": text, "seed": number},
            }
            for changed in (method, method | {"config": {text: "other"}}):
                run = make_run(8, method=changed, seed=number)
                record = replace(
                    run.record, dataset={**run.record.dataset, "name": text, "split": text, "transform": text}
                )
                run.table.write(record.write(tmp_path / str(len(text)) / "measured").with_suffix(SCORES))
        for sample, raw in zip(run.dataset.samples, run.maps, strict=True):
            MapFolder(tmp_path / str(len(text)) / "maps").write(sample.id, raw)
        return tmp_path / str(len(text))

    def tags(folder: Path, text: str) -> tuple[Page, Counter[str]]:
        shown = galleries([folder / "maps"], make_run(8).dataset, make_run(8).record.protocol, count=1)
        hostile = [
            replace(
                g, title=text, note=text, items=tuple((text, text, pictures) for _, _, pictures in g.items)
            )
            for g in shown
        ]
        page = page_of(folder, galleries=hostile)
        assert not page.open
        return page, Counter(tag for tag, _ in page.elements)

    _, known = tags(write("plain"), "plain")
    page, found = tags(write(HOSTILE), HOSTILE)
    assert not set("<>&") & set(page.source.partition('id="data">')[2].partition("</script>")[0])
    assert found == known
    assert found["script"] == 2
    marked = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name == "data-method"
    ]
    assert set(marked) == {f"{HOSTILE}0", f"{HOSTILE}1"}
    assert any("minus" in caption for caption in page.tables)
    assert all(run["label"].startswith(HOSTILE) for group in page.data["runs"] for run in group)


def test_the_same_files_give_the_same_page(results: Path) -> None:
    assert html_of(results) == html_of(results)


def test_published_numbers_alone_have_their_filters(tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    write_published(
        tmp_path,
        {"dataset": "cub", "method": "TS-CAM", "backbone": "DeiT-S", "value": "0.877", "unit": "fraction"},
    )
    page = page_of(tmp_path)
    assert page.choices("method") == ["all", "TS-CAM"]
    assert page.choices("dataset") == ["all", "cub"]


def test_an_empty_folder_of_records_gives_a_page(tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    assert "There is no record" in html_of(tmp_path)


def test_pictures_of_galleries_are_on_the_page(run: Any, tmp_path: Path) -> None:
    for sample, raw in zip(run.dataset.samples, run.maps, strict=True):
        MapFolder(tmp_path / "good").write(sample.id, raw)
    shown = galleries([tmp_path / "good"], run.dataset, run.record.protocol, count=3)
    (tmp_path / "measured").mkdir()
    text = html_of(tmp_path, galleries=shown)
    pictures = [found for tag, found in Page(text).elements if tag == "img"]
    assert [str(found["src"]).removeprefix("data:image/jpeg;base64,") for found in pictures] == [
        picture.jpeg for gallery in shown for _, _, of in gallery.items for picture in of
    ]
    for gallery in shown:
        assert f"<h3>{gallery.title}</h3>" in text
        for image_id, class_name, (picture,) in gallery.items:
            assert f"<span>IoU {picture.iou:.2f}</span></span><figcaption>{image_id}<br>{class_name}<" in text
