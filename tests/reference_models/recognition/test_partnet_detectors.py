"""PartNet's detectors: two streams over boxes, the score of an image, and the bound of singular values."""

from __future__ import annotations

import math

import pytest
import torch

from reference_models.recognition.partnet.detectors import (
    Detectors,
    bound_singular_values,
    detection_weights,
    drop_background,
    image_scores,
    score_loss,
)

C = torch.tensor([[[0.7, 0.2], [0.1, 0.1], [0.3, 0.6]]], dtype=torch.float64)
D = torch.tensor([[[0.9], [0.1], [0.5]]], dtype=torch.float64)


# --- two streams, (3) to (6) --------------------------------------------------------------------------------


def test_golden_values_of_the_weights_and_the_scores():
    weights = detection_weights(D)
    assert weights.flatten().tolist() == pytest.approx([0.4717762, 0.2119827, 0.3162411], abs=1e-7)
    assert image_scores(C, weights)[0].tolist() == pytest.approx([0.4463139, 0.3052982], abs=1e-7)
    linear = image_scores(C, detection_weights(D, "linear"))
    assert linear[0].tolist() == pytest.approx([0.5266667, 0.3266667], abs=1e-7)


@pytest.mark.parametrize("norm", ["softmax", "linear"])
def test_weights_of_a_detector_sum_to_1_and_those_of_the_softmax_differ_by_e_at_most(norm):
    detections = drop_background(20 * torch.randn(3, 1372, 4, dtype=torch.float64))
    weights = detection_weights(detections, norm)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3, 3, dtype=torch.float64))
    ratio = (weights.amax(dim=1) / weights.amin(dim=1)).max()
    if norm == "softmax":
        assert ratio <= math.e * (1 + 1e-12)
        assert weights.max() <= 0.00198
    else:
        assert ratio > 1e6


def test_scores_of_an_image_sum_to_less_than_1_and_do_not_depend_on_the_order_of_boxes():
    classes, detections = (drop_background(torch.randn(2, 30, k, dtype=torch.float64)) for k in (6, 4))
    scores, order = image_scores(classes, detection_weights(detections)), torch.randperm(30)
    assert (scores.sum(dim=1) < 1).all()
    again = image_scores(classes[:, order], detection_weights(detections[:, order]))
    torch.testing.assert_close(again, scores)


def test_one_box_and_one_detector_give_the_classes_of_the_box():
    classes = drop_background(torch.randn(2, 1, 6, dtype=torch.float64))
    for norm in ("softmax", "linear"):
        weights = detection_weights(torch.rand(2, 1, 1, dtype=torch.float64), norm)
        torch.testing.assert_close(image_scores(classes, weights), classes[:, 0])


def test_detectors_are_averaged_one_by_one():
    classes, weights = torch.rand(2, 7, 4), detection_weights(torch.rand(2, 7, 3))
    each = [(classes * weights[..., part, None]).sum(dim=1) for part in range(3)]
    torch.testing.assert_close(image_scores(classes, weights), sum(each) / 3)


def test_the_last_category_is_the_background():
    logits = torch.log(torch.tensor([[[0.1, 0.2, 0.7]]]))
    torch.testing.assert_close(drop_background(logits), torch.tensor([[[0.1, 0.2]]]))


def test_the_loss_is_the_mean_over_classes_and_stays_finite_at_0_and_1():
    scores, labels = torch.tensor([[0.2, 0.5], [0.9, 0.05]]), torch.tensor([1, 0])
    terms = [-math.log(0.8), -math.log(0.5), -math.log(0.9), -math.log(0.95)]
    assert score_loss(scores, labels).item() == pytest.approx(sum(terms) / 4, abs=1e-6)
    edge = torch.tensor([[0.0, 1.0]], requires_grad=True)
    score_loss(edge, torch.tensor([0])).backward()
    assert edge.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert score_loss(scores.bfloat16(), labels).dtype == torch.float32


def test_streams_are_separate_and_dropout_draws_from_the_generator_alone():
    detectors, pooled = Detectors(18, 8, 5, 3, 0.5), torch.randn(2, 6, 18)
    classes, detections = detectors(pooled)
    assert (classes.shape, detections.shape) == ((2, 6, 5), (2, 6, 3))
    detections.sum().backward()
    assert all(parameter.grad is None for parameter in detectors.classification.parameters())
    state = torch.get_rng_state()
    draws = [detectors(pooled, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    # Values that stay are scaled: the mean over many draws is the output without dropout.
    stream, generator = detectors.detection, torch.Generator().manual_seed(0)
    mean = torch.stack([stream(pooled, generator) for _ in range(3000)]).mean(dim=0)
    torch.testing.assert_close(mean, stream(pooled), atol=0.05, rtol=0)


# --- SVB, (7) -----------------------------------------------------------------------------------------------


def test_singular_values_are_clamped_and_a_second_time_nothing_changes():
    bounded = bound_singular_values(torch.diag(torch.tensor([3.0, 0.2])), 1.5)
    torch.testing.assert_close(bounded, torch.diag(torch.tensor([1.5, 2 / 3])))
    for shape in ((6, 20), (20, 6), (8, 8)):
        once = bound_singular_values(torch.randn(shape), 1.5)
        values = torch.linalg.svdvals(once)
        assert values.min() >= 1 / 1.5 - 1e-5
        assert values.max() <= 1.5 + 1e-5
        torch.testing.assert_close(bound_singular_values(once, 1.5), once, atol=1e-5, rtol=1e-4)
    inside = torch.linalg.qr(torch.randn(5, 5))[0]
    torch.testing.assert_close(bound_singular_values(inside, 1.5), inside, atol=1e-5, rtol=1e-4)
