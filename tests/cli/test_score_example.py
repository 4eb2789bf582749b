"""`wsolbench score --example`: maps that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wsolbench.cli._example import EXAMPLE


def test_the_example_is_small_and_complete() -> None:
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    maps = [np.load(path) for path in files if path.suffix == ".npy"]
    assert len(maps) == 20
    assert all(each.std() > 0 for each in maps)
    assert "wsolbench eval --method baseline" in (EXAMPLE / "README.md").read_text(encoding="utf-8")


def test_it_prints_a_table_and_writes_a_record_and_a_picture(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WSOLBENCH_CACHE", str(tmp_path / "cache"))
    result = run("score", "--example")
    assert result.code == 0, result.err
    assert "baseline (tiny) on toybirds-v2-example test: 20 images, protocol wsoleval" in result.out
    assert "GT-known" in result.out
    assert "Top-1 Loc" in result.out
    folder = Path("wsolbench-example")
    (path,) = folder.rglob("*.json")
    record = json.loads(path.read_text())
    assert record["dataset"]["name"] == "toybirds-v2-example"
    assert record["method"]["training"]["epoch"] == 16
    assert [each.name for each in folder.glob("*.png")] == ["sample.png"]
    assert str(path) in result.out
    assert not (tmp_path / "cache").exists()  # the whole data set takes a minute
    again = run("score", "--example")  # the same record, not a second one
    assert again.code == 0, again.err
    assert len(list(folder.rglob("*.json"))) == 1


def test_other_options_are_refused(run) -> None:
    result = run("score", "--example", "--name", "mine")
    assert result.code == 2
    assert "--example takes no other options, found --name mine; leave them out" in result.err
    assert not Path("wsolbench-example").exists()


def test_without_it_maps_and_data_are_still_required(run) -> None:
    assert "Missing option '--maps'" in run("score", "--dataset", "cub").err
