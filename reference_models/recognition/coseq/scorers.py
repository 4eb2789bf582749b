"""Step 8 of CoSeq: a linear classifier for each region, with its scores for images that it has not seen.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015, trains
support vector machines with five folds. Here it is ridge regression of targets 1 (the image's class) and -1,
whose scores without an image follow from one fit of all:

    X, t    centred features (N, D), targets (N, Y)
    H       hat matrix   1 1^T / N + X (X^T X + lambda I)^-1 X^T
    s_i     t_i - (t_i - (H t)_i) / (1 - H_ii)         score of image i by a fit without it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

STRENGTHS = tuple(10.0**power for power in range(-5, 3))
"""lambda, relative to the mean eigenvalue of X^T X that is not 0."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Ridge regression of one region.

    Attributes:
        weight, bias: (Y, D), (Y,).
        unseen: (N, Y) leave-one-out scores of the training images.
        strength: lambda.
    """

    weight: Tensor
    bias: Tensor
    unseen: Tensor
    strength: float


def class_targets(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, "n y"]:
    """Return 1 for the class of each image and -1 for the others, float64."""
    classes = torch.arange(num_classes, device=labels.device)
    return 2.0 * (labels[:, None] == classes).double() - 1.0


class Decomposition:
    """Eigenvectors of centred features, from which fits of any strength follow."""

    def __init__(self, features: Float[Tensor, "n d"]) -> None:
        x = features.double()
        self.mean = x.mean(dim=0)
        x = x - self.mean
        values, self.vectors = torch.linalg.eigh(x.mT @ x)
        self.values = values.clamp(min=0)
        self.projected = x @ self.vectors  # (N, D), orthogonal columns of squared norm `values`
        used = self.values > 1e-10 * self.values.max()
        self.scale = float(self.values[used].mean()) if bool(used.any()) else 1.0

    def solve(self, targets: Float[Tensor, "n y"], strength: float) -> Scorer:
        """Fit targets with the ridge `strength`."""
        centre = targets.mean(dim=0)
        coefficients = (self.projected.mT @ (targets - centre)) / (self.values + strength)[:, None]  # (D, Y)
        weight = (self.vectors @ coefficients).mT
        leverage = 1 / len(targets) + (self.projected**2 / (self.values + strength)).sum(dim=1)
        rest = targets - (centre + self.projected @ coefficients)
        unseen = targets - rest / (1 - leverage).clamp(min=1e-12)[:, None]
        return Scorer(weight, centre - weight @ self.mean, unseen, strength)


def fit_scorer(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_classes: int) -> Scorer:
    """Return the scorer whose leave-one-out scores classify most images right.

    Of equally good ones it is the one of the greatest strength.
    """
    decomposition, targets = Decomposition(features), class_targets(labels, num_classes)
    best, most = None, -1
    for share in sorted(STRENGTHS, reverse=True):
        scorer = decomposition.solve(targets, share * decomposition.scale)
        right = int((scorer.unseen.argmax(dim=1) == labels).sum())
        if right > most:
            best, most = scorer, right
    assert best is not None
    return best
