"""The folder of a training run: one process at a time, one run, a log."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsolbench.exceptions import UsageError
from wsolbench.files import canonical_json, locked, remove_leftovers, write_text

ELSEWHERE = "--out of `wsolbench train` (then `eval --checkpoint`) or of `train-detector`"


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """A run folder for this process alone, created where it is missing. Raises `UsageError` when another process is in it.

    Temporary files that a killed run has left are removed.
    """
    busy = f"another process is training in {folder}; wait for it, or train into another folder: {ELSEWHERE}"
    with locked(folder / ".lock", busy):
        remove_leftovers(folder)
        yield


def must_be_same(there: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Raises `UsageError` with what differs when the facts of the run at `path` are not those that are asked for."""
    asked = json.loads(canonical_json(asked))
    if there == asked:
        return
    differences = []
    for name in sorted(asked):
        old, new = there.get(name), asked[name]
        if isinstance(old, dict) and isinstance(new, dict):
            differences += [
                f"{name}.{key} is {old.get(key)!r} there and {new[key]!r} here" for key in sorted(new) if old.get(key) != new[key]
            ]
        elif old != new:
            differences.append(f"{name} is {old!r} there and {new!r} here")
    raise UsageError(
        f"{path} belongs to another run: {'; '.join(differences[:3])}. Delete that one, or train into another folder: {ELSEWHERE}"
    )


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """A CSV file with a row for each epoch: number and loss, the terms of the loss, rate, accuracy, speed."""
    names = {name: None for row in history for name in row}
    first, last = ["epoch", "train_loss"], ["lr", "val_accuracy", "images_per_second", "seconds"]
    columns = [*first, *(name for name in names if name not in {*first, *last}), *(name for name in last if name in names)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in history:
        values = [row.get(name) for name in columns]
        writer.writerow(["" if value is None else f"{value:.6g}" if isinstance(value, float) else value for value in values])
    write_text(path, text.getvalue())
