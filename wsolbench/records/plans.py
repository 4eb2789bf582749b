"""Plans: which runs a piece of evidence consists of, and which of them already have their records.

A plan is a TOML file. `[defaults]` holds options of `wsolbench eval` by their long names; each `[[run]]`
adds its own. `seeds` makes one job of a run for each seed. `weights = "@cam"` starts from the checkpoint of
the run `cam` with the same seed, and so does a setting, `set.part_net = "@parts"`; that run is then done
first.

    title = "CAM and SPA on CUB"

    [defaults]
    dataset = "cub"
    epochs = 12
    seeds = [0, 1, 2]

    [[run]]
    name = "cam"
    method = "cam"
    post = "none,scg"

A job is done when its records exist: those whose command is the job's, apart from options that say where data
and outputs lie or which device computes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, unknown_name
from wsolbench.records.record import RunRecord
from wsolbench.system.stored import read_toml

OPTIONS = (
    "method",
    "backbone",
    "weights",
    "image-size",
    "epochs",
    "batch-size",
    "lr",
    "set",
    "dataset",
    "metadata-root",
    "carve-val",
    "split",
    "post",
    "post-set",
    "map",
    "transform",
    "protocol",
    "protocol-set",
    "fixed-tau",
    "no-transfer",
    "limit",
)
"""Options of `wsolbench eval` that a run may have, in the order in which its command names them."""
ABOUT = ("name", "seeds", "hours", "gpu-hours", "published", "note")
"""What else a run may have: its name, its seeds, expected hours, the published number that it is for."""
_TABLES = ("set", "post-set", "protocol-set")
_ELSEWHERE = (
    "data-root",
    "metadata-root",
    "out",
    "workers",
    "cache",
    "device",
    "save-maps",
    "save-boxes",
    "pictures",
    "resamples",
)
"""Options of a command that do not tell jobs apart."""
_FLAGS = ("train", "save-scores", "carve-val", "no-transfer", "transfer")
_TRAINED = "@"
_PLAIN = (str, int, float)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run with one seed.

    Attributes:
        name: the run's name and the seed, `cam/0`.
        arguments: arguments of `wsolbench eval`, without those that say where data and outputs lie.
        needs: names of jobs whose checkpoints this one starts from.
        checkpoint: what its training leaves.
        records: how many records it makes.
        hours, gpu_hours: expected; 0 if the plan does not state them.
        published: the published number that the run is for, or "".
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    checkpoint: Path
    records: int
    hours: float = 0.0
    gpu_hours: float = 0.0
    published: str = ""

    @property
    def command(self) -> str:
        """The command as a user types it."""
        return shlex.join(("wsolbench", *self.arguments))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan file: its title and its jobs, each after those that it needs."""

    path: Path
    title: str
    jobs: tuple[Job, ...]

    def choose(self, patterns: Sequence[str], shard: tuple[int, int] = (1, 1)) -> tuple[Job, ...]:
        """Jobs whose run or whole name matches a pattern (`spa*`, `*/0`), and those they need.

        Of several shards each gets every n-th chain of jobs, so that a job and what it needs stay together.
        Raises `UsageError` for a pattern that matches no job.
        """
        by_name = {job.name: job for job in self.jobs}
        wanted: set[str] = set()
        for pattern in patterns or ("*",):
            found = [
                name
                for name in by_name
                if fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[0], pattern)
            ]
            if not found:
                raise unknown_name("run of the plan", pattern, {name.partition("/")[0] for name in by_name})
            wanted.update(found)
        for job in reversed(self.jobs):
            if job.name in wanted:
                wanted.update(job.needs)
        chosen = [job for job in self.jobs if job.name in wanted]
        roots = _roots(chosen)
        order = list(dict.fromkeys(roots[job.name] for job in chosen))
        index, count = shard
        return tuple(job for job in chosen if order.index(roots[job.name]) % count == index - 1)


def _roots(jobs: Sequence[Job]) -> dict[str, str]:
    """The first job of the chain that each job belongs to."""
    roots: dict[str, str] = {}
    for job in jobs:
        above = [roots[name] for name in job.needs]
        roots[job.name] = above[0] if above else job.name
        for other in above[1:]:  # chains that meet become one
            roots = {name: roots[job.name] if root == other else root for name, root in roots.items()}
    return roots


def read_plan(path: Path, checkpoint_of: Callable[[Mapping[str, Any]], Path]) -> Plan:
    """Read a plan file.

    `checkpoint_of` gives the checkpoint that a run with these options and a `seed` leaves. Raises `DataError`
    naming the file and the run for anything that is not as the module describes.
    """
    content = read_toml(path, "plan")
    extra = set(content) - {"title", "note", "defaults", "run"}
    if extra or not isinstance(content.get("title"), str) or not isinstance(content.get("run"), list):
        found = f"found {', '.join(sorted(extra))}" if extra else "found no title or no [[run]]"
        raise DataError(f"plan {path}: {found}; expected title, [defaults] and [[run]]")
    defaults = _checked(content.get("defaults", {}), f"plan {path}, [defaults]")
    runs: dict[str, dict[str, Any]] = {}
    for number, values in enumerate(content["run"], 1):
        what = f"plan {path}, run {number}"
        own = _checked(values, what)
        tables = {name: {**defaults.get(name, {}), **own.get(name, {})} for name in _TABLES}
        run = {**defaults, **own, **{name: table for name, table in tables.items() if table}}
        name = run.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.=+-]*", name) or name in runs:
            raise DataError(
                f"{what} has the name {name!r}; expected another name than the runs before it, of a-z, 0-9 "
                "and _.=+-"
            )
        if "method" not in run or "dataset" not in run:
            raise DataError(f"{what} ({name}) lacks a method or a dataset")
        runs[name] = run
    jobs = [
        job
        for name, run in runs.items()
        for job in _jobs_of(name, run, runs, checkpoint_of, f"plan {path}, run {name}")
    ]
    return Plan(path=path, title=content["title"], jobs=tuple(jobs))


