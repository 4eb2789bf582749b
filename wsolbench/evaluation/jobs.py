"""Carrying out the jobs of a plan: one process each, several at a time, every job after those it needs.

Several processes may carry out the same plan at once. Each job has a lock, and what the others have finished
meanwhile is not repeated.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsolbench.records.plans import Job
from wsolbench.system.files import file_name, hold_lock, make_folder
from wsolbench.system.progress import track

if TYPE_CHECKING:
    from filelock import BaseFileLock

PROGRAM = (sys.executable, "-m", "wsolbench")
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 10.0
"""How long a job that is told to stop may take before it is killed; both are safe, since jobs resume."""


@dataclass(frozen=True)
class Failure:
    """A job that ended with an error: its log, and the last line there."""

    log: Path
    reason: str


@dataclass
class Outcome:
    """What became of the jobs, by name.

    Attributes:
        finished: jobs that were run to their end.
        failed: jobs that ended with an error.
        skipped: why a job was not run: one that it needs has failed.
        elsewhere: jobs that another process carries out, and those that need them.
        left: jobs that the time did not suffice for.
    """

    finished: list[str] = field(default_factory=list)
    failed: dict[str, Failure] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    lock: BaseFileLock
    start: float


class Hours:
    """Expected hours of jobs, corrected by measured ones.

    A job without expected hours counts as the mean of the others. If no job has any, jobs count alike, and
    there is no estimate before the first one is measured.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        known = [hours for hours in expected.values() if hours]
        mean = sum(known) / len(known) if known else 1.0
        self._weights = {name: hours or mean for name, hours in expected.items()}
        self._measured: dict[str, float] = {}
        self._is_stated = bool(known)

    def measure(self, name: str, hours: float) -> None:
        """Store how long a job took."""
        self._measured[name] = hours

    def left(self, waiting: Iterable[str], running: Mapping[str, float], parallel: int) -> float | None:
        """Estimate the remaining hours, or return None.

        `running` has the hours that each running job has taken so far.

        >>> hours = Hours({"a": 1.0, "b": 3.0, "c": 0.0})
        >>> hours.left(["b", "c"], {"a": 0.25}, 1)
        5.75
        >>> hours.measure("a", 0.5)
        >>> hours.left(["c"], {"b": 1.0}, 1)
        1.5
        """
        if not self._measured and not self._is_stated:
            return None
        planned = sum(self._weights[name] for name in self._measured)
        factor = sum(self._measured.values()) / planned if planned else 1.0
        begun = [max(0.0, factor * self._weights[name] - taken) for name, taken in running.items()]
        rest = sum(begun) + factor * sum(self._weights[name] for name in waiting)
        return max([rest / parallel, *begun])


def run_jobs(
    jobs: Sequence[Job],
    find_done: Callable[[], Iterable[str]],
    *,
    out: Path,
    logs: Path,
    parallel: int = 1,
    workers: int = 2,
    device: str = "auto",
    compile: bool = False,
    max_hours: float | None = None,
) -> Outcome:
    """Run the jobs that are not done, at most `parallel` at a time, and write their records below `out`.

    With `compile`, torch compiles the networks of jobs that train.

    `find_done` returns the names of jobs that have their records now. What a job prints goes to a file of its
    name in `logs`. A job that is done is run again if another one starts from its checkpoint and that file is
    missing. After `max_hours`, or on an interruption, running jobs are stopped; they resume when they are run
    again.
    """
    outcome = Outcome()
    waiting = _to_run(jobs, set(find_done()))
    repeated = {job.name for job in waiting} & set(find_done())
    available = {job.name for job in jobs} - {job.name for job in waiting}
    running: dict[str, _Running] = {}
    make_folder(logs)
    hours = Hours({job.name: _expected(job, device) for job in waiting})
    end = None if max_hours is None else time.monotonic() + 3600 * max_hours
    with track(description="jobs", total=len(waiting), unit="jobs") as bar, _stopping(running):
        while waiting or running:
            if end is not None and time.monotonic() >= end:
                outcome.left = [*running, *(job.name for job in waiting)]
                break
            # Start jobs whose checkpoints are there, unless another process has done or begun them.
            waiting = _skip(waiting, outcome)
            busy: list[str] = []
            for job in [job for job in waiting if available.issuperset(job.needs)]:
                if len(running) == parallel:
                    break
                if (lock := hold_lock(_log(job, logs).with_suffix(".lock"))) is None:
                    busy.append(job.name)
                    continue
                waiting.remove(job)
                missed = not _has_checkpoint(job) and any(job.name in other.needs for other in waiting)
                if job.name in set(find_done()) - repeated and not missed:
                    lock.release()
                    available.add(job.name)
                    bar.advance(1)
                    continue
                running[job.name] = _start(job, lock, out, logs, parallel, workers, device, compile)
            if busy and not running:
                outcome.elsewhere = [job.name for job in waiting]
                break
            # Show the time that is left, and collect what has ended.
            now = time.monotonic()
            taken = {name: (now - run.start) / 3600 for name, run in running.items()}
            left = hours.left((job.name for job in waiting), taken, parallel)
            note = f"running {', '.join(running)}" if running else ""
            bar.advance(0, note, left=None if left is None else 3600 * left)
            for name, run in list(running.items()):
                if (status := run.process.poll()) is None:
                    continue
                del running[name]
                run.lock.release()
                if status == 0:
                    outcome.finished.append(name)
                    available.add(name)
                    hours.measure(name, taken[name])
                else:
                    outcome.failed[name] = Failure(run.log, _explain(status, run.log))
                bar.advance(1)
            if running:
                time.sleep(POLL_SECONDS)
    return outcome


