"""Backprop saliency: linear networks, whose gradient is known, and what the gradient cannot depend on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_models.core.backbone import Backbone
from reference_models.core.profile import Stage
from reference_models.layers.regions import PEAK_SIDE
from reference_models.localization.backprop import Backprop, BackpropConfig, saliency, smooth_maps
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec

CLASSES = 5
SIDE = 6


class Times(nn.Module):
    """The image times a fixed pattern: a network that is linear, but not the same everywhere."""

    def __init__(self, pattern: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("pattern", pattern)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.pattern


def linear(**settings) -> tuple[Backprop, torch.Tensor]:
    """A linear model, and the weights W (C, 3, H, W) of its scores z_c = <W_c, I>."""
    pattern = torch.randn(3, SIDE, SIDE)
    backbone = Backbone(
        "linear",
        {"times": Times(pattern)},
        [Stage("times", 1, 3)],
        grid="std",
        input_spec=InputSpec(size=SIDE),
    )
    model = Backprop(backbone, CLASSES, BackpropConfig(head="conv1x1", **settings)).eval()
    nn.init.normal_(model.head.classifier.weight)
    nn.init.normal_(model.head.classifier.bias)
    return model, model.head.classifier.weight.detach() * pattern / SIDE**2


def toy(**settings) -> Backprop:
    model = Backprop(toy_backbone(), CLASSES, BackpropConfig(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "head" in name:  # not the small scores of a fresh head
            nn.init.normal_(parameter, std=0.2)
    return model


def every_class(count: int) -> torch.Tensor:
    return torch.arange(CLASSES).expand(count, CLASSES)


@pytest.mark.parametrize("channel", ["max", "sum", "l2"])
def test_the_map_of_a_linear_network_is_the_size_of_its_weights(channel):
    model, weights = linear(channel=channel)
    maps = model.score_maps(torch.randn(2, 3, SIDE, SIDE), every_class(2))
    size = {"max": weights.abs().amax(1), "sum": weights.abs().sum(1), "l2": weights.norm(dim=1)}[channel]
    torch.testing.assert_close(maps, size.expand(2, -1, -1, -1))


def test_the_log_probability_of_a_linear_network_has_the_slope_of_the_class_less_the_mean_slope():
    model, weights = linear(score="logprob")
    images = 20 * torch.randn(3, 3, SIDE, SIDE)
    result = model.localize(images)
    shares = result.logits.softmax(dim=1)
    assert 0.3 < shares.max(dim=1).values.mean() < 0.999
    slope = weights[None] - torch.einsum("bc,cdhw->bdhw", shares, weights)[:, None]
    torch.testing.assert_close(result.score_maps(every_class(3)), slope.abs().amax(2))


def test_the_map_is_the_change_of_the_score_with_the_pixel():
    model, images = toy().double(), torch.randn(1, 3, 32, 32)
    maps = model.float().score_maps(images, torch.tensor([[2]]))
    model = model.double()
    changes = torch.zeros(3)
    for channel in range(3):
        step = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
        step[0, channel, 11, 17] = 1e-6
        up, down = (model.localize(images.double() + sign * step).logits[0, 2] for sign in (1, -1))
        changes[channel] = (up - down).abs() / 2e-6
    torch.testing.assert_close(maps[0, 0, 11, 17], changes.max(), rtol=1e-3, atol=0)


def test_maps_are_of_the_image_s_size_and_not_negative():
    maps = toy().score_maps(torch.randn(2, 3, 32, 32), every_class(2))
    assert maps.shape == (2, CLASSES, 32, 32)
    assert maps.min() >= 0
    assert maps.amax(dim=(2, 3)).min() > 0
    assert not torch.equal(maps[:, 0], maps[:, 1])


def test_a_score_and_its_negative_have_the_same_map():
    model, images = toy(), torch.randn(2, 3, 32, 32)
    before = model.score_maps(images, every_class(2))
    with torch.no_grad():
        model.head.classifier.weight.neg_()
        model.head.classifier.bias.neg_()
    torch.testing.assert_close(model.score_maps(images, every_class(2)), before)


@pytest.mark.parametrize("score", ["logit", "logprob"])
def test_a_constant_added_to_all_scores_leaves_the_map_alone(score):
    model, images = toy(score=score), torch.randn(2, 3, 32, 32)
    before = model.score_maps(images, every_class(2))
    with torch.no_grad():
        model.head.classifier.bias += 3.0
    torch.testing.assert_close(model.score_maps(images, every_class(2)), before, atol=1e-6, rtol=1e-4)


def test_gradients_of_the_parameters_are_left_alone():
    model, images = toy(), torch.randn(2, 3, 32, 32)
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7.0)
    model.score_maps(images, every_class(2))
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])
    assert not images.requires_grad


def test_a_batch_gives_what_its_images_and_classes_give_alone():
    model, images = toy(), torch.randn(3, 3, 32, 32)
    asked = torch.tensor([[4, 0], [1, 1], [2, 3]])
    together = model.score_maps(images, asked)
    for number in range(3):
        for column in range(2):
            alone = model.score_maps(
                images[number : number + 1], asked[number : number + 1, column : column + 1]
            )
            torch.testing.assert_close(alone[0, 0], together[number, column], atol=1e-6, rtol=1e-4)


def test_no_graph_is_left_and_maps_can_be_asked_for_again():
    result = toy().localize(torch.randn(2, 3, 32, 32))
    one, two = result.score_maps(every_class(2)), result.score_maps(every_class(2))
    assert torch.equal(one, two)
    assert not one.requires_grad
    assert not result.logits.requires_grad


def test_mixed_precision_does_not_touch_the_maps():
    model, images = toy(), torch.randn(2, 3, 32, 32)
    expected = model.score_maps(images, every_class(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model.score_maps(images, every_class(2))
    assert torch.equal(maps, expected)


def test_the_three_ways_to_join_the_channels_are_in_their_order():
    gradient = torch.randn(2, 3, 8, 8)
    largest, length, total = (saliency(gradient, channel) for channel in ("max", "l2", "sum"))
    assert (largest <= length).all()
    assert (length <= total + 1e-6).all()
    assert (total <= 3 * largest + 1e-6).all()


def test_smoothing_keeps_the_sum_of_a_map_inside_and_spreads_it():
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1.0
    spread = smooth_maps(point, 2.0)[0, 0]
    assert abs(float(spread.sum()) - 1) < 1e-5
    offsets = torch.arange(33) - 16.0
    assert (
        abs(float((spread.sum(dim=0) * offsets.square()).sum()) - 4.0) < 0.15
    )  # the variance; the Gaussian is cut off
    assert smooth_maps(point[..., :4, :4], 50.0).isfinite().all()


def test_proposed_regions_lie_around_the_peaks_of_the_map_and_not_of_the_classifier_s():
    model, images = toy(), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(result.logits.argmax(dim=1, keepdim=True))[:, 0]
    proposals = result.propose()
    half = PEAK_SIDE * 32 / 2
    torch.testing.assert_close(proposals.scores[:, 0], maps.flatten(1).amax(dim=1))
    for one, box in zip(maps, proposals.boxes[:, 0], strict=True):
        row, column = divmod(int(one.argmax()), 32)
        centre = (torch.tensor([column, row]) + 0.5).clamp(half, 32 - half)  # squares stay inside
        torch.testing.assert_close((box[:2] + box[2:]) / 2, centre)
    assert not proposals.scores.requires_grad


def test_a_smoothed_model_gives_the_smoothed_map():
    plain, smooth = toy(), toy(smooth_sigma=1.5)
    smooth.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        smooth.score_maps(images, every_class(1)), smooth_maps(plain.score_maps(images, every_class(1)), 1.5)
    )


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_a_width_that_is_none_is_refused(sigma):
    with pytest.raises(UsageError, match="smooth_sigma"):
        toy(smooth_sigma=sigma)
