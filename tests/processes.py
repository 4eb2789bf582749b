"""Programs in processes of their own, with what each has printed: alone, or several as torchrun starts them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
"""Seconds after which a process hangs. A busy machine takes ten times as long as an idle one to import torch."""
PRELOADED = (
    "torch._dynamo",
    "torch.distributed",
    "wsolbench.cli.eval",
    "wsolbench.evaluation.evaluate",
    "reference_models.detection.lio_mask_rcnn.method",
    "reference_models.localization.cam",
)
"""Modules that are imported once for all programs. torch alone takes seconds."""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Program:
    """A program that runs in a fork of a process in which torch is imported, and nothing else was done.

    It differs from `python -c` in this alone: modules in `PRELOADED` are imported before it begins, its input
    is empty, and handlers of `atexit` do not run.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._printed = tempfile.TemporaryDirectory()
        variables = {**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
        where = str(cwd or Path.cwd())
        work = (code, [*map(str, arguments)], variables, where, self._printed.name)
        self._process = _server().Process(target=_run, args=work)
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the program runs."""
        return self._process.exitcode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the program if it runs."""
        self._process.kill()

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end; a program that takes too long is killed, and an error is raised."""
        self._process.join(patience)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = ((Path(self._printed.name) / name).read_text() for name in ("out", "err"))
        self._printed.cleanup()
        if code is None:
            raise TimeoutError(f"the program took more than {patience:.0f} s; it printed {out!r} and {err!r}")
        return Ended(code, out, err)


@functools.cache
def _server() -> ForkServerContext:
    """Start the process that imports `PRELOADED`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def _run(code: str, arguments: list[str], environment: Mapping[str, str], cwd: str, printed: str) -> None:
    """Become a new program in a fork of the server."""
    for descriptor, name in ((1, "out"), (2, "err")):
        opened = os.open(f"{printed}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, str(ROOT))
    if threads := environment.get("OMP_NUM_THREADS"):  # torch has read it where it was imported
        torch.set_num_threads(int(threads))
    sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))


def environments(size: int) -> list[dict[str, str]]:
    """Return the variables by which `size` processes find each other, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def together(code: str, *arguments: object, size: int = 2) -> list[Ended]:
    """Run `code` in `size` processes that find each other; by rank. All must end within `PATIENCE`."""
    running = [Program(code, *arguments, environment=each) for each in environments(size)]
    end = time.monotonic() + PATIENCE
    try:
        return [program.end(end - time.monotonic()) for program in running]
    finally:
        for program in running:
            program.kill()
