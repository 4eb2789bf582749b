"""Types of option values, checked when the command line is parsed."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from wsolbench.methods import DEVICE
from wsolbench.ranges import describe, range_of

if TYPE_CHECKING:
    _Kind = click.ParamType[Any]
else:  # generic for type checkers only, in some versions of click
    _Kind = click.ParamType


class Number(_Kind):
    """A number in the range that a field of a dataclass declares, checked before any work is done."""

    def __init__(self, kind: type[Any], field: str) -> None:
        self.number, self.limit = range_of(kind, field)
        self.name = "integer" if self.number is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the number."""
        try:
            number = self.number(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None or number not in self.limit:
            text = str(value)
            self.fail(
                f"{text if len(text) <= 40 else text[:37] + '...'} is not "
                f"{describe(self.number, self.limit)}",
                param,
                ctx,
            )
        return number


class Device(_Kind):
    """auto, cpu, cuda or cuda:N. Whether the device exists is checked on use."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the name of the device."""
        if not re.fullmatch(DEVICE, str(value)):
            self.fail(f"{str(value)[:40]!r} is not auto, cpu, cuda or cuda:N", param, ctx)
        return str(value)


def available_cores() -> int:
    """Return the number of cores that this process may use. Processes of torchrun share a machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
