"""Worker processes for work that holds Python's lock, such as decoding images.

Threads of one process share the lock, so their throughput has a ceiling, whatever the number of cores. A
`WorkerPool` has one process per worker, and a thread of the caller waits for each. So it fits wherever
threads work. Arrays come back in memory that both processes map, without a name in any file system.

Each worker is a plain subprocess. Forking a process with threads can hang, and the other start methods of
`multiprocessing` run the caller's script again. A worker imports only what its work needs, and ends when the
caller's end of its connection is closed. So it also ends if the caller is killed.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any, Generic, TypeVar

import numpy as np

from wsolbench.exceptions import UsageError, WsolbenchError

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

SLOT_BYTES = 64 << 20
"""Bytes of a result's arrays that a worker can hand over in shared memory. Larger results are sent."""

MOST = 32
"""Most processes of a pool. More would prepare images faster than any GPU takes them."""

JOB = 8
"""Images of one job of a worker: enough that handing them over costs little."""

WORTH_SECONDS = 5.0
"""Work of one core from which processes are worth starting. Each takes a quarter of a second to start."""

_ALIGNMENT = 64


class SharedArray:
    """An array of zeros in memory that worker processes share. Memory is used only where it is written.

    It can be pickled for the workers of a pool that names it in `inherit`. If the system gives no such memory
    (`ulimit -f` limits it), `handle` is None, the array is of this process alone, and it cannot be pickled.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.handle = _new_memory(math.prod(shape))
        if self.handle is None:
            self.array = np.zeros(shape, np.uint8)
        else:
            weakref.finalize(self, os.close, self.handle)
            self._attach(self.handle, shape)

    def _attach(self, handle: int, shape: tuple[int, ...]) -> None:
        self.array = np.ndarray(shape, np.uint8, buffer=mmap.mmap(handle, max(1, math.prod(shape))))

    def __getstate__(self) -> tuple[int, tuple[int, ...]]:
        if self.handle is None:
            raise pickle.PicklingError("the array is not shared")
        return self.handle, self.array.shape

    def __setstate__(self, state: tuple[int, tuple[int, ...]]) -> None:
        self.handle, shape = state
        self._attach(self.handle, shape)


def _new_memory(size: int) -> int | None:
    """Return the descriptor of `size` bytes of memory without a name, or None if the system gives none."""
    if not hasattr(os, "memfd_create"):
        return None
    handle = os.memfd_create("wsolbench")
    try:
        os.truncate(handle, max(1, size))
    except OSError:
        os.close(handle)
        return None
    return handle


def is_sendable(value: object) -> bool:
    """Whether a worker can receive the value. It cannot if a class is one of the caller's script."""
    try:
        return b"__main__" not in pickle.dumps(value)
    except Exception:  # pickle raises many types
        return False


class WorkerPool(Generic[A, R]):
    """Processes that run `work(item)`.

    Args:
        work: a function that `is_sendable`. Each process gets it once.
        count: number of processes, of which at most `MOST` are started.
        inherit: arrays that `work` refers to.
    """

    def __init__(self, work: Callable[[A], R], count: int, inherit: Sequence[SharedArray] = ()) -> None:
        self.count = min(count, MOST)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        content = pickle.dumps(work)
        handles = [shared.handle for shared in inherit if shared.handle is not None]
        workers: list[_Worker] = []
        # Also when the program ends, and when nobody refers to the pool.
        self._end = weakref.finalize(self, _end_all, workers)
        for _ in range(self.count):
            workers.append(_Worker(content, handles))
            self._idle.put(workers[-1])

    def run(self, item: A, take: Callable[[R], T]) -> T:
        """Return `take(work(item))`. `work` runs in a process that is idle, and `take` runs here.

        `take` must copy arrays that it keeps: their memory is used again. Call it in `count` threads. Raises
        what `work` raises. Raises `UsageError` if the process has died.
        """
        worker = self._idle.get()
        try:
            return worker.run(item, take)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes."""
        self._end()


class _Worker:
    """One process, with its connection and the memory for its results."""

    def __init__(self, work: bytes, inherit: Sequence[int]) -> None:
        self._connection, theirs = Pipe()
        memory = SharedArray((SLOT_BYTES,))
        self._slot: memoryview = memory.array.data
        shared = [] if memory.handle is None else [memory.handle]
        numbers = ", ".join(map(str, [theirs.fileno(), *shared]))
        code = f"from wsolbench.system.processes import serve; serve({numbers})"
        # A session of its own, so that Ctrl-C reaches the caller alone, which then closes the connection.
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
                "OMP_NUM_THREADS": "1",
            },
            pass_fds=(theirs.fileno(), *shared, *inherit),
            start_new_session=True,
        )
        theirs.close()
        with contextlib.suppress(OSError):  # a process that has died is noticed by `run`
            self._connection.send_bytes(work)

    def run(self, item: Any, take: Callable[[Any], T]) -> T:
        try:
            self._connection.send(item)
            is_done, content, spans = self._connection.recv()
        except (EOFError, OSError) as error:
            raise UsageError(self._describe_death()) from error
        result = pickle.loads(content, buffers=[self._slot[start:stop] for start, stop in spans])
        if is_done:
            return take(result)
        raise result

    def _describe_death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode
        if code is not None and code < 0:
            reason = f"was ended by signal {signal.Signals(-code).name}"
        else:
            reason = f"ended with code {code}"
        return (
            f"a worker process {reason}; expected it to run until the end. If the memory is full, use fewer: "
            "--workers; --workers 1 needs no worker process"
        )

    def end(self) -> None:
        self._connection.close()
        self.process.kill()
        self.process.wait()


def _end_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.end()


def map_list(function: Callable[[A], R], items: Sequence[A]) -> list[R]:
    """Return the list of `function(item)`. For jobs of several items: `partial(map_list, function)`."""
    return [function(item) for item in items]


def serve(handle: int, memory: int | None = None) -> None:
    """Run in a worker process: answer items of the connection `handle` until it is closed.

    Arrays of results go to the shared `memory`, or without it through the connection.
    """
    connection = Connection(handle)
    slot = memoryview(b"" if memory is None else mmap.mmap(memory, 0))
    with contextlib.suppress(EOFError, ConnectionError):
        content = connection.recv_bytes()
        work: Callable[[Any], Any] | None = None
        while True:
            item_content = connection.recv_bytes()
            try:
                work = work or pickle.loads(content)
                answer = (True, *_pack(work(pickle.loads(item_content)), slot))
            except WsolbenchError as error:
                answer = (False, pickle.dumps(error), [])
            except Exception:  # a bug, whose place the caller has to see
                failure = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
                answer = (False, pickle.dumps(failure), [])
            connection.send(answer)


def _pack(result: Any, slot: memoryview) -> tuple[bytes, list[tuple[int, int]]]:
    """Pickle a result, with its arrays in the slot if they fit. Returns where each of them is."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    arrays, spans, start = [buffer.raw() for buffer in buffers], [], 0
    for array in arrays:
        spans.append((start, start + array.nbytes))
        start = -(-(start + array.nbytes) // _ALIGNMENT) * _ALIGNMENT
    if start > len(slot):
        return pickle.dumps(result, protocol=5), []
    for (begin, end), array in zip(spans, arrays, strict=True):
        slot[begin:end] = array
    return content, spans
