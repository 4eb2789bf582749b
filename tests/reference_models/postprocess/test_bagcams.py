"""BagCAMs: the log score, its factor, guided ReLUs, and classifiers that are sure or have one class."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch

from reference_models.core.outputs import ForwardPass
from reference_models.layers.gradient_maps import gradient_at
from reference_models.postprocess.bagcams import log_odds, log_scores
from tests.reference_models.postprocess.gradient_networks import maps, network, stretched
from wsolbench.methods import load_post

IMAGES = 4


def scored():
    """A network, images, their scores, and the classes with the highest and the lowest score."""
    model, images = network(), torch.randn(IMAGES, 3, 64, 64)
    model.head.classifier.weight.data[0] = -model.head.classifier.weight.data[1]
    scores = model.localize(images).logits
    return model, images, scores, torch.stack([scores.argmax(dim=1), scores.argmin(dim=1)], dim=1)


def test_the_released_map_is_the_element_wise_one_for_positive_scores():
    """Its factor is 1 within about one over the number of cells."""
    model, images, scores, asked = scored()
    best = asked[:, :1]
    assert (scores.gather(1, best) > 0).all()
    released, element_wise = (
        maps(kind, model, images, best, stage="-2", **settings)
        for kind, settings in (("bagcams", {"score": "log"}), ("grad-cam-elementwise", {}))
    )
    cells = released[0, 0].numel()
    torch.testing.assert_close(stretched(released), stretched(element_wise), atol=1 / cells, rtol=0)
    assert not torch.equal(released, element_wise)


def test_a_negative_score_turns_the_signs_of_the_released_map():
    model, images, scores, asked = scored()
    worst = asked[:, 1:]
    assert (scores.gather(1, worst) < 0).all()
    released = maps("bagcams", model, images, worst, stage="-2", score="log")
    result = model.localize(images, gradients=True)
    turned = load_post("grad-cam-elementwise").create({"stage": "-2"})
    expected = turned.maps(replace(result, logits=-result.logits), worst)
    torch.testing.assert_close(stretched(released), stretched(expected), atol=1 / 64, rtol=0)
    straight = maps("grad-cam-elementwise", model, images, worst, stage="-2")
    assert (stretched(released) - stretched(straight)).abs().max() > 0.2


@pytest.mark.parametrize("stage", ["stage2", "stage1"])
def test_without_biases_the_log_score_has_shares_that_add_up_to_1(stage):
    model, images, _, asked = scored()
    result = model.localize(images, gradients=True)
    features = result.stages[stage]
    for column in log_scores(result.logits, asked).unbind(dim=1):
        shares = gradient_at(features, column, stage=stage, who="a test") * features
        torch.testing.assert_close(shares.sum(dim=(1, 2, 3)), torch.ones(IMAGES), atol=1e-4, rtol=0)


def test_log_odds_and_their_derivative_are_those_of_the_probability():
    scores, asked = torch.randn(5, 4, dtype=torch.float64), torch.randint(4, (5, 2))
    chosen = scores.softmax(dim=1).gather(1, asked)
    torch.testing.assert_close(log_odds(scores, asked), (chosen / (1 - chosen)).log())
    leaf = scores.clone().requires_grad_()
    (of_odds,) = torch.autograd.grad(log_odds(leaf, asked)[:, 0].sum(), leaf)
    (of_log,) = torch.autograd.grad(leaf.log_softmax(dim=1).gather(1, asked)[:, 0].sum(), leaf)
    torch.testing.assert_close((1 - chosen[:, :1]) * of_odds, of_log)


def test_a_classifier_that_is_sure_keeps_its_map():
    """The derivative of its log probability rounds to 0."""
    model, images, _, asked = scored()
    result = model.localize(images, gradients=True)
    sure = replace(result, logits=1e4 * result.logits)
    log_probability = sure.logits.log_softmax(dim=1).gather(1, asked)[:, 0]
    vanished = gradient_at(result.stages["stage2"], log_probability, stage="stage2", who="a test")
    assert not vanished.any()
    found = load_post("bagcams").create({}).maps(sure, asked)
    assert torch.isfinite(found).all()
    assert (found.amax(dim=(2, 3)) > found.amin(dim=(2, 3))).all()


@pytest.mark.parametrize("score", ["logprob", "log"])
def test_one_class_and_a_score_of_zero_give_finite_maps(score):
    stage = torch.rand(2, 3, 4, 4).requires_grad_()
    for weight in (1.0, 0.0):
        logits = weight * stage.mean(dim=(1, 2, 3))[:, None]
        result = ForwardPass(logits=logits, maps_of=lambda ids: ids, stages=OrderedDict(only=stage))
        post = load_post("bagcams").create({"score": score, "stage": "-1"})
        found = post.maps(result, torch.zeros(2, 1, dtype=torch.int64))
        assert torch.isfinite(found).all()
        assert found.any() == (weight == 1)


def test_the_official_variant_is_the_released_score_with_guided_relus():
    model, images, _, asked = scored()
    official = maps("bagcams", model, images, asked, variant="official")
    assert torch.equal(official, maps("bagcams", model, images, asked, score="log", guided="true"))
    plain = maps("bagcams", model, images, asked, score="log")
    assert (stretched(official) - stretched(plain))[:, 0].abs().max() > 0.05


def test_where_no_relu_lies_above_the_stage_a_guided_pass_changes_nothing():
    model, images, _, asked = scored()
    guided, plain = (
        maps("bagcams", model, images, asked, stage="-1", guided=guided) for guided in ("true", "false")
    )
    assert torch.equal(guided, plain)
