"""The table of a paper: what may stand in it, its numbers, its best values and ties, and its formats."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest

from tests.made_up import published_number
from tests.report.conftest import PROTOCOL, build_run, make_dataset, make_record
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import DataError, UsageError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, read_record
from wsolbench.records.published import Paper
from wsolbench.report.board.board import Numbers
from wsolbench.report.board.formats import render
from wsolbench.report.board.method_table import MethodTable, method_table
from wsolbench.report.board.repetitions import Run

Write = Callable[..., Path]


def value(name: str, number: float | None, **more: object) -> MetricValue:
    ends = {} if number is None else {"low": number - 0.02, "high": number + 0.03}
    found = {"policy": "oracle", "tau": (0.2,), **ends, **more} if number is not None else {"reason": "none"}
    return MetricValue(name=name, value=number, n=10, **found)


def method(name: str, seed: int = 0, **more: object) -> dict[str, object]:
    return {"name": name, "training": {"seed": seed}, **more}


def runs_of(*paths: Path) -> list[Run]:
    return [Run(read_record(path), path.as_posix(), path) for path in paths]


def rows_of(made: MethodTable) -> list[dict[str, object]]:
    (table,) = json.loads(render([made.table], "json"))
    rows: list[dict[str, object]] = table["rows"]
    return rows


# --- numbers ------------------------------------------------------------------------------------------------


def test_seeds_are_pooled_with_the_spread_that_is_asked_for(write_record: Write) -> None:
    numbers = (0.50, 0.53, 0.59)
    runs = runs_of(
        *(
            write_record(method=method("cam", seed), metrics=(value("gt_known", each),))
            for seed, each in enumerate(numbers)
        )
    )
    made = method_table(runs, spread="sd")
    (row,) = rows_of(made)
    found = row["gt_known"]
    assert isinstance(found, dict)
    assert found["mean"] == pytest.approx(fmean(numbers))
    assert found["sd"] == pytest.approx(stdev(numbers))
    assert (found["low"], found["high"]) == pytest.approx((fmean(numbers) - 0.02, fmean(numbers) + 0.03))
    assert (found["n"], found["images"], found["best"], found["tie"]) == (3, 10, True, None)
    assert f"**54.0 ± {100 * stdev(numbers):.1f}**" in render([made.table], "markdown")
    assert "54.0 \\[52.0, 57.0\\]" in render([method_table(runs, spread="interval").table], "markdown")
    assert "**54.0**" in render([method_table(runs, spread="none").table], "markdown")
    # One seed has no standard deviation.
    assert "**50.0**" in render([method_table(runs[:1], spread="sd").table], "markdown")


def test_rows_are_told_apart_by_what_differs(write_record: Write) -> None:
    one = method("spa", config={"variant": "paper", "width": 8})
    other = method("spa", config={"variant": "official", "width": 8})
    cam = method("cam", config={"width": 4})
    made = method_table(runs_of(*(write_record(method=each) for each in (one, other, cam))))
    assert [(row["method"], row["settings"]) for row in rows_of(made)] == [
        ("spa", "variant=paper"),
        ("spa", "variant=official"),
        ("cam", ""),
    ]
    assert "backbone" not in rows_of(made)[0]
    several = method_table(
        runs_of(write_record(method=one), write_record(method={**cam, "backbone": "vgg16"}))
    )
    assert [row["backbone"] for row in rows_of(several)] == ["tiny", "vgg16"]
    # Runs without a seed that differ in nothing but their values get their digest.
    alone = [
        write_record(method={"name": "mine", "training": None}, metrics=(value("gt_known", each),))
        for each in (0.4, 0.5)
    ]
    settings = [row["settings"] for row in rows_of(method_table(runs_of(*alone)))]
    assert settings == [f"record={read_record(path).digest[:8]}" for path in alone]


def test_a_missing_metric_is_an_empty_cell_and_told_once(write_record: Write) -> None:
    whole = write_record(metrics=(value("gt_known", 0.5), value("pxap", 0.4, policy=None, tau=None)))
    part = write_record(method=method("spa"), metrics=(value("gt_known", 0.6), value("pxap", None)))
    made = method_table(runs_of(whole, part), metrics=("pxap", "gt_known"), ties=False)
    assert [row["pxap"] is None for row in rows_of(made)] == [False, True]
    (message,) = made.messages
    assert message == f"empty cells, because records have no value under policy oracle: pxap of {part}"
    rows = list(csv.DictReader(io.StringIO(render([made.table], "csv"))))
    assert (rows[1]["pxap_mean"], rows[1]["gt_known_mean"]) == ("", "0.6")
    assert float(rows[0]["gt_known_low"]) == pytest.approx(0.48)


def test_the_best_is_the_lowest_of_a_distance_and_no_ceiling(write_record: Write) -> None:
    def distance(number: float) -> tuple[MetricValue, ...]:
        return (value("keypoint_distance", number, policy=None, tau=None),)

    paths = [
        write_record(method=method(name), metrics=distance(number))
        for name, number in (("oracle", 0.1), ("cam", 0.2), ("spa", 0.3))
    ]
    made = method_table(runs_of(*paths))
    assert [row["keypoint_distance"]["best"] for row in rows_of(made)] == [False, True, False]  # type: ignore[index]
    assert any("without floors and ceilings" in note for note in made.table.notes)


# --- what may be in one table -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what", "way_out"),
    [
        ({"dataset": {"name": "circles"}}, "data set: squares (", "--dataset"),
        ({"dataset": {"split": "val"}}, "split: test (", "--split"),
        ({"dataset": {"transform": "rotate90"}}, "transform: none (", "Name the records of one"),
        ({"dataset": {"images": 9}}, "number of images: 10 (", "Name the records of one"),
        ({"dataset": {"fingerprint": "cd" * 32}}, "fingerprint of the annotations: abab", "Name the records"),
        ({"protocol": EvalProtocol.preset("spa")}, "protocol: wsoleval", "--protocol"),
        (
            {"metrics": (value("gt_known", 0.5, policy="fixed:0.2"),)},
            "threshold policy: oracle (",
            "--policy",
        ),
    ],
)
def test_mixtures_are_refused(
    write_record: Write, changes: dict[str, object], what: str, way_out: str
) -> None:
    paths = [write_record(), write_record(method=method("spa"), **changes)]
    with pytest.raises(DataError) as error:
        method_table(runs_of(*paths))
    assert f"the records differ in the {what}" in str(error.value)
    assert way_out in str(error.value)
    for path in paths:
        assert str(path) in str(error.value)


def test_versions_of_a_metric_are_not_mixed() -> None:
    runs = [
        Run(
            make_record(
                make_dataset(2),
                PROTOCOL,
                (value("gt_known", 0.5, version=version),),
                method=dict(method(name)),
            ),
            name,
            Path(f"{name}.json"),
        )
        for version, name in ((1, "cam"), (2, "spa"))
    ]
    with pytest.raises(DataError, match=r"version of gt_known: 1 \(cam\.json\); 2 \(spa\.json\)"):
        method_table(runs)


def test_a_policy_can_be_chosen(write_record: Write) -> None:
    both = (value("gt_known", 0.5), value("gt_known", 0.4, policy="fixed:0.2"))
    paths = [write_record(metrics=both), write_record(method=method("spa"), metrics=both[1:])]
    fixed = method_table(runs_of(*paths), policy="fixed:0.2")
    assert [row["gt_known"]["mean"] for row in rows_of(fixed)] == [0.4, 0.4]  # type: ignore[index]
    assert fixed.table.path[1].endswith("threshold: fixed:0.2")
    assert any("comparisons are at oracle thresholds" in message for message in fixed.messages)
    # The only one that all have is taken.
    assert method_table(runs_of(*paths)).table.path == fixed.table.path
    chosen = method_table(runs_of(*paths), policy="oracle")
    assert [row["gt_known"] is None for row in rows_of(chosen)] == [False, True]
    with pytest.raises(UsageError, match=r"did you mean 'fixed:0\.2'"):
        method_table(runs_of(*paths), policy="fixed:0.3")


def test_thresholds_of_two_splits_are_refused(write_record: Write) -> None:
    paths = [
        write_record(
            method=method(name),
            dataset={"transfer_from": {"split": "val", "fingerprint": print_}},
            metrics=(value("gt_known", 0.5, policy="transfer"),),
        )
        for name, print_ in (("cam", "aa"), ("spa", "bb"))
    ]
    with pytest.raises(DataError, match="split that thresholds are transferred from"):
        method_table(runs_of(*paths))
    assert "threshold: transfer from val (fingerprint aa)" in method_table(runs_of(paths[0])).table.path[1]


# --- ties ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two methods with maps of one quality, one that finds nothing, one without scores."""
    folder, found = tmp_path_factory.mktemp("scored"), []
    for name, seed in (("cam", 1), ("spa", 2), ("bad", 3), ("bare", 4)):
        made = build_run(60, seed=seed)
        scores, record = made.scores, replace(made.record, method=dict(method(name)))
        if name == "bad":
            nothing = np.zeros_like(scores.best_iou)
            scores = replace(scores, best_iou=nothing, single_iou=nothing)
            metrics = summarize(ScoreTable((scores,)), PROTOCOL, resamples=50)
            record = make_record(make_dataset(60), PROTOCOL, metrics, method=dict(method(name)))
        path = record.write(folder)
        if name != "bare":
            ScoreTable((scores,)).write(path.with_suffix(".scores.npz"), record)
        found.append(Run(record, path.as_posix(), path))
    return found


