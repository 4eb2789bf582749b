"""Polygons and run lengths of COCO's layout: are they what they claim to be?"""

from __future__ import annotations

import sys
from typing import Any


def is_segmentation(value: Any, size: tuple[int, int]) -> bool:
    """Whether pycocotools can read it as a mask of this size (width, height).

    It trusts what it is given: a NaN, or a point very far away, takes all memory, and run lengths that do not
    cover the image leave whatever was in memory.
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
    """The pixels that compressed run lengths cover, or None for text that is no run lengths.

    A number is written in pieces of 5 bits, the lowest first, each as the character 48 + piece, + 32 where
    another piece follows. The highest bit of the last piece is the sign. From the fourth run on, the
    difference to the run before the previous one is written.
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
    """Whether it is a finite number (and no bool)."""
    return type(value) in {int, float} and abs(value) <= sys.float_info.max


def shorten(value: Any) -> str:
    """The value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
