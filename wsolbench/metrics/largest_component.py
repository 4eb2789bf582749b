"""Box of the largest component at all levels, from one pass over all pixels of a map (numba).

See `component_tree` for the pass. The size of a component is its number of pixels, the area of its box, or
for a contour, the area of the polygon through the centres of its outline. Twice that area is a sum over 2 x
2 cells of the picture: 2 for a cell that is all foreground and 1 for a cell that lacks one corner. So each
pixel adds the number of cells in which two of the other three pixels came before it.

This holds only without holes. An outline covers what it encloses. Of nested contours, the outer one is at
least as large as any other and comes first in OpenCV's order. So the largest contour is never inside
another one. It is found in the picture whose holes are filled (`best_of_holes`), where no foreground has
holes. Among equally large outer contours, OpenCV lists first the one whose first pixel comes last in a
row-wise scan.
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
"""Measures of a component's size."""


@njit(cache=True, nogil=True)
def largest_of_components(
    picture: UInt[np.ndarray, "fh fw"],
    masks: UInt8[np.ndarray, "fh fw"],
    top: int,
    rules: Rules,
    measure: int,
) -> Int32[np.ndarray, "u 4"]:
    """Return half-open boxes (x0, y0, x1, y1) of the largest component of {level > t}, for t = -1 .. top - 1.

    Row t + 1 belongs to cut t. `picture` and `masks` are as `framed` returns them; for `CONTOUR`, of the
    picture with filled holes. `rules` is `EIGHT` or `FOUR`. Of equally large components, the one is taken
    whose first pixel comes first in a row-wise scan; for `CONTOUR`, the one whose first pixel comes last.
    """
    # Pixels from the highest level down, and an empty forest.
    height, width = picture.shape
    order, start = sort_pixels(picture, masks, top, np.ones(256, np.int32))
    order = order[::-1].copy()
    rules = with_offsets(rules, width)
    if measure == PIXELS:
        rules[:, CORNERS] = 1
    node_of, nodes, changed = new_forest(height, width, len(order))
    boxes = np.empty((top + 1, 4), np.int32)
    alive, n_alive = np.empty(len(nodes), np.int32), 0
    flat, used, n = masks.ravel(), np.int64(1), len(order)
    # Add one level after another. `alive` lists the components that no other has absorbed.
    for level in range(top, -1, -1):
        known = used
        first, last = n - start[level + 1], n - start[level]
        used, _ = add_pixels(order, first, last, level, flat, width, rules, node_of, nodes, used, changed)
        for node in range(known, used):
            alive[n_alive] = node
            n_alive += 1
        # The largest component of this level.
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
        # Box coordinates exclude the frame of one pixel.
        boxes[level, 0], boxes[level, 1] = nodes[largest, X0] - 1, nodes[largest, Y0] - 1
        boxes[level, 2], boxes[level, 3] = nodes[largest, X1], nodes[largest, Y1]
    return boxes
