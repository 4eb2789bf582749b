"""What `eval` and `score` print at the end, and options that watch a training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CENTER = ("eval", "--method", "center-box", "--dataset", "csvfolder", "--resamples", "100")


def test_the_short_table_fits_a_terminal_and_ends_with_the_record(run, birds: Path) -> None:
    result = run(*CENTER, "--data-root", birds)
    assert result.code == 0, result.err
    *table, record = result.out.splitlines()
    assert table[0] == "center-box on birds test: 9 images, protocol wsoleval"
    assert [line.split()[0] for line in table[1:]] == ["GT-known", "MaxBoxAccV2", "PxAP", "Peak-IoU"]
    assert max(map(len, table)) <= 80
    assert all(name in table[1] for name in ("oracle", "transfer"))
    assert record.split()[0] == "record"
    assert Path(record.split()[1]).is_file()


def test_full_and_extra_metrics_print_the_whole_table(run, birds: Path) -> None:
    for options in (("--full",), ("--extra-metrics", "pointing-game")):
        result = run(*CENTER, "--data-root", birds, *options)
        assert result.code == 0, result.err
        assert "Error breakdown" in result.out
        assert "outcomes " in result.out
        assert ("Pointing game" in result.out) == (options[0] == "--extra-metrics")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--log", "wandb"), "--log has no effect without --train"),
        (("--val-loc-every", "2"), "--val-loc-every has no effect without --train"),
    ],
)
def test_options_of_a_training_need_one(run, birds: Path, arguments, message) -> None:
    result = run("eval", "--method", "cam", "--dataset", "csvfolder", "--data-root", birds, *arguments)
    assert (result.code, message in result.err) == (2, True), result.err


def test_a_log_without_its_library_stops_before_the_training(run, birds: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = run(
        "train", "--method", "cam", "--dataset", "csvfolder", "--data-root", birds, "--backbone", "tiny",
        "--log", "wandb",
    )  # fmt: skip
    assert result.code == 2
    assert "pip install 'wsolbench[wandb]'" in result.err
    assert not Path("runs").exists()