def _checked(values: Any, what: str) -> dict[str, Any]:
    """Options of a run, or the defaults; `DataError` for a name or a kind of value that is unknown."""
    if not isinstance(values, dict):
        raise DataError(f"{what} is {type(values).__name__}; expected a table of options")
    for name, value in values.items():
        if name not in (*OPTIONS, *ABOUT):
            raise DataError(f"{what}: {unknown_name('option', name, (*OPTIONS, *ABOUT))}")
        fits, expected = _check_value(name, value)
        if not fits:
            raise DataError(f"{what}: {name} = {value!r}; expected {expected}")
    return values


def _check_value(name: str, value: Any) -> tuple[bool, str]:
    """Whether an option can have this value, and what is expected."""
    if name == "seeds":
        whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
        return whole and bool(value), "a list of whole numbers from 0 on"
    if name in _TABLES:
        plain = isinstance(value, dict) and all(
            isinstance(each, str | int | float) for each in value.values()
        )
        return plain, "a table of names and values"
    return isinstance(value, str | int | float), "a text, a number or true"


def _jobs_of(
    name: str,
    run: Mapping[str, Any],
    runs: Mapping[str, Mapping[str, Any]],
    checkpoint_of: Callable[[Mapping[str, Any]], Path],
    what: str,
) -> list[Job]:
    """The jobs of a run, one for each seed."""
    jobs = []
    for seed in run.get("seeds", [0]):
        needs: list[str] = []

        def resolve(value: Any, seed: int = seed, needs: list[str] = needs) -> Any:
            if not isinstance(value, str) or not value.startswith(_TRAINED):
                return value
            other = value.removeprefix(_TRAINED)
            if other not in runs or list(runs).index(other) >= list(runs).index(name):
                raise DataError(f"{what} starts from {value}; expected the name of a run above it")
            if seed not in runs[other].get("seeds", [0]):
                raise DataError(f"{what} starts from {value} with seed {seed}, which that run does not have")
            needs.append(f"{other}/{seed}")
            return checkpoint_of({**_resolved(runs[other], resolve), "seed": seed})

        options = _resolved(run, resolve)
        jobs.append(
            Job(
                name=f"{name}/{seed}",
                arguments=tuple(_arguments(options, seed)),
                needs=tuple(dict.fromkeys(needs)),
                checkpoint=checkpoint_of({**options, "seed": seed}),
                records=_count_records(options),
                hours=float(run.get("hours", 0)),
                gpu_hours=float(run.get("gpu-hours", 0)),
                published=str(run.get("published", "")),
            )
        )
    return jobs


def _resolved(run: Mapping[str, Any], resolve: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        key: {name: _text(resolve(value)) for name, value in values.items()}
        if key in _TABLES
        else resolve(values)
        for key, values in run.items()
        if key in OPTIONS
    }


def _arguments(options: Mapping[str, Any], seed: int) -> Iterable[str]:
    """`eval` and its options, in the order of `OPTIONS`."""
    yield "eval"
    for name in OPTIONS:
        if name not in options or options[name] is False:
            continue
        value = options[name]
        if name in _TABLES:
            for key, each in value.items():
                yield from (f"--{name}", f"{key}={each}")
        else:
            yield from (f"--{name}",) if value is True else (f"--{name}", _text(value))
    yield from ("--train", "--seed", str(seed), "--save-scores")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count_records(options: Mapping[str, Any]) -> int:
    maps = str(options.get("map", "class")).split(",")
    posts = len(str(options.get("post", "none")).split(",")) if "class" in maps else 0
    transforms = len(str(options.get("transform", "none")).split(","))
    return (posts + sum(name != "class" for name in maps)) * transforms


def find_done(jobs: Iterable[Job], records: Iterable[tuple[Path, RunRecord]]) -> dict[str, list[Path]]:
    """The records of each job, by its name. A job is done when it has as many as `Job.records`."""
    by_command: dict[Any, list[Path]] = {}
    for path, record in records:
        key = command_key(str(record.provenance.get("command", "")))
        if key is not None:
            by_command.setdefault(key, []).append(path)
    return {job.name: by_command.get(command_key(job.command), []) for job in jobs}


def command_key(command: str) -> Any:
    """What tells commands apart: their options in any order, or None for a command that is no `eval`.

    >>> command_key("wsolbench eval --method cam --workers 1 --seed 3")
    (('method', 'cam'), ('seed', '3'))
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    if words[1:2] != ["eval"]:
        return None
    options: list[tuple[str, str]] = []
    rest = words[2:]
    while rest:
        name = rest.pop(0).removeprefix("--")
        name, equals, value = name.partition("=")
        if not equals and name not in _FLAGS and rest:
            value = rest.pop(0)
        if name not in _ELSEWHERE and (name, value) != ("seed", "0") and name != "save-scores":
            options.append((name, value))
    return tuple(sorted(options))
