"""Gradients at a stage: against central differences, with guided ReLUs, and where there is nothing to find."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from reference_models.core.outputs import ForwardPass
from reference_models.layers.gradient_maps import find_stage, gradient_at, guided_backward, open_stage
from wsolbench.exceptions import UsageError


def result(**features: torch.Tensor) -> ForwardPass:
    stages = OrderedDict(features)
    return ForwardPass(
        logits=sum(each.mean(dim=(1, 2, 3)) for each in stages.values())[:, None],
        maps_of=lambda class_ids: class_ids,
        stages=stages,
        penultimate=torch.ones(2, 5, 3, 3),
    )


def features(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 3, 3)


@pytest.mark.parametrize(
    ("stage", "name", "channels"),
    [("-1", "last", 4), ("1", "last", 4), ("0", "first", 3), ("-2", "first", 3), ("first", "first", 3)],
)
def test_a_stage_is_found_by_name_and_by_position(stage, name, channels):
    found, there = find_stage(result(first=features(3), last=features(4)), stage, who="x")
    assert (found, there.shape[1]) == (name, channels)


def test_the_input_of_the_last_layer_is_a_stage_too():
    assert find_stage(result(first=features(3)), "penultimate", who="x")[1].shape[1] == 5


@pytest.mark.parametrize("stage", ["2", "-3"])
def test_a_position_that_is_not_there_is_refused_with_the_names(stage):
    with pytest.raises(
        UsageError, match=rf"stage={stage} of post-process 'x'.*2 feature .*first, last.* -2 to 1"
    ):
        find_stage(result(first=features(3), last=features(4)), stage, who="x")


def test_an_unknown_name_and_a_method_without_stages_are_refused():
    with pytest.raises(UsageError, match="did you mean 'first'"):
        find_stage(result(first=features(3)), "fist", who="x")
    with pytest.raises(UsageError, match="post-process 'x' needs 1 feature stages"):
        find_stage(ForwardPass(logits=None, maps_of=lambda ids: ids), "-1", who="x")


def test_scores_without_a_graph_and_scores_of_other_features_are_refused():
    with pytest.raises(RuntimeError, match="localize"):
        open_stage(result(first=features(3)), "-1", who="x")
    one, two = features(3).requires_grad_(), features(3).requires_grad_()
    made = result(first=one)
    made.stages["second"] = two
    stage, scores = open_stage(made, "-1", who="x")
    with pytest.raises(UsageError, match=r"stage=-1 of post-process 'x'.* do not depend .*grid=tokens"):
        gradient_at(stage, scores[:, 0], stage="-1", who="x")
    made.stages["third"] = features(3)
    with pytest.raises(UsageError, match=r"stage=third of post-process 'x'.* do not depend"):
        open_stage(made, "third", who="x")


def test_a_gradient_is_the_central_difference_of_the_score():
    tail = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Conv2d(3, 1, 1)).double()
    a = torch.randn(2, 2, 3, 3, dtype=torch.float64)

    def score(at: torch.Tensor) -> torch.Tensor:
        return tail(at).square().mean(dim=(1, 2, 3))

    leaf = a.clone().requires_grad_()
    found = gradient_at(leaf, score(leaf), stage="-1", who="x")
    expected = torch.zeros_like(a)
    for place in range(2 * 3 * 3):
        step = torch.zeros_like(a)
        step.flatten(1)[:, place] = 1e-5
        with torch.no_grad():
            expected.flatten(1)[:, place] = (score(a + step) - score(a - step)) / 2e-5
    torch.testing.assert_close(found.double(), expected, atol=1e-7, rtol=1e-5)
    assert found.dtype == torch.float32
    assert leaf.grad is None
    assert all(parameter.grad is None for parameter in tail.parameters())


# --- guided backward pass -----------------------------------------------------------------------------------


def guided_by_hand(a: torch.Tensor, first: nn.Linear, second: nn.Linear, limit: float) -> torch.Tensor:
    """The gradient of `second(clamp(first(a), 0, limit))` with negative values dropped behind the ReLU."""
    before = first(a)
    passes = (before > 0) & (before < limit)
    return torch.where(passes, second.weight[0].expand_as(before), 0).clamp(min=0) @ first.weight


@pytest.mark.parametrize(
    ("relu", "limit"), [(nn.ReLU(), torch.inf), (nn.ReLU(inplace=True), torch.inf), (nn.ReLU6(), 6.0)]
)
def test_a_guided_pass_drops_negative_gradients_behind_each_relu(relu, limit):
    first, second = nn.Linear(6, 40), nn.Linear(40, 1)
    below = torch.randn(5, 6, requires_grad=True)
    a = torch.relu(below)  # the ReLU that makes the stage is not between it and the score
    scores = second(relu(first(3 * a)))[:, 0]
    plain = torch.autograd.grad(scores.sum(), a, retain_graph=True)[0]
    with guided_backward(scores, a):
        guided, at_the_image = torch.autograd.grad(scores.sum(), (a, below), retain_graph=True)
    expected = 3 * guided_by_hand(3 * a, first, second, limit)
    torch.testing.assert_close(guided, expected)
    assert (guided - plain).abs().max() > 0.1
    torch.testing.assert_close(at_the_image, torch.where(below > 0, guided, 0.0))
    assert (at_the_image < 0).any()
    after = torch.autograd.grad(scores.sum(), a)[0]
    torch.testing.assert_close(after, plain, atol=0, rtol=0)


@pytest.mark.parametrize("activation", [nn.GELU(), nn.Hardtanh(), nn.LeakyReLU()])
def test_other_activations_keep_their_gradients(activation):
    first, second = nn.Linear(6, 40), nn.Linear(40, 1)
    a = torch.randn(5, 6, requires_grad=True)
    scores = second(activation(first(a)))[:, 0]
    plain = torch.autograd.grad(scores.sum(), a, retain_graph=True)[0]
    with guided_backward(scores, a):
        assert torch.equal(torch.autograd.grad(scores.sum(), a)[0], plain)
