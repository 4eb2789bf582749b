"""Regions of an image, said again with plain loops: which are chosen, which pixels they cover, what smoothing
is."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = Sequence[float]
Rows = Sequence[Sequence[float]]


def iou(a: Box, b: Box) -> float:
    """Exact for whole numbers up to the one division."""
    wide, high = (max(0, min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis])) for axis in (0, 1))
    shared = wide * high
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def greedy(
    boxes: Sequence[Box], scores: Sequence[float], k: int, limit: float, rule: str
) -> tuple[list[int], list[bool]]:
    """Positions of the k best boxes that no better chosen one suppresses, then of the best suppressed ones;
    which ones these are."""
    order = sorted(range(len(boxes)), key=lambda number: (-scores[number], number))
    kept: list[int] = []
    for number in order:
        overlaps = [iou(boxes[number], boxes[other]) for other in kept]
        if not any(overlap > limit or (rule == "ge" and overlap == limit) for overlap in overlaps):
            kept.append(number)
    chosen = (kept + [number for number in order if number not in kept])[:k]
    return chosen, [number not in kept for number in chosen]


def covered(boxes: Sequence[Box], scores: Sequence[float], size: int) -> list[list[float]]:
    """Sum of the softmax weights of the boxes that a pixel's centre is in."""
    total = sum(math.exp(score) for score in scores)
    pixels = [[0.0] * size for _ in range(size)]
    for box, score in zip(boxes, scores, strict=True):
        for y in range(size):
            for x in range(size):
                if box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]:
                    pixels[y][x] += math.exp(score) / total
    return pixels


def smoothed(values: Rows, sigma: float, reach: int) -> list[list[float]]:
    """Gaussian mean over the cells up to `reach` away; beyond the border lies its nearest cell."""
    height, width = len(values), len(values[0])
    offsets = [(dy, dx) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    weights = [math.exp(-(dy * dy + dx * dx) / (2 * sigma * sigma)) for dy, dx in offsets]

    def mean(y: int, x: int) -> float:
        near = [values[min(max(y + dy, 0), height - 1)][min(max(x + dx, 0), width - 1)] for dy, dx in offsets]
        return sum(weight * value for weight, value in zip(weights, near, strict=True)) / sum(weights)

    return [[mean(y, x) for x in range(width)] for y in range(height)]
