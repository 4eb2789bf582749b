"""Records of plans: those that a job of a plan in `results/plans` has made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError
from wsolbench.records.plans import command_key, read_plan
from wsolbench.records.record import RunRecord
from wsolbench.system.listing import find_files

_CHECKPOINT = re.compile(r"[^=]+\.safetensors$")


def find_planned(folder: Path, records: Iterable[RunRecord]) -> tuple[dict[str, str], list[str]]:
    """Return the records that jobs of the plans in `folder` have made: digest -> name of the plan's run.

    A record belongs to a job if their commands agree, wherever data, outputs and checkpoints lie. Also
    returns a message for each plan that cannot be read.
    """
    names: dict[Any, str] = {}
    problems = []
    for path in find_files(folder, ".toml"):
        try:
            jobs = read_plan(path, _any_place).jobs
        except DataError as error:
            problems.append(str(error))
            continue
        names |= {_key(job.command): job.name.rpartition("/")[0] for job in jobs}
    names.pop(None, None)
    if not names:
        return {}, problems
    keys = {record.digest: _key(str(record.provenance.get("command", ""))) for record in records}
    return {digest: names[key] for digest, key in keys.items() if key in names}, problems


def _any_place(run: Mapping[str, Any]) -> Path:
    """Return a place for the checkpoint of a run that no other run has. It is not looked at."""
    return Path(f"{hash(repr(dict(run)))}.safetensors")


def _key(command: str) -> Any:
    """Return what tells commands apart, without the places of checkpoints."""
    key = command_key(command)
    return None if key is None else tuple((name, _CHECKPOINT.sub("checkpoint", value)) for name, value in key)
