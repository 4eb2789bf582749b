"""`wsolbench reproduce`: a plan is carried out once, in order, in shards, and after a kill."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import PATIENCE
from wsolbench.cli._jobs import checkpoint_of
from wsolbench.records import find_records
from wsolbench.records.plans import read_plan

ROOT = Path(__file__).parents[2]

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
    row = next(line for line in dry.out.splitlines() if "has-from-cam/1" in line)
    assert row.split() == ["has-from-cam/1", "cam/1", "left", "0.01", "a", "paper,", "Table", "1:", "12.3"]
    assert not Path("results").exists()

    # Two shards at once, in processes of their own, on one results folder.
    shards = [start(plan, "--shard", f"{index}/2") for index in (1, 2)]
    for shard in shards:
        assert shard.wait(900) == 0, "".join(path.read_text() for path in Path("runs/plans").rglob("*.log"))
    assert measured() == {"cam": [0, 1], "cam+scg": [0, 1], "has": [1]}
    assert "--weights runs/birds-a44d89d0/cam-tiny-seed1-epochs=1-image_size=32/last.safetensors" in (
        Path("runs/plans/birds/has-from-cam-1.log").read_text()
    )
    assert Path("report/index.html").is_file()
    assert run("leaderboard", "--check").code == 0
    assert any(Path("results/compared").rglob("*.json"))  # SPA claims that SCG improves CAM
    assert "0 of 3 jobs to run, 3 done" in run("reproduce", plan, "--dry-run").out


def start(plan: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Begin `reproduce` in a process of its own."""
    command = [sys.executable, "-m", "wsolbench", "reproduce", str(plan), "--device", "cpu", "--workers", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *arguments], env=environment)


def test_a_killed_job_resumes_and_one_killed_before_its_record_trains_no_more(
    run, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan.write_text(PLAN.replace("epochs = 1", "epochs = 40"))
    folder = Path("runs/birds-a44d89d0/cam-tiny-seed0-epochs=40-image_size=32")
    arguments = ("--only", "cam/0", "--no-tables")
    # Kill it after the first epoch. The job does not survive.
    process = start(plan, *arguments)
    while not (folder / "log.csv").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
    assert (folder / "state.pt").is_file()
    before = list(csv.DictReader((folder / "log.csv").open()))
    assert len(before) < 40
    # It resumes: the first epochs are those that were timed before.
    command = ("reproduce", plan, "--device", "cpu", "--workers", "0", *arguments)
    result = run(*command)
    assert result.code == 0, result.err
    assert list(csv.DictReader((folder / "log.csv").open()))[: len(before)] == before
    # Without its records the job is left, and only evaluates.
    records = {path: record.metrics for path, record in find_records(Path("results/measured")).records}
    for path in records:
        path.unlink()
    trained = (folder / "last.safetensors").stat().st_mtime_ns
    assert run(*command).code == 0
    assert {path: record.metrics for path, record in find_records(Path("results/measured")).records} == (
        records
    )
    assert (folder / "last.safetensors").stat().st_mtime_ns == trained


def test_a_record_that_was_removed_is_made_again_with_the_checkpoint_it_needs(run, plan: Path) -> None:
    arguments = ("reproduce", plan, "--device", "cpu", "--workers", "0", "--no-tables")
    assert run(*arguments, "--only", "has*").code == 0
    assert measured() == {"cam": [1], "cam+scg": [1], "has": [1]}
    for path, record in find_records(Path("results/measured")).records:
        if record.method["name"] == "has":
            path.unlink()
    for path in Path("runs/birds-a44d89d0").iterdir():
        (path / "last.safetensors").unlink()
    result = run(*arguments, "--only", "has*")
    assert "done     2 jobs" in result.out, result.err
    assert measured() == {"cam": [1], "cam+scg": [1], "has": [1]}


def test_shards_share_the_chains_between_them(run, plan: Path) -> None:
    parts = [run("reproduce", plan, "--dry-run", "--shard", f"{index}/2").out for index in (1, 2)]
    assert "2 of 2 jobs" in parts[0]  # HaS and the CAM that it starts from, the longest chain
    assert "1 of 1 jobs" in parts[1]


def test_a_task_of_a_slurm_array_is_a_shard(run, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ID", 13), ("MIN", 10), ("STEP", 3), ("COUNT", 2)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    result = run("reproduce", plan, "--dry-run")
    assert "shard    2/2 of the plan, task 13 of the SLURM array" in result.err
    assert "1 of 1 jobs" in result.out
    assert "3 of 3 jobs" in run("reproduce", plan, "--dry-run", "--shard", "1/1").out
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "x")
    assert "name the shard with --shard" in run("reproduce", plan, "--dry-run").err


def test_a_job_that_fails_is_named_and_stops_only_what_needs_it(run, plan: Path) -> None:
    plan.write_text(PLAN.replace('method = "cam"', 'method = "cam"\nweights = "nowhere.pth"', 1))
    result = run("reproduce", plan, "--device", "cpu", "--no-tables", "--workers", "0", "--only", "*/1")
    assert result.code == 2
    assert "failed   cam/1: Error: " in result.err
    assert "nowhere.pth" in result.err
    assert "log: runs/plans/birds/cam-1.log" in result.err
    assert "skipped  has-from-cam/1: it needs cam/1, which has failed" in result.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('method = "has"', 'method = "hass"'),
            "run has-from-cam: unknown method 'hass'; did you mean 'has'",
        ),
        (('"none,scg"', '"none,scgs"'), "run cam: unknown post-process 'scgs'"),
        (('method = "cam"', 'method = "cam"\nset.head = "x"'), "setting head='x' of method 'cam'"),
        (('method = "cam"', 'method = "cam"\nset.recipe.lr = "x"'), "lr"),
        (('method = "cam"', 'method = "cam"\nprotocol = "x"'), "unknown protocol"),
        (('method = "cam"', 'method = "cam"\ntransform = "x"'), "transform"),
        (('"tiny"', '"tinny"'), "unknown backbone 'tinny'"),
        (('"csvfolder"', '"cup"'), "did you mean 'cub'"),
        (("epochs = 1", "epochs = 0"), "--epochs"),
        (
            (
                'method = "has"\nweights = "@cam"',
                'method = "center-box"\ntrain = false\nset."recipe.lr" = 1',
            ),
            "run has-from-cam: unknown setting 'recipe.lr' of method 'center-box'",
        ),
    ],
)
def test_an_invalid_command_is_found_before_anything_runs(
    run, plan: Path, change: tuple[str, str], message: str
) -> None:
    plan.write_text(PLAN.replace(*change, 1))
    result = run("reproduce", plan, "--dry-run")
    assert result.code == (2 if message else 0)
    assert message in result.err
    assert not Path("runs").exists()


