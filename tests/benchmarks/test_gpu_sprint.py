"""The sprint on a GPU: its parts do not disturb each other, and its tiny form runs on the CPU."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_sprint
from benchmarks.gpu_sprint import Folders, Part, run_parts
from benchmarks.sprint_parity import SameDraws
from benchmarks.sprint_parts import register_tree
from tests.processes import PATIENCE
from wsolbench.testing.fake_cuda import FakeCuda

ROOT = Path(__file__).parents[2]


def python(name: str, code: str, limit: float = PATIENCE) -> Part:
    return Part(name, [sys.executable, "-c", code], limit)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("out", "work/logs", "work/tables", "work/results"):
        (tmp_path / name).mkdir(parents=True)
    return Folders(tmp_path / "out", tmp_path / "work")


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"


def test_a_part_that_fails_and_one_that_hangs_do_not_stop_the_next(folders, capsys):
    child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {'import time; time.sleep(3600)'!r}])"
    parts = [
        python("raises", "print('step 1'); raise ValueError('no such thing')"),
        python("hangs", f"{child}; print('begun', flush=True); import time; time.sleep(3600)", 2.0),
        python("crashes", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
        Part("missing", ["/no/such/program"], 5.0),
        python("late", "open('tables/late.jsonl', 'w').write('{\"a\": 1}\\n{\"a\": 2'); print('fine')"),
    ]
    start = time.monotonic()
    results = run_parts(parts, folders, PATIENCE / 60, os.environ)
    assert time.monotonic() - start < PATIENCE
    assert [result.outcome for result in results] == [
        "failed with exit code 1",
        "over its limit",
        "failed with exit code -11",
        "failed",
        "passed",
    ]
    assert [result.last for result in results][:2] == ["ValueError: no such thing", "begun"]
    first = (folders.out / "summary.md").read_text().splitlines()[0]
    assert "4 of 5 parts did not pass" in first
    assert all(name in first for name in ("raises", "hangs", "crashes", "missing"))
    assert json.loads((folders.out / "tables.json").read_text()) == {"late": [{"a": 1}]}
    with tarfile.open(folders.out / "logs.tar.gz") as archive:
        assert {"logs/raises.log", "logs/late.log"} <= set(archive.getnames())
    assert "over its limit after 2.0 s" in capsys.readouterr().out


def test_a_part_that_ignores_the_request_to_stop_is_killed(folders, monkeypatch):
    monkeypatch.setattr(gpu_sprint, "PATIENCE_SECONDS", 1.0)
    (result,) = run_parts([python("deaf", DEAF, 2.0)], folders, 1.0, os.environ)
    assert result.outcome == "over its limit"
    assert 3 <= result.seconds < PATIENCE


def test_no_part_starts_when_the_time_is_over(folders):
    parts = [python("long", "import time; time.sleep(3600)", 3600), python("next", "open('started', 'w')")]
    results = run_parts(parts, folders, 1 / 60, os.environ)
    assert [result.outcome for result in results] == ["over its limit", "no time left"]
    assert not (folders.work / "started").exists()


def test_a_tree_that_is_not_installed_has_its_entry_points(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    register_tree(tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    monkeypatch.undo()
    installed = importlib.metadata.distribution("wsolbench").entry_points
    assert {(each.group, each.name, each.value) for each in found.entry_points} == {
        (each.group, each.name, each.value) for each in installed if each.group.startswith("wsolbench.")
    }


def test_draws_do_not_depend_on_the_generator_that_a_method_gives():
    def draw(generator: torch.Generator) -> list[torch.Tensor]:
        with SameDraws(3):
            return [
                torch.rand(2, 3, generator=generator),
                torch.randperm(5, generator=generator),
                torch.zeros(4).uniform_(generator=generator),
                torch.nn.functional.dropout(torch.ones(50), 0.5),
                torch.bernoulli(torch.full((9,), 0.5), generator=generator),
                torch._sample_dirichlet(torch.ones(2, 3), generator),
            ]

    one, two = (draw(torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert 0 < (one[3] == 0).sum() < 50


def test_draws_on_a_gpu_are_those_of_the_cpu():
    def draw(device: str, generator: torch.Generator) -> list[torch.Tensor]:
        torch.manual_seed(4)  # for what is drawn without a generator
        return [
            torch.rand(2, 3, device=device, generator=generator),
            torch.zeros(4, device=device).uniform_(),
            torch.randperm(5, device=device, generator=generator),
            torch.nn.functional.dropout(torch.ones(50, device=device), 0.5),
        ]

    with SameDraws(3):
        expected = draw("cpu", torch.Generator())
    with FakeCuda() as gpu, SameDraws(3):
        found = draw("cuda", gpu.generator())
        assert all(each.device.type == "cuda" for each in found)
        values = [gpu.values(each) for each in found]
    assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))


@pytest.mark.slow
def test_the_tiny_sprint_runs_on_the_cpu(tmp_path):
    command = [
        sys.executable,
        "benchmarks/gpu_sprint.py",
        "--device",
        "cpu",
        "--tiny",
        "--minutes",
        "40",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"summary.md", "parts.json", "tables.json", "logs.tar.gz", "records.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == names
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert {"environment", "parity", "throughput", "posts", "points", "evaluate", "resume"} <= tables.keys()
    assert all(row["worst"] == 0 for row in tables["parity"] if row["precision"] == "float32")
    assert all(row["worst"] > 0 for row in tables["parity"] if row["precision"] == "bfloat16")
    with tarfile.open(tmp_path / "records.tar.gz") as archive:
        assert len([name for name in archive.getnames() if name.endswith(".json")]) == 2
