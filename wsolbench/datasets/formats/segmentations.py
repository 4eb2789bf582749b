"""Validation of polygons and run lengths in COCO's layout."""

from __future__ import annotations

import sys
from typing import Any


def is_segmentation(value: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools can read a segmentation as a mask of this size (width, height).

    pycocotools does not validate its input. A NaN or a very distant point takes all memory. Run lengths
    that do not cover the image leave uninitialised memory in the mask.
    """
    if isinstance(value, list):
        far = 10 * max(size)
        return all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and {*map(type, polygon)} <= {int, float}
            and all(-far <= coordinate <= far for coordinate in polygon)
            for polygon in value
        )
    if (
        not isinstance(value, dict)
        or value.get("size") != [size[1], size[0]]
        or {*map(type, value["size"])} != {int}
    ):
        return False
    counts = value.get("counts")
    if isinstance(counts, list):
        return {*map(type, counts)} == {int} and min(counts) >= 0 and sum(counts) == size[0] * size[1]
    return isinstance(counts, str) and _sum_of_runs(counts) == size[0] * size[1]


def _sum_of_runs(text: str) -> int | None:
    """Return the number of pixels that compressed run lengths cover, or None if the text is invalid.

    A number is written in groups of 5 bits, lowest first. Each group is the character 48 + bits, + 32 if
    another group follows. The highest bit of the last group is the sign. From the fourth run on, a run is
    stored as its difference to the run two before it.
    """
    runs: list[int] = []
    value = shift = 0
    for piece in text.encode():
        bits = piece - 48
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value = shift = 0
    return None if shift else sum(runs)


def is_finite_number(value: Any) -> bool:
    """Whether a value is a finite number. A bool is not a number."""
    return type(value) in {int, float} and abs(value) <= sys.float_info.max


def shorten(value: Any) -> str:
    """Return the value as text for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
