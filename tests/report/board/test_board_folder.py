"""The board of a folder of records: its files, and `wsolbench leaderboard`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.report.board.made_up import run
from wsolbench.cli.leaderboard import command
from wsolbench.exceptions import DataError
from wsolbench.metrics.catalog import metric_info
from wsolbench.report.board.leaderboard import leaderboard_files


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run on all of CUB's test images, and a paper with the method's number."""
    run(0.425).record.write(tmp_path / "measured")
    (tmp_path / "papers.toml").write_text(
        '[p]\nname = "P"\ntitle = "A paper"\nfile = "published/p.csv"\nyear = 2021\n'
    )
    (tmp_path / "published").mkdir()
    header = "table,row,label,dataset,split,method,ours,backbone,metric,value,unit,evidence,protocol,note"
    row = "Table 1,1,CAM row,cub,test,CAM,cam,vgg16,top1_loc,40.5,percent,own,,"
    (tmp_path / "published/p.csv").write_text(f"{header}\n{row}\n")
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_the_board_of_a_folder_has_a_page_for_the_data_set_and_one_for_the_paper(results: Path) -> None:
    files = leaderboard_files(results)
    assert "| [CAM (CAM row)][1] | vgg16 | P | 2021 | 40.5 |" in files["published-cub.md"]
    assert "| CAM row | vgg16 | 40.5 | [42.5][1] |" in files["paper-p.md"]
    assert "[1]: ../measured/cub/" in files["paper-p.md"]
    assert "(published-cub.md)" in files["README.md"]
    assert "(paper-p.md)" in files["README.md"]


def test_a_variant_file_says_which_settings_a_printed_name_means(results: Path) -> None:
    (results / "variants.csv").write_text("paper,method,ours,settings\np,CAM,cam,head=fc\n")
    assert "| CAM row | vgg16 | 40.5 |  |" in leaderboard_files(results)["paper-p.md"]


def test_the_command_prints_tables_or_writes_them_to_a_file(results: Path) -> None:
    shown = call("--results", results, "--dataset", "cub", "--metric", "top1_loc", "--format", "latex")
    assert shown.exit_code == 0, shown.output
    assert shown.output.count(r"\toprule") == 2
    written = call("--results", results, "--format", "json", "--out", results / "board.json")
    assert written.exit_code == 0, written.output
    assert len(json.loads((results / "board.json").read_text())) == 2
    assert not (results / "leaderboard").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "top1_lok"), "did you mean 'top1_loc'"),
        (("--dataset", "cars"), "no table of the leaderboard matches --dataset cars"),
        (("--check", "--since", "2020"), "--check checks the whole leaderboard"),
    ],
)
def test_questions_without_an_answer_are_explained(
    results: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = call("--results", results, *arguments)
    assert message in str(result.exception)


def test_a_published_value_out_of_range_stops_the_check(results: Path) -> None:
    path = results / "published/p.csv"
    path.write_text(path.read_text().replace("40.5", "140.5"))
    with pytest.raises(DataError, match=r"p\.csv:2 .*out of range"):
        leaderboard_files(results)


def test_metrics_of_two_versions_stop_the_check(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "wsolbench.records.checks.metric_info", lambda name: replace(metric_info(name), version=2)
    )
    run(0.6, seed=1, version=2).record.write(results / "measured")
    assert call("--results", results).exit_code == 0
    checked = call("--results", results, "--check")
    assert checked.exit_code == 1
    assert "Evaluate the older run again" in checked.output
    assert "42.5" not in leaderboard_files(results)["README.md"]
