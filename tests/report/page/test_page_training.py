"""Training curves of the page: which logs are shown, with what numbers, and which are left out."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.page.made_up import html_of, page_of

from wsolbench.exceptions import UsageError
from wsolbench.report.board.results import read_results
from wsolbench.report.page.page import page_html
from wsolbench.report.page.training import MOST_LINES, default_runs, read_trainings
from wsolbench.report.pictures.plots import COLORS
from wsolbench.system.files import sha256_of_file

HEAD = "epoch,train_loss,lr,val_accuracy,seconds"
ROWS = ("1,2,0.1,0.25,3", "2,1,0.05,0.75,3", "3,0.5,0.01,0.5,3")


def train(folder: Path, *, rows: tuple[str, ...] = ROWS) -> str:
    """Write a run folder with a log and a checkpoint of its own. Returns the checkpoint's digest."""
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("\n".join((HEAD, *rows)) + "\n")
    (folder / "last.safetensors").write_text(folder.name)
    return sha256_of_file(folder / "last.safetensors")


@pytest.fixture
def evaluate(write_record: Callable[..., Path]) -> Callable[..., Path]:
    """Write the record of a checkpoint: `evaluate(digest, name=, seed=)`."""

    def write(digest: str, *, name: str = "cam", seed: int = 0, **more: Any) -> Path:
        checkpoint = {"file": "last.safetensors", "sha256": digest}
        training = {"method": name.partition("+")[0], "seed": seed, "checkpoint": checkpoint}
        return write_record(method={"name": name, "backbone": "tiny", "training": training}, **more)

    return write


def test_an_evaluated_training_has_its_curves_and_last_and_best_values(
    tmp_path: Path, evaluate: Callable[..., Path]
) -> None:
    for seed in (1, 0):
        digest = train(tmp_path / "runs" / f"{9 - seed}")  # folders in another order than the seeds
        evaluate(digest, seed=seed)
        evaluate(digest, name="cam+scg", seed=seed)  # the same training
    page = page_of(tmp_path, run_folders=[tmp_path / "runs"])
    shown = page.tables["Trainings · squares · cam"]
    assert shown.head == ["run", "epochs", "loss", "val Top-1 Cls, %", "best (epoch)", "time, s"]
    assert shown.body == [[f"tiny · seed {seed}", "3", "0.5", "50.0", "75.0 (2)", "9"] for seed in (0, 1)]
    pictures = [found for tag, found in page.elements if tag == "img"]
    titles = [str(found["alt"]).partition(" over")[0] for found in pictures]
    assert titles == ["loss", "val Top-1 Cls, %", "learning rate"]


def test_each_run_has_the_colour_of_its_row(tmp_path: Path, evaluate: Callable[..., Path]) -> None:
    for seed in (0, 1):
        rows = tuple(row.replace("0.5", f"0.{seed + 1}") for row in ROWS)
        evaluate(train(tmp_path / "runs" / f"seed{seed}", rows=rows), seed=seed)
    text = html_of(tmp_path, run_folders=[tmp_path / "runs"])
    picture = text.partition("data:image/png;base64,")[2].partition('"')[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), dtype=np.int64)
    assert pixels.shape == (290, 420, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    for color, is_drawn in zip(COLORS[:3], (True, True, False), strict=True):
        wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2).min() < 16) == is_drawn
        assert (f'stroke="{color}"' in text) == is_drawn


def test_logs_without_a_record_and_broken_logs_are_left_out_and_named(
    tmp_path: Path, evaluate: Callable[..., Path]
) -> None:
    evaluate(train(tmp_path / "runs/good"))
    train(tmp_path / "runs/other")
    evaluate(train(tmp_path / "runs/broken", rows=("1,x,0.1,0.2,3",)), seed=1)
    text, problems = page_html(
        tmp_path, galleries=(), methods=3, resamples=100, run_folders=[tmp_path / "runs"]
    )
    assert "cam: 1 training<" in text
    assert "<summary>Left out: 2</summary>" in text
    assert "runs/other/log.csv has no record of its checkpoint" in text
    assert len(problems) == 1
    assert "runs/broken/log.csv:2 is no epoch of a training log" in problems[0]


def test_more_runs_than_colours_are_two_figures(tmp_path: Path, evaluate: Callable[..., Path]) -> None:
    for seed in range(MOST_LINES + 1):
        evaluate(train(tmp_path / "runs" / f"seed{seed}"), seed=seed)
    tables = page_of(tmp_path, run_folders=[tmp_path / "runs"]).tables
    counts = {caption: len(table.body) for caption, table in tables.items() if "Trainings" in caption}
    assert counts == {
        "Trainings · squares · cam · 1 to 7": 7,
        "Trainings · squares · cam · 8 to 8": 1,
    }


def test_the_checkpoint_decides_and_not_the_name_of_the_folder(
    tmp_path: Path, evaluate: Callable[..., Path]
) -> None:
    evaluate(train(tmp_path / "runs/cam"))
    (tmp_path / "runs/cam/last.safetensors").write_text("trained again")
    logs = read_trainings([tmp_path / "runs"], read_results(tmp_path).runs)
    assert logs.trainings == ()
    assert logs.without_record == (tmp_path / "runs/cam/log.csv",)


def test_folders_without_a_log_are_an_error_and_the_default_folder_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_runs() == []
    (tmp_path / "runs").mkdir()
    assert default_runs() == []
    with pytest.raises(UsageError, match=r"runs has no log\.csv; expected a run folder"):
        read_trainings([Path("runs")], [])
    train(tmp_path / "runs/cub/cam")
    assert default_runs() == [Path("runs")]