MORE = """
[[run]]
name = "cam-again"
method = "cam"
map = "class"

[[run]]
name = "transformed"
method = "cam"
checkpoint = "@cam"
transform = "rotate90"

[[run]]
name = "pretrained"
method = "cam"
train = false
"""


def test_runs_without_training_and_runs_of_one_folder_come_after_what_they_need(run, plan: Path) -> None:
    plan.write_text(PLAN + MORE)
    out = run("reproduce", plan, "--dry-run").out
    after = {line.split()[0]: line.split()[1] for line in out.splitlines() if "/" in line}
    assert after["cam-again/0"] == "cam/0"  # the same run folder: not at the same time
    assert after["transformed/1"] == "cam/1"
    assert after["pretrained/0"] == "left"
    assert {len(run("reproduce", plan, "--dry-run", "--shard", f"{n}/2").out.split("0.01")) for n in (1, 2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MORE.replace('map = "class"', "batch-size = 4"), "cam and cam-again differ in batch-size"),
        (MORE.replace("@cam", "@pretrained").replace("train = false", ""), "the name of a run above it"),
        (f'{MORE}\n[[run]]\nname = "x"\nmethod = "cam"\nweights = "@transformed"', "which is not trained"),
        (MORE.replace("train = false", "train = 0"), "train = 0; expected true or false"),
        (MORE.replace("train = false", 'hours = "long"'), "hours = 'long'; expected a number of hours"),
        (MORE.replace("train = false", 'detector = "lio-mask-rcnn"'), "exactly one of method and detector"),
    ],
)
def test_runs_that_contradict_each_other_are_explained(run, plan: Path, text: str, message: str) -> None:
    plan.write_text(PLAN + text)
    result = run("reproduce", plan, "--dry-run")
    assert result.code == 2
    assert message in result.err


def test_a_run_can_take_nothing_from_the_defaults(run, plan: Path) -> None:
    floor = '[[run]]\nname = "floor"\nmethod = "center-box"\ntrain = false\ndefaults = false\n'
    plan.write_text(f'{PLAN}\n{floor}dataset = "csvfolder"\n')
    (job,) = read_plan(plan, checkpoint_of).choose(["floor"])
    assert job.arguments == (
        *("eval", "--method", "center-box", "--dataset", "csvfolder"),
        *job.arguments[5:],
    )
    assert not {"--epochs", "--backbone", "--image-size"} & set(job.arguments)
    plan.write_text(f"{PLAN}\n{floor}")
    assert "(floor) lacks a dataset" in run("reproduce", plan, "--dry-run").err


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
        (('method = "has"', ""), "has not exactly one of method and detector"),
        (('dataset = "csvfolder"', ""), "lacks a dataset"),
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
    assert Path(
        "runs/birds-a44d89d0/cam-tiny-seed0-epochs=1-image_size=32-carve_val/last.safetensors"
    ).is_file()
    assert run("eval", *arguments, *data, "--resamples", "100").code == 0
