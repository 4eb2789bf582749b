"""The first page: which run stands for a method, what is left out and said, ties, and published numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.board.made_up import PAPERS, number
from tests.report.conftest import make_dataset, make_record
from wsolbench.methods import Supervision
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue
from wsolbench.report.board import ties as ties_module
from wsolbench.report.board.board import Numbers
from wsolbench.report.board.front_page import MOST_ROWS, front_page, main_runs
from wsolbench.report.board.leaderboard import check_leaderboard, leaderboard_files, write_leaderboard
from wsolbench.report.board.method_rows import measured_rows
from wsolbench.report.board.published_page import published_by_method
from wsolbench.report.board.repetitions import Run
from wsolbench.report.board.ties import TieTests

NO_NUMBERS = Numbers(numbers=(), papers={})


def run(
    name: str = "cam",
    value: float = 0.5,
    *,
    seed: int | None = 0,
    dataset: str = "cub",
    images: int = 5794,
    size: int = 224,
    seen: int = 100,
    plan_run: str = "",
    metric: str = "gt_known",
    transfer: float | None = None,
    **config: Any,
) -> Run:
    values = [MetricValue(name=metric, value=value, n=9, policy=None if metric == "top1_cls" else "oracle")]
    if transfer is not None:
        values.append(MetricValue(name=metric, value=transfer, n=9, policy="transfer"))
    training = {"recipe": {"epochs": 8}, "seed": seed, "images_seen": seen}
    method = {"name": name, "backbone": "vgg16", "image_size": size, "config": config, "num_classes": 200}
    made = make_record(
        make_dataset(3),
        EvalProtocol(),
        tuple(values),
        method={**method, "training": training if seed is not None else {}},
    )
    data = {**made.dataset, "name": dataset, "split": "test", "images": images}
    record = replace(made, dataset=data)
    return Run(record, f"{record.digest[:8]}.json", Path("gone.json"), plan_run=plan_run)


def page(*runs: Run, folder: Path = Path("nowhere")) -> str:
    return "\n".join(front_page(runs, NO_NUMBERS, TieTests(folder, [each.record for each in runs]), {}))


def cells(text: str, method: str) -> list[str]:
    """Return the cells of the row of a method, without links."""
    (row,) = (line for line in text.splitlines() if line.startswith((f"| [{method}]", f"| {method} ")))
    return [cell.strip() for cell in row.strip("|").split(" | ")]


# --- which run stands for a method --------------------------------------------------------------------------


def test_the_run_that_a_plan_names_after_the_method_stands_for_it() -> None:
    main = run(width=1, plan_run="cam")
    others = [run(width=2, plan_run="cam-wide", seed=seed) for seed in range(3)]
    assert main_runs([*others, main]) == [main]


def test_without_such_a_run_most_seeds_stand_for_it_and_then_most_images_seen() -> None:
    seeds = [run(width=2, seed=seed) for seed in range(2)]
    assert main_runs([run(width=1, seen=900), *seeds]) == seeds
    longer = run(width=1, seen=900)
    assert main_runs([run(width=2, seen=100), longer]) == [longer]


def test_floors_and_ceilings_have_all_their_settings_and_extra_maps_none() -> None:
    floors = [run("prior", kind=kind) for kind in ("gaussian", "best-box")]
    shown = main_runs([*floors, run("lio:oel_7")])
    assert sorted(each.link for each in shown) == sorted(each.link for each in floors)


def test_a_method_that_is_shown_the_truth_is_a_row_of_its_own_below_the_others() -> None:
    found, shown = run("spa", 0.3), run("spa", 0.9, test_box="truth")
    shown.record.method["supervision"] = Supervision(boxes=True, used_for="prediction").to_json()
    text = page(shown, found, run("cam", 0.5))
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert [line.split("]")[0] for line in rows] == ["| [cam", "| [spa", "| [spa (test\\_box=truth)"]
    assert cells(text, "cam")[1] == "**50.0**"


def test_seeds_share_a_row_with_mean_and_standard_deviation() -> None:
    text = page(run(value=0.5), run(value=0.6, seed=1), run("spa", 0.4))
    assert cells(text, "cam")[1] == "**55.0\u00a0±\u00a07.1**"
    assert "[2\u00a0seeds](" in cells(text, "cam")[2]
    assert cells(text, "spa")[1] == "40.0"


def test_the_transferred_threshold_has_a_column_of_its_own() -> None:
    text = page(run(transfer=0.45), run("spa", 0.4))
    assert "| GT-known | GT-known, transferred |" in text
    assert cells(text, "cam")[1:3] == ["**50.0**", "45.0"]
    assert cells(text, "spa")[1:3] == ["40.0", ""]


# --- what is left out, and said -----------------------------------------------------------------------------


def test_runs_of_no_plan_with_a_smaller_budget_are_left_out_and_counted() -> None:
    planned = [run("spa", seen=100, plan_run="spa"), run("has", seen=100, plan_run="has")]
    text = page(*planned, run("acol", 0.9, seen=50), run("adl", 0.9, size=128), run("cutmix", 0.3, seen=200))
    assert "acol" not in text
    assert "adl" not in text
    assert "cutmix" in text
    assert "saw fewer training images and are left out: 2." in text
    assert "left out" not in page(run("acol", seen=50), run("adl", seen=100))


def test_a_run_of_no_plan_that_saw_unknown_images_is_left_out_but_not_an_untrained_one() -> None:
    planned, unknown = run("spa", plan_run="spa"), run("ssanet", 0.4, size=128)
    del unknown.record.method["training"]["images_seen"]
    text = page(planned, unknown, run("frozen", 0.3, seed=None, size=128))
    assert "ssanet" not in text
    assert "frozen" in text


def test_the_same_measurement_of_a_method_without_a_seed_is_shown_once() -> None:
    first = run("center-box", 0.3, seed=None)
    again = replace(first, record=replace(first.record, provenance={"revision": "other"}), link="again.json")
    text = page(run(), first, again, run("oracle", 0.9, seed=None), run("oracle", 0.8, seed=None))
    assert text.count("[center-box]") == 1
    assert text.count("[oracle") == 2


def test_a_long_table_loses_its_lowest_rows_but_no_floor_and_no_ceiling() -> None:
    many = [run(f"m{number:02}", number / 100) for number in range(MOST_ROWS + 5)]
    text = page(*many, run("center-box", 0.01, seed=None), run("oracle", 1.0, seed=None))
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| method" not in line]
    assert len(rows) == MOST_ROWS
    assert "center-box" in rows[0]
    assert "oracle" in rows[-1]
    assert "m24" in rows[1]
    assert "are lower and left out: 7." in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "\n5,794 images of the split test; trained for 8 epochs at 224 pixels."),
        ({"images": 1389}, "> **Not comparable with published numbers.** 1,389 of 5,794 images"),
        ({"size": 128}, "> **Not comparable with published numbers.** 5,794 images of the split test"),
        (
            {"dataset": "toybirds-v2", "images": 600},
            "> **Not comparable with published numbers.** Generated images.",
        ),
    ],
)
def test_a_banner_says_whether_published_numbers_may_stand_beside(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in page(run(**changes))


def test_a_subset_of_the_classes_is_named() -> None:
    measured = run(images=1389)
    method = {**measured.record.method, "num_classes": 50}
    assert "50 of 200 classes, 1,389 of 5,794 images" in page(
        replace(measured, record=replace(measured.record, method=method))
    )


def test_a_replaced_data_set_has_no_table_and_names_cannot_break_the_page() -> None:
    text = page(run(dataset="toybirds"), run("<script>|", dataset="my <b>set</b>", images=3))
    assert "toybirds" not in text
    assert "<script>" not in text
    assert "<b>" not in text
    assert "## my &lt;b&gt;" in text


def test_data_sets_come_in_a_fixed_order_and_recognisers_in_a_table_of_their_own() -> None:
    text = page(run("lio", 0.7, metric="top1_cls"), run(), run(dataset="ilsvrc"), run(dataset="aaa"))
    places = [text.index(f"## {title}") for title in ("CUB-200-2011", "ILSVRC-2012", "aaa")]
    assert places == sorted(places)
    part = text[text.index("### Fine-grained classification") :]
    assert cells(part[: part.index("## ILSVRC")], "lio")[1] == "70.0"


# --- ties ---------------------------------------------------------------------------------------------------


@pytest.fixture
def p_values(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Make the test of `near` against the best give 0.3, that of `far` 0.001; return the calls."""
    calls: list[tuple[str, str]] = []

    def compare(self: Any, best: Any, row: Any, name: str) -> float | None:
        names = [str(each.runs[0].record.method["name"]) for each in (best, row)]
        calls.append((names[0], names[1]))
        return {"near": 0.3, "far": 0.001}.get(names[1])

    monkeypatch.setattr(ties_module.TieTests, "_compare", compare)
    return calls


