"""Training logs of other programs: with stand-ins for their libraries, and with those that are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsolbench.exceptions import UsageError
from wsolbench.integrations.training_logs import open_logs

ROWS = (
    {"epoch": 1, "train_loss": 1.5, "val_accuracy": None, "lr": 0.1},
    {"epoch": 2, "train_loss": 1.0, "val_accuracy": 0.5, "lr": 0.01},
)


class Calls(list[tuple[Any, ...]]):
    """An object that notes every call of a function of it."""

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Calls:
            self.append((name, *arguments, named))
            return self

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Both libraries, installed; what is called of them."""
    noted = Calls()
    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    vars(board)["SummaryWriter"] = noted.SummaryWriter
    vars(wandb)["init"] = noted.init
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return noted


def write(name: str, folder: Path, done: int = 0) -> None:
    (log,) = open_logs(name)
    log.start(folder, {"method": "cam"}, done)
    for row in ROWS[done:]:
        log.write(row)
    log.finish()


def test_tensorboard_gets_the_columns_of_each_epoch(calls: Calls, tmp_path: Path) -> None:
    write("tensorboard", tmp_path)
    assert calls[0] == ("SummaryWriter", {"log_dir": str(tmp_path / "tensorboard"), "purge_step": 1})
    assert [call[1:4] for call in calls if call[0] == "add_scalar"] == [
        ("train_loss", 1.5, 1), ("lr", 0.1, 1), ("train_loss", 1.0, 2), ("val_accuracy", 0.5, 2), ("lr", 0.01, 2),
    ]  # fmt: skip
    assert calls[-1][0] == "close"


def test_a_resumed_run_hides_what_was_written_after_its_last_state(calls: Calls, tmp_path: Path) -> None:
    write("tensorboard", tmp_path, done=1)
    assert calls[0][1]["purge_step"] == 2


def test_wandb_gets_one_run_that_is_found_again(calls: Calls, tmp_path: Path) -> None:
    write("wandb", tmp_path)
    first = calls[0][1]
    assert (first["project"], first["name"], first["resume"]) == ("wsolbench", tmp_path.name, "allow")
    assert first["config"] == {"method": "cam"}
    assert calls[1] == ("log", {"train_loss": 1.5, "lr": 0.1}, {"step": 1, "commit": True})
    assert calls[-1][0] == "finish"
    calls.clear()
    write("wandb", tmp_path, done=1)
    assert calls[0][1]["id"] == first["id"]
    calls.clear()
    write("wandb", tmp_path)  # a new training in the same folder
    assert calls[0][1]["id"] != first["id"]


def test_wandb_takes_the_project_of_the_environment(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "birds")
    write("wandb", tmp_path)
    assert calls[0][1]["project"] == "birds"


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_library_that_is_not_installed_is_an_error_that_names_the_extra(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"--log {name} .* pip install 'wsolbench\[{name}\]'"):
        open_logs(name)


def test_unknown_and_repeated_names(calls: Calls) -> None:
    assert open_logs(None) == ()
    assert len(open_logs("tensorboard,wandb")) == 2
    with pytest.raises(UsageError, match="unknown log 'tensorbord'; did you mean 'tensorboard'"):
        open_logs("tensorbord")
    with pytest.raises(UsageError, match="names 'wandb' twice"):
        open_logs("wandb,wandb")


# --- with the libraries themselves --------------------------------------------------------------------------


def test_tensorboard_reads_the_events_and_hides_those_after_the_resumed_epoch(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write("tensorboard", tmp_path)
    write("tensorboard", tmp_path, done=1)  # interrupted in epoch 2: its row is written again
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {
        name: [(each.step, pytest.approx(each.value)) for each in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert found == {
        "train_loss": [(1, 1.5), (2, 1.0)],
        "lr": [(1, 0.1), (2, 0.01)],
        "val_accuracy": [(2, 0.5)],
    }
    (settings, *_) = events.Tensors("settings/text_summary")
    assert b'"method": "cam"' in settings.tensor_proto.string_val[0]


def test_wandb_writes_a_run_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (log,) = open_logs("wandb")
    log.start(tmp_path, {"method": "cam"}, 0)
    assert wandb.run.name == tmp_path.name
    assert wandb.run.config["method"] == "cam"
    for row in ROWS:
        log.write(row)
    assert wandb.run.summary["train_loss"] == 1.0
    assert wandb.run.summary["val_accuracy"] == 0.5
    log.finish()
    assert len(list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))) == 1
