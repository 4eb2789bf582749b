"""All contours' boxes at all levels from one pass over the critical pixels of a map (numba).

A map of integer levels is thresholded at every cut t; the foreground is {level > t}. Its outer contours are the
8-connected components of the foreground; the contours of holes are the 4-connected components of {level <= t} that do
not touch the border, their boxes grown by one pixel. Both families change by one pixel at a time when pixels are added in
the order of their level, so union-find gives all components of all cuts in one pass each.

Few pixels matter. With equal levels ordered by position, a pixel whose higher neighbours form exactly one connected group
joins the component that this group is in, and changes no other. It can extend the component's box to the left or right
only if both vertical neighbours are lower, and up or down only if both horizontal neighbours are lower, for otherwise a
neighbour in the same column or row is there already. All other pixels are skipped; where one is needed, following higher
neighbours leads to a component. Which pixels matter is one look-up in a table over the 8 neighbours' signs.

Each component keeps its IoU while its box stays the same: the IoU is worked out only when the box has changed, and is
written to all the cuts in between at once.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, UInt, UInt8
from numba import njit

# Neighbour k of a pixel, as bit k of its mask: NW, N, NE, W, E, SW, S, SE.
_DY = (-1, -1, -1, 0, 0, 1, 1, 1)
_DX = (-1, 0, 1, -1, 1, -1, 0, 1)


Tables = tuple[
    Bool[np.ndarray, "256"],  # matters: whether a pixel with this mask is looked at
    Int8[np.ndarray, "256"],  # first: some higher neighbour
    Int8[np.ndarray, "256"],  # count: connected groups of higher neighbours
    Int8[np.ndarray, "256 4"],  # groups: one neighbour of each group
]


def _tables(connectivity: int) -> Tables:
    """What the mask of higher neighbours says about a pixel, when foreground is 4- or 8-connected."""
    allowed = range(8) if connectivity == 8 else (1, 3, 4, 6)
    flag = np.zeros(256, np.bool_)
    first = np.zeros(256, np.int8)
    count = np.zeros(256, np.int8)
    groups = np.zeros((256, 4), np.int8)
    for mask in range(256):
        higher = [k for k in range(8) if mask >> k & 1]
        parent = {k: k for k in higher}

        def find(k: int, parent: dict[int, int] = parent) -> int:
            while parent[k] != k:
                k = parent[k]
            return k

        for a in higher:
            for b in higher:
                dy, dx = abs(_DY[a] - _DY[b]), abs(_DX[a] - _DX[b])
                if (max(dy, dx) if connectivity == 8 else dy + dx) == 1:
                    parent[find(a)] = find(b)
        seen: dict[int, int] = {}
        for k in allowed:
            if k in parent:
                seen.setdefault(find(k), k)
        chosen = list(seen.values())
        count[mask] = len(chosen)
        groups[mask, : len(chosen)] = chosen
        first[mask] = chosen[0] if chosen else 0
        flag[mask] = len(chosen) != 1 or not mask & 0b01000010 or not mask & 0b00011000
    return flag, first, count, groups


FOUR, EIGHT = _tables(4), _tables(8)


@njit(cache=True, nogil=True)
def higher_neighbours(levels: UInt[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]) -> None:
    """Fill in the mask of the neighbours that come before a pixel when levels descend; of equal levels the later pixel is higher."""
    height, width = levels.shape
    for y in range(height):
        for x in range(width):
            v = levels[y, x]
            bits = 0
            up, down, left, right = y > 0, y < height - 1, x > 0, x < width - 1
            if up:
                if left and levels[y - 1, x - 1] > v:
                    bits |= 1
                if levels[y - 1, x] > v:
                    bits |= 2
                if right and levels[y - 1, x + 1] > v:
                    bits |= 4
            if left and levels[y, x - 1] > v:
                bits |= 8
            if right and levels[y, x + 1] >= v:
                bits |= 16
            if down:
                if left and levels[y + 1, x - 1] >= v:
                    bits |= 32
                if levels[y + 1, x] >= v:
                    bits |= 64
                if right and levels[y + 1, x + 1] >= v:
                    bits |= 128
            mask[y, x] = bits


@njit(cache=True, nogil=True)
def find_root(parent: Int32[np.ndarray, " n"], node: int) -> int:
    """The component that a node has become part of; the way is halved."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def _component(pixel, mask, first, offset, node_of, parent):
    """The component of a pixel that is in the foreground already; the way to it is remembered."""
    at = pixel
    while node_of[at] < 0:
        at += offset[first[mask[at]]]
    node = find_root(parent, node_of[at])
    while node_of[pixel] < 0:
        node_of[pixel] = node
        pixel += offset[first[mask[pixel]]]
    return node


@njit(cache=True, nogil=True)
def _iou(x0, y0, x1, y1, truth, areas, one):
    best = 0.0
    area = (x1 - x0 + one) * (y1 - y0 + one)
    for g in range(truth.shape[0]):
        w = min(x1, truth[g, 2]) - max(x0, truth[g, 0]) + one
        h = min(y1, truth[g, 3]) - max(y0, truth[g, 1]) + one
        if w > 0 and h > 0:
            inter = w * h
            whole = area + areas[g] - inter
            if whole > 0:
                best = max(best, inter / whole)
    return best


