"""Step 3 of CoSeq: align two outlines by shape contexts and a thin-plate spline.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015; S.
Belongie, J. Malik, J. Puzicha, "Shape matching and object recognition using shape contexts", PAMI 2002; F.
Bookstein, "Principal warps: thin-plate splines and the decomposition of deformations", PAMI 1989. Constants
are those of jkrause314/fg_without.

    p_i, theta_i    100 points of an outline at equal distances along it, and its direction there
    h_i             shape context: histogram of the other points around p_i, 12 directions x 5 log radii from
                    1/8 to 2 of the mean distance between points, divided by the number of points

    cost of i, j    0.9 (1/2) sum_k (h_ik - h_jk)^2 / (h_ik + h_jk)  +  0.1 (1/2) (1 - cos(theta_i - theta_j))
    assignment      of least cost, with 25 dummy points of cost 0.25 on each side
    f               spline: f(x) = a + A x + sum_i w_i U(|x - p_i|),  U(r) = r^2 log r^2
                    (K + lambda I) w + P [a A] = q,  P^T w = 0       p_i, q_i: pairs of the assignment

Six rounds: assign, fit f, move the points by f, and describe them again. lambda is 1000 times the squared
mean distance in the first round, so f is affine, and once in the others.

The mirror image of the first outline is tried, too. The alignment is kept whose affine part is nearer to a
similarity: the smaller logarithm of the ratio of its singular values. Departure: the mirror image has to be
better by 0.1. Outlines that are nearly symmetric are otherwise mirrored at random, and the medians of step 4
move all points to the middle. A further departure: histograms are divided by the number of points, 100. The
released code leaves points without a partner out of the histograms of both outlines in later rounds; here
they are left out of the first outline's alone, so the mass of a histogram can be below 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from reference_models.layers.k_means import squared_distances
from reference_models.recognition.coseq.shape_contexts import chi_squared, count_contexts

POINTS = 100
DIRECTIONS, RINGS = 12, 5
RADII = (1 / 8, 2.0)
DUMMIES, DUMMY_COST = 0.25, 0.25
TANGENT_WEIGHT = 0.1
ROUNDS = 6
MARGIN = 0.1
"""Difference of the affine costs from which the mirror image is taken."""
STIFFNESS = (1000.0, 1.0)
"""lambda in the first round and in the others, in squared mean distances."""

Points = Float[np.ndarray, "n 2"]


def outline(mask: Bool[np.ndarray, "h w"], count: int = POINTS) -> Points:
    """Return points (x, y) at equal distances along the outer boundary of the largest part of a mask.

    Pixel i covers [i, i + 1). The mask must not be empty.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    longest = max(contours, key=len)[:, 0].astype(np.float64) + 0.5
    closed = np.concatenate([longest, longest[:1]])
    lengths = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    if lengths[-1] == 0:  # a single pixel
        return np.repeat(longest[:1], count, axis=0)
    at = np.arange(count) / count * lengths[-1]
    return np.stack([np.interp(at, lengths, closed[:, axis]) for axis in (0, 1)], axis=1)


def tangents(points: Points) -> Float[np.ndarray, " n"]:
    """Return the direction of a closed outline at each of its points, in radians."""
    along = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    return np.asarray(np.arctan2(along[:, 1], along[:, 0]))


@dataclass(frozen=True, eq=False)
class Description:
    """Shape contexts (n, 60), directions (n,), and the mean distance between points."""

    histograms: Float[np.ndarray, "n k"]
    directions: Float[np.ndarray, " n"]
    mean_distance: float


def describe_outline(points: Points, counted: Bool[np.ndarray, " n"] | None = None) -> Description:
    """Return the shape contexts of a closed outline. `counted`: points that histograms count."""
    counted = np.ones(len(points), dtype=np.bool_) if counted is None else counted
    own = points[counted]
    mean = float(np.sqrt(squared_distances(own, own)).mean()) if len(own) else 0.0
    mean = mean or 1.0
    edges = np.geomspace(*RADII, RINGS) * mean
    counts = count_contexts(np.ascontiguousarray(points), counted, edges, DIRECTIONS)
    return Description(counts / np.float32(len(points)), tangents(points), mean)


def matching_costs(one: Description, other: Description) -> Float[np.ndarray, "n m"]:
    """Return the cost of each pair of points."""
    shape = chi_squared(one.histograms, other.histograms)
    turned = 0.5 * (1 - np.cos(one.directions[:, None] - other.directions[None]))
    return np.asarray((1 - TANGENT_WEIGHT) * shape + TANGENT_WEIGHT * turned)


def assign(costs: Float[np.ndarray, "n n"]) -> Int[np.ndarray, "pairs 2"]:
    """Return the pairs of the cheapest assignment, without those with dummies."""
    count = len(costs)
    extra = round(DUMMIES * count)
    padded = np.full((count + extra, count + extra), DUMMY_COST)
    padded[:count, :count] = costs
    rows, columns = linear_sum_assignment(padded)
    real = (rows < count) & (columns < count)
    return np.stack([rows[real], columns[real]], axis=1)


