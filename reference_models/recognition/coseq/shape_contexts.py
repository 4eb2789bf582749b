"""Shape contexts and their distances, compiled.

S. Belongie, J. Malik, J. Puzicha, "Shape matching and object recognition using shape contexts", PAMI 2002.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numba import njit


@njit(cache=True, nogil=True)
def count_contexts(
    points: Float64[np.ndarray, "n 2"],
    counted: Bool[np.ndarray, " n"],
    edges: Float64[np.ndarray, " r"],
    directions: int,
) -> Float32[np.ndarray, "n k"]:
    """Return how many other counted points lie in each of r rings x `directions` bins around each point.

    `edges` are the outer radii of the rings. Points beyond the last one count nowhere.
    """
    count, rings = len(points), len(edges)
    found = np.zeros((count, rings * directions), dtype=np.float32)
    for i in range(count):
        for j in range(count):
            if i == j or not counted[j]:
                continue
            x, y = points[j, 0] - points[i, 0], points[j, 1] - points[i, 1]
            distance, ring = np.sqrt(x * x + y * y), 0
            while ring < rings and distance > edges[ring]:
                ring += 1
            if ring == rings:
                continue
            turn = np.arctan2(y, x) / (2 * np.pi)
            if turn < 0:
                turn += 1
            found[i, ring * directions + min(int(turn * directions), directions - 1)] += 1
    return found


@njit(cache=True, nogil=True, fastmath=True)
def chi_squared(a: Float32[np.ndarray, "n k"], b: Float32[np.ndarray, "m k"]) -> Float32[np.ndarray, "n m"]:
    """Return half the sum over k of (a_k - b_k)^2 / (a_k + b_k) for each pair of rows. 0 / 0 is 0.

    Values must not be negative.
    """
    columns, found = np.ascontiguousarray(b.T), np.zeros((len(a), len(b)), dtype=np.float32)
    for i in range(len(a)):
        for k in range(a.shape[1]):
            own = a[i, k]
            if own == 0:  # most bins are empty, and then the term is b_k
                for j in range(len(b)):
                    found[i, j] += columns[k, j]
            else:
                for j in range(len(b)):
                    apart = own - columns[k, j]
                    found[i, j] += apart * apart / (own + columns[k, j])
    found *= np.float32(0.5)
    return found
