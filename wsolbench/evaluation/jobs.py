"""Carrying out the jobs of a plan: one process each, several at a time, every job after those it needs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsolbench.records.plans import Job
from wsolbench.system.files import file_name, make_folder
from wsolbench.system.progress import track

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long a job that is told to stop may take before it is killed; both are safe, since jobs resume."""


@dataclass
class Outcome:
    """What became of the jobs, by name.

    Attributes:
        finished: jobs that were run to their end.
        failed: the log of each job that ended with an error.
        skipped: why a job was not run: one that it needs has failed.
        left: jobs that the time did not suffice for.
    """

    finished: list[str] = field(default_factory=list)
    failed: dict[str, Path] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    log: Path


def run_jobs(
    jobs: Sequence[Job],
    done: Iterable[str],
    *,
    out: Path,
    logs: Path,
    parallel: int = 1,
    workers: int = 2,
    device: str = "auto",
    max_hours: float | None = None,
) -> Outcome:
    """Run the jobs that are not `done`, at most `parallel` at a time, and write their records below `out`.

    What a job prints goes to a file of its name in `logs`. A job that is done is run again if another one
    starts from its checkpoint and that file is missing. After `max_hours`, or on an interruption, running
    jobs are stopped; they resume when they are run again.
    """
    outcome = Outcome()
    waiting = _to_run(jobs, set(done))
    available = {job.name for job in jobs} - {job.name for job in waiting}
    running: dict[str, _Running] = {}
    end = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with track(description="jobs", total=len(waiting), unit="jobs") as bar, _stopping(running):
        while waiting or running:
            late = end is not None and time.monotonic() >= end
            if late:
                outcome.left = [*running, *(job.name for job in waiting)]
                break
            waiting = _skip(waiting, outcome)
            for job in [job for job in waiting if available.issuperset(job.needs)][: parallel - len(running)]:
                waiting.remove(job)
                running[job.name] = _start(job, out, logs, parallel, workers, device)
            bar.advance(0, f"running {', '.join(running)}" if running else "")
            for name, run in list(running.items()):
                if (status := run.process.poll()) is None:
                    continue
                del running[name]
                if status == 0:
                    outcome.finished.append(name)
                    available.add(name)
                else:
                    outcome.failed[name] = run.log
                bar.advance(1)
            if running:
                time.sleep(POLL_SECONDS)
    return outcome


def _to_run(jobs: Sequence[Job], done: set[str]) -> list[Job]:
    """Jobs that are not done, and those that are but whose checkpoint another one needs and does not find."""
    chosen = {job.name for job in jobs if job.name not in done}
    for job in reversed(jobs):
        if job.name in chosen:
            by_name = {other.name: other for other in jobs}
            chosen.update(name for name in job.needs if not by_name[name].checkpoint.is_file())
    return [job for job in jobs if job.name in chosen]


def _skip(waiting: Sequence[Job], outcome: Outcome) -> list[Job]:
    """The jobs that can still be run; the others become `skipped`."""
    left = []
    for job in waiting:
        broken = [name for name in job.needs if name in outcome.failed or name in outcome.skipped]
        if broken:
            outcome.skipped[job.name] = f"{broken[0]}, whose checkpoint it starts from, has failed"
        else:
            left.append(job)
    return left


def _start(job: Job, out: Path, logs: Path, parallel: int, workers: int, device: str) -> _Running:
    log = logs / f"{file_name(job.name)}.log"
    make_folder(log.parent)
    where = ("--out", str(out), "--workers", str(workers), "--device", device)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsolbench", *job.arguments, *where],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment(parallel),
        )
    return _Running(process, log)


def _environment(parallel: int) -> Mapping[str, str]:
    """The environment of a job: several at a time share the cores, unless the user has said how."""
    if parallel == 1 or "OMP_NUM_THREADS" in os.environ:
        return os.environ
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}


@contextlib.contextmanager
def _stopping(running: Mapping[str, _Running]) -> Iterator[None]:
    """Stop what is still running at the end, whatever ends it."""
    try:
        yield
    finally:
        for run in running.values():
            run.process.terminate()
        for run in running.values():
            try:
                run.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                run.process.kill()
                run.process.wait()
