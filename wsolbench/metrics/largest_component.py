"""The largest component's box at all levels from one pass over the pixels of a map (numba); see `component_tree`.

The size of a component is its pixels, the area of its box, or (contours) the area of the polygon through the centres of its
outline. Twice that polygon area adds up pixel by pixel: a 2x2 cell of the picture counts 2 when all of it is foreground and 1
when a single corner is missing, so each pixel brings as many as there are cells in which it is one of the two lowest. The
polygon also covers the holes, and the same counts over a hole's pixels give what it covers. What lies within a hole once
more is only known to stay inside the box. Where that leaves open which contour is the largest, or two are equally large,
the cut is marked, and the caller looks at it with OpenCV.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt, UInt8
from numba import njit

from wsolbench.metrics.component_tree import Tables, find_root, higher_neighbours

PIXELS, BOX, CONTOUR = 0, 1, 2
"""What a component is measured by."""


@njit(cache=True, nogil=True)
def low_corners(levels: UInt[np.ndarray, "h w"], out: UInt8[np.ndarray, "h w"]) -> None:
    """Fill in, for each pixel, in how many 2x2 cells it is one of the two lowest (of equal levels the earlier one is lower)."""
    height, width = levels.shape
    for y in range(height):
        for x in range(width):
            out[y, x] = 0
    for y in range(height - 1):
        for x in range(width - 1):
            a, b, c, d = levels[y, x], levels[y, x + 1], levels[y + 1, x], levels[y + 1, x + 1]
            ab, ac, ad, bc, bd, cd = a <= b, a <= c, a <= d, b <= c, b <= d, c <= d  # the first is lower
            out[y, x] += (not ab) + (not ac) + (not ad) < 2
            out[y, x + 1] += ab + (not bc) + (not bd) < 2
            out[y + 1, x] += ac + bc + (not cd) < 2
            out[y + 1, x + 1] += ad + bd + cd < 2


@njit(cache=True, nogil=True)
def _order(flat, top):
    """Pixels by level (a counting sort), and where each level starts."""
    size = flat.shape[0]
    start = np.zeros(top + 2, np.int32)
    for p in range(size):
        start[flat[p] + 1] += 1
    for v in range(top + 1):
        start[v + 1] += start[v]
    order = np.empty(size, np.int32)
    fill = start.copy()
    for p in range(size):
        v = flat[p]
        order[fill[v]] = p
        fill[v] += 1
    return start, order


@njit(cache=True, nogil=True)
def holes_by_level(
    levels: UInt[np.ndarray, "h w"], top: int, corners: UInt8[np.ndarray, "h w"], tables: Tables
) -> tuple[Int64[np.ndarray, " u"], Int64[np.ndarray, " u"], Int32[np.ndarray, " e"], Int32[np.ndarray, " e"]]:
    """The holes of {top - levels > t} for every t: entries `begin[t] : end[t]` of (pixel above the hole's first pixel, twice its area).

    The pixel above belongs to the component around the hole. Areas leave out what lies within the hole.
    """
    _, _, count, groups = tables
    height, width = levels.shape
    size = height * width
    mask2 = np.empty((height, width), np.uint8)
    higher_neighbours(levels, mask2)
    mask, flat = mask2.ravel(), levels.ravel()
    low = corners.ravel()
    start, order = _order(flat, top)
    offset = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    node_of = np.full(size, -1, np.int32)
    parent = np.empty(size, np.int32)
    first = np.empty(size, np.int32)
    area = np.empty(size, np.int32)
    frame = np.empty(size, np.bool_)
    alive = np.empty(size, np.int32)
    n_alive = 0
    nodes = 0
    end = np.zeros(top + 1, np.int64)
    pixels = np.empty(1024, np.int32)
    areas = np.empty(1024, np.int32)
    begin = np.zeros(top + 1, np.int64)
    n = 0
    for v in range(top, -1, -1):
        for i in range(start[v + 1] - 1, start[v] - 1, -1):
            p = order[i]
            m = mask[p]
            y, x = p // width, p % width
            if count[m] == 0:
                root = nodes
                nodes += 1
                parent[root] = root
                first[root] = p
                area[root] = 0
                frame[root] = False
                alive[n_alive] = root
                n_alive += 1
            else:
                root = find_root(parent, node_of[p + offset[groups[m, 0]]])
                for k in range(1, count[m]):
                    other = find_root(parent, node_of[p + offset[groups[m, k]]])
                    if other != root:
                        parent[other] = root
                        first[root] = min(first[root], first[other])
                        area[root] += area[other]
                        frame[root] = frame[root] or frame[other]
            node_of[p] = root
            first[root] = min(first[root], p)
            area[root] += low[p]
            if y == 0 or x == 0 or y == height - 1 or x == width - 1:
                frame[root] = True
        t = top - v  # {level <= t}
        begin[t] = n
        if t < top:
            kept = 0
            for i in range(n_alive):
                root = alive[i]
                if parent[root] != root or frame[root]:
                    continue
                alive[kept] = root
                kept += 1
                if n == len(pixels):
                    bigger = np.empty(2 * n, np.int32)
                    bigger[:n] = pixels
                    pixels = bigger
                    bigger = np.empty(2 * n, np.int32)
                    bigger[:n] = areas
                    areas = bigger
                pixels[n] = first[root] - width
                areas[n] = area[root]
                n += 1
            n_alive = kept
        end[t] = n
    return begin, end, pixels, areas


@njit(cache=True, nogil=True)
def _upper_area(root, alive, n_alive, area, extra, box):
    """A bound on twice the area of a component's outline: with all that lies within its box, where that is few, else the box."""
    bound = 2 * (box[root, 2] - box[root, 0]) * (box[root, 3] - box[root, 1])
    if n_alive > 64:
        return bound
    total = area[root] + extra[root]
    for i in range(n_alive):
        other = alive[i]
        inside = box[other, 0] > box[root, 0] and box[other, 1] > box[root, 1]
        if inside and box[other, 2] < box[root, 2] and box[other, 3] < box[root, 3]:
            total += area[other] + extra[other]
    return min(bound, total)


@njit(cache=True, nogil=True)
def largest_of_components(
    levels: UInt[np.ndarray, "h w"],
    top: int,
    tables: Tables,
    mode: int,
    corners: UInt8[np.ndarray, "h w"],
    holes: tuple[Int64[np.ndarray, " u"], Int64[np.ndarray, " u"], Int32[np.ndarray, " e"], Int32[np.ndarray, " e"]],
    box_at: Int32[np.ndarray, "u 4"],
    open_at: Bool[np.ndarray, " u"],
) -> None:
    """Fill in the box (x0, y0, x1, y1, inclusive) of the largest component of {levels > t} at row t + 1, t = -1 .. top - 1.

    Of equal sizes the component whose first pixel comes first, but for `CONTOUR`: there `open_at` marks the cuts to look at again.
    `corners` and `holes` (see `holes_by_level`) are used by `CONTOUR` only.
    """
    _, _, count, groups = tables
    hole_begin, hole_end, hole_pixel, hole_area = holes
    height, width = levels.shape
    n_pixels = height * width
    mask2 = np.empty((height, width), np.uint8)
    higher_neighbours(levels, mask2)
    mask, flat = mask2.ravel(), levels.ravel()
    low = corners.ravel()
    start, order = _order(flat, top)
    offset = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    node_of = np.full(n_pixels, -1, np.int32)
    parent = np.empty(n_pixels, np.int32)
    box = np.empty((n_pixels, 4), np.int32)
    first = np.empty(n_pixels, np.int32)
    area = np.empty(n_pixels, np.int32)
    extra = np.zeros(n_pixels, np.int32)
    alive = np.empty(n_pixels, np.int32)
    n_alive = 0
    nodes = 0
    for v in range(top, -1, -1):
        for i in range(start[v + 1] - 1, start[v] - 1, -1):
            p = order[i]
            m = mask[p]
            y, x = p // width, p % width
            if count[m] == 0:
                root = nodes
                nodes += 1
                parent[root] = root
                first[root] = p
                area[root] = 0
                box[root, 0] = box[root, 2] = x
                box[root, 1] = box[root, 3] = y
                alive[n_alive] = root
                n_alive += 1
            else:
                root = find_root(parent, node_of[p + offset[groups[m, 0]]])
                for k in range(1, count[m]):
                    other = find_root(parent, node_of[p + offset[groups[m, k]]])
                    if other != root:
                        parent[other] = root
                        first[root] = min(first[root], first[other])
                        area[root] += area[other]
                        box[root, 0] = min(box[root, 0], box[other, 0])
                        box[root, 1] = min(box[root, 1], box[other, 1])
                        box[root, 2] = max(box[root, 2], box[other, 2])
                        box[root, 3] = max(box[root, 3], box[other, 3])
                box[root, 0] = min(box[root, 0], x)
                box[root, 1] = min(box[root, 1], y)
                box[root, 2] = max(box[root, 2], x)
                box[root, 3] = max(box[root, 3], y)
                first[root] = min(first[root], p)
            node_of[p] = root
            area[root] += low[p] if mode == CONTOUR else 1
        t = v - 1
        if mode == CONTOUR and t >= 0:
            for i in range(hole_begin[t], hole_end[t]):
                extra[find_root(parent, node_of[hole_pixel[i]])] += hole_area[i]
        kept = 0
        best, best_size = -1, -1
        for i in range(n_alive):
            root = alive[i]
            if parent[root] != root:
                continue
            alive[kept] = root
            kept += 1
            if mode == BOX:
                size = (box[root, 2] - box[root, 0] + 1) * (box[root, 3] - box[root, 1] + 1)
            else:
                size = area[root]
            if mode == CONTOUR:
                size += extra[root]
            if size > best_size or (size == best_size and mode != CONTOUR and first[root] < first[best]):
                best, best_size = root, size
        n_alive = kept
        undecided = False
        if mode == CONTOUR and n_alive > 1:
            for i in range(n_alive):
                root = alive[i]
                if root == best:
                    continue
                upper = area[root]
                if extra[root] > 0:
                    upper = _upper_area(root, alive, n_alive, area, extra, box)
                other_box = (
                    box[root, 0] != box[best, 0]
                    or box[root, 1] != box[best, 1]
                    or box[root, 2] != box[best, 2]
                    or box[root, 3] != box[best, 3]
                )
                if upper >= best_size and other_box:
                    undecided = True
                    break
        if mode == CONTOUR and t >= 0:
            for i in range(hole_begin[t], hole_end[t]):
                extra[find_root(parent, node_of[hole_pixel[i]])] = 0
        for k in range(4):
            box_at[v, k] = box[best, k]
        open_at[v] = undecided
