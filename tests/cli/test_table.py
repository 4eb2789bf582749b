"""`wsolbench table`: records from files and folders, filters, formats and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report.conftest import make_dataset, make_record
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue


def record(name: str, number: float, seed: int = 0, protocol: str = "wsoleval") -> Path:
    metrics = tuple(
        MetricValue(
            name=metric, value=number, low=number - 0.02, high=number + 0.02, n=5, policy="oracle", tau=(0.2,)
        )
        for metric in ("gt_known", "max_box_acc")
    )
    made = make_record(
        make_dataset(5),
        EvalProtocol.preset(protocol),
        metrics,
        method={"name": name, "training": {"seed": seed}},
    )
    return made.write(Path("records"))


@pytest.fixture
def paths(run) -> list[Path]:
    return [record("cam", 0.5), record("cam", 0.6, 1), record("spa", 0.7), record("spa", 0.8, 0, "spa")]


def test_files_and_folders_make_one_table(run, paths: list[Path]) -> None:
    shown = ("--metrics", "gt_known", "--format", "json")
    result = run("table", *paths[:3], *shown)
    assert result.code == 0, result.err
    (table,) = json.loads(result.out)
    assert [(row["method"], row["gt_known"]["mean"]) for row in table["rows"]] == [
        ("cam", 0.55),
        ("spa", 0.7),
    ]
    assert "max_box_acc" not in table["rows"][0]
    # A file and its folder name a record once; the order of --method is that of the rows.
    both = run("table", paths[2], "records", "--protocol", "wsoleval", "--method", "spa,cam", *shown)
    (table,) = json.loads(both.out)
    assert [(row["method"], row["gt_known"]["n"]) for row in table["rows"]] == [("spa", 1), ("cam", 2)]


def test_mixed_protocols_are_refused_and_can_be_chosen(run, paths: list[Path]) -> None:
    mixed = run("table", "records", "--out", "table.md")
    assert mixed.code == 2
    assert "the records differ in the protocol: wsoleval (" in mixed.err
    assert str(paths[3]) in mixed.err
    assert "Choose one with --protocol" in mixed.err
    assert not Path("table.md").exists()
    chosen = run("table", "records", "--protocol", "spa", "--out", "table.md")
    assert (chosen.code, chosen.out) == (0, "table.md\n")
    assert "80.0" in Path("table.md").read_text()


def test_what_is_not_there_is_named(run, paths: list[Path]) -> None:
    for options, message in (
        (("--protocol", "spaa"), "unknown protocol 'spaa' of these records; did you mean 'spa'?"),
        (("--method", "acol"), "unknown method 'acol' of these records."),
        (("--dataset", "cub"), "unknown dataset 'cub' of these records"),
        (("--metrics", "gt_know", "--protocol", "spa"), "unknown metric 'gt_know'; did you mean 'gt_known'?"),
        (("--published", "spa", "--protocol", "spa"), "SPA prints none of"),
    ):
        result = run("table", "records", *options)
        assert result.code == 2
        assert message in result.err
    assert "nowhere does not exist; expected a record" in run("table", "nowhere").err
    Path("empty").mkdir()
    assert "empty has no record" in run("table", "empty").err
    Path("records/broken.json").write_text("{")
    partly = run("table", "records", "--protocol", "spa")
    assert partly.code == 0
    assert "left out: record records/broken.json is not JSON" in partly.err
    assert "is not JSON" in run("table", "records/broken.json").err


def test_published_rows_of_the_package_stand_below(run) -> None:
    made = make_record(
        make_dataset(5),
        EvalProtocol(),
        (MetricValue(name="top1_loc", value=0.4, n=5, policy="oracle", tau=(0.2,)),),
    )
    path = replace(made, dataset={**made.dataset, "name": "cub"}).write(Path("records"))
    result = run("table", path, "--published", "spa", "--format", "latex")
    assert result.code == 0, result.err
    assert r"\emph{Published: SPA, CVPR 2021}" in result.out
    assert "60.27" in result.out
    assert "The images are not the full, unchanged official split" in result.out
