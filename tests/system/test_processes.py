"""Worker processes: results and errors of the caller's own work, and nothing that is left behind."""

from __future__ import annotations

import operator
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.processes import PATIENCE
from wsolbench.exceptions import DataError, UsageError
from wsolbench.system import processes
from wsolbench.system.decoding import read_rgb
from wsolbench.system.processes import SharedArray, WorkerPool, is_sendable, map_list


@pytest.fixture
def opened():
    """Make pools that are closed at the end."""
    pools: list[WorkerPool] = []

    def make(work, count=1, **how):
        pools.append(WorkerPool(work, count, **how))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def workers_of(pool: WorkerPool) -> list[subprocess.Popen]:
    return [worker.process for worker in pool._end.peek()[2][0]]


def test_results_are_those_of_the_work_whatever_their_size(opened, monkeypatch):
    monkeypatch.setattr(processes, "SLOT_BYTES", 1 << 16)
    pool = opened(partial(map_list, np.ones), 2)
    for shapes in ([], [(0,)], [(3, 2), (5,)], [(1 << 10,)] * 7, [(9000,)]):  # the last is not in the slot
        found = pool.run(shapes, lambda result: [array.copy() for array in result])
        assert [array.shape for array in found] == shapes
        assert all((array == 1).all() for array in found)


def test_without_shared_memory_results_are_sent_and_an_array_cannot_be(opened):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        shared, pool = SharedArray((30_000,)), opened(np.ones)
        assert pool.run((5,), np.array).tolist() == [1] * 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert shared.array.shape == (30_000,)
    assert not is_sendable(shared)
    assert is_sendable(SharedArray((30_000,)))


def test_threads_get_the_results_of_their_own_items(opened):
    pool = opened(partial(operator.mul, 3), 2)
    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(lambda item: pool.run(item, int), range(40))) == [
            3 * item for item in range(40)
        ]
    assert pool.count == len(workers_of(pool)) == 2


def test_an_error_of_the_data_has_the_message_of_the_caller_and_the_pool_lives_on(opened, tmp_path):
    pool = opened(partial(read_rgb, what="image 'a'"))
    with pytest.raises(DataError) as expected:
        read_rgb(tmp_path / "gone.png", "image 'a'")
    for _ in range(2):
        with pytest.raises(DataError) as found:
            pool.run(tmp_path / "gone.png", np.array)
        assert str(found.value) == str(expected.value)


def test_a_bug_shows_its_place(opened):
    with pytest.raises(RuntimeError, match=r"in a worker process:\nTraceback(.|\n)*TypeError"):
        opened(np.zeros).run("no shape", np.array)


def test_processes_share_an_array(opened):
    shared = SharedArray((2, 3))
    assert not shared.array.any()
    shared.array[1] = 7
    pool = opened(SharedRow(shared), 1, inherit=[shared])
    assert pool.run(1, np.array).tolist() == [7, 7, 7]
    shared.array[0] = 5  # after the process has started
    assert pool.run(0, np.array).tolist() == [5, 5, 5]


class SharedRow:
    """A row of a shared array."""

    def __init__(self, shared: SharedArray) -> None:
        self.shared = shared

    def __call__(self, row: int) -> np.ndarray:
        return self.shared.array[row]


def test_a_process_that_dies_is_an_error_that_says_what_to_do(opened):
    pool = opened(partial(operator.mul, 2))
    assert pool.run(2, int) == 4
    os.kill(workers_of(pool)[0].pid, signal.SIGKILL)
    with pytest.raises(
        UsageError, match=r"worker process was ended by signal SIGKILL; expected .* --workers 1"
    ):
        pool.run(3, int)


def test_closing_ends_the_processes(opened):
    pool = opened(operator.neg, 2)
    running = workers_of(pool)
    pool.close()
    pool.close()
    assert all(process.returncode is not None for process in running)


def test_what_a_script_defines_is_not_sent(monkeypatch):
    assert is_sendable((partial(map_list, np.ones), [Path("a")]))
    assert not is_sendable(lambda: 0)
    monkeypatch.setattr(SharedRow, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "SharedRow", SharedRow, raising=False)
    assert not is_sendable(SharedRow)


SCRIPT = """
import operator, signal, time
from wsolbench.system.processes import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let jobs in the background ignore it
pool = WorkerPool(operator.neg, 2)
assert pool.run(1, int) == pool.run(1, int) == -1
print(*[worker.process.pid for worker in pool._end.peek()[2][0]], flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_caller_that_is_killed_leaves_no_process(number):
    environment = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[2])}
    caller = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert caller.stdout is not None
    workers = [int(pid) for pid in caller.stdout.readline().split()]
    # Wait until the script sleeps, because Python ignores an interrupt inside a finalizer.
    end = time.monotonic() + PATIENCE
    while state_of(caller.pid) != "S" and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    caller.send_signal(number)
    _, err = caller.communicate(timeout=PATIENCE)
    assert err.count("Traceback") == (number == signal.SIGINT)  # that of the script alone
    end = time.monotonic() + PATIENCE
    while any(is_running(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(workers) == 2
    assert not any(is_running(pid) for pid in workers)


def is_running(pid: int) -> bool:
    return state_of(pid) not in ("Z", "")


def state_of(pid: int) -> str:
    """Return the state of a process as the kernel names it, or nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
