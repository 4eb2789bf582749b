"""`wsolbench curves`: which logs it finds, what it prints and draws, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

HEAD = "epoch,train_loss,loss,lr,val_accuracy,val_gt_known,val_tau,images_per_second,seconds"


def log(folder: str, *, bonus: float = 0.0, head: str = HEAD, rows: list[str] | None = None) -> Path:
    path = Path(folder) / "log.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [
        f"{epoch},{2 / epoch:.6g},1,{0.1 / epoch:.6g},{0.2 * (epoch % 3) + bonus:.6g},"
        f"{'' if epoch % 2 else 0.5},{'' if epoch % 2 else 0.2},9,1.5"
        for epoch in range(1, 5)
    ]
    path.write_text("\n".join([head, *(made if rows is None else rows)]) + "\n")
    return path.parent


def test_one_run_prints_its_epochs(run) -> None:
    result = run("curves", log("runs/cub/cam"))
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].split("  ")[0] == "epoch"
    assert lines[0].endswith("time, s")
    assert lines[2].split() == ["2", "1", "40.0", "50.0", "0.05", "1.5"]
    assert lines[1].split() == ["1", "2", "20.0", "0.1", "1.5"]  # GT-known was not measured
    assert lines[-1] == "picture  curves.png"
    assert Image.open("curves.png").width == 1000


def test_several_runs_print_one_line_each_with_the_best_epoch(run) -> None:
    log("runs/cub/cam", bonus=0.1)
    log("runs/ilsvrc/cam", head="epoch,train_loss", rows=["1,0.5"])
    log("runs/ilsvrc/spa")
    result = run("curves", "runs/cub", "runs", "--out", "out/all.pdf")
    assert result.code == 0, result.err
    rows = result.out.splitlines()[1:-1]
    assert [row.split()[0] for row in rows] == ["cub/cam", "ilsvrc/cam", "ilsvrc/spa"]
    assert rows[0].split()[1:] == ["4", "0.5", "30.0", "50.0", "(2)", "50.0", "50.0", "(2)", "6"]
    assert Path("out/all.pdf").read_bytes().startswith(b"%PDF")
    first = Path("out/all.pdf").read_bytes()
    run("curves", "runs/cub", "runs", "--out", "out/all.pdf")
    assert Path("out/all.pdf").read_bytes() == first


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (HEAD, [], "has no epoch; expected one row per epoch"),
        ("image,label", ["a,1"], "has the columns image,label; expected a training log with epoch and"),
        ("epoch,train_loss", ["1,x"], "log.csv:2 is no epoch of a training log: could not convert"),
        ("epoch,train_loss", ["1"], "it does not have 2 cells"),
        ("epoch,train_loss", ["1.5,1"], "its epoch is '1.5'"),
        ("epoch,train_loss", [",1"], "its epoch is ''"),
    ],
)
def test_what_is_no_log_is_refused_and_writes_nothing(run, head, rows, message) -> None:
    result = run("curves", log("runs/a", head=head, rows=rows))
    assert (result.code, message in result.err) == (2, True), result.err
    assert not Path("curves.png").exists()


def test_paths_without_a_log_and_other_formats_are_refused(run) -> None:
    Path("empty").mkdir()
    for arguments, message in (
        (("nowhere",), "nowhere does not exist; expected a run folder"),
        (("empty",), "empty has no log.csv; expected a run folder"),
        ((log("runs/a"), "--out", "a.svg"), "expected .png, .jpg, .jpeg or .pdf"),
    ):
        result = run("curves", *arguments)
        assert (result.code, message in result.err) == (2, True), result.err
