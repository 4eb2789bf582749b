"""Several processes that torchrun started: who this one is, how they exchange what they know, and how they
fail together.

The processes run the same program. Whatever one of them raises is heard by the others where they meet next
(`barrier`, `gathered`), so that none waits for a process that has given up. Code that uses collectives of its
own puts a meeting before each of them, with nothing in between that may fail in one process alone.
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
"""How long a process waits for the others. One that has died is noticed at once; this is for one that hangs,
and long because shares of an evaluation that goes on can be very unequal.
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
    """What torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; one process without. Raises `UsageError` on
    values that mean nothing.
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
            f"{values} in the environment; expected 0 <= RANK < WORLD_SIZE and 0 <= LOCAL_RANK < WORLD_SIZE"
        )
    return World(rank, size, local_rank)


_inside = False
"""Whether a block of `connected` is under way in this process."""


@contextlib.contextmanager
def connected() -> Iterator[World]:
    """This process among the others, with a process group while the block runs; no process leaves the block
    before the last one.

    The group is gloo for what is on the CPU, and nccl for what is on a GPU where there are some. It is made
    once and left when the program ends: making another one while some process still takes leave of the last
    can hang. A group that is there already is used. One process needs none, and torch is not imported.

    What a process raises within the block ends the block in all. A `WsolbenchError` of any process is raised
    by the first one alone (its own, else that of the lowest rank), the others leave with `SystemExit(2)`: the
    message appears once. Another error is raised where it happened; the first process raises a `UsageError`
    that says where.

    Raises `UsageError` when the processes do not find each other, and when a process dies without a word.
    """
    here = world()
    if here.size == 1:
        yield here
        return
    import torch
    import torch.distributed as dist

    global _inside  # noqa: PLW0603 - the process group is one for the process
    if _inside:
        yield here
        barrier()
        return
    if not dist.is_initialized():
        # Imported while there is a group, by the first optimiser for instance, its functions would have the
        # group as a default argument. It would outlive `_leave`, and its threads be cut off with the
        # interpreter, which aborts now and then.
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
    _inside = True
    try:
        yield here
        barrier()
    except _HeardError as heard:
        if here.is_first:
            raise heard.failure from None
        raise SystemExit(2) from None
    except _LostError:
        raise
    except WsolbenchError as error:
        if _tell(error) and not here.is_first:
            raise SystemExit(2) from None
        raise
    except Exception as error:
        _tell(
            UsageError(
                f"process {here.rank} of {here.size} failed with {type(error).__name__}: {_line(error)}"
            )
        )
        raise
    finally:
        _inside = False


def gathered(value: T) -> list[T]:
    """The value of every process, by rank; `[value]` when there is no process group. Values must be
    picklable, and small.

    A meeting: what another process has raised ends this one here (see `connected`).
    """
    if world().size == 1:
        return [value]
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    found: list[Any] = _exchanged(value)
    for item in found:
        if isinstance(item, _Failure):
            raise _HeardError(item.error)
    return found


def barrier() -> None:
    """Wait until all processes are here; nothing when there is no process group. A meeting, as `gathered`."""
    gathered(None)


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Around a collective of torch: a connection that breaks becomes the `UsageError` of `connected`."""
    try:
        yield
    except RuntimeError as error:
        raise _LostError(
            f"a process has ended without a word, or did not answer within {TIMEOUT}; run the same command "
            f"again to go on ({_line(error)})"
        ) from error


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


# --- failing together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failure:
    """What a process sends in the place of a value when it has given up."""

    error: WsolbenchError


class _HeardError(Exception):
    """Another process has given up. No `WsolbenchError`: all processes know."""

    def __init__(self, failure: WsolbenchError) -> None:
        super().__init__(str(failure))
        self.failure = failure


class _LostError(UsageError):
    """There is no connection to the other processes any more."""


def _exchanged(item: Any) -> list[Any]:
    """What every process gives, by rank."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    with collective():
        dist.all_gather_object(found, item)
    return found


def _tell(error: WsolbenchError) -> bool:
    """Tell the others at their next meeting that this process has given up; whether they heard it."""
    try:
        _exchanged(_Failure(error))
    except _LostError:
        return False
    return True


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