@dataclass(frozen=True, eq=False)
class Spline:
    """A thin-plate spline.

    Attributes:
        points: (n, 2) its points p_i.
        bends: (n, 2) w.
        affine: (3, 2) a, then the transpose of A.
    """

    points: Points
    bends: Points
    affine: Float[np.ndarray, "3 2"]

    def __call__(self, at: Float[np.ndarray, "m 2"]) -> Float[np.ndarray, "m 2"]:
        """Return f of each point."""
        ones = np.concatenate([np.ones((len(at), 1)), at], axis=1)
        return np.asarray(ones @ self.affine + kernel(at, self.points) @ self.bends)

    @property
    def affine_cost(self) -> float:
        """Logarithm of the ratio of the singular values of A: 0 for a similarity."""
        first, second = np.linalg.svd(self.affine[1:], compute_uv=False)
        return float(np.log(max(first, 1e-12) / max(second, 1e-12)))


def kernel(at: Float[np.ndarray, "m 2"], points: Points) -> Float[np.ndarray, "m n"]:
    """Return U of the distances of two sets of points: r^2 log r^2, and 0 at 0."""
    squared = (at[:, None, 0] - points[None, :, 0]) ** 2 + (at[:, None, 1] - points[None, :, 1]) ** 2
    return np.asarray(squared * np.log(np.where(squared > 0, squared, 1.0)))


def fit_spline(points: Points, targets: Points, stiffness: float) -> Spline:
    """Fit a spline to pairs of points. `stiffness` is lambda: 0 interpolates, infinity is affine.

    Points that do not determine an affine map get the one of least norm.
    """
    count = len(points)
    # Centred and scaled points: the system is then well conditioned in any unit.
    centre = points.mean(axis=0) if count else np.zeros(2)
    scale = float(np.sqrt(((points - centre) ** 2).sum(axis=1).mean())) if count else 1.0
    scale = scale or 1.0
    x = (points - centre) / scale
    system = np.zeros((count + 3, count + 3))
    # In the given unit K is scale^2 (K + log scale^2 |x - y|^2), and P^T w = 0 leaves a constant of the
    # second term.
    system[:count, :count] = kernel(x, x) + stiffness / scale**2 * np.eye(count)
    system[:count, count:] = np.concatenate([np.ones((count, 1)), x], axis=1)
    system[count:, :count] = system[:count, count:].T
    known = np.concatenate([targets, np.zeros((3, 2))])
    try:
        solved = np.linalg.solve(system, known)
    except np.linalg.LinAlgError:
        solved = np.linalg.lstsq(system, known, rcond=None)[0]
    # Back to the given unit: U(r / s) = (U(r) - r^2 log s^2) / s^2.
    bends = solved[:count] / scale**2
    inner = solved[count:]
    affine = np.concatenate([inner[:1] - centre / scale @ inner[1:], inner[1:] / scale])
    # sum_i w_i |x - p_i|^2 is the constant sum_i w_i |p_i|^2, as P^T w = 0.
    affine[0] -= np.log(scale**2) * ((points**2).sum(axis=1) @ bends)
    return Spline(points, bends, affine)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A map from one image to another: mirror x to `width` - x if `mirrored`, then the spline."""

    spline: Spline
    mirrored: bool
    width: float

    def __call__(self, points: Points) -> Points:
        """Return where points of the first image are in the second."""
        return self.spline(mirror(points, self.width) if self.mirrored else points)


def mirror(points: Points, width: float) -> Points:
    """Mirror points at the vertical centre line of an image."""
    return np.stack([width - points[:, 0], points[:, 1]], axis=1)


def align_points(points: Points, targets: Points) -> Spline:
    """Return the spline that moves one closed outline onto another of as many points."""
    aim, moved = describe_outline(targets), points
    counted = np.ones(len(points), dtype=np.bool_)
    spline = fit_spline(points, points, 0.0)
    for number in range(ROUNDS):
        pairs = assign(matching_costs(describe_outline(moved, counted), aim))
        if len(pairs) < 3:
            break
        stiffness = STIFFNESS[min(number, 1)] * aim.mean_distance**2
        spline = fit_spline(points[pairs[:, 0]], targets[pairs[:, 1]], stiffness)
        moved = spline(points)
        counted = np.zeros(len(points), dtype=np.bool_)
        counted[pairs[:, 0]] = True
    return spline


def align_outlines(points: Points, targets: Points, width: float) -> Alignment:
    """Align an outline of an image of this width, or its mirror image, with another one.

    The order of points along the mirrored outline is reversed, as it is in the mask of the mirror image.
    """
    plain = align_points(points, targets)
    turned = align_points(mirror(points, width)[::-1], targets)
    mirrored = turned.affine_cost < plain.affine_cost - MARGIN
    return Alignment(turned if mirrored else plain, mirrored, width)
