"""Training curves for TensorBoard and Weights & Biases, next to `log.csv`, through their own libraries.

Both get the columns of `log.csv` under the same names, one step per epoch. The curves of a resumed run are
continued. The libraries are the extras `tensorboard` and `wandb`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.methods import TrainingLog
from wsolbench.system.files import canonical_json, write_text

PROJECT = "wsolbench"
"""Project in Weights & Biases if the environment has no `WANDB_PROJECT`."""
_WANDB_ID = "wandb-id.txt"
"""File of a run folder with the name of the run in Weights & Biases, so that a resumed run finds it."""


class TensorBoardLog:
    """Event files in the folder `tensorboard` of the run: `tensorboard --logdir runs`.

    Raises `UsageError` if the library is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard") from error
        self._open: Callable[..., Any] = SummaryWriter
        self._writer: Any = None

    def start(self, folder: Path, settings: Mapping[str, Any], done: int) -> None:
        """Open the event files. What an interrupted run wrote after epoch `done` is hidden."""
        self._writer = self._open(log_dir=str(folder / "tensorboard"), purge_step=done + 1)
        self._writer.add_text("settings", f"```\n{canonical_json(dict(settings))}```", done)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add the numbers of an epoch."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def finish(self) -> None:
        """Close the event files."""
        self._writer.close()


class WandbLog:
    """A run of Weights & Biases with the name of the run folder.

    Its library reads `WANDB_MODE`, `WANDB_ENTITY` and so on. `WANDB_PROJECT` is `wsolbench` by default.
    Raises `UsageError` if the library is not installed.
    """

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _not_installed("wandb") from error
        self._library: Any = wandb
        self._run: Any = None

    def start(self, folder: Path, settings: Mapping[str, Any], done: int) -> None:
        """Open a new run if `done` is 0, and otherwise the one of the interrupted training."""
        known = folder / _WANDB_ID
        if done == 0 or not known.is_file():
            write_text(known, f"{secrets.token_hex(8)}\n")
        self._run = self._library.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=known.read_text(encoding="utf-8").strip(),
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            resume="allow",
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """Add the numbers of an epoch. Without `commit`, they would be sent with those of the next epoch."""
        self._run.log(_numbers(row), step=row["epoch"], commit=True)

    def finish(self) -> None:
        """Send what is left, and close the run."""
        self._run.finish()


LOGS: Mapping[str, Callable[[], TrainingLog]] = {"tensorboard": TensorBoardLog, "wandb": WandbLog}
"""Logs by the name of their extra, which is their name on the command line."""


def open_logs(names: str | None) -> tuple[TrainingLog, ...]:
    """Return the logs of `--log`, whose names are separated by commas.

    Raises `UsageError` for an unknown name, one that is given twice, and a library that is not installed.
    """
    listed = names.split(",") if names else []
    for name in listed:
        if name not in LOGS:
            raise unknown_name("log", name, LOGS)
        if listed.count(name) > 1:
            raise UsageError(f"--log names {name!r} twice; expected each log once")
    return tuple(LOGS[name]() for name in listed)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the columns of an epoch that have a value."""
    return {name: value for name, value in row.items() if name != "epoch" and value is not None}


def _not_installed(name: str) -> UsageError:
    return UsageError(f"--log {name} needs {name}, which is not installed: pip install 'wsolbench[{name}]'")
