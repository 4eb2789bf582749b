from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report.page.page_parser import Page

from wsolbench.evaluation.compare import compare
from wsolbench.evaluation.score_table import SCORES, ScoreTable
from wsolbench.maps import MapFolder
from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, read_record, read_records
from wsolbench.records.published import COLUMNS
from wsolbench.report.board.board import Filters
from wsolbench.report.board.leaderboard import board_tables
from wsolbench.report.board.tables import format_taus, format_value
from wsolbench.report.page.gallery import galleries
from wsolbench.report.page.page import page_html
from wsolbench.report.page.page_data import gt_known_curve, precision_recall_curve

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


@pytest.fixture
def results(tmp_path: Path, make_run: Callable[..., Any]) -> Path:
    """Two methods with two seeds each and one with one, with scores; and one of them under another
    protocol."""

    def write(name: str, number: int, seed: int, **more: Any) -> None:
        run = make_run(
            21, method={"name": name, "training": {"seed": seed}}, seed=number, masks=tmp_path, **more
        )
        run.table.write(run.record.write(tmp_path / "measured").with_suffix(SCORES))

    for number, (name, seed) in enumerate((("cam", 0), ("cam", 1), ("spa", 0), ("spa", 1), ("has", 0))):
        write(name, number, seed, fixed_tau=0.2)
    write(
        "has",
        4,
        0,
        fixed_tau=0.2,
        protocol=EvalProtocol(name="union", frame_size=64, resize_size=80, components="union"),
    )
    return tmp_path


def records_of(results: Path, protocol: str = "wsoleval") -> list[tuple[Path, RunRecord]]:
    return [
        (path, record)
        for path, record in read_records(results / "measured")
        if record.protocol.name == protocol
    ]


# --- the board ----------------------------------------------------------------------------------------------


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


# --- runs, comparisons, protocols ---------------------------------------------------------------------------


def test_runs_have_their_numbers_and_what_tells_them_apart(results: Path) -> None:
    page = page_of(results)
    caption = next(
        caption for caption in page.tables if caption.startswith("Runs") and "union" not in caption
    )
    shown = page.tables[caption]
    records = {path.relative_to(results).as_posix(): record for path, record in records_of(results)}
    assert len(shown.body) == len(records) == 5
    values = []
    for row, sort in zip(shown.body, shown.sort, strict=True):
        cells, order = dict(zip(shown.head, row, strict=True)), dict(zip(shown.head, sort, strict=True))
        record = records.pop(cells["record"])
        assert cells["run"] == f"{record.method['name']} tiny · seed {record.training['seed']}"
        gt_known = record.metric("gt_known", "oracle")
        assert gt_known is not None
        assert gt_known.tau is not None
        assert (cells["threshold"], float(order["threshold"] or 0)) == (
            format_taus(gt_known),
            pytest.approx(gt_known.tau[0], rel=1e-5),
        )
        names = {"gt_known": "oracle", "pxap": None, **{f"error_{name}": "oracle" for name in ERROR_NAMES}}
        for name, policy in names.items():
            metric = record.metric(name, policy)
            assert metric is not None
            assert cells[metric_title(name)] == format_value(metric)
        assert cells["curves"] == "yes"
        values.append(gt_known.value)
    assert values == sorted(values, key=lambda value: -(value or 0))


def test_runs_of_a_method_are_named_with_what_they_differ_in(
    write_record: Callable[..., Path], tmp_path: Path
) -> None:
    for number in (1, 2):
        write_record(
            method={
                "name": "cam",
                "config": {"number": number, "head": "fc"},
                "training": {"seed": 0, "weights": "imagenet"},
            }
        )
    page = page_of(tmp_path)
    (caption,) = (caption for caption in page.tables if caption.startswith("Runs"))
    assert sorted(page.tables[caption].cells("run", "curves")) == [
        (f"cam tiny · from imagenet · number={number} · seed 0", "no") for number in (1, 2)
    ]
    labels = [run["label"] for run in page.data["runs"][0]]
    assert sorted(labels) == [f"cam · tiny · from imagenet · number={number} · seed 0" for number in (1, 2)]


def test_charts_are_drawn_from_what_records_and_scores_say(results: Path) -> None:
    page = page_of(results)
    assert page.data["errors"] == ["Right", "Cls", "M-Ins", "Part", "More", "Other"]
    for number, caption in enumerate(caption for caption in page.tables if caption.startswith("Runs")):
        assert page.tables[caption].block["data-group"] == str(number)
        for (path,), drawn in zip(
            page.tables[caption].cells("record"), page.data["runs"][number], strict=True
        ):
            record, scores = (
                read_record(results / path),
                ScoreTable.read((results / path).with_suffix(SCORES)),
            )
            for name, curve in (
                ("gt_known", gt_known_curve(scores, record.map_protocol)),
                ("pr", precision_recall_curve(scores)),
            ):
                assert curve is not None
                assert drawn[name] == [list(curve.x), list(curve.y)]
            best = record.metric("gt_known", "oracle")
            assert best is not None
            assert max(drawn["gt_known"][1]) == pytest.approx(
                best.value, abs=1e-7
            )  # enough digits to be rounded as in tables
            metrics = [record.metric(f"error_{name}", "oracle") for name in ERROR_NAMES]
            assert drawn["errors"] == [
                [metric.value, metric.low, metric.high] for metric in metrics if metric is not None
            ]


