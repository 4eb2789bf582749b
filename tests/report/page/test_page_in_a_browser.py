"""What only a browser can say: sorting, filters, charts, the choice of comparisons, widths and the
keyboard."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report.page.page_parser import Page
from report.page.webdriver import CHROMIUM, DRIVER, Browser, browser

from wsolbench.evaluation.score_table import SCORES
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import MetricValue
from wsolbench.report.page.page import write_page

METHODS = ("cam", "spa", "has")
WITHOUT_SCORES = "adl"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (CHROMIUM.is_file() and DRIVER.is_file()):
        pytest.skip(f"{CHROMIUM} or {DRIVER} is not installed")
    with browser(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Any]) -> tuple[Path, Page]:
    """Three methods with two seeds each on two backbones, one without scores that is as good as the best, two
    methods under another protocol, and one run on other data; a paper with an accuracy, an error and a
    fraction."""
    results = tmp_path_factory.mktemp("results")
    maps = {"cam": (10, 14), "spa": (0, 4), "has": (1, 8)}  # both of cam are better than all others
    for name, seed in itertools.product(METHODS, (0, 1)):
        method = {"name": name, "backbone": "tiny" if name != "has" else "large", "training": {"seed": seed}}
        run = make_run(16, method=method, seed=maps[name][seed], masks=results)
        run.table.write(run.record.write(results / "measured").with_suffix(SCORES))
    make_run(16, method={"name": WITHOUT_SCORES}, seed=10, masks=results).record.write(results / "measured")
    metric = MetricValue(name="gt_known", value=0.1, n=2, policy="oracle", tau=(0.2,))
    coarse = EvalProtocol(name="z-coarse", taus=tau_grid(0.1), frame_size=64, resize_size=80)
    for name in ("spa", "has"):
        elsewhere = make_run(16, method={"name": name}, seed=len(name), protocol=coarse)
        elsewhere.table.write(elsewhere.record.write(results / "measured").with_suffix(SCORES))
    other = replace(
        run.record,
        dataset={**run.record.dataset, "name": "other"},
        metrics=(metric,),
        method={"name": "cam", "backbone": "x"},
    )
    other.write(results / "measured")
    write_numbers(
        results,
        ("CAM", "cam", "72.5", "percent"),
        ("SPA", "spa", "20", "percent_error"),
        ("TS-CAM", "", "0.5", "fraction"),
    )
    path, problems = write_page(results, results / "out", methods=3, resamples=100)
    assert problems == []
    return path, Page(path.read_text(encoding="utf-8"))


def write_numbers(results: Path, *numbers: tuple[str, str, str, str]) -> None:
    (results / "published").mkdir()
    (results / "papers.toml").write_text(
        '[birds]\nname = "Birds"\ntitle = "On birds"\nfile = "published/birds.csv"\n'
    )
    lines = ["table,row,label,dataset,split,method,ours,backbone,metric,value,unit,evidence,protocol,note"]
    lines += [
        f"T,{row},,squares,test,{m},{ours},tiny,gt_known,{v},{unit},own,,"
        for row, (m, ours, v, unit) in enumerate(numbers, start=1)
    ]
    (results / "published" / "birds.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def opened(chromium: Browser, page: tuple[Path, Page]) -> Iterator[Browser]:
    chromium.resize(1200, 900)
    chromium.open(page[0])
    yield chromium
    assert chromium.messages() == []


def choose(select: str, value: str) -> str:
    found = f"document.querySelector({json.dumps(select)})"
    return (
        f"{found}.value = {json.dumps(value)}; {found}.dispatchEvent(new Event('change', {{bubbles: true}}));"
    )


def visible(section: str) -> str:
    rows = f"[...document.querySelectorAll('#{section} tbody tr')].filter((row) => row.checkVisibility())"
    return f"return {rows}.map((row) => ({{...row.closest('.block').dataset, ...row.dataset}}));"


@pytest.mark.parametrize("section", ["board", "published"])
def test_filters_leave_the_rows_that_fit(opened: Browser, page: tuple[Path, Page], section: str) -> None:
    every = [
        {
            name.removeprefix("data-"): value
            for name, value in (*table.block.items(), *row.items())
            if name.startswith("data-")
        }
        for table in page[1].tables.values()
        for row in table.rows
        if "data-metric" in table.block and (table.block["data-protocol"] == "") == (section == "published")
    ]
    key = lambda row: sorted(row.items())  # noqa: E731 - for sorted
    opened.run("document.querySelector('button[type=reset]').click()")
    assert opened.run("return new Promise((done) => setTimeout(done, 50)).then(() => null)") is None
    assert sorted(opened.run(visible(section)), key=key) == sorted(every, key=key)
    for name in ("dataset", "metric", "protocol", "method", "backbone"):
        for value in page[1].choices(name)[1:]:
            found = opened.run(choose(f".filters select[name={name}]", value) + visible(section))
            fitting = [
                row for row in every if row[name] == value or (name == "protocol" and section == "published")
            ]
            assert sorted(found, key=key) == sorted(fitting, key=key)
            said = opened.run(f"return document.querySelector('#{section} .count').textContent")
            rows = "row" if len(fitting) == 1 else "rows"
            assert (
                said.endswith(f", {len(fitting)} {rows}")
                if fitting
                else said == "No table matches these filters."
            )
        opened.run(choose(f".filters select[name={name}]", ""))


def test_it_opens_with_one_metric_of_one_data_set(opened: Browser) -> None:
    rows = opened.run(visible("board"))
    assert {(row["dataset"], row["metric"]) for row in rows} == {("squares", "GT-known")}
    assert {(row["dataset"], row["metric"]) for row in opened.run(visible("published"))} == {
        ("squares", "GT-known")
    }


def test_a_data_set_of_the_first_section_opens_all_of_its_runs(opened: Browser) -> None:
    opened.run(choose(".filters select[name=backbone]", "large"))
    opened.run("document.querySelector('#front a[data-filter=other]').click()")
    assert {row["dataset"] for row in opened.run(visible("board"))} == {"other"}
    selects = "return [...document.querySelectorAll('.filters select')].map((select) => select.value)"
    assert opened.run(selects) == ["other", "", "", "", ""]


def sort(opened: Browser, caption: str, column: str) -> tuple[list[str], str]:
    return opened.run(
        "const t = [...document.querySelectorAll('table')].find((t) => "
        f"t.caption.textContent.startsWith({json.dumps(caption)}));"
        f"const n = [...t.tHead.rows[0].cells].findIndex((c) => c.textContent === {json.dumps(column)});"
        "t.tHead.rows[0].cells[n].querySelector('button').click();"
        "return [[...t.tBodies[0].rows].map((r) => r.cells[n].textContent), "
        "t.tHead.rows[0].cells[n].getAttribute('aria-sort')]"
    )


@pytest.mark.parametrize(
    ("caption", "column", "ascending"),
    [
        ("GT-known · squares", "GT-known", ["0.5", "72.5 %", "20 % error"]),  # an error of 20 % is 80 % right
        ("GT-known · squares", "method", ["CAM", "SPA", "TS-CAM"]),
        (
            f"GT-known, threshold: oracle · squares/test, 16 images, fingerprint {'ab' * 6} · Protocol wsol",
            "method",
            ["adl", "cam", "has", "spa"],
        ),
    ],
)
def test_columns_are_sorted_by_what_they_mean(
    opened: Browser, caption: str, column: str, ascending: list[str]
) -> None:
    assert sort(opened, caption, column) == [ascending, "ascending"]
    assert sort(opened, caption, column) == [ascending[::-1], "descending"]


def test_numbers_are_sorted_as_numbers_and_what_is_missing_comes_last(
    opened: Browser, page: tuple[Path, Page]
) -> None:
    caption = max(
        (caption for caption in page[1].tables if caption.startswith("Runs")),
        key=lambda of: len(page[1].tables[of].body),
    )
    for column in ("GT-known", "threshold", "Part"):
        for direction in ("ascending", "descending"):
            values, said = sort(opened, caption, column)
            numbers = [float(value.removeprefix("tau ").partition(" ")[0]) for value in values]
            assert said == direction
            assert numbers == sorted(numbers, reverse=direction == "descending")
            assert len(set(numbers)) > 1
    blank = "const c = [...document.querySelectorAll('table')].find((t) => t.caption.textContent === 'GT-known · squares/test');"
    opened.run(
        blank
        + "c.tBodies[0].rows[1].cells[2].textContent = '—'; c.tBodies[0].rows[1].cells[2].removeAttribute('data-sort');"
    )
    assert [sort(opened, "GT-known · squares", "GT-known")[0][-1] for _ in range(2)] == ["—", "—"]


# --- charts -------------------------------------------------------------------------------------------------

DRAWN = """
const points = (line) => line.getAttribute('points').split(' ').map((pair) => pair.split(',').map(Number));
return [...document.querySelectorAll('.charts figure')].map((figure) => ({
  lines: [...figure.querySelectorAll('polyline')].map(points),
  dots: [...figure.querySelectorAll('circle')].map((c) => [Number(c.getAttribute('cx')), Number(c.getAttribute('cy'))]),
  bars: [...figure.querySelectorAll('rect')].map((bar) => Number(bar.getAttribute('height'))),
  whiskers: [...figure.querySelectorAll('.whisker')].map((path) => path.getAttribute('d')),
  steps: [...figure.querySelectorAll('.grid')].map((line) => Number(line.getAttribute('y1'))),
  label: figure.querySelector('svg').getAttribute('aria-label'),
  width: Number(figure.querySelector('svg').getAttribute('viewBox').split(' ')[2]),
  top: Number([...figure.querySelectorAll('text')][5].textContent) / 100,
  table: [...figure.querySelectorAll('table tr')].map((row) => [...row.cells].map((cell) => cell.textContent)),
}));
"""


def chosen(opened: Browser, group: int) -> list[int]:
    """Places of the chosen runs in the order of their colours."""
    legend = opened.run("return [...document.querySelectorAll('.legend li')].map((item) => item.textContent)")
    labels = opened.run(
        f"return JSON.parse(document.getElementById('data').textContent).runs[{group}].map((run) => "
        "run.label)"
    )
    return [labels.index(text.partition(": ")[2]) for text in legend]


def test_charts_draw_the_numbers(opened: Browser, page: tuple[Path, Page]) -> None:
    group = int(opened.run("return document.querySelector('#runs select[name=group]').value"))
    runs = [page[1].data["runs"][group][place] for place in chosen(opened, group)]
    assert {run["label"].partition(" ")[0] for run in runs} == set(METHODS)  # the best run of each
    known, precision, errors = opened.run(DRAWN)
    for figure, key in ((known, "gt_known"), (precision, "pr")):
        bottom, top = figure["steps"][0], figure["steps"][-1]
        for line, run in zip(figure["lines"], runs, strict=True):
            xs, ys = run[key]
            if key == "pr":  # steps
                xs, ys = (
                    [*itertools.chain(*zip((0, *xs), xs, strict=False))],
                    [*itertools.chain(*zip(ys, ys, strict=True))],
                )
            assert [x for x, _ in line] == pytest.approx(
                [40 + (figure["width"] - 48) * x for x in xs], abs=0.06
            )
            assert [y for _, y in line] == pytest.approx([bottom - (bottom - top) * y for y in ys], abs=0.06)
        for place, row in enumerate(figure["table"][1:]):
            assert row[0] == str(round(place / 10, 1)).removesuffix(".0")
            for text, run in zip(row[1:], runs, strict=True):
                xs, ys = run[key]
                if key == "pr":
                    expected = ys[next(at for at, x in enumerate(xs) if x >= place / 10)]
                    assert float(text) == pytest.approx(100 * expected, abs=0.0501)
                    continue
                inside = xs[0] <= place / 10 <= xs[-1]
                assert (text != "") == inside
                assert not inside or float(text) == pytest.approx(
                    100 * np.interp(place / 10, xs, ys), abs=0.0501
                )
    assert all(
        row[1:] == [f"{number}: {run['label']}" for number, run in enumerate(runs, start=1)]
        for row in (known["table"][0], errors["table"][0])
    )
    best = [
        (x, y)
        for x, y in (max(zip(*run["gt_known"], strict=True), key=lambda point: point[1]) for run in runs)
    ]
    for (x, y), (cx, cy), run in zip(best, known["dots"], runs, strict=True):
        assert cx == pytest.approx(40 + (known["width"] - 48) * x, abs=0.06)
        assert cy == pytest.approx(known["steps"][0] - (known["steps"][0] - known["steps"][-1]) * y, abs=0.06)
        assert f"{run['label']}: highest {100 * y:.1f} at {x:g}" in known["label"]
    bottom, top = errors["steps"][0], errors["steps"][-1]
    shares = [run["errors"][place] for place in range(6) for run in runs]
    assert errors["top"] == min(
        top for top in (0.1, 0.25, 0.5, 0.75, 1.0) if top >= max(high for _, _, high in shares)
    )
    to_y = lambda share: bottom - (bottom - top) * share / errors["top"]  # noqa: E731 - a formula
    assert errors["bars"] == pytest.approx([bottom - to_y(value) for value, _, _ in shares], abs=0.1)
    for path, (_, low, high) in zip(errors["whiskers"], shares, strict=True):
        start, end = (float(part) for part in path.partition(" ")[2].partition("M")[0].split("V"))
        assert (start, end) == (pytest.approx(to_y(low), abs=0.1), pytest.approx(to_y(high), abs=0.1))
    assert [row[0] for row in errors["table"][1:]] == page[1].data["errors"]
    for place, row in enumerate(errors["table"][1:]):
        assert row[1:] == [
            "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * share for share in run["errors"][place])) for run in runs
        ]


def test_a_run_keeps_its_colour_while_others_come_and_go_and_six_are_the_most(
    opened: Browser, page: tuple[Path, Page]
) -> None:
    group = int(opened.run("return document.querySelector('#runs select[name=group]').value"))
    boxes = f"const boxes = [...document.querySelectorAll('[data-group=\"{group}\"] input')];"
    styles = "return [...document.querySelectorAll('.charts figure:first-of-type polyline')].map((line) => line.getAttribute('class'))"
    before = opened.run(styles)
    assert before == ["line s0", "line s1", "line s2"]
    opened.run(boxes + "boxes.find((box) => box.checked).click()")
    assert opened.run(styles) == ["line s1", "line s2"]
    said = "return document.querySelector('#runs .count').textContent"
    assert opened.run(said) == "2 runs plotted."
    scored = f"boxes.filter((box) => !box.checked && box.closest('tr').dataset.method !== '{WITHOUT_SCORES}')"
    opened.run(boxes + scored + ".forEach((box) => box.click())")
    assert opened.run(styles) == [f"line s{style}" for style in range(6)]
    assert sorted(chosen(opened, group)) == [
        at for at, run in enumerate(page[1].data["runs"][group]) if "gt_known" in run
    ]
    assert opened.run(said) == "6 runs plotted. To show another one, untick one first."
    opened.run(boxes + "boxes.forEach((box) => { if (box.checked) box.click(); })")
    assert opened.run(said) == "No run is selected."


def test_the_first_choice_is_of_the_best_runs_however_the_table_is_sorted(
    opened: Browser, page: tuple[Path, Page]
) -> None:
    group = opened.run("return document.querySelector('#runs select[name=group]').value")
    before = chosen(opened, int(group))
    caption = next(
        caption for caption, table in page[1].tables.items() if table.block.get("data-group") == group
    )
    assert sort(opened, caption, "GT-known")[1] == "ascending"
    opened.run(
        f"document.querySelectorAll('[data-group=\"{group}\"] input:checked').forEach((box) => box.click())"
    )
    other = str((int(group) + 1) % len(page[1].data["runs"]))
    opened.run(choose("#runs select[name=group]", other) + choose("#runs select[name=group]", group))
    assert chosen(opened, int(group)) == before


def test_runs_are_filtered_by_their_method(opened: Browser) -> None:
    names = "return [...document.querySelectorAll('#runs tbody tr')].filter((r) => r.checkVisibility()).map((r) => r.dataset.method)"
    every = opened.run(names)
    assert opened.run(
        "return [...document.querySelector('#runs select[name=method]').options].map((o) => o.value)"
    ) == [
        "",
        *sorted((*METHODS, WITHOUT_SCORES)),
    ]
    assert sorted(set(every)) == sorted((*METHODS, WITHOUT_SCORES))
    for name in (*METHODS, WITHOUT_SCORES):
        assert opened.run(choose("#runs select[name=method]", name) + names) == [
            found for found in every if found == name
        ]
    assert opened.run(choose("#runs select[name=method]", "") + names) == every


def test_going_back_shows_what_the_controls_say(opened: Browser, page: tuple[Path, Page]) -> None:
    opened.run(
        choose(".filters select[name=dataset]", "other")
        + "document.querySelector('#runs input:checked').click();"
    )
    opened.run(choose("#pairs select[name=pair]", "2"))
    elsewhere = page[0].with_name("elsewhere.html")
    elsewhere.write_text("<!DOCTYPE html><title>elsewhere</title>")
    opened.open(elsewhere)
    opened.back()
    state = "return [document.querySelector('.filters select[name=dataset]').value, document.querySelectorAll('#runs input:checked').length]"
    dataset, ticked = opened.run(state)
    assert {row["dataset"] for row in opened.run(visible("board"))} == {dataset}
    assert ticked == len(opened.run(DRAWN)[0]["lines"])
    shown = "return [...document.querySelectorAll('[data-pair]')].filter((b) => b.checkVisibility()).map((b) => b.dataset.pair)"
    assert opened.run(shown) == [
        opened.run("return document.querySelector('#pairs select[name=pair]').value")
    ]


def test_opened_numbers_stay_open_and_keep_the_focus(opened: Browser) -> None:
    opened.run(
        "const d = document.querySelectorAll('.charts details')[1]; d.open = true; "
        "d.querySelector('summary').focus();"
    )
    state = "return [[...document.querySelectorAll('.charts details')].map((d) => d.open), document.activeElement.closest('details')?.title]"
    before = opened.run(state)
    assert before[0] == [False, True, False]
    width = "return document.querySelector('.charts svg[role=img]').getAttribute('viewBox')"
    old = opened.run(width)
    opened.resize(500, 900)
    assert (
        opened.run("return new Promise((done) => setTimeout(done, 300)).then(() => { " + width + " })") != old
    )
    assert opened.run(state) == before


def test_a_comparison_is_chosen_by_images_and_methods(opened: Browser, page: tuple[Path, Page]) -> None:
    shown = "return [...document.querySelectorAll('[data-pair]')].filter((b) => b.checkVisibility()).map((b) => b.dataset.pair)"
    options = "return [...document.querySelector('#pairs select[name=pair]').options].map((o) => [o.value, o.textContent])"
    groups = opened.run(
        "return [...document.querySelector('#pairs select[name=group]').options].map((o) => [o.value, "
        "o.textContent])"
    )
    assert opened.run(shown) == ["0"]  # of the group that it opens with, too
    counts = []
    for group, title in groups:
        opened.run(choose("#pairs select[name=group]", group))
        found = opened.run(options)
        counts.append(len(found))
        assert opened.run(shown) == [found[0][0]]  # the best two
        for value, text in found:
            assert opened.run(choose("#pairs select[name=pair]", value) + shown) == [value]
            caption = next(c for c, table in page[1].tables.items() if table.block.get("data-pair") == value)
            assert caption == text.replace(" minus ", " (B) minus ") + f" (A) · {title}"
    assert sorted(counts) == [1, 3]


# --- people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_fits_every_width(opened: Browser, width: int) -> None:
    opened.resize(width, 900)
    assert opened.run("return document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name_and_room_for_a_finger(opened: Browser) -> None:
    small = opened.run(
        "const seen = [...document.querySelectorAll('select, button, input, summary')].filter((c) => "
        "c.checkVisibility());"
        "const sides = (c) => (c.type === 'checkbox' ? c.closest('label') : c).getBoundingClientRect();"
        "return seen.filter((c) => Math.min(sides(c).height, sides(c).width) < 24).map((c) => c.outerHTML)"
    )
    assert small == []
    assert sort(opened, "GT-known · squares", "method")[1] == "ascending"  # its arrow is no part of the name
    tree = opened.call("Accessibility.getFullAXTree")
    roles = {"combobox", "button", "checkbox", "img", "table", "region", "form"}
    for node in tree["nodes"]:
        if node.get("role", {}).get("value") in roles and not node.get("ignored"):
            assert node.get("name", {}).get("value"), node
            assert "▲" not in node["name"]["value"]


def test_borders_of_controls_can_be_seen_light_and_dark(opened: Browser) -> None:
    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
        r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for scheme in ("light", "dark"):
        opened.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        colors = opened.run(
            "const s = getComputedStyle(document.querySelector('select')), b = "
            "getComputedStyle(document.body);"
            "return [[s.borderTopColor, b.backgroundColor], [s.borderTopColor, s.backgroundColor], "
            "[b.color, b.backgroundColor]]"
        )
        for (one, other), least in zip(colors, (3.0, 3.0, 7.0), strict=True):
            light, dark = sorted((luminance(one), luminance(other)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least
    opened.call("Emulation.setEmulatedMedia", features=[])
