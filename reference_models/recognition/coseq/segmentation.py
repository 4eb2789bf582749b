"""Step 1 of CoSeq: masks of the training images by co-segmentation inside their ground-truth boxes.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015; the
energy is that of C. Rother, V. Kolmogorov, A. Blake, "GrabCut", SIGGRAPH 2004. Constants are those of the
released code, jkrause314/fg_without.

    z_i     colour of pixel i, and x_i whether it is foreground (inside the box; outside it is background)
    q       `prior`, of the foreground

    E(x) = sum_i -log p(z_i | x_i) - log q(x_i)  +  sum over neighbours of different x of their weight
    log p(z | 1) = (log p_image(z | 1) + log p_class(z | 1)) / 2        p_class: one mixture for all images of
                                                                        the class
    weight of neighbours i, j: 50 exp(-|z_i - z_j|^2 / (2 mean |z_i - z_j|^2)) / distance, for 100,000 pixels

Mixtures and masks are improved in turn, in five rounds. A mask is accepted if it covers 10 to 90 percent of
its box and at least half of the box's width and height. Otherwise the prior is bisected. If no prior gives
such a mask, the mask is the box.

Departures
    sizes      Images have 10,000 pixels instead of 100,000. The first sum grows with their number, the second
               one with its root. So weights are multiplied by the root of the ratio.
    graph      Pixels outside the box are no nodes, so no large weight is needed that keeps them there.
    limit      Differences of log likelihoods are at most 100, because capacities are whole numbers.
    parts      Only the largest connected part of a mask is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from reference_models.layers.k_means import k_means

COMPONENTS = 5
ROUNDS = 5
EDGE_WEIGHT, EDGE_PIXELS = 50.0, 1e5
"""Weight of neighbours of equal colour, and the pixels of the images that it was chosen for."""
CLASS_SHARE = 0.5
"""Weight of the class's log likelihood."""
AREAS, EXTENT = (0.1, 0.9), 0.5
"""Smallest and largest share of the box that a mask covers, and its smallest share of each side."""
BISECTIONS = 20
SCALE, LIMIT = 1000, 100.0
"""Capacity of a unit of energy, and the largest difference of log likelihoods."""
CLASS_PIXELS = 20_000
"""Most pixels that the mixture of a class is fitted to."""
FLOOR = 1.0
"""Added to the variances of a mixture, in squared grey levels."""

Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True, eq=False)
class Scene:
    """A training image for segmentation.

    Attributes:
        pixels: (h, w, 3), reduced in size.
        box: (x0, y0, x1, y1), whole pixels, not empty.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    box: tuple[int, int, int, int]

    @property
    def inside(self) -> Mask:
        """Whether each pixel is in the box."""
        x0, y0, x1, y1 = self.box
        inside = np.zeros(self.pixels.shape[:2], dtype=np.bool_)
        inside[y0:y1, x0:x1] = True
        return inside


# --- colour mixtures ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussian distributions of colours."""

    log_weights: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k 3"]
    factors: Float[np.ndarray, "k 3 3"]
    """Upper triangular A with A^T A the inverse covariance."""

    def log_terms(self, colours: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n k"]:
        """Return the log of each component's share of the likelihood, without the constant."""
        volume = np.log(np.abs(np.diagonal(self.factors, axis1=1, axis2=2))).sum(axis=1)
        terms = []
        for factor, mean in zip(self.factors, self.means, strict=True):
            spread = (colours - mean) @ factor.T
            terms.append(-0.5 * np.einsum("nc,nc->n", spread, spread))
        return np.asarray(self.log_weights + volume + np.stack(terms, axis=1))

    def log_likelihood(self, colours: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, " n"]:
        """Return the log likelihood of each colour, without the constant."""
        terms = self.log_terms(colours)
        top = terms.max(axis=1)
        return np.asarray(top + np.log(np.exp(terms - top[:, None]).sum(axis=1)))


def fit_mixture(
    colours: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, " n"], count: int = COMPONENTS
) -> Mixture:
    """Fit each component to the colours that have its label. Components without colours are left out."""
    present = np.bincount(labels, minlength=count)
    means, factors, weights = [], [], []
    for component in np.flatnonzero(present):
        own = colours[labels == component]
        mean = own.mean(axis=0)
        covariance = (own - mean).T @ (own - mean) / len(own) + FLOOR * np.eye(3)
        means.append(mean)
        factors.append(np.linalg.cholesky(np.linalg.inv(covariance)).T)
        weights.append(len(own) / len(colours))
    return Mixture(np.log(np.array(weights)), np.stack(means), np.stack(factors))