def test_comparisons_say_what_comparing_all_seeds_says(results: Path) -> None:
    page = page_of(results)
    records = sorted(records_of(results), key=lambda item: item[1].training["seed"])
    pairs = {caption: table for caption, table in page.tables.items() if "minus" in caption}
    assert len(pairs) == 3
    assert page.source.count('class="zero"') == sum(len(table.body) for table in pairs.values())
    for caption, table in pairs.items():
        b, a = re.match(r"(\w+) \(B\) minus (\w+) \(A\) · squares/test · 21 images", caption).groups()  # type: ignore[union-attr]
        sides = [
            [
                ScoreTable.read(path.with_suffix(SCORES))
                for path, record in records
                if record.method["name"] == name
            ]
            for name in (a, b)
        ]
        differences = compare(*sides, records[0][1].map_protocol, resamples=100)
        assert len(table.body) == len(differences) > 10
        for texts, row in zip(table.body, differences, strict=True):
            found, info = dict(zip(table.head, texts, strict=True)), metric_info(row.name)
            lower = row.name in {"error_cls", "error_m_ins", "error_part", "error_more", "error_other"}
            assert (
                found["metric"]
                == metric_title(row.name) + (f", {row.policy}" if row.policy else "") + " ↓" * lower
            )
            for column, value in (("A", row.a), ("B", row.b), ("B − A", row.difference)):
                assert float(found[column]) == pytest.approx(
                    info.scale * value, abs=0.51 * 10**-info.decimals
                )
            ends = [float(end) for end in found["95 % interval"].split(" to ")]
            assert ends == pytest.approx(
                [info.scale * end for end in row.ends], abs=0.51 * 10**-info.decimals
            )
            assert float(found["p"]) == pytest.approx(row.test, abs=0.00051)
            assert found["images"] == str(row.n)
            assert ("seed by seed" in found) == ("has" not in (a, b))
            if "seed by seed" in found:
                by_seed = [float(part) for part in found["seed by seed"].split(", ")]
                assert by_seed == pytest.approx(
                    [info.scale * value for value in row.per_pair or ()], abs=0.51 * 10**-info.decimals
                )
    assert not any("minus" in caption for caption in page_of(results, methods=0).tables)


@pytest.mark.parametrize(
    ("seeds", "by_seed"), [(((0, 1), (0, 1)), True), (((0, 1), (1, 2)), False), (((0,), (0,)), False)]
)
def test_differences_seed_by_seed_are_of_the_same_seeds(
    tmp_path: Path,
    make_run: Callable[..., Any],
    seeds: tuple[tuple[int, ...], tuple[int, ...]],
    by_seed: bool,
) -> None:
    for name, of in zip(("cam", "spa"), seeds, strict=True):
        for seed in of:
            run = make_run(
                8, method={"name": name, "training": {"seed": seed}}, seed=seed + 10 * (name == "cam")
            )
            run.table.write(run.record.write(tmp_path / "measured").with_suffix(SCORES))
    (table,) = (table for caption, table in page_of(tmp_path).tables.items() if "minus" in caption)
    assert ("seed by seed" in table.head) == by_seed


def test_comparisons_say_between_what(results: Path) -> None:
    text = html_of(results)
    for label in ("cam · tiny · seeds 0, 1", "spa · tiny · seeds 0, 1", "has · tiny · seed 0"):
        assert {f'<p class="note">{side}: {label}</p>' in text for side in "AB"} != {False}
    blocks = re.findall(r'data-pair="(\d)".*?<caption>(\w+) \(B\) minus (\w+) \(A\)', text)
    options = re.findall(r'<option value="(\d)" data-of="0">(\w+) minus (\w+)</option>', text)
    assert blocks == options
    assert len(options) == 3


def test_protocols_stand_side_by_side(results: Path) -> None:
    page = page_of(results)
    (caption,) = (caption for caption in page.tables if caption.startswith("The same maps under 2 protocols"))
    assert "has · tiny · seed 0" in caption
    table = page.tables[caption]
    records = [
        next(r for _, r in records_of(results, name) if r.method["name"] == "has")
        for name in ("union", "wsoleval")
    ]
    assert [head.partition(" ")[0].strip(",") for head in table.head] == ["metric", "union", "wsoleval"]
    expected = {
        metric_title(m.name) + (f", {m.policy}" if m.policy else ""): format_value(m)
        for m in records[1].metrics
        if m.value is not None
    }
    found = {row[0]: row[1:] for row in table.body}
    assert {name: texts[1] for name, texts in found.items()} == expected
    for metric in records[0].metrics:
        if metric.value is not None:
            assert found[metric_title(metric.name) + (f", {metric.policy}" if metric.policy else "")][
                0
            ] == format_value(metric)


# --- the page as a whole ------------------------------------------------------------------------------------


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
    page = page_of(results)
    assert all(caption for caption in page.tables)
    assert len(page.tables) == sum(tag == "table" for tag, _ in page.elements)
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in page.elements if tag == "th")


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


def test_scores_that_cannot_be_used_are_named_on_the_page(results: Path) -> None:
    broken = next(path.with_suffix(SCORES) for path, _ in records_of(results))
    broken.write_bytes(b"no scores")
    text, problems = page_html(results, galleries=(), methods=0, resamples=100)
    (problem,) = problems
    assert str(broken) in problem
    assert "Unusable scores: 1</summary>" in text
    assert broken.name in text


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


def test_the_lowest_possible_p_value_is_named(results: Path) -> None:
    assert "p-values cannot fall below 0.02 " in html_of(results)
    text = html_of(results, resamples=5000)
    assert "p-values cannot fall below 0.0004 " in text
    p_values = [
        p for caption, table in Page(text).tables.items() if "minus" in caption for (p,) in table.cells("p")
    ]
    assert "0.000" not in p_values


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
