"""MaxEnt and Pairwise Confusion: what the terms are, what they ask for, and that nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.backbone import load_backbone
from reference_models.recognition.baseline import Baseline, BaselineConfig
from reference_models.recognition.maxent import (
    MaxEnt,
    MaxEntConfig,
    entropy,
    gamma_of_confidence,
    pairwise_confusion,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5
PREDICTIONS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])


def maxent(classes: int = CLASSES, **settings) -> MaxEnt:
    return MaxEnt(toy_backbone(), classes, MaxEntConfig(**settings)).eval()


def maxent_loss(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> torch.Tensor:
    return F.cross_entropy(logits, labels) - gamma * entropy(logits).mean()


# --- MaxEnt -------------------------------------------------------------------------------------------------


def test_golden_values_of_maxent():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64), torch.tensor([0])
    assert F.cross_entropy(logits, labels).item() == pytest.approx(0.169846, abs=1e-5)
    assert entropy(logits).item() == pytest.approx(0.524267, abs=1e-5)
    assert maxent_loss(logits, labels, 0.5).item() == pytest.approx(-0.092287, abs=1e-5)


def test_the_gradient_is_the_closed_form_and_agrees_with_finite_differences():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    labels, gamma = torch.tensor([0, 3, 5, 3]), 0.7
    (gradient,) = torch.autograd.grad(maxent_loss(logits, labels, gamma), logits)
    p = logits.softmax(dim=1)
    expected = p - F.one_hot(labels, 6) + gamma * p * (p.log() + entropy(logits)[:, None])
    torch.testing.assert_close(gradient, expected / 4)
    assert torch.autograd.gradcheck(entropy, (logits,))


def test_the_entropy_is_log_of_the_classes_minus_the_divergence_from_the_uniform_distribution():
    logits = 3 * torch.randn(5, 7, dtype=torch.float64)
    uniform = torch.full((5, 7), 1 / 7, dtype=torch.float64)
    divergence = F.kl_div(uniform.log(), logits.softmax(dim=1), reduction="none").sum(dim=1)
    torch.testing.assert_close(entropy(logits), math.log(7) - divergence)
    torch.testing.assert_close(entropy(torch.full((1, 7), 2.0)), torch.tensor([math.log(7)]))


def test_logits_of_any_size_give_a_finite_loss_and_gradient():
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 200.0]], dtype=dtype).requires_grad_()
        loss = maxent_loss(logits, torch.tensor([1, 0]), 1.0)
        loss.backward()
        assert loss.isfinite()
        assert logits.grad.isfinite().all()
    torch.testing.assert_close(entropy(logits).detach(), torch.tensor([0.0, math.log(2)]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("gamma", "classes", "confidence"),
    [(0.1, 200, 0.992), (0.3, 200, 0.589), (1, 200, 0.241), (5, 200, 0.073), (1, 12, 0.453)],
)
def test_gamma_sets_a_confidence(gamma: float, classes: int, confidence: float):
    assert gamma_of_confidence(confidence, classes) == pytest.approx(gamma, rel=0.01)


def test_free_logits_of_one_image_converge_to_that_confidence():
    logits, label = torch.zeros(1, 200, dtype=torch.float64, requires_grad=True), torch.tensor([3])
    for _ in range(20_000):
        (gradient,) = torch.autograd.grad(maxent_loss(logits, label, 1.0), logits)
        with torch.no_grad():
            logits -= 0.5 * gradient
    p = logits.softmax(dim=1)[0]
    assert p[3].item() == pytest.approx(0.24114, abs=1e-4)
    assert p.max() == p[3]
    assert gamma_of_confidence(p[3].item(), 200) == pytest.approx(1, abs=1e-3)


def test_a_target_confidence_sets_gamma():
    assert maxent(12, target_confidence=0.453).gamma == pytest.approx(1, rel=0.01)
    assert maxent(12, gamma=0.3).gamma == 0.3
    with pytest.raises(
        UsageError, match=r"target_confidence of method 'maxent' is 0\.05; expected above 0\.08333"
    ):
        maxent(12, target_confidence=0.05)


# --- Pairwise Confusion -------------------------------------------------------------------------------------


def test_golden_values_of_pairwise_confusion():
    logits, labels = PREDICTIONS.log(), torch.tensor([0, 1, 2, 0])
    assert pairwise_confusion(logits, labels).item() == pytest.approx(0.232206, abs=1e-5)
    assert pairwise_confusion(logits, labels, norm="squared").item() == pytest.approx(0.32, abs=1e-5)


def test_only_the_partner_matters_and_it_is_half_a_batch_away():
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 2, 3])
    whole = pairwise_confusion(logits, labels)
    swapped = torch.tensor([3, 1, 5, 0, 4, 2])  # partners of two pairs
    moved = torch.tensor([1, 2, 0, 4, 5, 3])  # the order of the pairs
    for order in (swapped, moved):
        torch.testing.assert_close(pairwise_confusion(logits[order], labels[order]), whole)
    other = torch.tensor([1, 0, 2, 3, 4, 5])
    assert not torch.isclose(pairwise_confusion(logits[other], labels[other]), whole)


def test_equal_predictions_have_distance_0_and_a_finite_gradient():
    logits = torch.randn(1, 4).expand(4, 4).clone().requires_grad_()
    for norm in ("l2", "squared"):
        distance = pairwise_confusion(logits, torch.arange(4), norm=norm)
        assert distance == 0
        (gradient,) = torch.autograd.grad(distance, logits)
        assert gradient.isfinite().all()


def test_pairs_of_one_class_count_only_if_asked_for():
    logits, labels = PREDICTIONS.log(), torch.tensor([0, 1, 0, 2])
    second = (PREDICTIONS[1] - PREDICTIONS[3]).norm().item() / 4
    assert pairwise_confusion(logits, labels).item() == pytest.approx(second, abs=1e-5)
    assert pairwise_confusion(logits, labels, same_class=True).item() == pytest.approx(0.232206, abs=1e-5)


def test_the_last_image_of_an_odd_batch_is_in_no_pair():
    logits, labels = torch.randn(5, 4), torch.arange(5)
    torch.testing.assert_close(pairwise_confusion(logits, labels), pairwise_confusion(logits[:4], labels[:4]))
    assert pairwise_confusion(logits[:1], labels[:1]) == 0


@pytest.mark.parametrize("norm", ["l2", "squared"])
def test_gradients_of_pairwise_confusion_agree_with_finite_differences(norm):
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 1])
    assert torch.autograd.gradcheck(lambda x: pairwise_confusion(x, labels, norm=norm), (logits,))


# --- the method ---------------------------------------------------------------------------------------------


def test_without_weights_the_loss_is_the_cross_entropy_to_the_bit():
    batch = toy_batch(6, classes=CLASSES)
    model = maxent(term="both", gamma=0.0, pc_weight=0.0)
    terms = model.loss(batch)
    assert set(terms) == {"cross_entropy", "entropy", "confusion"}
    assert torch.equal(sum(terms.values()), F.cross_entropy(model(batch.images).logits, batch.labels))


def test_terms_have_their_weights():
    batch = toy_batch(6, classes=CLASSES)
    model = maxent(term="both", gamma=2.0)
    torch.nn.init.normal_(model.head.classifier.weight)
    logits, terms = model(batch.images).logits, model.loss(batch)
    torch.testing.assert_close(terms["entropy"], -2 * entropy(logits).mean())
    torch.testing.assert_close(terms["confusion"], 0.5 * pairwise_confusion(logits, batch.labels))  # 0.1 C
    assert terms["confusion"] > 0
    assert set(maxent().loss(batch)) == {"cross_entropy", "entropy"}
    assert set(maxent(term="pairwise").loss(batch)) == {"cross_entropy", "confusion"}


def test_logits_maps_recipe_and_layers_are_the_baseline_s():
    model, images = maxent(), torch.randn(2, 3, 32, 32)
    baseline = Baseline(toy_backbone(), CLASSES, BaselineConfig()).eval()
    baseline.load_state_dict(model.state_dict(), strict=True)
    ids = torch.tensor([[0, 2], [4, 1]])
    assert torch.equal(model(images).logits, baseline(images).logits)
    assert torch.equal(model.localize(images).score_maps(ids), baseline.localize(images).score_maps(ids))
    for settings in ({}, {"recipe": "bcnn"}):
        assert MaxEnt.recipe_for("resnet50", 200, settings) == Baseline.recipe_for("resnet50", 200, settings)


def test_on_one_batch_the_entropy_term_lowers_the_confidence():
    def confidence(**settings) -> float:
        torch.manual_seed(0)
        model, batch = maxent(**settings).train(), toy_batch(8, classes=CLASSES)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            sum(model.loss(batch).values()).backward()
            optimizer.step()
        p = model(batch.images).logits.softmax(dim=1)
        return p.take_along_dim(batch.labels[:, None], dim=1).mean().item()

    assert confidence(gamma=0.0) > 0.95
    assert confidence(target_confidence=0.6) == pytest.approx(0.6, abs=0.03)


def test_the_last_stage_of_densenet_has_passed_its_norm_and_activation():
    backbone = load_backbone("timm:densenet121", weights="none", grid="stock").eval()
    *_, last = backbone.stages(torch.randn(1, 3, 64, 64)).values()
    assert last.min() == 0
    assert (last == 0).float().mean() > 0.1
