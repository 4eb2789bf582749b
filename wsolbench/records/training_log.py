"""The training log of a run folder, `log.csv`, as curves over epochs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.stored import read_text

LOG = "log.csv"
"""Name of the log in a run folder."""
TITLES: Mapping[str, str] = {
    "train_loss": "loss",
    "val_accuracy": "val Top-1 Cls, %",
    "val_gt_known": "val GT-known, %",
    "lr": "learning rate",
}
"""Titles of the columns that are shown."""
PERCENT = ("val_accuracy", "val_gt_known")
"""Columns of fractions, which are shown in percent."""


@dataclass(frozen=True, kw_only=True)
class TrainingCurves:
    """The log of one run. `columns` are the values by name; an epoch without a value has NaN."""

    path: Path
    columns: Mapping[str, tuple[float, ...]]

    @property
    def epochs(self) -> tuple[int, ...]:
        """Numbers of the finished epochs."""
        return tuple(map(int, self.columns["epoch"]))

    def points(self, name: str) -> tuple[list[int], list[float]]:
        """Return the epochs with a value in a column, and their values, fractions in percent."""
        factor = 100.0 if name in PERCENT else 1.0
        values = self.columns.get(name, ())
        found = [
            (epoch, factor * value)
            for epoch, value in zip(self.epochs, values, strict=False)
            if not math.isnan(value)
        ]
        return [epoch for epoch, _ in found], [value for _, value in found]


def find_logs(paths: Iterable[Path]) -> list[Path]:
    """Return the logs of run folders, and of folders with run folders below them, in this order.

    Raises `UsageError` for a path that does not exist, and for a folder without a log.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            logs = [path]
        elif (path / LOG).is_file():
            logs = [path / LOG]
        elif path.is_dir():
            logs = sorted(path.rglob(LOG))
        else:
            raise UsageError(f"{path} does not exist; expected a run folder, as `wsolbench train` writes it")
        if not logs:
            raise UsageError(
                f"{path} has no {LOG}; expected a run folder, as `wsolbench train` writes it, or a folder "
                "of them"
            )
        found.update(dict.fromkeys(logs))
    return list(found)


def read_log(path: Path) -> TrainingCurves:
    """Read a log. Raises `DataError` if it has no epoch, or is not a log of a training."""
    reader = csv.DictReader(read_text(path, "file").splitlines(), strict=True)
    names = list(reader.fieldnames or ())
    if missing := [name for name in ("epoch", "train_loss") if name not in names]:
        raise DataError(
            f"{path} has the columns {','.join(names) or '(none)'}; expected a training log with "
            f"{' and '.join(missing)}"
        )
    columns: dict[str, list[float]] = {name: [] for name in names}
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"it does not have {len(names)} cells")
            for name, text in row.items():
                columns[name].append(float(text) if text else math.nan)
            epoch = columns["epoch"][-1]
            if not epoch.is_integer():
                raise ValueError(f"its epoch is {row['epoch']!r}")
    except (csv.Error, ValueError) as error:
        raise DataError(
            f"{path}:{reader.line_num} is no epoch of a training log: {error}; expected numbers"
        ) from error
    if not columns["epoch"]:
        raise DataError(f"{path} has no epoch; expected one row per epoch")
    return TrainingCurves(path=path, columns={name: tuple(values) for name, values in columns.items()})


def run_names(logs: Iterable[TrainingCurves]) -> list[str]:
    """Return a name for each run: that of its folder, with as many parents as set all of them apart."""
    folders = [log.path.absolute().parent.parts for log in logs]
    length = 1
    while len({parts[-length:] for parts in folders}) < len(set(folders)):
        length += 1
    return ["/".join(parts[-length:]) for parts in folders]