def test_a_row_that_does_not_differ_from_the_best_is_marked_and_one_without_a_test_counted(
    p_values: list[tuple[str, str]],
) -> None:
    text = page(run("best", 0.6), run("near", 0.59), run("far", 0.3), run("unknown", 0.2))
    assert cells(text, "near")[1] == "59.0\\*"
    assert cells(text, "far")[1] == "30.0"
    assert "Rows that have no test, because scores lack or the first checkpoint is another: 1." in text
    assert "other columns are not tested. A test of one seed covers the images" in text
    assert p_values == [("best", other) for other in ("near", "far", "unknown")]


def test_a_floor_is_tested_but_never_the_best(p_values: list[tuple[str, str]]) -> None:
    text = page(run("best", 0.5), run("far", 0.3), run("center-box", 0.6, seed=None))
    assert cells(text, "best")[1] == "**50.0**"
    assert cells(text, "center-box")[1] == "60.0"
    assert p_values == [("best", "center-box"), ("best", "far")]


def from_checkpoint(name: str, value: float, digest: str) -> Run:
    made = run(name, value)
    method = made.record.method
    training = {**method["training"], "weights": f"last.safetensors {digest * 8}"}
    return replace(made, record=replace(made.record, method={**method, "training": training}))


def test_rows_from_another_training_of_the_first_checkpoint_say_so_and_have_no_test(
    p_values: list[tuple[str, str]],
) -> None:
    best, near = from_checkpoint("best", 0.6, "a"), from_checkpoint("near", 0.59, "a")
    other = from_checkpoint("far", 0.3, "b")
    text = page(best, near, other)
    assert [cells(text, name)[4] for name in ("best", "near", "far")] == [
        f"checkpoint\u00a0{letter * 8}" for letter in "aab"
    ]
    assert p_values == [("best", "near")]
    assert "the first checkpoint is another: 1." in text
    assert cells(page(best, near), "near")[4] == "checkpoint"


