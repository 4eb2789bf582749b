"""Stages of a run, whose lengths are relative to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reference_models.core.recipes import Recipe


@dataclass(frozen=True)
class Place:
    """Position in a run: the stage, its first epoch, and the epoch after its last one."""

    stage: int
    start: int
    stop: int


def stage_at(epoch: int | float, epochs: int, lengths: Sequence[int]) -> Place:
    """Return the stage of an epoch, or of a time within one, in a run of `epochs`.

    Each stage has at least one epoch. Raises `ValueError` if there are fewer epochs than stages.

    >>> [stage_at(epoch, 6, (90, 90, 1)).stage for epoch in range(6)]
    [0, 0, 0, 1, 1, 2]
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


def stage_if_any(epoch: int | float, epochs: int, lengths: Sequence[int]) -> Place | None:
    """Return `stage_at`, or None in a run of fewer epochs than stages, which trains everything at once."""
    return None if epochs < len(lengths) else stage_at(epoch, epochs, lengths)


def stage_lr_factor(recipe: Recipe, progress: float, place: Place | None) -> float:
    """Return the learning rate relative to its base if each stage has the recipe's whole schedule.

    `place` is the stage at `progress` in [0, 1] of the run; None in a run without stages.
    """
    if place is None:
        return recipe.lr_factor(progress)
    length = place.stop - place.start
    return replace(recipe, epochs=length).lr_factor((progress * recipe.epochs - place.start) / length)
