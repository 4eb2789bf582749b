"""Records that a plan replaces leave the tables of published and measured numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import make_dataset, make_record
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.planned import find_planned
from wsolbench.report.board.leaderboard import leaderboard_files
from wsolbench.report.board.repetitions import one_of_each_seed, superseded
from wsolbench.report.board.results import read_results

PLAN = """
title = "Twelve epochs"

[defaults]
dataset = "squares"
image-size = 224
epochs = 12

[[run]]
name = "cam"
method = "cam"

[[run]]
name = "tuned"
method = "cam"
weights = "@cam"
"""
COMMAND = "wsolbench eval --method cam {}--image-size 224 --epochs 12 --dataset squares --train --save-scores"


def run(epochs: int = 3, *, size: int = 128, command: str = "", seed: int = 0, **changes: Any) -> RunRecord:
    value = MetricValue(name="gt_known", value=epochs / 100, n=3, policy="oracle", low=0.0, high=1.0)
    training = {
        "method": "cam",
        "weights": "imagenet",
        "seed": seed,
        "epoch": epochs,
        "recipe": {"epochs": epochs},
        "dataset": {"images": 100, "split": "train"},
        **changes.pop("training", {}),
    }
    method = {"name": "cam", "image_size": size, "config": {"width": 256}, "training": training, **changes}
    made = make_record(make_dataset(3), EvalProtocol(), (value,), method=method)
    return replace(made, provenance={**made.provenance, "command": command or "wsolbench eval --method cam"})


def results_of(folder: Path, *records: RunRecord) -> Path:
    (folder / "plans").mkdir()
    (folder / "plans/long.toml").write_text(PLAN)
    for record in records:
        record.write(folder / "measured")
    return folder


def gone(results: Path) -> list[RunRecord]:
    return [run.record for run, _ in superseded(read_results(results).runs)]


def test_the_record_of_a_plan_replaces_a_shorter_run_and_is_shown_alone(tmp_path: Path) -> None:
    short, planned = run(), run(12, size=224, command=COMMAND.format(""))
    results = results_of(tmp_path, short, planned)
    read = read_results(results)
    assert [each.record for each in one_of_each_seed(read.runs)] == [planned]
    assert gone(results) == [short]
    files = leaderboard_files(results, read)
    assert files["squares.md"].count("[cam](") == 2  # raw numbers have every run
    assert "superseded by" in files["README.md"]


@pytest.mark.parametrize(
    "other",
    [
        run(command="wsolbench score", seed=1),
        run(size=256),
        run(12, size=224, training={"weights": "none"}),
        run(40, size=224),
        run(config={"width": 512}),
        run(name="has"),
        run(backbone="resnet50"),
    ],
)
def test_runs_of_another_kind_and_fuller_ones_stay(tmp_path: Path, other: RunRecord) -> None:
    assert gone(results_of(tmp_path, other, run(12, size=224, command=COMMAND.format("")))) == []


def test_settings_that_only_one_version_has_do_not_count(tmp_path: Path) -> None:
    older = run(config={"width": 256, "removed": 1})
    planned = run(12, size=224, command=COMMAND.format(""), config={"width": 256, "added": 2})
    assert gone(results_of(tmp_path, older, planned)) == [older]


def test_a_run_outside_plans_replaces_nothing(tmp_path: Path) -> None:
    assert gone(results_of(tmp_path, run(), run(12, size=224, command=COMMAND.format("--lr 1 ")))) == []


def test_the_place_of_a_checkpoint_does_not_matter(tmp_path: Path) -> None:
    start = {"weights": f"last.safetensors {'c' * 64}"}
    checkpoints = "--weights elsewhere/last.safetensors "
    short = run(training={**start, "images_seen": 400})
    planned = run(12, size=224, command=COMMAND.format(checkpoints), training={**start, "images_seen": 2400})
    assert gone(results_of(tmp_path, short, planned)) == [short]


def test_a_plan_that_cannot_be_read_is_named_and_replaces_nothing(tmp_path: Path) -> None:
    results = results_of(tmp_path, run(), run(12, size=224, command=COMMAND.format("")))
    (results / "plans/long.toml").write_text("title = 3")
    assert gone(results) == []
    assert any("long.toml" in problem for problem in read_results(results).problems)


def test_a_plan_whose_runs_differ_in_options_that_no_folder_has_is_read(tmp_path: Path) -> None:
    plan = '[[run]]\nname = "{}"\nmethod = "{}"\ndataset = "squares"\nepochs = 12\nimage-size = 224\n'
    text = 'title = "t"\n' + plan.format("a", "cam") + plan.format("b", "spa") + "batch-size = 8\n"
    (tmp_path / "plan.toml").write_text(text)
    found, problems = find_planned(tmp_path, [])
    assert (found, problems) == ({}, [])