def test_what_no_test_separates_from_the_best_is_marked(scored: list[Run]) -> None:
    name = "max_box_acc_v2"
    made = method_table(scored[:3], metrics=(name,), resamples=200)
    rows = {str(row["method"]): row for row in rows_of(made)}
    best, other = sorted(("cam", "spa"), key=lambda each: -rows[each][name]["mean"])  # type: ignore[index]
    assert [rows[each][name]["best"] for each in (best, other, "bad")] == [True, False, False]  # type: ignore[index]
    assert [rows[each][name]["tie"] for each in (best, other, "bad")] == [None, True, False]  # type: ignore[index]
    text = render([made.table], "markdown")
    assert len(re.findall(r"\d\\\]\\\*", text)) == 1
    assert "\\*: not significantly different from it" in text
    assert made.messages == ()


def test_equal_values_are_all_best(write_record: Write) -> None:
    made = method_table(runs_of(write_record(), write_record(method=method("spa"))))
    assert [row["gt_known"]["best"] for row in rows_of(made)] == [True, True]  # type: ignore[index]
    assert made.messages == ()


def test_rows_without_scores_are_not_tested(scored: list[Run]) -> None:
    made = method_table([scored[0], scored[3]], metrics=("gt_known",))
    assert [row["gt_known"]["tie"] for row in rows_of(made)] == [None, None]  # type: ignore[index]
    assert made.messages == ("not tested against the best, because they or it lack per-image scores: 1 rows",)
    assert method_table([scored[0], scored[3]], metrics=("gt_known",), ties=False).messages == ()


