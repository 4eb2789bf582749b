"""Processes that torchrun started: their ranks, their exchange of values, and how they fail together.

The processes run the same program. An exception in one process is re-raised in all others at the next
synchronisation point (`barrier`, `gathered`). So no process waits for one that has failed. Code with
collectives of its own puts a synchronisation point before each of them. Nothing that can fail in one process
alone may come in between.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from wsolbench.exceptions import UsageError, WsolbenchError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Longest wait of a process for the others.

A process that has died is noticed at once. This limit is for a process that hangs. It is long because the
shares of a resumed evaluation can be very unequal.
"""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and `local_rank` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


def world() -> World:
    """Read RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets. Without them there is one process.

    Raises `UsageError` for invalid values.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = {name: os.environ[name] for name in names if name in os.environ}
    if values.get("WORLD_SIZE", "1") == "1" and values.get("RANK", "0") == "0":
        return World()
    try:
        rank, size, local_rank = (int(values[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the environment has {values or 'nothing'} of {', '.join(names)}; expected three whole numbers. "
            "Start the command with torchrun, or unset them"
        ) from error
    if not (0 <= rank < size and 0 <= local_rank < size):
        raise UsageError(
            f"the environment has {values}; expected 0 <= RANK < WORLD_SIZE and 0 <= LOCAL_RANK < WORLD_SIZE"
        )
    return World(rank, size, local_rank)


_inside = False
"""Whether this process is inside of a block of `connected`."""


@contextlib.contextmanager
def connected() -> Iterator[World]:
    """Connect this process with the others while the block runs. All processes leave the block together.

    The process group uses gloo for the CPU, and nccl for GPUs, if there are any. It is created once and left
    when the program ends, because creating another one can hang while some process still leaves the first. An
    existing group is used. A single process needs no group, and torch is not imported.

    An exception in one process ends the block in all. A `WsolbenchError` is raised by the first process only
    (its own, else that of the lowest rank). The others exit with `SystemExit(2)`, so that the message appears
    once. Any other error is raised where it happened; the first process raises a `UsageError` that names the
    process.

    Raises `UsageError` if the processes do not find each other, and if a process dies.
    """
    # One process, or a block inside of another one.
    here = world()
    if here.size == 1:
        yield here
        return
    import torch
    import torch.distributed as dist

    global _inside  # noqa: PLW0603 - there is one process group per process
    if _inside:
        yield here
        barrier()
        return
    if not dist.is_initialized():
        # Import this before there is a group. Imported later, by the first optimiser for instance, its
        # functions would hold the group as a default argument. The group would then outlive `_leave`, and
        # its threads would be killed with the interpreter, which sometimes aborts.
        import torch.distributed.nn

        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT
            )
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"the {here.size} processes do not find each other; start them with torchrun ({_line(error)})"
            ) from error
        atexit.register(_leave)
    # Run the block, and tell the others about an exception.
    _inside = True
    try:
        yield here
        barrier()
    except _RemoteError as remote:
        if here.is_first:
            raise remote.failure from None
        raise SystemExit(2) from None
    except _LostError:
        raise
    except WsolbenchError as error:
        if _announce(error) and not here.is_first:
            raise SystemExit(2) from None
        raise
    except Exception as error:
        _announce(
            UsageError(
                f"process {here.rank} of {here.size} failed with {type(error).__name__}: {_line(error)}"
            )
        )
        raise
    finally:
        _inside = False


def gathered(value: T) -> list[T]:
    """Return the value of every process, by rank, or `[value]` without a process group.

    Values must be picklable, and small. This is a synchronisation point: an exception in another process is
    raised here (see `connected`).
    """
    if world().size == 1:
        return [value]
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    found: list[Any] = _exchange(value)
    for item in found:
        if isinstance(item, _Failure):
            raise _RemoteError(item.error)
    return found


def barrier() -> None:
    """Wait for all processes.

    Does nothing without a process group. A synchronisation point, as `gathered`.
    """
    gathered(None)


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Wrap a collective of torch: a broken connection becomes the `UsageError` of `connected`."""
    try:
        yield
    except RuntimeError as error:
        raise _LostError(
            f"a process has died, or did not answer within {TIMEOUT}; run the same command again to resume "
            f"({_line(error)})"
        ) from error


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


# --- failing together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failure:
    """What a failed process sends instead of a value."""

    error: WsolbenchError


class _RemoteError(Exception):
    """Another process has failed. It is not a `WsolbenchError`, because all processes know already."""

    def __init__(self, failure: WsolbenchError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class _LostError(UsageError):
    """The connection to the other processes is lost."""


def _exchange(item: Any) -> list[Any]:
    """Return the item of every process, by rank."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    with collective():
        dist.all_gather_object(found, item)
    return found


def _announce(error: WsolbenchError) -> bool:
    """Tell the others at their next synchronisation point that this process has failed.

    Returns whether they received it.
    """
    try:
        _exchange(_Failure(error))
    except _LostError:
        return False
    return True


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
