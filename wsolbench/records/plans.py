"""Plans: which runs a piece of evidence consists of, and which of them already have their records.

A plan is a TOML file. `[defaults]` holds options of `wsolbench eval` by their long names; each `[[run]]`
adds its own. `seeds` makes one job of a run for each seed. `weights = "@cam"` starts from the checkpoint of
the run `cam` with the same seed, and so does a setting, `set.part_net = "@parts"`; that run is then done
first. `checkpoint = "@cam"` evaluates that checkpoint without training, and `train = false` evaluates
pretrained weights. A run with `defaults = false` takes nothing from `[defaults]`. A run of a detector has
`detector` in place of `method`.

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

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError, unknown_name
from wsolbench.protocol import EvalProtocol
from wsolbench.records.record import RunRecord
from wsolbench.system.stored import read_toml

OPTIONS = (
    "method",
    "detector",
    "backbone",
    "weights",
    "checkpoint",
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
    "choose-percentile",
    "fixed-tau",
    "extra-metrics",
    "no-transfer",
    "limit",
    "amp",
    "precision",
)
"""Options of `wsolbench eval` that a run may have, in the order in which its command names them.

`detector` is the `--method` of `wsolbench eval-detector`.
"""
ABOUT = ("name", "seeds", "train", "hours", "gpu-hours", "published", "note", "defaults")
"""What else a run may have: its name, its seeds, whether it is trained, expected hours, the published number
that it is for, and `defaults = false` if it takes nothing from `[defaults]`."""
_TABLES = ("set", "post-set", "protocol-set")
_TRAINING = ("backbone", "weights", "image-size", "epochs", "batch-size", "lr")
"""Options that a training fixes. A run with `checkpoint` does not take them from `[defaults]`."""
_UNNAMED = ("batch-size", "metadata-root")
"""Options of a training that the name of its run folder does not have."""
_NOT_OF_DETECTORS = ("dataset",)
"""Options that a detector's command does not have. `dataset` only names its run folder."""
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
    "picture-format",
    "resamples",
    "log",
    "val-loc-every",
    "full",
    *(_KERNELS := ("compile", "deterministic", "no-deterministic")),
)
"""Options of a command that do not tell jobs apart."""
_FLAGS = (
    "train",
    "save-scores",
    "save-outcomes",
    "no-outcomes",
    "carve-val",
    "no-transfer",
    "transfer",
    "full",
    *_KERNELS,
)
_TRAINED = "@"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run with one seed.

    Attributes:
        name: the run's name and the seed, `cam/0`.
        arguments: arguments of `wsolbench eval`, without those that say where data and outputs lie.
        needs: names of jobs that come first: this one starts from their checkpoints, or has the same run
            folder.
        checkpoint: what its training leaves, or None if it trains nothing.
        records: how many records it makes.
        hours, gpu_hours: expected; 0 if the plan does not state them.
        published: the published number that the run is for, or "".
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    checkpoint: Path | None
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

        Shards get whole chains of jobs, so that a job and what it needs stay together. Each chain, longest
        first, goes to the shard with the fewest expected hours. Raises `UsageError` for a pattern that
        matches no job.
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
        index, count = shard
        shard_of = _share_chains(chosen, count)
        return tuple(job for job in chosen if shard_of[job.name] == index)


def _share_chains(jobs: Sequence[Job], count: int) -> dict[str, int]:
    """The shard of each job, from 1 on. It depends on the jobs alone, not on what is done."""
    roots = _roots(jobs)
    hours: dict[str, float] = {}
    for job in jobs:
        hours[roots[job.name]] = hours.get(roots[job.name], 0.0) + (job.gpu_hours or job.hours or 1.0)
    load = dict.fromkeys(range(1, count + 1), 0.0)
    shard_of = {}
    for root in sorted(hours, key=lambda root: -hours[root]):  # stable: equal chains in the plan's order
        shard_of[root] = min(load, key=lambda shard: load[shard])
        load[shard_of[root]] += hours[root]
    return {name: shard_of[root] for name, root in roots.items()}


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
    naming the file and the run for anything that is not as the module describes, and for runs that would
    train different models in one run folder.
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
        taken = {
            name: value
            for name, value in defaults.items()
            if own.get("defaults", True) and ("checkpoint" not in own or name not in (*_TRAINING, "set"))
        }
        tables = {name: {**taken.get(name, {}), **own.get(name, {})} for name in _TABLES}
        run = {**taken, **own, **{name: table for name, table in tables.items() if table}}
        name = run.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_.=+-]*", name) or name in runs:
            raise DataError(
                f"{what} has the name {name!r}; expected another name than the runs before it, of a-z, 0-9 "
                "and _.=+-"
            )
        if ("method" in run) == ("detector" in run) or "dataset" not in run:
            raise DataError(f"{what} ({name}) lacks a dataset, or has not exactly one of method and detector")
        runs[name] = run
    jobs = [
        job
        for name, run in runs.items()
        for job in _jobs_of(name, run, runs, checkpoint_of, f"plan {path}, run {name}")
    ]
    return Plan(path=path, title=content["title"], jobs=tuple(_after_their_folder(jobs, runs, path)))


