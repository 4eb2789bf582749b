"""The equations of Boost-CNN: risk, weights, losses and line search, on numbers and on linear learners."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from reference_models.layers.heads import cross_entropy
from reference_models.recognition.boost_cnn.boosting import (
    boost_risk,
    boost_weights,
    fit_loss,
    line_search,
)

CAP = 8.0
GOLDEN_F = torch.tensor([[1.0, 0, -1], [0, 2, 0]], dtype=torch.float64)
GOLDEN_G = torch.tensor([[-0.5, 1, 0], [0, -1, 1]], dtype=torch.float64)
GOLDEN_LABELS = torch.tensor([0, 2])


def scores(seed: int, count: int = 20, classes: int = 5) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.arange(20) % 5


def test_golden_weights_risk_and_step():
    expected = torch.tensor([[-0.974410, 0.606531, 0.367879], [1, 2.718282, -3.718282]]).double()
    torch.testing.assert_close(boost_weights(GOLDEN_F, GOLDEN_LABELS), expected, atol=1e-6, rtol=0)
    assert float(boost_risk(GOLDEN_F, GOLDEN_LABELS)) == pytest.approx(2.346346, abs=1e-6)
    alpha = line_search(GOLDEN_F, GOLDEN_G, GOLDEN_LABELS, CAP)
    assert float(alpha) == pytest.approx(1.118447, abs=1e-6)
    assert float(boost_risk(GOLDEN_F + alpha * GOLDEN_G, GOLDEN_LABELS)) == pytest.approx(1.674914, abs=1e-6)


def test_weights_start_at_one_and_are_the_gradient_of_the_risk():
    start = boost_weights(torch.zeros(20, 5), LABELS)
    assert torch.equal(start.scatter(1, LABELS[:, None], 1.0), torch.ones(20, 5))
    assert torch.equal(start.gather(1, LABELS[:, None]), torch.full((20, 1), -4.0))
    f = scores(0).requires_grad_()
    boost_risk(f, LABELS).backward()
    weights = boost_weights(f.detach(), LABELS)
    torch.testing.assert_close(f.grad, weights / 40)
    torch.testing.assert_close(weights.sum(dim=1), torch.zeros(20).double())


def test_weights_of_a_sum_are_products():
    f, g, step = scores(0), scores(1), 0.3
    margins = g.gather(1, LABELS[:, None]) - g
    expected = (boost_weights(f, LABELS) * (-step * margins / 2).exp()).scatter(1, LABELS[:, None], 0.0)
    expected = expected.scatter(1, LABELS[:, None], -expected.sum(dim=1, keepdim=True))
    torch.testing.assert_close(boost_weights(f + step * g, LABELS), expected)


def test_an_image_is_classified_right_if_all_its_weights_are_below_one():
    f = scores(0)
    others = boost_weights(f, LABELS).scatter(1, LABELS[:, None], 0.0)
    assert torch.equal((others < 1).all(dim=1), f.argmax(dim=1) == LABELS)


def test_the_released_loss_is_cross_entropy_with_half_of_the_sum():
    f, g = scores(0), scores(1).requires_grad_()
    weights = boost_weights(f, LABELS).scatter(1, LABELS[:, None], 0.0)
    margins = g - g.gather(1, LABELS[:, None])
    printed = (1 + (weights * margins.exp()).sum(dim=1)).log().mean()
    size = torch.tensor(1.0).double()
    found = fit_loss("cs_log", g, f, LABELS, size)
    torch.testing.assert_close(found.double(), printed, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        fit_loss("cs_log", g, 0 * f, LABELS, size), cross_entropy(g, LABELS), atol=1e-6, rtol=0
    )


def test_least_squares_are_least_at_the_scaled_negative_weights_and_curved_as_cross_entropy():
    f, size = scores(0), torch.tensor(3.0).double()
    best = -boost_weights(f, LABELS) / size
    assert float(fit_loss("sqr", best, f, LABELS, size)) == 0
    hessian = torch.func.hessian(lambda g: fit_loss("sqr", g[None], f[:1], LABELS[:1], size))(best[0])
    torch.testing.assert_close(hessian, torch.eye(5).double() / 2)
    even = torch.tensor([0.0, 0.0, -40, -40, -40]).double()
    of_ce = torch.func.hessian(lambda g: torch.nn.functional.cross_entropy(g[None], LABELS[:1]))(even)
    assert float(torch.linalg.eigvalsh(of_ce).max()) == pytest.approx(0.5)


def test_the_step_is_the_minimum_and_does_not_depend_on_the_scale_of_the_scores():
    f = scores(0)
    g = 5 * scores(2) - boost_weights(f, LABELS)
    alpha = line_search(f, g, LABELS, CAP)
    assert alpha > 0
    grid = torch.linspace(0, 3, 3001).double() * alpha
    risks = torch.stack([boost_risk(f + a * g, LABELS) for a in grid])
    assert int(risks.argmin()) == pytest.approx(1000, abs=1)
    for scale in (1e-4, 7.0):
        torch.testing.assert_close(scale * line_search(f, scale * g, LABELS, CAP), alpha)


def test_scores_that_are_no_descent_get_no_step():
    f = scores(0)
    weights = boost_weights(f, LABELS)
    assert float(line_search(f, weights, LABELS, CAP)) == 0
    assert float(line_search(f, torch.zeros_like(f), LABELS, CAP)) == 0


@pytest.mark.parametrize("cap", [2.0, 8.0])
def test_scores_that_separate_the_classes_get_the_largest_step(cap):
    f, g = torch.zeros(20, 5).double(), torch.eye(5).double()[LABELS]
    alpha = line_search(f, g, LABELS, cap)
    assert float(alpha) == pytest.approx(cap)  # all margins are 1
    lowest = boost_risk(f, LABELS) * torch.tensor(-cap / 2).exp()
    torch.testing.assert_close(boost_risk(f + alpha * g, LABELS), lowest)  # equal margins: Jensen's bound
    uneven = g * torch.linspace(0.5, 2, 20).double()[:, None]
    assert torch.isfinite(line_search(f, uneven, LABELS, cap))
    best = boost_risk(f + line_search(f, uneven, LABELS, cap) * uneven, LABELS)
    assert best > lowest


def test_the_risk_falls_in_every_round_of_linear_learners():
    """Least squares on random features, a few in each round."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    centres = 2 * torch.randn(3, 12, generator=draw, dtype=torch.float64)
    x = centres[labels] + torch.randn(90, 12, generator=draw, dtype=torch.float64)
    f = torch.zeros(90, 3).double()
    risks = [float(boost_risk(f, labels))]
    assert risks == [2.0]  # Y - 1
    for number in range(6):
        part = x[:, 2 * number : 2 * number + 2]
        inputs = torch.cat([part, torch.ones(90, 1).double()], dim=1)
        g = inputs @ torch.linalg.lstsq(inputs, -boost_weights(f, labels)).solution
        f = f + line_search(f, g, labels, CAP) * g
        risks.append(float(boost_risk(f, labels)))
    assert all(later < earlier for earlier, later in itertools.pairwise(risks))
    assert risks[-1] < 0.2 * risks[0]
    assert (f.argmax(dim=1) == labels).double().mean() > 0.95


def test_half_precision_scores_are_widened():
    f = scores(0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert boost_weights(f, LABELS).dtype == torch.float32
        assert fit_loss("sqr", f, f, LABELS, torch.tensor(1.0)).dtype == torch.float32