def _expected(job: Job, device: str) -> float:
    """Expected hours of a job on this device, or 0."""
    on_gpu = device.startswith("cuda")
    return (job.gpu_hours or job.hours) if on_gpu else (job.hours or job.gpu_hours)


def _explain(status: int, log: Path) -> str:
    """Why a job failed: its signal, if one ended it, and the last line of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    killed = f"ended by signal {-status} ({signal.strsignal(-status)}); its last line: " if status < 0 else ""
    return f"{killed}{last}"


def _to_run(jobs: Sequence[Job], done: set[str]) -> list[Job]:
    """Jobs that are not done, and those that are but whose checkpoint another one needs and does not find."""
    chosen = {job.name for job in jobs if job.name not in done}
    for job in reversed(jobs):
        if job.name in chosen:
            by_name = {other.name: other for other in jobs}
            chosen.update(name for name in job.needs if not _has_checkpoint(by_name[name]))
    return [job for job in jobs if job.name in chosen]


def _has_checkpoint(job: Job) -> bool:
    """Whether the checkpoint of a job is there, if it leaves one."""
    return job.checkpoint is None or job.checkpoint.is_file()


def _skip(waiting: Sequence[Job], outcome: Outcome) -> list[Job]:
    """The jobs that can still be run; the others become `skipped`."""
    left = []
    for job in waiting:
        broken = [name for name in job.needs if name in outcome.failed or name in outcome.skipped]
        if broken:
            outcome.skipped[job.name] = f"it needs {broken[0]}, which has failed"
        else:
            left.append(job)
    return left


def _log(job: Job, logs: Path) -> Path:
    return logs / f"{file_name(job.name)}.log"


def _start(
    job: Job,
    lock: BaseFileLock,
    out: Path,
    logs: Path,
    parallel: int,
    workers: int,
    device: str,
    compile: bool,
) -> _Running:
    log = _log(job, logs)
    where = ["--out", str(out), "--workers", str(workers), "--device", device]
    if compile and "--train" in job.arguments:
        where.append("--compile")
    with log.open("ab") as stream:
        stream.write(f"$ {job.command}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            [*PROGRAM, *job.arguments, *where],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=_environment(parallel),
        )
    return _Running(process, log, lock, time.monotonic())


def _environment(parallel: int) -> Mapping[str, str]:
    """The environment of a job: several at a time share the cores, unless the user has said how."""
    if parallel == 1 or "OMP_NUM_THREADS" in os.environ:
        return os.environ
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}


@contextlib.contextmanager
def _stopping(running: Mapping[str, _Running]) -> Iterator[None]:
    """Stop what is still running at the end, whatever ends it: also SIGTERM, which clusters send."""
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _interrupt)
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
            run.lock.release()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
