"""Steps 2 and 4 of CoSeq: a graph of images in similar pose, and the order in which points travel along it.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

TREES = 5


def spanning_trees(
    distances: Float[np.ndarray, "n n"], count: int = TREES
) -> list[Int[np.ndarray, "edges 2"]]:
    """Return `count` minimum spanning trees, each without the edges of those before it.

    There are fewer if the edges that are left do not connect all images.

    Args:
        distances: symmetric, at least 0. Images may have distance 0.
        count: number of trees.
    """
    # scipy takes 0 for "no edge". All trees have the same number of edges, so a constant changes none.
    left = np.triu(np.asarray(distances, dtype=np.float64) + 1.0, k=1)
    trees: list[np.ndarray] = []
    for _ in range(count if len(distances) > 1 else 0):
        tree = minimum_spanning_tree(left).tocoo()
        if len(tree.data) < len(distances) - 1:
            break
        edges = np.stack([tree.row, tree.col], axis=1)
        trees.append(edges[np.lexsort((edges[:, 1], edges[:, 0]))])
        left[tree.row, tree.col] = 0
        left[tree.col, tree.row] = 0
    return trees


def is_connected(edges: Int[np.ndarray, "edges 2"], count: int) -> bool:
    """Return whether the edges connect `count` images."""
    graph = np.zeros((count, count), dtype=np.int8)
    graph[edges[:, 0], edges[:, 1]] = 1
    return bool(connected_components(graph, directed=False)[0] == 1)


@dataclass(frozen=True)
class Visit:
    """An image, and the earlier images that its points come from. The root has none."""

    image: int
    sources: tuple[int, ...]


def visit_order(edges: Sequence[Int[np.ndarray, "edges 2"]], count: int) -> list[Visit]:
    """Return the order of the images: the most connected one, then the one with most finished neighbours.

    Of equal images the first one is taken. `edges` are those of all trees, of which the first is connected.
    """
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for tree in edges:
        for one, other in tree.tolist():
            neighbours[one].append(other)
            neighbours[other].append(one)
    finished = np.zeros(count, dtype=np.int64)
    """Finished neighbours of each image, or -1 if it is finished itself."""
    image = int(np.argmax([len(found) for found in neighbours])) if count else 0
    done: list[Visit] = []
    places: dict[int, int] = {}
    for _ in range(count):
        sources = tuple(sorted(other for other in neighbours[image] if other in places))
        places[image] = len(done)
        done.append(Visit(image, sources))
        finished[image] = -1
        for other in neighbours[image]:
            if other not in places:
                finished[other] += 1
        image = int(finished.argmax())
    return done
