"""`wsolbench reproduce`: a plan is carried out once, in order, in parts, and after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsolbench.records import find_records

PLAN = """
title = "rectangles"

[defaults]
dataset = "csvfolder"
backbone = "tiny"
image-size = 32
epochs = 1
no-transfer = true
seeds = [0, 1]
hours = 0.01

[[run]]
name = "cam"
method = "cam"
post = "none,scg"

[[run]]
name = "has-from-cam"
method = "has"
weights = "@cam"
seeds = [1]
published = "a paper, Table 1: 12.3"
"""


@pytest.fixture
def plan(birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSOLBENCH_CSVFOLDER_ROOT", str(birds))
    path = tmp_path / "birds.toml"
    path.write_text(PLAN)
    return path


def measured() -> dict[str, list[int]]:
    """Seeds of the records by method."""
    found: dict[str, list[int]] = {}
    for _, record in find_records(Path("results/measured")).records:
        found.setdefault(record.method["name"], []).append(record.method["training"]["seed"])
    return {name: sorted(seeds) for name, seeds in found.items()}


def test_a_plan_is_carried_out_once_and_the_tables_are_up_to_date(run, plan: Path) -> None:
    dry = run("reproduce", plan, "--dry-run")
    assert dry.code == 0, dry.err
    assert "3 of 3 jobs to run, 0 done" in dry.out
    assert "--weights runs/csvfolder/cam-tiny-seed1-epochs=1-image_size=32/last.safetensors" in dry.out
    assert "published: a paper, Table 1: 12.3" in dry.out
    assert not Path("results").exists()

    first = run("reproduce", plan, "--device", "cpu", "--parallel", "2", "--workers", "0")
    assert first.code == 0, first.err + "".join(
        path.read_text() for path in Path("runs/plans").rglob("*.log")
    )
    assert "done     3 jobs, 0 left" in first.out
    assert measured() == {"cam": [0, 1], "cam+scg": [0, 1], "has": [1]}
    assert Path("report/index.html").is_file()
    assert run("leaderboard", "--check").code == 0

    again = run("reproduce", plan, "--dry-run")
    assert "0 of 3 jobs to run, 3 done" in again.out


def test_a_record_that_was_removed_is_made_again_with_the_checkpoint_it_needs(run, plan: Path) -> None:
    arguments = ("reproduce", plan, "--device", "cpu", "--workers", "0", "--no-tables")
    assert run(*arguments, "--only", "has*").code == 0
    assert measured() == {"cam": [1], "cam+scg": [1], "has": [1]}
    for path, record in find_records(Path("results/measured")).records:
        if record.method["name"] == "has":
            path.unlink()
    for path in Path("runs/csvfolder").iterdir():
        (path / "last.safetensors").unlink()
    result = run(*arguments, "--only", "has*")
    assert "done     2 jobs" in result.out, result.err
    assert measured() == {"cam": [1], "cam+scg": [1], "has": [1]}


def test_shards_share_the_chains_between_them(run, plan: Path) -> None:
    parts = [run("reproduce", plan, "--dry-run", "--shard", f"{index}/2").out for index in (1, 2)]
    assert "1 of 1 jobs" in parts[0]
    assert "2 of 2 jobs" in parts[1]  # HaS and the CAM that it starts from


def test_a_job_that_fails_is_named_and_stops_only_what_needs_it(run, plan: Path) -> None:
    plan.write_text(PLAN.replace('method = "cam"', 'method = "cam"\nset.head = "nonsense"', 1))
    result = run("reproduce", plan, "--device", "cpu", "--no-tables", "--workers", "0")
    assert result.code == 1
    assert "failed   cam/1: see runs/plans/birds/cam_1.log" in result.err.replace("cam-1", "cam_1")
    assert "skipped  has-from-cam/1: cam/1, whose checkpoint it starts from, has failed" in result.err
    assert any("nonsense" in path.read_text() for path in Path("runs/plans/birds").glob("cam*.log"))


def test_the_time_ends_a_call_and_the_next_one_goes_on(run, plan: Path) -> None:
    result = run("reproduce", plan, "--device", "cpu", "--no-tables", "--max-hours", "1e-6")
    assert result.code == 0
    assert "done     0 jobs, 3 left" in result.out
    assert "3 of 3 jobs to run" in run("reproduce", plan, "--dry-run").out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs = 1", "epoch = 1"), "did you mean 'epochs'"),
        (("epochs = 1", "epochs = [1]"), "epochs = [1]; expected a text, a number or true"),
        (("seeds = [0, 1]", "seeds = []"), "a list of whole numbers"),
        (('"@cam"', '"@spa"'), "expected the name of a run above it"),
        (("seeds = [1]", "seeds = [5]"), "with seed 5, which that run does not have"),
        (('name = "has-from-cam"', 'name = "cam"'), "expected another name"),
        (('title = "rectangles"', ""), "expected title, [defaults] and [[run]]"),
        (("[defaults]", "[defaults"), "is not TOML"),
        (('method = "has"', ""), "lacks a method or a dataset"),
    ],
)
def test_a_plan_that_is_none_is_explained(run, plan: Path, change: tuple[str, str], message: str) -> None:
    plan.write_text(PLAN.replace(*change))
    result = run("reproduce", plan, "--dry-run")
    assert result.code == 2
    assert message in result.err
    assert str(plan) in result.err


def test_a_pattern_that_matches_nothing_names_the_runs(run, plan: Path) -> None:
    result = run("reproduce", plan, "--dry-run", "--only", "cams")
    assert result.code == 2
    assert "did you mean 'cam'" in result.err


def test_a_carved_val_is_a_tenth_of_train_and_has_runs_of_its_own(run, birds: Path) -> None:
    arguments = (
        "--method",
        "cam",
        "--backbone",
        "tiny",
        "--image-size",
        "32",
        "--epochs",
        "1",
        "--device",
        "cpu",
    )
    data = ("--dataset", "csvfolder", "--data-root", birds, "--carve-val")
    result = run("eval", *arguments, *data, "--train", "--resamples", "100")
    assert result.code == 0, result.err
    ((_, record),) = find_records(Path("results/measured")).records
    assert record.method["training"]["dataset"]["images"] == 24 - 3  # one of 8 images of each class
    assert record.method["training"]["val"]["images"] == 3
    assert record.dataset["transfer_from"]["fingerprint"] == record.method["training"]["val"]["fingerprint"]
    assert Path("runs/csvfolder/cam-tiny-seed0-epochs=1-image_size=32-carve_val/last.safetensors").is_file()
    assert run("eval", *arguments, *data, "--resamples", "100").code == 0
