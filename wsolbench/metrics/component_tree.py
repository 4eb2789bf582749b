"""Components of a map at all levels in one pass, and the best IoU of any of their boxes (numba).

A map of integer levels is thresholded at every cut t; the foreground is {level > t}. Its outer contours are
the 8-connected components of the foreground. The contours of holes are the 4-connected components of {level
<= t} that do not reach the border of the picture, with boxes grown by one pixel. Both families change by
one pixel at a time when pixels are added in the order of their level: components from the highest pixel
down, holes from the lowest up. So union-find finds all components of all cuts in one pass each.

One order serves both: among equal levels, the later pixel is the higher one. The mask of a pixel is a byte
that marks which of its 8 neighbours are higher. For holes, the other neighbours came before the pixel. The
picture has a frame of one pixel that is lower than every pixel and counts as outside. Background is a hole
until it touches the frame.

Few pixels can change a box. A pixel whose earlier neighbours form exactly one connected group joins that
group's component and changes no other. It can extend the box to the left or right only if neither vertical
neighbour came before it, and up or down only if neither horizontal one did; otherwise the column or row
already has a pixel. All other pixels are skipped. If a skipped pixel is needed later, following earlier
neighbours leads to its component. The effect of a pixel is one look-up by its mask.

Each component keeps its IoU while its box stays the same. The IoU is computed only after the box has
changed, and is written to all cuts in between at once.

Functions are called per level, not per pixel: numba counts references to each array argument, so calls per
pixel would be slow. Numba compiles a function again for each combination of argument types, so callers pass
all whole numbers as int64 variables, also constants.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int32, UInt, UInt8
from numba import njit

Rules = Int32[np.ndarray, "256 7"]
"""Effect of a pixel, by the mask of its neighbours that came before it. The columns:

`MATTERS`: whether it can change a box or the number of components.
`COUNT`: number of connected groups that those neighbours form.
`CORNERS`: number of 2 x 2 cells in which at least two of the other pixels came before it.
`GROUPS` and the three columns after it: one neighbour of each group, or with only one group, its neighbours.
"""
MATTERS, COUNT, CORNERS, GROUPS = 0, 1, 2, 3

Nodes = Int32[np.ndarray, "n 10"]
"""Components, one for each pixel that has started one. The first, `OUTSIDE`, is used only for holes.

