"""Records that a command line names: files, folders, and methods of a folder of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.exceptions import UsageError, unknown_name

if TYPE_CHECKING:
    from wsolbench.records import RunRecord
    from wsolbench.report.board.repetitions import Run

MOST_LISTED = 10
"""Most choices that the message of an ambiguous name lists."""

_FIELDS: dict[str, Callable[[RunRecord], Any]] = {
    "dataset": lambda record: record.dataset["name"],
    "split": lambda record: record.dataset["split"],
    "transform": lambda record: record.dataset.get("transform"),
    "protocol": lambda record: record.protocol.name,
    "backbone": lambda record: record.method.get("backbone"),
    "init": lambda record: record.start,
}
"""What a name can add besides settings of the method, to select some of its records."""


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read records from files, and from folders with all their subfolders, in this order.

    Each run and result is returned once. Broken files in folders are named on stderr and skipped. Raises
    `DataError` for a file that is not a record, and `UsageError` for a path that does not exist.
    """
    from wsolbench.records import find_records, read_record
    from wsolbench.report.board.repetitions import Run

    found: dict[str, Run] = {}
    for path in paths:
        if path.is_dir():
            folder = find_records(path)
            for message in (*folder.problems, *folder.copies):
                click.echo(f"left out: {message}", err=True)
            records = folder.records
            if not records:
                raise UsageError(f"{path} has no record; expected a folder that `wsolbench eval` wrote")
        elif path.exists():
            records = [(path, read_record(path))]
        else:
            raise UsageError(f"{path} does not exist; expected a record, or a folder of records")
        for each, record in records:
            found.setdefault(record.digest, Run(record, each.as_posix(), each))
    return list(found.values())


def find_group(text: str, folder: Path | None) -> dict[Path, RunRecord]:
    """Return the runs that `text` names, by path: those that differ only in their seed.

    `text` is a record, a folder of records, or the name of a method in `folder`. Settings and other fields
    can follow the name, separated by spaces: `spa variant=paper dataset=cub`. Raises `UsageError` listing the
    choices if `text` names runs that differ in more.
    """
    path = Path(text)
    if path.exists():
        runs = _scored(read_runs([path])) if path.is_dir() else read_runs([path])
        return _only_group(runs, f"{text} holds", with_seed=False, way_out="Name the record of one run")
    name, *wanted = text.split() or [""]
    if folder is None:
        raise UsageError(
            f"found no file and no folder {text!r}; expected a record, a folder of records, or, with "
            "--records DIR, the name of a method that has records there"
        )
    every = read_runs([folder])
    names = {str(run.record.method["name"]) for run in every}
    if name not in names:
        raise unknown_name(f"method of {folder}", name, names)
    chosen = [run for run in every if _matches(run.record, name, wanted)]
    if not chosen:
        choices = _choices(_groups([run for run in every if run.record.method["name"] == name]))
        raise UsageError(
            f"no record of {name} in {folder} has {' '.join(wanted)}. Those of {name}: {choices}"
        )
    return _only_group(
        _scored(chosen),
        f"{text!r} is ambiguous: {folder} holds",
        with_seed=True,
        way_out=f"Name one of them, or add a setting or a field to the name, as in "
        f"'{name} backbone=resnet50 dataset=cub'",
    )


def _matches(record: RunRecord, name: str, wanted: Sequence[str]) -> bool:
    """Whether a record is of a method with these settings and fields, each `name=value`."""
    from wsolbench.records.claims import matches_claim

    pairs = [part.partition("=") for part in wanted]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise UsageError(
                f"the name {' '.join([name, *wanted])!r} has {key!r}; expected NAME SETTING=VALUE ..."
            )
    fields = [(key, value) for key, _, value in pairs if key in _FIELDS]
    settings = ";".join(f"{key}={value}" for key, _, value in pairs if key not in _FIELDS)
    return matches_claim(record.method, name, settings) and all(
        str(_FIELDS[key](record) or "none") == value for key, value in fields
    )


def _scored(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with per-image scores. The others are counted on stderr; all are kept if none has."""
    from wsolbench.evaluation.score_table import find_scores

    scored = [run for run in runs if find_scores(run.path).is_file()]
    if not scored:
        return list(runs)
    if without := len(runs) - len(scored):
        click.echo(f"left out: {without} records without per-image scores", err=True)
    return scored


def _groups(runs: Sequence[Run], *, with_seed: bool = True) -> list[list[Run]]:
    """Group runs that differ only in their seed. Each seed is there once.

    Runs without a seed are each a group, unless `with_seed` is False.
    """
    from wsolbench.report.board.repetitions import data_of, grouped, one_of_each_seed, settings_of

    def key(run: Run) -> list[Any]:
        settings = settings_of(run)
        alone = settings["alone"] if with_seed else None
        return [data_of(run), run.record.protocol.to_json(), {**settings, "alone": alone}]

    return grouped(one_of_each_seed(runs, of_each_source=False), key)


def _only_group(runs: Sequence[Run], what: str, *, with_seed: bool, way_out: str) -> dict[Path, RunRecord]:
    groups = _groups(runs, with_seed=with_seed)
    if len(groups) > 1:
        raise UsageError(
            f"{what} {len(groups)} groups of runs that differ in more than the seed: {_choices(groups)}. "
            f"{way_out}"
        )
    return {run.path: run.record for run in groups[0]}


def _choices(groups: Sequence[Sequence[Run]]) -> str:
    """List groups of runs: title, settings that differ, and the first record."""
    from wsolbench.report.board.repetitions import different_settings
    from wsolbench.report.board.tables import run_title

    firsts = [group[0] for group in groups]
    listed = [
        " · ".join(filter(None, (run_title(run.record), different_settings(run, firsts)))) + f" ({run.path})"
        for run in firsts[:MOST_LISTED]
    ]
    more = [f"and {len(groups) - MOST_LISTED} more"] if len(groups) > MOST_LISTED else []
    return "; ".join([*listed, *more])
