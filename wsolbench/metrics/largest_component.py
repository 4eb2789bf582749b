"""The largest component's box at all levels from one pass over all pixels of a map (numba); see
`component_tree`.

The size of a component is its pixels, the area of its box, or, for a contour, the area of the polygon through
the centres of its outline. Twice that area adds up over 2 x 2 cells of the picture: 2 for a cell that is all
foreground and 1 for a cell that lacks one corner. So each pixel brings as many as there are cells in which
two of the other three pixels came before it.

That holds where there are no holes. An outline covers what it encloses, and of contours within each other the
outer one is as large as any and comes first in OpenCV's order, so the largest is never within another one. It
is found in the picture whose holes are filled (`best_of_holes`), where no foreground has holes. Equally large
outer contours: OpenCV lists the one whose first pixel comes last in a row-wise scan first.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt, UInt8
from numba import njit

from wsolbench.metrics.component_tree import (
    CORNERS,
    FIRST,
    PARENT,
    SIZE,
    X0,
    X1,
    Y0,
    Y1,
    Rules,
    add_pixels,
    new_forest,
    sort_pixels,
    with_offsets,
)

PIXELS, BOX, CONTOUR = 0, 1, 2
"""What a component is measured by."""


@njit(cache=True, nogil=True)
def largest_of_components(
    picture: UInt[np.ndarray, "fh fw"],
    masks: UInt8[np.ndarray, "fh fw"],
    top: int,
    rules: Rules,
    measure: int,
) -> Int32[np.ndarray, "u 4"]:
    """Half-open box (x0, y0, x1, y1) of the largest component of {level > t}, at row t + 1 for t = -1 .. top
    - 1.

    `picture` and `masks` as `framed` gives them, for `CONTOUR` of the picture with filled holes; `rules` is
    `EIGHT` or `FOUR`. Of equally large components the one whose first pixel comes first, for `CONTOUR` last,
    in a row-wise scan.
    """
    height, width = picture.shape
    order, start = sort_pixels(picture, masks, top, np.ones(256, np.int32))
    order = order[::-1].copy()
    rules = with_offsets(rules, width)
    if measure == PIXELS:
        rules[:, CORNERS] = 1
    node_of, nodes, changed = new_forest(height, width, len(order))
    boxes = np.empty((top + 1, 4), np.int32)
    alive, n_alive = np.empty(len(nodes), np.int32), 0
    flat, used, n = masks.ravel(), 1, len(order)
    for level in range(top, -1, -1):
        known = used
        first, last = n - start[level + 1], n - start[level]
        used, _ = add_pixels(order, first, last, level, flat, width, rules, node_of, nodes, used, changed)
        for node in range(known, used):
            alive[n_alive] = node
            n_alive += 1
        kept, largest, most = 0, -1, -1
        for i in range(n_alive):
            node = alive[i]
            if nodes[node, PARENT] != node:
                continue
            alive[kept] = node
            kept += 1
            size = nodes[node, SIZE]
            if measure == BOX:
                size = (nodes[node, X1] - nodes[node, X0] + 1) * (nodes[node, Y1] - nodes[node, Y0] + 1)
            if size > most or (
                size == most and (nodes[node, FIRST] > nodes[largest, FIRST]) == (measure == CONTOUR)
            ):
                largest, most = node, size
        n_alive = kept
        boxes[level, 0], boxes[level, 1] = (
            nodes[largest, X0] - 1,
            nodes[largest, Y0] - 1,
        )  # the frame is not part of the numbers
        boxes[level, 2], boxes[level, 3] = nodes[largest, X1], nodes[largest, Y1]
    return boxes
