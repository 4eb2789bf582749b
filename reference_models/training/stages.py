"""A run in several stages, whose lengths are relative to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a run is: the stage, its first epoch, and the epoch after its last one."""

    stage: int
    start: int
    stop: int


def place_in(epoch: int | float, epochs: int, lengths: Sequence[int]) -> Place:
    """The stage of an epoch, or of a time within one, of a run of `epochs`. Each stage has at least one
    epoch.

    >>> [place_in(epoch, 6, (90, 90, 1)).stage for epoch in range(6)]
    [0, 0, 0, 1, 1, 2]

    Raises `ValueError` where there are fewer epochs than stages.
    """
    if epochs < len(lengths):
        raise ValueError(f"{epochs} epochs for {len(lengths)} stages")
    start, last = 0, len(lengths) - 1
    for stage in range(last):
        wanted = round(epochs * sum(lengths[: stage + 1]) / sum(lengths))
        stop = min(max(wanted, start + 1), epochs - (last - stage))
        if epoch < stop:
            return Place(stage, start, stop)
        start = stop
    return Place(last, start, epochs)