# --- published rows and formats -----------------------------------------------------------------------------


def published(**changes: object) -> Numbers:
    rows = [
        {"value": "99.90", "unit": "percent", "method": "Best_of_all", "evidence": "own"},
        {"value": "39.70", "unit": "percent_error", "method": "CAM"},
        {"value": "0.5125", "unit": "fraction", "method": "CAM", "metric": "gt_known"},
    ]
    numbers = [
        published_number(**{"dataset": "squares", "metric": "gt_known", **row, **changes}) for row in rows
    ]
    papers = {
        "spa": Paper(key="spa", name="SPA", title="...", venue="CVPR", year=2021, file="published/spa.csv")
    }
    return Numbers(numbers=numbers[:2], papers=papers)


def test_published_rows_have_a_section_and_are_never_best(write_record: Write) -> None:
    made = method_table(runs_of(write_record()), published=published(), sources=("SPA",))
    ours, best, other = rows_of(made)
    assert (ours["section"], best["section"]) == ("", "Published: SPA, CVPR 2021")
    assert ours["gt_known"]["best"]  # type: ignore[index]
    assert not best["gt_known"]["best"]  # type: ignore[index]
    assert (best["source"], other["source"]) == ("Table 2", "Table 2, requoted")
    assert other["gt_known"]["mean"] == pytest.approx(0.603)  # type: ignore[index]
    assert other["gt_known"]["n"] is None  # type: ignore[index]
    latex = render([made.table], "latex")
    heading = r"\multicolumn{4}{l}{\emph{Published: SPA, CVPR 2021}} \\"
    assert latex.index(r"\midrule" + "\n" + heading) > latex.index(r"\textbf{50.0 {[}40.0, 60.0{]}}")
    assert r"Best\_of\_all & vgg16 & Table 2 & 99.90 \\" in latex
    assert "60.30" in latex  # an error of 39.70
    assert "| *Published: SPA, CVPR 2021* | | | |" in render([made.table], "markdown")


def test_a_source_without_such_numbers_is_refused(write_record: Write) -> None:
    runs = runs_of(write_record())
    with pytest.raises(
        UsageError, match="SPA prints none of gt_known for squares/test; it prints gt_known on"
    ):
        method_table(runs, published=published(split="val"), sources=("spa",))
    with pytest.raises(UsageError, match="unknown source 'spaa'; did you mean 'spa'"):
        method_table(runs, published=published(), sources=("spaa",))


def test_latex_is_well_formed_whatever_the_names(write_record: Write, tmp_path: Path) -> None:
    hostile = "a_b&c%d#e$f{g}~h^i\\j[k]*"
    paths = [
        write_record(method=method(hostile, config={"x": r"\input{y}"})),
        write_record(method=method("spa")),
        write_record(method=method("τ²-Ωé×→≤ß")),
    ]
    made = method_table(runs_of(*paths), spread="sd", published=published(), sources=("spa",))
    latex = render([made.table], "latex")
    lines = [line for line in latex.splitlines() if line and not line.startswith("%")]
    columns = len(made.table.columns)
    assert lines[0] == r"\begin{tabular}{" + "l" * (columns - 1) + "r}"
    assert lines[1] == r"\toprule"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    plain = [re.sub(r"\\[&%#$_{}]|\\symbol\{34\}", "", line) for line in lines]
    for line in plain:
        assert line.count("{") == line.count("}")
        assert not set("%#~^") & set(line)
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert line.count("&") == columns - 1
    assert r"a\_b\&c\%d\#e\$f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j{[}k{]}{*}" in latex
    assert r"$\tau$\textsuperscript{2}-$\Omega$é$\times$$\to$$\leq$ß" in latex
    if (program := shutil.which("pdflatex")) is not None:
        document = (
            rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}\end{{document}}"
        )
        (tmp_path / "table.tex").write_text(document)
        subprocess.run(
            [program, "-interaction=nonstopmode", "-halt-on-error", "table.tex"], cwd=tmp_path, check=True
        )
