"""Shards on the command line, and several processes under torchrun: one record, whoever made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import together

EVAL = ("eval", "--method", "center-box", "--resamples", "100", "--batch-size", "2")


def on(birds: Path) -> tuple[object, ...]:
    return "--dataset", "csvfolder", "--data-root", birds


def record(folder: str) -> dict:
    (path,) = [
        path
        for path in Path(folder).rglob("*.json")
        if not any(part.endswith(".shards") for part in path.parts)
    ]
    values = json.loads(path.read_text())
    return {**values, "path": str(path.relative_to(folder))}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsolbench.evaluation.runs.CHUNK", 2)


def test_merged_shards_are_the_unsharded_run(run, birds: Path) -> None:
    assert run(*EVAL, *on(birds), "--out", "whole").code == 0
    for index in (2, 1, 3):
        result = run(*EVAL, *on(birds), "--out", "parts", "--shard", f"{index}/3")
        assert result.code == 0, result.err
        assert "wsolbench merge parts" in result.out
    result = run("merge", "parts", "--out", "merged", "--save-scores", "--save-outcomes")
    assert result.code == 0, result.err
    assert "MaxBoxAccV2" in result.out
    whole, merged = record("whole"), record("merged")
    assert merged["path"] == whole["path"]
    assert {name: merged[name] for name in ("method", "dataset", "protocol", "metrics")} == {
        name: whole[name] for name in ("method", "dataset", "protocol", "metrics")
    }
    assert merged["provenance"]["processes"] == 3
    assert (
        merged["provenance"]["merged_by"]
        == "wsolbench merge parts --out merged --save-scores --save-outcomes"
    )
    assert len(list(Path("merged").rglob("*.scores.npz"))) == 1
    assert len(list(Path("merged").rglob("*.outcomes.npz"))) == 1
    assert not list(Path("parts").rglob("*.scores"))


def test_shards_of_stored_maps_merge_too(run, birds: Path) -> None:
    assert run(*EVAL, *on(birds), "--out", "whole", "--save-maps", "maps").code == 0
    score = ("score", "--maps", "maps", "--resamples", "100", *on(birds))
    assert run(*score, "--out", "scored").code == 0
    for index in (1, 2):
        assert run(*score, "--out", "results/measured", "--shard", f"{index}/2").code == 0
    assert run("merge", "results", "--out", "results/measured", "--keep").code == 0
    assert record("results/measured")["metrics"] == record("scored")["metrics"]
    assert list(Path("results/measured").rglob("*.scores"))
    assert run("leaderboard").code == 0  # the shards that were kept are no records


def test_an_incomplete_run_makes_no_record(run, birds: Path) -> None:
    assert run(*EVAL, *on(birds), "--out", "parts", "--shard", "1/2").code == 0
    result = run("merge", "parts", "--out", "merged")
    assert result.code == 2
    assert "--shard 2/2" in result.err
    assert not list(Path("merged").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "3/2"), "expected i/n"),
        (("--shard", "1/2", "--save-scores"), "need all shards"),
        (("--shard", "1/2", "--pictures", "pictures"), "need all shards"),
    ],
)
def test_what_a_shard_cannot_do_is_said(run, birds: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*EVAL, *on(birds), *arguments)
    assert result.code == 2
    assert message in result.err


def test_two_processes_make_the_record_of_one(run, birds: Path) -> None:
    train = (
        "--method",
        "cam",
        "--backbone",
        "tiny",
        "--epochs",
        "1",
        "--image-size",
        "32",
        "--device",
        "cpu",
    )
    assert run("train", *train, "--batch-size", "8", *on(birds), "--out", "run").code == 0
    evaluate = (
        "eval",
        "--method",
        "cam",
        "--checkpoint",
        "run/last.safetensors",
        "--device",
        "cpu",
        "--batch-size",
        "2",
        "--resamples",
        "100",
    )
    code = (
        "import wsolbench.evaluation.runs\nfrom wsolbench.cli import "
        "main\n\nwsolbench.evaluation.runs.CHUNK = 2\nmain()\n"
    )
    # Each process has one thread; a network's last bits depend on the number of threads.
    outcomes = []
    for processes, out in ((1, "one"), (2, "two")):
        ended = together(code, *evaluate, *on(birds), "--out", out, size=processes)
        assert [each.code for each in ended] == [0] * processes, ended
        outcomes.append("".join(each.out for each in ended))
    one, two = record("one"), record("two")
    assert two["metrics"] == one["metrics"]
    assert two["method"] == one["method"]
    assert two["provenance"]["processes"] == 2
    assert "processes" not in one["provenance"]
    assert outcomes[1].count("record ") == 1
    assert not list(Path("two").glob(".work/*"))