@njit(cache=True, nogil=True)
def _outgrown(box, root, x0, y0, x1, y1):
    """Whether a box sticks out of a component's."""
    return x0 < box[root, 0] or y0 < box[root, 1] or x1 > box[root, 2] or y1 > box[root, 3]


@njit(cache=True, nogil=True)
def _grow(box, root, x0, y0, x1, y1):
    box[root, 0] = min(box[root, 0], x0)
    box[root, 1] = min(box[root, 1], y0)
    box[root, 2] = max(box[root, 2], x1)
    box[root, 3] = max(box[root, 3], y1)


@njit(cache=True, nogil=True)
def best_of_components(
    levels: UInt[np.ndarray, "h w"],
    top: int,
    tables: Tables,
    holes: bool,
    truth: Float64[np.ndarray, "g 4"],
    one: float,
    end: int,
    clip: bool,
    best: Float64[np.ndarray, " u"],
) -> None:
    """Raise `best[t + 1]` to the best IoU of any component of {levels > t} with any true box, for t = -1 .. top - 1.

    Args:
        levels: (H, W), highest level `top`. With `holes`: top - level, and the components are those of {level <= t} that do
            not touch the border, their boxes grown by a pixel.
        tables: `EIGHT` or `FOUR`.
        truth, one: true boxes, and what is added to the sides of all boxes (1 or 0).
        end: what is added to the last pixel of a component's box. `clip`: cut boxes at (W - 1, H - 1).
        best: (top + 1,).
    """
    flag, first, count, groups = tables
    areas = (truth[:, 2] - truth[:, 0] + one) * (truth[:, 3] - truth[:, 1] + one)
    height, width = levels.shape
    size = height * width
    mask2 = np.empty((height, width), np.uint8)
    higher_neighbours(levels, mask2)
    mask, flat = mask2.ravel(), levels.ravel()
    # pixels that matter, by level
    start = np.zeros(top + 2, np.int32)
    n = 0
    for p in range(size):
        if flag[mask[p]]:
            start[flat[p] + 1] += 1
            n += 1
    for v in range(top + 1):
        start[v + 1] += start[v]
    order = np.empty(n, np.int32)
    fill = start.copy()
    for p in range(size):
        if flag[mask[p]]:
            v = flat[p]
            order[fill[v]] = p
            fill[v] += 1
    offset = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    node_of = np.full(size, -1, np.int32)
    # components
    parent = np.empty(n, np.int32)
    box = np.empty((n, 4), np.int32)  # x0, y0, x1, y1, inclusive
    since = np.empty(n, np.int32)  # level after which the IoU holds
    iou = np.empty(n, np.float64)
    changed = np.empty(n, np.int32)
    nodes = 0
    for v in range(top, -1, -1):
        n_changed = 0
        for i in range(start[v + 1] - 1, start[v] - 1, -1):
            p = order[i]
            y, x = p // width, p % width
            m = mask[p]
            if count[m] == 0:
                root = nodes
                nodes += 1
                parent[root] = root
                box[root, 0] = box[root, 2] = x
                box[root, 1] = box[root, 3] = y
                since[root] = -1  # nothing to write yet; in the list of the changed
                changed[n_changed] = root
                n_changed += 1
            else:
                root = _component(p + offset[groups[m, 0]], mask, first, offset, node_of, parent)
                for k in range(1, count[m]):
                    other = _component(p + offset[groups[m, k]], mask, first, offset, node_of, parent)
                    if other != root:
                        _write(best, iou[other], v, since[other], holes, top)
                        parent[other] = root
                        if _outgrown(box, root, box[other, 0], box[other, 1], box[other, 2], box[other, 3]):
                            if since[root] >= 0:
                                _write(best, iou[root], v, since[root], holes, top)
                                since[root] = -1
                                changed[n_changed] = root
                                n_changed += 1
                            _grow(box, root, box[other, 0], box[other, 1], box[other, 2], box[other, 3])
                if _outgrown(box, root, x, y, x, y):
                    if since[root] >= 0:
                        _write(best, iou[root], v, since[root], holes, top)
                        since[root] = -1
                        changed[n_changed] = root
                        n_changed += 1
                    _grow(box, root, x, y, x, y)
            node_of[p] = root
        for i in range(n_changed):
            root = changed[i]
            if parent[root] != root:
                continue
            since[root] = v
            x0, y0, x1, y1 = box[root, 0], box[root, 1], box[root, 2], box[root, 3]
            if holes:
                if x0 == 0 or y0 == 0 or x1 == width - 1 or y1 == height - 1:
                    iou[root] = -1.0
                    continue
                x0 -= 1
                y0 -= 1
                x1 += 1
                y1 += 1
            x1 += end
            y1 += end
            if clip:
                x1 = min(x1, width - 1)
                y1 = min(y1, height - 1)
            iou[root] = _iou(float(x0), float(y0), float(x1), float(y1), truth, areas, one)
    for root in range(nodes):
        if parent[root] == root:
            _write(best, iou[root], -1, since[root], holes, top)


@njit(cache=True, nogil=True)
def _write(best, iou, v, since, holes, top):
    """The IoU held from after level `since` was added until level `v` is: cuts v .. since - 1."""
    if since < 0:
        return
    if holes:  # level top - u; {level <= t} with top - u <= t: cuts t = top - since .. top - v - 1
        low, high = top - since + 1, min(top - v, top) + 1
    else:
        low, high = v + 1, since + 1
    for t in range(low, high):
        if iou > best[t]:
            best[t] = iou
