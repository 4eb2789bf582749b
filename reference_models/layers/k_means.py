"""k-means and k-medoids, seeded: clusters of features, channels and images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

ROUNDS = 25
"""Most rounds of Lloyd's algorithm."""


def squared_distances(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "n k"]:
    """Return the squared Euclidean distances, without negative values from rounding."""
    products = points @ centres.T
    lengths = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return np.asarray(np.maximum(lengths - 2 * products, 0))


def k_means(
    points: Float[np.ndarray, "n d"], count: int, rng: np.random.Generator, rounds: int = ROUNDS
) -> Int[np.ndarray, " n"]:
    """Return the cluster of each point: k-means++, then Lloyd's algorithm.

    Clusters are numbered from 0. Of fewer points than `count` each is a cluster. A cluster that loses all its
    points takes the point that is farthest from its centre.

    A coordinate that is NaN is missing. Distances of a point are over the coordinates that it has. A centre
    has the mean over those of its points that have the coordinate, or over all points if none of them does.
    """
    if len(points) <= count:
        return np.arange(len(points))
    known = ~np.isnan(points)
    has_gaps = not known.all()
    values = np.where(known, points, 0) if has_gaps else points
    usual = values.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    measure = _known_distances if has_gaps else squared_distances
    # First centres: each is drawn by its squared distance to the nearest earlier one.
    chosen = [int(rng.integers(len(points)))]
    centres = np.where(known[chosen], points[chosen], usual) if has_gaps else points[chosen]
    nearest = measure(points, centres)[:, 0]
    for _ in range(count - 1):
        total = nearest.sum()
        share = nearest / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(rng.choice(len(points), p=share)))
        centres = np.where(known[chosen], points[chosen], usual) if has_gaps else points[chosen]
        nearest = np.minimum(nearest, measure(points, centres[-1:])[:, 0])
    # Assign and average until nothing changes.
    labels = np.full(len(points), -1)
    for _ in range(rounds):
        distances = measure(points, centres)
        changed = distances.argmin(axis=1)
        far = distances[np.arange(len(points)), changed]
        for empty in np.setdiff1d(np.arange(count), changed):
            farthest = int(far.argmax())
            changed[farthest], far[farthest] = empty, -1
        if np.array_equal(changed, labels):
            break
        labels = changed
        if has_gaps:
            member = (labels == np.arange(count)[:, None]).astype(points.dtype)
            sums, sizes = member @ values, member @ known.astype(points.dtype)
        else:
            sums, sizes = np.zeros_like(centres), np.bincount(labels, minlength=count)[:, None]
            np.add.at(sums, labels, points)
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), usual)
    return labels


def _known_distances(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "n k"]:
    """Return the squared Euclidean distances over the coordinates that a point has."""
    known = ~np.isnan(points)
    values = np.where(known, points, 0)
    lengths = (values**2).sum(axis=1)[:, None] + known.astype(points.dtype) @ (centres**2).T
    return np.asarray(np.maximum(lengths - 2 * values @ centres.T, 0))


def k_medoids(
    points: Float[np.ndarray, "n d"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "m d"]:
    """Return min(count, n) of the points: of each k-means cluster the one that is nearest to its mean."""
    labels = k_means(points, count, rng)
    total = min(count, len(points))
    sums = np.zeros((total, points.shape[1]))
    np.add.at(sums, labels, points)
    means = sums / np.bincount(labels, minlength=total)[:, None]
    order = np.lexsort((((points - means[labels]) ** 2).sum(axis=1), labels))
    first = np.unique(labels[order], return_index=True)[1]
    return np.asarray(points[order[first]])