def _after_their_folder(
    jobs: Iterable[Job], runs: Mapping[str, Mapping[str, Any]], path: Path
) -> Iterable[Job]:
    """Let jobs need the first one with their run folder: two processes cannot train there at once."""
    first: dict[Path, Job] = {}
    for job in jobs:
        other = job if job.checkpoint is None else first.setdefault(job.checkpoint, job)
        if other is job:
            yield job
            continue
        name, earlier = (each.name.partition("/")[0] for each in (job, other))
        if different := [key for key in _UNNAMED if runs[name].get(key) != runs[earlier].get(key)]:
            raise DataError(
                f"plan {path}: the runs {earlier} and {name} differ in {', '.join(different)}, but would "
                f"train in one folder, that of {other.name}; expected another difference as well, such as "
                "another seed"
            )
        yield replace(job, needs=tuple(dict.fromkeys((*job.needs, other.name))))


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
    if name in ("hours", "gpu-hours"):
        return type(value) in (int, float) and 0 <= value < math.inf, "a number of hours"
    if name in ("train", "defaults"):
        return isinstance(value, bool), "true or false"
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
            if not _is_trained(runs[other]):
                raise DataError(f"{what} starts from {value}, which is not trained")
            return checkpoint_of({**_resolved(runs[other], resolve), "seed": seed})

        options = _resolved(run, resolve)
        jobs.append(
            Job(
                name=f"{name}/{seed}",
                arguments=tuple(_arguments(options, seed, train=_is_trained(run))),
                needs=tuple(dict.fromkeys(needs)),
                checkpoint=checkpoint_of({**options, "seed": seed}) if _is_trained(run) else None,
                records=_count_records(options),
                hours=float(run.get("hours", 0)),
                gpu_hours=float(run.get("gpu-hours", 0)),
                published=str(run.get("published", "")),
            )
        )
    return jobs


def _is_trained(run: Mapping[str, Any]) -> bool:
    return "checkpoint" not in run and bool(run.get("train", True))


def _resolved(run: Mapping[str, Any], resolve: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        key: {name: _text(resolve(value)) for name, value in values.items()}
        if key in _TABLES
        else resolve(values)
        for key, values in run.items()
        if key in OPTIONS
    }


def _arguments(options: Mapping[str, Any], seed: int, *, train: bool) -> Iterable[str]:
    """The command and its options, in the order of `OPTIONS`."""
    is_detector = "detector" in options
    yield "eval-detector" if is_detector else "eval"
    for option in OPTIONS:
        if option not in options or options[option] is False:
            continue
        if is_detector and option in _NOT_OF_DETECTORS:
            continue
        value, name = options[option], "method" if option == "detector" else option
        if name in _TABLES:
            for key, each in value.items():
                yield from (f"--{name}", f"{key}={each}")
        else:
            yield from (f"--{name}",) if value is True else (f"--{name}", _text(value))
    yield from (*(["--train"] if train else []), "--seed", str(seed))
    yield from () if is_detector else ("--save-outcomes",)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _count_records(options: Mapping[str, Any]) -> int:
    maps = str(options.get("map", "class")).split(",")
    posts = len(str(options.get("post", "none")).split(",")) if "class" in maps else 0
    transforms = len(str(options.get("transform", "none")).split(","))
    names = str(options.get("protocol", "wsoleval"))
    protocols = len(EvalProtocol.presets() if names == "all" else names.split(","))
    return (posts + sum(name != "class" for name in maps)) * transforms * protocols


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
    if words[1:2] not in (["eval"], ["eval-detector"]):
        return None
    options: list[tuple[str, str]] = []
    rest = words[2:]
    while rest:
        name = rest.pop(0).removeprefix("--")
        name, equals, value = name.partition("=")
        if not equals and name not in _FLAGS and rest:
            value = rest.pop(0)
        if name not in (*_ELSEWHERE, "save-scores", "save-outcomes", "no-outcomes") and (name, value) != (
            "seed",
            "0",
        ):
            options.append((name, value))
    return tuple(sorted(options))
