"""CoSeq: classifiers of regions with leave-one-out scores, and the weights of the regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference_models.recognition.coseq.combination import (
    combine,
    fit_weights,
    learn_combination,
    least_cost,
    margins,
    objective,
)
from reference_models.recognition.coseq.scorers import Decomposition, class_targets, fit_scorer


def toy(count: int = 40, dim: int = 6, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    return means[labels] + torch.randn(count, dim, generator=generator, dtype=torch.float64), labels


def ridge(x: torch.Tensor, targets: torch.Tensor, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias by the normal equations; the bias has no penalty."""
    mean, centre = x.mean(dim=0), targets.mean(dim=0)
    system = (x - mean).mT @ (x - mean) + strength * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(system, (x - mean).mT @ (targets - centre))
    return weight, centre - mean @ weight


@pytest.mark.parametrize(("count", "dim"), [(40, 6), (12, 30)])
@pytest.mark.parametrize("strength", [1e-2, 1.0, 50.0])
def test_unseen_scores_are_those_of_fits_without_the_image(count, dim, strength):
    x, labels = toy(count, dim)
    targets = class_targets(labels, 3)
    found = Decomposition(x).solve(targets, strength)
    weight, bias = ridge(x, targets, strength)
    torch.testing.assert_close(found.weight.mT, weight, atol=1e-8, rtol=1e-7)
    torch.testing.assert_close(found.bias, bias, atol=1e-8, rtol=1e-7)
    for image in range(count):
        kept = torch.arange(count) != image
        weight, bias = ridge(x[kept], targets[kept], strength)
        torch.testing.assert_close(found.unseen[image], x[image] @ weight + bias, atol=1e-7, rtol=1e-6)


def test_the_strength_is_chosen_by_unseen_images():
    generator = torch.Generator().manual_seed(0)
    x, labels = toy(30, 4)
    noise = 0.1 * torch.randn(30, 60, generator=generator, dtype=torch.float64)
    scorer = fit_scorer(torch.cat([x, noise], dim=1), labels, 3)
    weakest = Decomposition(torch.cat([x, noise], dim=1)).solve(class_targets(labels, 3), 1e-9)
    right = [(each.unseen.argmax(dim=1) == labels).float().mean() for each in (scorer, weakest)]
    assert right[0] > right[1]
    assert scorer.strength > 1e-3


def test_equal_or_absent_features_give_finite_scores():
    labels = torch.arange(6) % 3
    for x in (torch.zeros(6, 4), torch.ones(6, 4)):
        scorer = fit_scorer(x, labels, 3)
        assert torch.isfinite(scorer.unseen).all()
        assert torch.isfinite(scorer.weight).all()


# --- the combination ----------------------------------------------------------------------------------------


def informative(count: int, noise: tuple[float, ...], classes: int = 4, seed: int = 0):
    """Scores (N, P, Y) of regions that know the class with some noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    truth = class_targets(labels, classes)
    regions = [
        truth + n * torch.randn(count, classes, generator=generator, dtype=torch.float64) for n in noise
    ]
    return torch.stack(regions, dim=1), labels


def test_margins_compare_the_own_class_with_each_other_one():
    scores, labels = informative(5, (1.0, 2.0))
    x = margins(scores, labels)
    assert x.shape == (5, 4, 2)
    assert x[3, 1, 1] == scores[3, 1, labels[3]] - scores[3, 1, 1]
    assert not x[torch.arange(5), labels].any()


def test_a_constant_for_each_image_and_region_changes_nothing():
    scores, labels = informative(40, (1.0, 1.5, 3.0))
    moved = scores + torch.randn(40, 3, 1, dtype=torch.float64)
    for one, two in zip(combine(scores, labels, 0), combine(moved, labels, 0), strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(two), atol=1e-6, rtol=1e-5)


def test_weights_are_zero_up_to_the_bound_and_not_above_it():
    scores, labels = informative(60, (1.0, 2.0, 4.0))
    x = margins(scores, labels).flatten(0, 1)
    bound = least_cost(x)
    assert bound == pytest.approx(1 / (2 * x.sum(dim=0).abs().max().item()))
    assert not fit_weights(x, 0.999 * bound).any()
    assert fit_weights(x, 1.01 * bound).any()


@pytest.mark.parametrize("factor", [3.0, 100.0, 1e4])
def test_weights_satisfy_the_conditions_of_a_minimum(factor):
    scores, labels = informative(60, (1.0, 2.0, 4.0, 8.0))
    x = margins(scores, labels).flatten(0, 1)
    cost = factor * least_cost(x)
    v = fit_weights(x, cost, steps=3000)
    slope = -2 * cost * (x.mT @ (1 - x @ v).clamp(min=0))
    # Of |v|: the sign where v is not 0, and anything in [-1, 1] where it is.
    on = v != 0
    torch.testing.assert_close(slope[on], -v[on].sign(), atol=1e-6, rtol=0)
    assert (slope[~on].abs() <= 1 + 1e-6).all()
    for _ in range(20):
        assert objective(v, x, cost) <= objective(v + 0.05 * torch.randn_like(v), x, cost) + 1e-9


def accuracy(scores: torch.Tensor, labels: torch.Tensor, v: torch.Tensor) -> float:
    decided = torch.einsum("npy,p->ny", scores, v.to(scores.dtype)).argmax(dim=1)
    return float((decided == labels).double().mean())


def test_two_informative_regions_beat_the_better_one():
    noise = (1.6, 1.9, 30.0)
    scores, labels = informative(400, noise)
    v, _ = combine(scores, labels, 0)
    unseen, theirs = informative(2000, noise, seed=1)
    alone = [accuracy(unseen, theirs, torch.eye(3)[region]) for region in range(3)]
    assert accuracy(unseen, theirs, v) > max(alone) + 0.05
    assert v[0] > 0
    assert v[1] > 0
    assert v[2].abs() < 0.02 * v[0]


def test_without_any_informative_region_all_weights_are_equal():
    labels = torch.arange(12) % 3
    v, _ = combine(torch.zeros(12, 4, 3), labels, 0)
    torch.testing.assert_close(v, torch.full((4,), 0.25))


def test_one_region_and_two_images_are_enough():
    scores, labels = informative(2, (0.1,), classes=2)
    v, _ = combine(scores, labels, 0)
    assert v.shape == (1,)
    assert torch.isfinite(v).all()


def test_the_combination_of_features_prefers_the_informative_region():
    x, labels = toy(90, 5)
    noise = torch.randn(90, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    features = torch.stack([noise, x], dim=1)
    v = learn_combination(features, labels, 3, 0, torch.device("cpu"))
    assert v[1] > 5 * v[0].abs()
    assert np.isfinite(v.numpy()).all()