def test_a_stored_test_is_not_made_again_and_a_damaged_file_is(
    p_values: list[tuple[str, str]], tmp_path: Path
) -> None:
    runs = run("best", 0.6), run("near", 0.59)

    def marked() -> TieTests:
        tests = TieTests(tmp_path, [each.record for each in runs])
        tests.mark(measured_rows(runs, ["gt_known"], "oracle", "none"), "gt_known")
        return tests

    (tmp_path / "ties.json").write_text(marked().text())
    assert marked().used == marked().known
    assert len(p_values) == 1
    (tmp_path / "ties.json").write_text("{")
    marked()
    assert len(p_values) == 2


def test_the_stored_tests_are_part_of_the_board_and_of_its_check(
    p_values: list[tuple[str, str]], tmp_path: Path
) -> None:
    for each in (run("best", 0.6), run("near", 0.59)):
        each.record.write(tmp_path / "measured")
    write_leaderboard(tmp_path)
    assert check_leaderboard(tmp_path) == []
    assert len(p_values) == 1
    (tmp_path / "leaderboard" / "ties.json").unlink()
    assert [str(each.problem) for each in check_leaderboard(tmp_path)] == ["missing"]
    assert "ties.json" in leaderboard_files(tmp_path)


# --- published numbers --------------------------------------------------------------------------------------


def test_published_errors_become_accuracies_and_a_row_is_a_method_of_a_source() -> None:
    published = Numbers(
        numbers=[
            number(value="40.50"),
            number(metric="gt_known", value="39.7", unit="percent_error"),
            number(backbone="resnet50", value="50"),
            number(method="Other", ours="", value="10", evidence="requoted"),
        ],
        papers=PAPERS,
    )
    (table,) = published_by_method(published, "cub")
    assert table.columns[:6] == ("method", "backbone", "source", "venue", "Top-1 Loc", "GT-known")
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts == [
        ["CAM", "resnet50", "P", "2021", "50", ""],
        ["CAM", "vgg16", "P", "2021", "40.50", "60.3"],
    ]