The columns:
`PARENT`: the node that it has joined, or itself for a component.
`X0`, `Y0`, `X1`, `Y1`: its box in the framed picture, ends included.
`SEED`: the pixel that started it.
`FIRST`: its first pixel in a row-wise scan, or a later pixel of the run that this pixel starts (no pixel of
another component lies between the two).
`SIZE`: the sum of `CORNERS`.
`CHANGED`: the last level that changed its box or its parent.
`SINCE`: the level since which its box is the same, or -1 while no IoU is known.
"""
PARENT, X0, Y0, X1, Y1, SEED, FIRST, SIZE, CHANGED, SINCE = range(10)
OUTSIDE = 0

# Neighbour k of a pixel, as bit k of its mask: NW, N, NE, W, E, SW, S, SE.
_DY = (-1, -1, -1, 0, 0, 1, 1, 1)
_DX = (-1, 0, 1, -1, 1, -1, 0, 1)


def _rules(connectivity: int) -> Rules:
    """Build the rules of 4- or 8-connected components, with neighbours as k = 0 .. 7."""
    nearby, allowed = (2, set(range(8))) if connectivity == 8 else (1, {1, 3, 4, 6})

    def distance(a: int, b: int) -> int:
        return (_DY[a] - _DY[b]) ** 2 + (_DX[a] - _DX[b]) ** 2

    rules = np.zeros((256, 7), np.int32)
    # Connected groups of neighbours for each mask, then the columns of its row.
    for mask in range(256):
        groups: list[set[int]] = []
        for k in (k for k in range(8) if mask >> k & 1):
            touched = [group for group in groups if any(distance(k, other) <= nearby for other in group)]
            groups = [group for group in groups if group not in touched] + [{k}.union(*touched)]
        groups = [group for group in groups if group & allowed]
        # The neighbour in the middle of its group comes first, because paths along it are the shortest.
        ordered = [
            sorted(
                group, key=lambda k: sum(distance(k, other) for other in group) + _DY[k] ** 2 + _DX[k] ** 2
            )
            for group in groups
        ]
        sides, ends = mask & 0b00011000, mask & 0b01000010
        rules[mask, MATTERS] = len(groups) != 1 or not sides or not ends
        rules[mask, COUNT] = len(groups)
        rules[mask, CORNERS] = sum(
            (mask >> a & 1) + (mask >> b & 1) + (mask >> c & 1) >= 2 for a, b, c in _CELLS
        )
        members = [group[0] for group in ordered] if len(groups) != 1 else (ordered[0] * 3)[:3]
        rules[mask, GROUPS : GROUPS + len(members)] = members
    return rules


# The other three pixels of the 2 x 2 cells that a pixel belongs to.
_CELLS = ((0, 1, 3), (1, 2, 4), (3, 5, 6), (4, 6, 7))

FOUR, EIGHT = _rules(4), _rules(8)
HOLES = np.ascontiguousarray(FOUR[::-1])
"""Rules of holes, by the mask of higher neighbours. For holes, the other neighbours came before."""


@njit(cache=True, nogil=True)
def count_passed(
    values: Float32[np.ndarray, "h w"],
    taus: Float32[np.ndarray, " t"],
    reached: bool,
    levels: UInt[np.ndarray, "h w"],
) -> None:
    """Fill `levels` with the number of ascending thresholds below each value in [0, 1].

    With `reached`, thresholds equal to the value count too.
    """
    # Number of thresholds passed at the start of each step, a lower bound for any value in the step.
    steps = 4096  # a power of two: the product with a value and the start of a step are exact
    below = np.empty(steps + 1, np.int32)
    count = 0
    for step in range(steps + 1):
        while count < len(taus) and (taus[count] < step / steps or (reached and taus[count] == step / steps)):
            count += 1
        below[step] = count
    # For each pixel: look up the step, then pass the thresholds inside it.
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            value = values[y, x]
            count = below[int(value * steps)]
            while count < len(taus) and (taus[count] < value or (reached and taus[count] == value)):
                count += 1
            levels[y, x] = count


@njit(cache=True, nogil=True)
def framed(levels: UInt[np.ndarray, "h w"]) -> tuple[UInt[np.ndarray, "fh fw"], UInt8[np.ndarray, "fh fw"]]:
    """Return the picture in a frame of one pixel, (H + 2, W + 2), and the mask of every pixel.

    The frame is lower than any pixel.
    """
    height, width = levels.shape
    picture = np.zeros((height + 2, width + 2), levels.dtype)
    for y in range(height):
        for x in range(width):
            picture[y + 1, x + 1] = levels[y, x]
    return picture, higher_neighbours(picture)


@njit(cache=True, nogil=True)
def higher_neighbours(picture: UInt[np.ndarray, "fh fw"]) -> UInt8[np.ndarray, "fh fw"]:
    """Return the mask of every pixel of a framed picture: which neighbours are higher.

    Among equal levels, the later pixel is higher.
    """
    height, width = picture.shape
    masks = np.zeros((height, width), np.uint8)
    for y in range(1, height - 1):
        above, row, below, out = picture[y - 1], picture[y], picture[y + 1], masks[y]
        # Counted from 0, so that no index can be negative and the loop compiles to vector instructions.
        for x in range(width - 2):
            level = row[x + 1]
            out[x + 1] = (
                (above[x] > level)
                | (above[x + 1] > level) << 1
                | (above[x + 2] > level) << 2
                | (row[x] > level) << 3
                | (row[x + 2] >= level) << 4
                | (below[x] >= level) << 5
                | (below[x + 1] >= level) << 6
                | (below[x + 2] >= level) << 7
            )
        out[-2] &= 0b01101011  # excludes the frame, which is 0 like the lowest pixels
    for x in range(width):
        masks[-2, x] &= 0b00011111
    return masks


@njit(cache=True, nogil=True)
def sort_pixels(
    picture: UInt[np.ndarray, "fh fw"],
    masks: UInt8[np.ndarray, "fh fw"],
    top: int,
    chosen: Int32[np.ndarray, "256"],
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " u"]]:
    """Return the pixels of chosen masks, lowest first, and the start of each level (top + 2,).

    Pixels are indices into the flat framed picture.
    """
    # Indices of the chosen pixels, in scan order.
    height, width = picture.shape
    found = np.empty((height - 2) * (width - 2) + 1, np.int32)
    n = 0
    for y in range(1, height - 1):
        row = masks[y]
        for x in range(1, width - 1):
            found[n] = y * width + x
            n += chosen[row[x]]
    # Counting sort by level, stable within a level.
    levels = picture.ravel()
    start = np.zeros(top + 2, np.int32)
    for i in range(n):
        start[levels[found[i]] + 1] += 1
    for level in range(top + 1):
        start[level + 1] += start[level]
    order = np.empty(n, np.int32)
    free = start.copy()
    for i in range(n):
        level = levels[found[i]]
        order[free[level]] = found[i]
        free[level] += 1
    return order, start


@njit(cache=True, nogil=True)
def with_offsets(rules: Rules, width: int) -> Rules:
    """Replace the neighbours of the rules by offsets in a flat picture of this width."""
    rules = rules.copy()
    for mask in range(256):
        for column in range(GROUPS, rules.shape[1]):
            k = rules[mask, column]
            rules[mask, column] = (_DY[k] * width) + _DX[k]
    return rules


@njit(cache=True, nogil=True)
def new_forest(
    height: int, width: int, pixels: int
) -> tuple[Int32[np.ndarray, " p"], Nodes, Int32[np.ndarray, " n"]]:
    """Allocate an empty forest: the node of each pixel (-1 if unknown), the nodes, room for a list of nodes.

    `pixels` is the number of pixels of the framed picture that will be added.
    """
    most = 1 + min(pixels, height * width // 2)  # two neighbours never both start a component
    nodes = np.empty((most, 10), np.int32)
    nodes[OUTSIDE, PARENT], nodes[OUTSIDE, CHANGED] = OUTSIDE, -1
    nodes[OUTSIDE, SIZE] = 2**30  # it always stays a component, because the larger of two does
    nodes[OUTSIDE, X0], nodes[OUTSIDE, Y0], nodes[OUTSIDE, X1], nodes[OUTSIDE, Y1] = 0, 0, width, height
    return np.full(height * width, -1, np.int32), nodes, np.empty(most, np.int32)


@njit(cache=True, nogil=True)
def add_pixels(
    order: Int32[np.ndarray, " n"],
    first: int,
    last: int,
    level: int,
    flat_masks: UInt8[np.ndarray, " p"],
    width: int,
    rules: Rules,
    node_of: Int32[np.ndarray, " p"],
    nodes: Nodes,
    used: int,
    changed: Int32[np.ndarray, " n"],
) -> tuple[int, int]:
    """Add the pixels of one level, in their order, to the components.

    Returns the number of nodes (`used` before the call) and the number of nodes listed in `changed`. Listed
    are the nodes that were started, whose box has grown, or that have joined another.
    """
    n_changed = 0
    for i in range(first, last):
        pixel = order[i]
        mask = flat_masks[pixel]
        # A short form of the steps below: one group of neighbours with a known node, as all pixels are added.
        if not rules[mask, MATTERS]:
            node = node_of[pixel + rules[mask, GROUPS]]
            while nodes[node, PARENT] != node:
                nodes[node, PARENT] = nodes[nodes[node, PARENT], PARENT]
                node = nodes[node, PARENT]
            node_of[pixel] = node
            nodes[node, SIZE] += rules[mask, CORNERS]
            continue
        # The pixel's own box, then the root of every group of earlier neighbours.
        y = pixel // width
        x0 = x1 = pixel - y * width
        y0 = y1 = y
        root = -1
        for k in range(rules[mask, COUNT]):
            neighbour = pixel + rules[mask, GROUPS + k]
            if rules[mask, COUNT] == 1:  # any neighbour will do; prefer one whose node is known
                for j in range(1, 3):
                    other = pixel + rules[mask, GROUPS + j]
                    neighbour = other if node_of[other] >= 0 else neighbour
            at = neighbour
            while node_of[at] < 0:
                at += rules[flat_masks[at], GROUPS]
            node = node_of[at]
            while nodes[node, PARENT] != node:  # path halving
                nodes[node, PARENT] = nodes[nodes[node, PARENT], PARENT]
                node = nodes[node, PARENT]
            while node_of[neighbour] < 0:  # store the node, so that the path is walked only once
                node_of[neighbour] = node
                neighbour += rules[flat_masks[neighbour], GROUPS]
            # Merge the component of this group into the larger one.
            if root == -1:
                root = node
            if node == root:
                continue
            if nodes[node, SIZE] > nodes[root, SIZE]:
                root, node = node, root
            x0, x1 = min(x0, nodes[node, X0]), max(x1, nodes[node, X1])
            y0, y1 = min(y0, nodes[node, Y0]), max(y1, nodes[node, Y1])
            nodes[root, FIRST] = min(nodes[root, FIRST], nodes[node, FIRST])
            nodes[root, SIZE] += nodes[node, SIZE]
            nodes[node, PARENT] = root
            if nodes[node, CHANGED] != level:
                nodes[node, CHANGED] = level
                changed[n_changed] = node
                n_changed += 1
        # Start a component, or extend the box of the one that was joined.
        if root == -1:
            root = used
            used += 1
            nodes[root, PARENT], nodes[root, SEED] = root, pixel
            nodes[root, FIRST], nodes[root, SIZE] = pixel, 0
            nodes[root, X0], nodes[root, Y0], nodes[root, X1], nodes[root, Y1] = x0, y0, x1, y1
            nodes[root, CHANGED], nodes[root, SINCE] = level, -1
            changed[n_changed] = root
            n_changed += 1
        elif x0 < nodes[root, X0] or y0 < nodes[root, Y0] or x1 > nodes[root, X1] or y1 > nodes[root, Y1]:
            nodes[root, X0], nodes[root, X1] = min(x0, nodes[root, X0]), max(x1, nodes[root, X1])
            nodes[root, Y0], nodes[root, Y1] = min(y0, nodes[root, Y0]), max(y1, nodes[root, Y1])
            if nodes[root, CHANGED] != level:
                nodes[root, CHANGED] = level
                changed[n_changed] = root
                n_changed += 1
        nodes[root, FIRST] = min(nodes[root, FIRST], pixel)
        nodes[root, SIZE] += rules[mask, CORNERS]
        node_of[pixel] = root
    return used, n_changed


@njit(cache=True, nogil=True)
def best_of_components(
    picture: UInt[np.ndarray, "fh fw"],
    masks: UInt8[np.ndarray, "fh fw"],
    top: int,
    rules: Rules,
    truth: Float64[np.ndarray, "g 4"],
    one: float,
    end: int,
    clip: bool,
) -> Float64[np.ndarray, " u"]:
    """Return the best IoU of any component of {level > t} with any ground-truth box, for t = -1 .. top - 1.

    Row t + 1 belongs to cut t.

    Args:
        picture, masks: see `framed`. The highest level is `top`.
        rules: `EIGHT` or `FOUR`.
        truth, one: ground-truth boxes, and the number added to the sides of all boxes (1 or 0).
        end: number added to the last pixel of a component's box.
        clip: whether boxes are clipped at (W - 1, H - 1).
    """
    # Pixels that matter, from the highest level down, and an empty forest.
    height, width = picture.shape
    order, start = sort_pixels(picture, masks, top, rules[:, MATTERS].copy())
    order = order[::-1].copy()
    rules = with_offsets(rules, width)
    node_of, nodes, changed = new_forest(height, width, len(order))
    best, iou = np.zeros(top + 1), np.empty(len(nodes))
    last_x, last_y = width - 3, height - 3
    areas = (truth[:, 2] - truth[:, 0] + one) * (truth[:, 3] - truth[:, 1] + one)
    flat, used, n, margin = masks.ravel(), np.int64(1), len(order), np.int64(0)
    # Add one level after another and rate the components that changed.
    for level in range(top, -1, -1):
        first, last = n - start[level + 1], n - start[level]
        used, n_changed = add_pixels(
            order, first, last, level, flat, width, rules, node_of, nodes, used, changed
        )
        _rate(
            changed, n_changed, level, nodes, margin, truth, areas, one, end, clip, last_x, last_y, iou, best
        )
    # Write the IoUs of the components that remain.
    for node in range(1, used):
        changed[node - 1] = node
    none = np.int64(-1)
    _rate(changed, used - 1, none, nodes, margin, truth, areas, one, end, clip, last_x, last_y, iou, best)
    return best


@njit(cache=True, nogil=True)
def best_of_holes(
    picture: UInt[np.ndarray, "fh fw"],
    masks: UInt8[np.ndarray, "fh fw"],
    top: int,
    rules: Rules,
    truth: Float64[np.ndarray, "g 4"],
    one: float,
    end: int,
    clip: bool,
) -> tuple[Float64[np.ndarray, " u"], UInt[np.ndarray, "fh fw"]]:
    """Return the best IoU of any hole of {level > t} (0 without one), and the picture with all holes filled.

    A pixel of the filled picture has the lowest level t at which the background {level <= t} connects it to
    the outside. `rules` is `HOLES`. Other arguments are those of `best_of_components`.
    """
    # Pixels that matter, from the lowest level up, and a forest in which the frame is outside.
    height, width = picture.shape
    order, start = sort_pixels(picture, masks, top, rules[:, MATTERS].copy())
    rules = with_offsets(rules, width)
    node_of, nodes, changed = new_forest(height, width, len(order))
    frame = node_of.reshape(picture.shape)
    frame[0] = frame[-1] = frame[:, 0] = frame[:, -1] = OUTSIDE
    # Add one level after another, rate the holes that changed, and fill those that met the outside.
    best, iou = np.zeros(top + 1), np.empty(len(nodes))
    last_x, last_y = width - 3, height - 3
    areas = (truth[:, 2] - truth[:, 0] + one) * (truth[:, 3] - truth[:, 1] + one)
    filled, stack = picture.copy(), np.empty(picture.size, np.int32)
    flat_filled = filled.ravel()
    flat, used, margin = masks.ravel(), np.int64(1), np.int64(1)
    for level in range(top + 1):
        first, last = np.int64(start[level]), np.int64(start[level + 1])
        used, n_changed = add_pixels(
            order, first, last, level, flat, width, rules, node_of, nodes, used, changed
        )
        _rate(
            changed, n_changed, level, nodes, margin, truth, areas, one, end, clip, last_x, last_y, iou, best
        )
        _fill(changed, n_changed, level, nodes, flat_filled, width, stack)
    return best, filled


@njit(cache=True, nogil=True)
def _rate(changed, n_changed, level, nodes, margin, truth, areas, one, end, clip, last_x, last_y, iou, best):
    """Write the last IoU of changed components to the cuts until this level, and compute their new IoU."""
    for i in range(n_changed):
        node = changed[i]
        since = nodes[node, SINCE]
        if since >= 0:
            # Cuts level .. since - 1, for holes since .. level - 1.
            for row in range(min(since, level) + 1, max(since, level) + 1):
                best[row] = max(best[row], iou[node])
        nodes[node, SINCE] = level if nodes[node, PARENT] == node else -1
        if nodes[node, SINCE] < 0:
            continue
        # Box coordinates exclude the frame of one pixel.
        x0, y0 = nodes[node, X0] - 1 - margin, nodes[node, Y0] - 1 - margin
        x1, y1 = nodes[node, X1] - 1 + margin + end, nodes[node, Y1] - 1 + margin + end
        if clip:
            x1, y1 = min(x1, last_x), min(y1, last_y)
        area = (float(x1 - x0) + one) * (float(y1 - y0) + one)
        iou[node] = 0.0
        for g in range(len(truth)):
            w = min(float(x1), truth[g, 2]) - max(float(x0), truth[g, 0]) + one
            h = min(float(y1), truth[g, 3]) - max(float(y0), truth[g, 1]) + one
            if w > 0 and h > 0:
                whole = area + areas[g] - w * h
                if whole > 0:
                    iou[node] = max(iou[node], w * h / whole)


@njit(cache=True, nogil=True)
def _fill(changed, n_changed, level, nodes, filled, width, stack):
    """Raise the pixels that were a hole until this level to this level."""
    for i in range(n_changed):
        node = changed[i]
        root = nodes[node, PARENT]
        while root != nodes[root, PARENT]:
            root = nodes[root, PARENT]
        if root != OUTSIDE:
            continue
        seed = nodes[node, SEED]
        if filled[seed] >= level:
            continue
        filled[seed] = level
        stack[0], n = seed, 1
        while n > 0:
            n -= 1
            pixel = stack[n]
            for offset in (-width, -1, 1, width):
                if filled[pixel + offset] < level:
                    filled[pixel + offset] = level
                    stack[n] = pixel + offset
                    n += 1
