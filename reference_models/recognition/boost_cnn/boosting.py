"""Multi-class boosting: the exponential risk, its weights, the loss of a round, and the line search.

M. Moghimi, S. Belongie, M. Saberian, J. Yang, N. Vasconcelos, L.-J. Li, "Boosted convolutional neural
networks", BMVC 2016. Equations have the numbers of `method.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.layers.heads import cross_entropy
from reference_models.layers.second_order import in_full_precision

HALVINGS = 60
"""Steps of the line search: more than the digits of float64."""

Fit = Literal["sqr", "cs_log"]


@in_full_precision
def boost_weights(f: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """Return w, eq. (2). The rows sum to 0."""
    label = labels[:, None]
    weights = ((f - f.gather(1, label)) / 2).exp().scatter(1, label, 0.0)
    return weights.scatter(1, label, -weights.sum(dim=1, keepdim=True))


def boost_risk(f: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the exponential risk R, eq. (1)."""
    return -boost_weights(f, labels).gather(1, labels[:, None]).mean()


@in_full_precision
def fit_loss(
    fit: Fit,
    g: Float[Tensor, "b k"],
    f: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    size: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return the loss of the new scores g, given the sum f, eq. (4). `size` is s."""
    if fit == "cs_log":
        return cross_entropy(g + f / 2, labels)
    return (g + boost_weights(f, labels) / size).square().sum(dim=1).mean() / 4


def line_search(
    f: Float[Tensor, "n k"], g: Float[Tensor, "n k"], labels: Int[Tensor, " n"], cap: float
) -> Float[Tensor, ""]:
    """Return alpha, eq. (5), by bisection of dR / da. It is 0 if g is no direction of descent.

    R is convex in a. Its largest value is `cap` divided by the mean of the margins g_y - g_j, weighted by w.
    """

    def slope(a: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return (boost_weights(f + a * g, labels) * g).sum()  # (3)

    low = f.new_zeros(())
    start = slope(low)
    descends = start < 0
    all_weights = -boost_weights(f, labels).gather(1, labels[:, None]).sum()
    high = cap * all_weights / torch.where(descends, -start, 1.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        falls = slope(middle) < 0
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return torch.where(descends, (low + high) / 2, 0.0)
