"""Several processes: who each one is, what they exchange, and that none is left waiting when another one
fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PATIENCE, ROOT, environments, together
from wsolbench.exceptions import UsageError
from wsolbench.system.distributed import World, barrier, connected, gathered, world

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


# --- one process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [{}, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}]
)
def test_a_process_alone_is_the_first_of_one_and_needs_no_group(monkeypatch, values):
    environment(monkeypatch, **values)
    assert world() == World(rank=0, size=1, local_rank=0)
    assert world().is_first
    with connected() as here:
        assert here == World()
        barrier()
        assert gathered("alone") == ["alone"]


def test_torchrun_says_which_process_this_is(monkeypatch):
    environment(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1")
    assert world() == World(rank=5, size=8, local_rank=1)
    assert not world().is_first


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "2"},
        {"WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "1"},
    ],
)
def test_an_environment_that_means_nothing_is_refused_with_what_it_holds(monkeypatch, values):
    environment(monkeypatch, **values)
    with pytest.raises(UsageError, match=r"in the environment|the environment has") as error:
        world()
    assert all(repr(value) in str(error.value) for value in values.values())


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("auto", 4, "cuda:2"),
        ("cuda", 4, "cuda:2"),
        ("cuda:1", 4, "cuda:1"),
        ("cpu", 4, "cpu"),
        ("auto", 1, "cuda"),
        ("cuda", 1, "cuda"),
    ],
)
def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch, name, size, expected):
    import torch

    from wsolbench.methods.device import pick_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    environment(monkeypatch, WORLD_SIZE=str(size), **({"RANK": "2", "LOCAL_RANK": "2"} if size > 1 else {}))
    assert pick_device(name) == torch.device(expected)


def test_a_process_without_a_gpu_of_its_own_is_refused_and_without_cuda_all_are_on_the_cpu(monkeypatch):
    import torch

    from wsolbench.methods.device import pick_device

    environment(monkeypatch, WORLD_SIZE="4", RANK="3", LOCAL_RANK="3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(
        UsageError, match=r"'cuda:3' is not available: torch finds 3 .* one process for each GPU"
    ):
        pick_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


# --- several ------------------------------------------------------------------------------------------------


def test_processes_exchange_values_by_rank_and_a_group_inside_a_group_is_the_same(tmp_path):
    code = """
import json, sys
from wsolbench.system.distributed import barrier, connected, gathered
with connected() as here:
    with connected() as inner:
        found = gathered({"rank": inner.rank, "text": "x" * 10 ** here.rank})
    barrier()
    open(f"{sys.argv[1]}/{here.rank}", "w").write(json.dumps(found))
"""
    assert [ended.code for ended in together(code, tmp_path, size=3)] == [0, 0, 0]
    expected = [{"rank": rank, "text": "x" * 10**rank} for rank in range(3)]
    assert all(json.loads((tmp_path / str(rank)).read_text()) == expected for rank in range(3))


AS_THE_COMMAND = """
import os, signal, sys
from wsolbench.system.distributed import connected, gathered
from wsolbench.exceptions import DataError, WsolbenchError
try:
    with connected() as here:
        gathered(1)
        exec(sys.argv[1])
        gathered(2)
        print("went on")
except WsolbenchError as error:
    print(f"Error: {type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("if here.rank == 1: raise DataError('a.png is broken')", "Error: DataError: a.png is broken"),
        ("raise DataError(f'{here.rank}.png is broken')", "Error: DataError: 0.png is broken"),
    ],
)
def test_an_error_of_one_process_ends_all_and_is_told_once(event, message):
    first, second = together(AS_THE_COMMAND, event)
    assert (first.code, second.code) == (2, 2)
    assert (first.err.strip(), second.err.strip()) == (message, "")
    assert "went on" not in first.out + second.out


def test_a_bug_in_one_process_shows_its_traceback_there_and_ends_the_others():
    first, second = together(AS_THE_COMMAND, "if here.rank == 1: {}['nothing']")
    assert second.code == 1
    assert "Traceback" in second.err
    assert "KeyError" in second.err
    assert first.code == 2
    assert first.err.strip() == "Error: UsageError: process 1 of 2 failed with KeyError: 'nothing'"


def test_a_process_that_dies_without_a_word_is_missed():
    first, second = together(AS_THE_COMMAND, "if here.rank == 1: os.kill(os.getpid(), signal.SIGKILL)")
    assert second.code == -signal.SIGKILL
    assert first.code == 2
    assert "a process has died" in first.err
    assert "run the same command again" in first.err


def test_an_error_after_the_last_exchange_is_heard_when_the_block_ends():
    code = AS_THE_COMMAND.replace('print("went on")', "if here.is_first: raise DataError('the disk is full')")
    first, second = together(code, "pass")
    assert (first.code, second.code) == (2, 2)
    assert (first.err.strip(), second.err.strip()) == ("Error: DataError: the disk is full", "")


AT_THE_END = """
import atexit
from pathlib import Path

# called after the handlers that are registered later
atexit.register(lambda: print(len(list(Path("/proc/self/task").iterdir()))))
import torch
from wsolbench.system.distributed import connected, gathered

with connected() as here:
    torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)  # torch imports much for its first optimiser
    gathered(here.rank)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_of_the_group_is_left_when_the_program_ends():
    running = [  # in new interpreters, because handlers of `atexit` do not run in a fork
        subprocess.Popen(
            [sys.executable, "-c", AT_THE_END],
            env={**os.environ, **each, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in environments(2)
    ]
    try:
        ended = [
            (process.communicate(timeout=PATIENCE)[0].strip(), process.returncode) for process in running
        ]
    finally:
        for process in running:
            process.kill()
    assert ended == [("1", 0), ("1", 0)]
