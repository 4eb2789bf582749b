"""Runs, curves, comparisons and protocols of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.page.made_up import html_of, page_of, records_of
from report.page.page_parser import Page

from wsolbench.evaluation.compare import compare
from wsolbench.evaluation.score_table import SCORES, ScoreTable
from wsolbench.metrics.catalog import metric_info, metric_title
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.records import read_record
from wsolbench.report.board.tables import format_taus, format_value
from wsolbench.report.page.page import page_html
from wsolbench.report.page.page_data import gt_known_curve, precision_recall_curve


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
        differences = compare(*sides, records[0][1].map_protocol, resamples=100, paired=False)
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


def test_scores_that_cannot_be_used_are_named_on_the_page(results: Path) -> None:
    broken = next(path.with_suffix(SCORES) for path, _ in records_of(results))
    broken.write_bytes(b"no scores")
    text, problems = page_html(results, galleries=(), methods=0, resamples=100)
    (problem,) = problems
    assert str(broken) in problem
    assert "Unusable scores: 1</summary>" in text
    assert broken.name in text


def test_the_lowest_possible_p_value_is_named(results: Path) -> None:
    assert "p-values of one seed cannot fall below 0.02." in html_of(results)
    text = html_of(results, resamples=5000)
    assert "p-values of one seed cannot fall below 0.0004." in text
    p_values = [
        p for caption, table in Page(text).tables.items() if "minus" in caption for (p,) in table.cells("p")
    ]
    assert "0.000" not in p_values