def refit(mixture: Mixture | None, colours: Float[np.ndarray, "n 3"], rng: np.random.Generator) -> Mixture:
    """Fit a mixture to colours, which are assigned to the components of the last one, or by k-means."""
    if mixture is None:
        some = colours[:: max(1, len(colours) // 2000)]
        return fit_mixture(some, k_means(some, COMPONENTS, rng, rounds=10))
    return fit_mixture(colours, mixture.log_terms(colours).argmax(axis=1))


# --- the cut ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Grid:
    """The pixels of a box as a graph.

    Attributes:
        pairs: (m, 2) neighbours, numbered row by row.
        weights: (m,) their weights.
        border: (n,) total weight of each pixel's neighbours outside the box.
    """

    pairs: Int[np.ndarray, "m 2"]
    weights: Float[np.ndarray, " m"]
    border: Float[np.ndarray, " n"]


def neighbour_grid(scene: Scene, edge_weight: float = EDGE_WEIGHT) -> Grid:
    """Return the graph of a scene's box, in which each pixel has eight neighbours.

    `edge_weight` is that of an image of 100,000 pixels.
    """
    height, width = scene.pixels.shape[:2]
    edge_weight = edge_weight * float(np.sqrt(height * width / EDGE_PIXELS))
    number, colours = np.arange(height * width).reshape(height, width), scene.pixels.astype(np.float64)
    flat, pairs, distances = colours.reshape(-1, 3), [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        columns = slice(max(0, -right), width - max(0, right))
        moved = slice(max(0, right), width + min(0, right))
        pairs.append(np.stack([number[: height - down, columns].ravel(), number[down:, moved].ravel()]))
        distances.append(np.full(pairs[-1].shape[1], np.hypot(down, right)))
    both, apart = np.concatenate(pairs, axis=1), np.concatenate(distances)
    contrast = ((flat[both[0]] - flat[both[1]]) ** 2).sum(axis=1)
    weights = edge_weight * np.exp(-contrast / max(2 * contrast.mean(), 1e-9)) / apart
    # Number the pixels of the box, and count weights across its border.
    inside = scene.inside.ravel()
    own = np.cumsum(inside) - 1
    kept = inside[both[0]] & inside[both[1]]
    border = np.zeros(int(inside.sum()))
    for one, other in (both, both[::-1]):
        across = inside[one] & ~inside[other]
        np.add.at(border, own[one[across]], weights[across])
    return Grid(own[both[:, kept]].T, weights[kept], border)


def min_cut(
    preference: Float[np.ndarray, " n"], pairs: Int[np.ndarray, "m 2"], weights: Float[np.ndarray, " m"]
) -> Bool[np.ndarray, " n"]:
    """Return the x of {0, 1}^n of least -sum_i preference_i x_i + sum over pairs with x_i != x_j of weight.

    Numbers are rounded to thousandths. Of several minima it is the one with the fewest ones.
    """
    count = len(preference)
    source, sink = count, count + 1
    nodes, both = np.arange(count), np.round(weights * SCALE).astype(np.int32)
    gain = np.round(preference * SCALE).astype(np.int64)
    rows = np.concatenate([pairs[:, 0], pairs[:, 1], np.full(count, source), nodes])
    columns = np.concatenate([pairs[:, 1], pairs[:, 0], nodes, np.full(count, sink)])
    capacity = np.concatenate([both, both, np.maximum(gain, 0), np.maximum(-gain, 0)]).astype(np.int32)
    graph = csr_matrix((capacity, (rows, columns)), shape=(count + 2, count + 2))
    rest = graph - maximum_flow(graph, source, sink).flow
    rest.data = np.maximum(rest.data, 0)
    rest.eliminate_zeros()
    reached = breadth_first_order(rest, source, return_predecessors=False)
    found = np.zeros(count + 2, dtype=np.bool_)
    found[reached] = True
    return found[:count]


# --- masks of a class ---------------------------------------------------------------------------------------


def largest_part(mask: Mask) -> Mask:
    """Return the largest connected part of a mask, with eight neighbours. Of equal ones the first."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return np.asarray(labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax())


def judge(mask: Mask, box: tuple[int, int, int, int]) -> int:
    """Return 0 for a mask that is accepted, -1 for one that is too small, 1 for one that is too large."""
    x0, y0, x1, y1 = box
    share = mask.sum() / ((x1 - x0) * (y1 - y0))
    if share > AREAS[1]:
        return 1
    sides = [np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1)]
    extents = [side[-1] - side[0] + 1 if len(side) else 0 for side in sides]
    is_large = share >= AREAS[0] and all(
        extent >= EXTENT * side for extent, side in zip(extents, (x1 - x0, y1 - y0), strict=True)
    )
    return 0 if is_large else -1


class _Segmenter:
    """One image while the masks of its class are found."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.colours = scene.pixels.reshape(-1, 3).astype(np.float64)
        self.inside, self.grid = scene.inside, neighbour_grid(scene)
        self.mask = self.inside.copy()
        self.foreground: Mixture | None = None
        self.background: Mixture | None = None
        self.evidence = np.zeros(len(self.grid.border))
        """Difference of the log likelihoods of each pixel in the box."""

    def learn(self, of_class: Mixture, share: float) -> None:
        """Fit both mixtures to the mask, and update the evidence."""
        mask = self.mask.ravel()
        if mask.any():
            self.foreground = refit(self.foreground, self.colours[mask], self.rng)
        outside = self.colours[~mask] if not mask.all() else self.colours
        self.background = refit(self.background, outside, self.rng)
        own = self.colours[self.inside.ravel()]
        assert self.foreground is not None
        found = (1 - share) * self.foreground.log_likelihood(own) + share * of_class.log_likelihood(own)
        self.evidence = np.clip(found - self.background.log_likelihood(own), -LIMIT, LIMIT)

    def cut(self, prior: float = 0.5) -> Mask:
        """Return the mask of least energy."""
        preference = self.evidence + np.log(prior / (1 - prior)) - self.grid.border
        mask = np.zeros_like(self.inside)
        mask[self.inside] = min_cut(preference, self.grid.pairs, self.grid.weights)
        return mask

    def finish(self) -> Mask:
        """Return the last mask, or one of another prior that is accepted, or else the box."""
        mask, low, high = largest_part(self.mask), 0.0, 1.0
        prior = 0.5
        for _ in range(BISECTIONS):
            verdict = judge(mask, self.scene.box)
            if verdict == 0:
                return mask
            low, high = (prior, high) if verdict < 0 else (low, prior)
            prior = (low + high) / 2
            mask = largest_part(self.cut(prior))
        return mask if judge(mask, self.scene.box) == 0 else self.inside


def cosegment(
    scenes: Sequence[Scene],
    seed: int,
    share: float = CLASS_SHARE,
    done: Callable[[], object] = lambda: None,
) -> list[Mask]:
    """Return the masks (h, w) of all images of one class.

    `share` is the weight of the class's mixture: 0 segments each image alone. `done` is called after each
    cut of the rounds.
    """
    rng = np.random.default_rng(seed)
    images = [_Segmenter(scene, rng) for scene in scenes]
    of_class: Mixture | None = None
    for _ in range(ROUNDS):
        together = np.concatenate([image.colours[image.mask.ravel()] for image in images])
        if len(together):
            of_class = refit(of_class, together[:: max(1, len(together) // CLASS_PIXELS)], rng)
        assert of_class is not None  # the first masks are the boxes
        for image in images:
            image.learn(of_class, share)
            image.mask = image.cut()
            done()
    return [image.finish() for image in images]


def grabcut(scene: Scene) -> Mask:
    """Return the mask of OpenCV's GrabCut with the box, or the box if that mask is not accepted."""
    x0, y0, x1, y1 = scene.box
    mask = np.zeros(scene.pixels.shape[:2], np.uint8)
    models = np.zeros((2, 1, 65))
    if (x1 - x0) * (y1 - y0) < mask.size:  # it needs pixels of the background
        cv2.setRNGSeed(0)
        rectangle = (x0, y0, x1 - x0, y1 - y0)
        cv2.grabCut(scene.pixels, mask, rectangle, models[0], models[1], ROUNDS, mode=cv2.GC_INIT_WITH_RECT)
    found = largest_part((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD))
    return found if judge(found, scene.box) == 0 else scene.inside


def accepted_mask(mask: Mask, scene: Scene) -> Mask:
    """Return the largest part of a given mask inside the box, or the box if nothing is left."""
    found = largest_part(mask & scene.inside)
    return found if found.any() else scene.inside
