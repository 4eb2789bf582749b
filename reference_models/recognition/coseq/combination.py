"""Step 9 of CoSeq: one weight for each region.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015; A.
Beck, M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", SIAM
Journal on Imaging Sciences 2009.

    s       scores                      (N, P, Y)       of images that the scorers have not seen
    x_ic    s_i,y - s_i,c               (P,)            for each class c other than that of image i
    v       weights of the regions      (P,)

    (1)  v = argmin |v|_1 + C sum_i sum_{c != y_i} max(0, 1 - v . x_ic)^2

v is 0 for C <= 1 / (2 max_p |sum x_p|). C is chosen by the accuracy of five folds among 20 values above that
bound, five per decade, the last of which is 10,000 times as much. The released code has ten folds and 81
values from 1e-10 to 1e-2. Those below the bound give 0, and the bound depends on the number of images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.recognition.coseq.scorers import fit_scorer
from wsolbench.system.progress import Progress, track

FOLDS = 5
DECADES, PER_DECADE = 4, 5
STEPS = 100
"""Steps of FISTA for each C, from the result of the last one."""


def margins(scores: Float[Tensor, "n p y"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n y p"]:
    """Return x_ic; 1 or less of them per image, that of its own class, is 0 and adds a constant to (1)."""
    own = scores.gather(2, labels[:, None, None].expand(-1, scores.shape[1], 1))
    return (own - scores).transpose(1, 2)


def least_cost(x: Float[Tensor, "m p"]) -> float:
    """Return the largest C for which v is 0."""
    return 1 / max(2 * float(x.sum(dim=0).abs().max()), 1e-30)


def objective(v: Float[Tensor, " p"], x: Float[Tensor, "m p"], cost: float) -> Float[Tensor, ""]:
    """Return the value that v minimises, eq. (1)."""
    return v.abs().sum() + cost * (1 - x @ v).clamp(min=0).square().sum()


def fit_weights(
    x: Float[Tensor, "m p"], cost: float, start: Float[Tensor, " p"] | None = None, steps: int = STEPS
) -> Float[Tensor, " p"]:
    """Return v of (1) by FISTA, which restarts when a step goes uphill."""
    v = x.new_zeros(x.shape[1]) if start is None else start
    # The gradient of the second term is Lipschitz with twice C times the largest eigenvalue of X^T X.
    bound = 2 * cost * torch.linalg.eigvalsh(x.mT @ x)[-1].clamp(min=1e-30)
    ahead, momentum = v, x.new_ones(())
    for _ in range(steps):
        gradient = -2 * cost * (x.mT @ (1 - x @ ahead).clamp(min=0))
        moved = ahead - gradient / bound
        after = moved.sign() * (moved.abs() - 1 / bound).clamp(min=0)
        # Momentum is dropped if it points away from the step.
        uphill = ((ahead - after) @ (after - v)) > 0
        momentum = torch.where(uphill, torch.ones_like(momentum), momentum)
        further = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        ahead = after + torch.where(uphill, 0.0, (momentum - 1) / further) * (after - v)
        v, momentum = after, further
    return v


def costs_of(x: Float[Tensor, "m p"]) -> list[float]:
    """Return the values of C, ascending."""
    least, count = least_cost(x), DECADES * PER_DECADE
    return [least * 10 ** (step / PER_DECADE) for step in range(1, count + 1)]


def combine(
    scores: Float[Tensor, "n p y"], labels: Int[Tensor, " n"], seed: int, bar: Progress | None = None
) -> tuple[Float[Tensor, " p"], float]:
    """Return v for the best C, and that C. Without any informative region all weights are equal.

    `bar` counts the fits, of which there are (`FOLDS` + 1) x 20.
    """
    count, parts = scores.shape[:2]
    x = margins(scores, labels)  # (N, Y, P)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(scores.device)
    fold = order % FOLDS
    values = costs_of(x.flatten(0, 1))
    # Correct images of each C, over all folds; scores have no ties but for v = 0, which classifies none.
    right = [0] * len(values)
    for number in range(min(FOLDS, count)):
        kept, v = x[fold != number].flatten(0, 1), None
        for place, cost in enumerate(values):
            v = fit_weights(kept, cost, v)
            decided = scores[fold == number].transpose(1, 2) @ v  # (n, Y)
            hit = decided.argmax(dim=1) == labels[fold == number]
            right[place] += int(hit.sum()) if bool(v.any()) else 0
            if bar is not None:
                bar.advance()
    best = max(range(len(values)), key=lambda place: right[place])
    v = None
    for cost in values[: best + 1]:
        v = fit_weights(x.flatten(0, 1), cost, v)
        if bar is not None:
            bar.advance()
    assert v is not None
    return (v if bool(v.any()) else torch.full_like(v, 1 / parts)), values[best]


def learn_combination(
    features: Float[Tensor, "n p d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    seed: int,
    device: torch.device,
) -> Float[Tensor, " p"]:
    """Return v of (1) for features of all regions, from leave-one-out scores of step 8."""
    scores = [
        fit_scorer(features[:, region], labels, num_classes).unseen.float()
        for region in track(range(features.shape[1]), "classifying regions", unit="regions")
    ]
    fits = (FOLDS + 1) * DECADES * PER_DECADE
    with track(description="combining regions", total=fits, unit="fits") as bar:
        return combine(torch.stack(scores, dim=1).to(device), labels.to(device), seed, bar)[0]
