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


def find_planned(folder: Path, records: Iterable[RunRecord]) -> tuple[set[str], list[str]]:
    """Return the digests of the records that jobs of the plans in `folder` have made.

    A record belongs to a job if their commands agree, wherever data, outputs and checkpoints lie. Also
    returns a message for each plan that cannot be read.
    """
    keys, problems = set(), []
    for path in find_files(folder, ".toml"):
        try:
            jobs = read_plan(path, _any_place).jobs
        except DataError as error:
            problems.append(str(error))
            continue
        keys |= {_key(job.command) for job in jobs}
    keys.discard(None)
    made = {record.digest for record in records if _key(str(record.provenance.get("command", ""))) in keys}
    return made if keys else set(), problems


def _any_place(run: Mapping[str, Any]) -> Path:
    """Return a place for the checkpoint of a run that no other run has. It is not looked at."""
    return Path(f"{hash(repr(dict(run)))}.safetensors")


def _key(command: str) -> Any:
    """Return what tells commands apart, without the places of checkpoints."""
    key = command_key(command)
    return None if key is None else tuple((name, _CHECKPOINT.sub("checkpoint", value)) for name, value in key)
