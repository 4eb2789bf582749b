"""Watching a training: GT-known on val, lines and logs. The weights do not depend on any of it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reference_models.localization.cam import Cam
from reference_models.localization.ddt import Ddt
from reference_models.training.run_folder import BEST, LAST, LOG
from tests.reference_models.conftest import squares
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest


class Notes:
    """A log that keeps what it gets, and fails at an epoch if it is told to."""

    def __init__(self, fail_at: int = 0) -> None:
        self.fail_at = fail_at
        self.started: list[tuple[Path, Mapping[str, Any], int]] = []
        self.rows: list[Mapping[str, Any]] = []
        self.finished = 0

    def start(self, folder: Path, settings: Mapping[str, Any], done: int) -> None:
        self.started.append((folder, settings, done))

    def write(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == self.fail_at:
            raise RuntimeError("the log fails")
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


def request(out: Path, **changes: Any) -> TrainRequest:
    values: dict[str, Any] = {
        "train": squares(),
        "val": squares(9, seed=1, split="val"),
        "backbone": "tiny",
        "weights": "none",
        "epochs": 3,
        "batch_size": 8,
        "image_size": 32,
        "workers": 0,
        "device": "cpu",
        "settings": {"head": "conv", "width": "8", "dropout": "0.5"},
    }
    return TrainRequest(out=out, **{**values, **changes})


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRequest, Notes]:
    notes = Notes()
    wanted = request(tmp_path_factory.mktemp("watched"), val_loc_every=2, logs=(notes,))
    Cam.fit(wanted)
    return wanted, notes


def log_of(out: Path) -> list[dict[str, str]]:
    with (out / LOG).open() as stream:
        return list(csv.DictReader(stream))


def test_checkpoints_have_the_same_bytes_with_and_without(
    watched: tuple[TrainRequest, Notes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Cam.fit(request(tmp_path))
    for name in (LAST, BEST):
        assert (tmp_path / name).read_bytes() == (watched[0].out / name).read_bytes()
    plain = log_of(tmp_path)
    assert "val_gt_known" not in plain[0]
    assert [row["train_loss"] for row in plain] == [row["train_loss"] for row in log_of(watched[0].out)]
    # One line per epoch, though stderr is no terminal.
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    assert lines[0].startswith(f"epoch 1/3  loss {float(plain[0]['train_loss']):.4g}  val Top-1 Cls ")


def test_it_is_the_gt_known_of_an_evaluation_every_n_epochs_and_after_the_last(
    watched: tuple[TrainRequest, Notes],
) -> None:
    wanted, _ = watched
    rows = log_of(wanted.out)
    assert [bool(row["val_gt_known"]) for row in rows] == [False, True, True]
    assert wanted.val is not None
    metric = evaluate(wanted.val, wanted.out / LAST, progress=False).metrics["gt_known"]
    assert metric.tau is not None
    assert (float(rows[-1]["val_gt_known"]), float(rows[-1]["val_tau"])) == pytest.approx(
        (metric.value, metric.tau[0]), abs=1e-6
    )


def test_a_log_gets_what_log_csv_has(watched: tuple[TrainRequest, Notes]) -> None:
    wanted, notes = watched
    ((folder, settings, done),) = notes.started
    assert (folder, settings["method"], done, notes.finished) == (wanted.out, "cam", 0, 1)
    assert [row["epoch"] for row in notes.rows] == [1, 2, 3]
    assert [f"{row['train_loss']:.6g}" for row in notes.rows] == [
        row["train_loss"] for row in log_of(wanted.out)
    ]


def test_a_resumed_run_begins_its_log_where_it_stopped(
    watched: tuple[TrainRequest, Notes], tmp_path: Path
) -> None:
    broken, notes = Notes(fail_at=3), Notes()
    with pytest.raises(RuntimeError, match="the log fails"):
        Cam.fit(request(tmp_path, logs=(broken,)))
    assert broken.finished == 1
    Cam.fit(request(tmp_path, logs=(notes,), val_loc_every=1))
    assert (notes.started[0][2], [row["epoch"] for row in notes.rows]) == (2, [3])
    assert (tmp_path / LAST).read_bytes() == (watched[0].out / LAST).read_bytes()
    unchanged = Notes()
    Cam.fit(request(tmp_path, logs=(unchanged,)))  # a finished run
    assert not unchanged.started


def test_what_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--val-loc-every 1 measures GT-known on val, found no val split"):
        request(tmp_path, val=None, val_loc_every=1)
    with pytest.raises(UsageError, match="method 'ddt' has no epochs and takes no --log"):
        Ddt.fit(request(tmp_path, epochs=None, settings={}, logs=(Notes(),)))
