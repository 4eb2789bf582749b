"""CAM: the identities that its definition implies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.base.head_localizer import HeadConfig
from reference_models.core.outputs import Batch
from reference_models.layers.heads import ConvHead, FcHead, class_activation_maps
from reference_models.localization.cam import Cam
from tests.reference_models.conftest import toy_backbone

CLASSES = 5
HEADS = ["conv", "conv1x1", "fc"]


def cam(head: str) -> Cam:
    model = Cam(toy_backbone(), CLASSES, HeadConfig(head=head)).eval()
    for (
        parameter
    ) in model.parameters():  # not the near-zero weights of a fresh classifier, on which any identity holds
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(size: int = 4, **changes) -> Batch:
    values = {
        "images": torch.randn(size, 3, 32, 32),
        "labels": torch.arange(size) % CLASSES,
        "indices": torch.arange(size),
        "epoch": 0,
        "epochs": 1,
        "step": 0,
        "generator": torch.Generator().manual_seed(0),
    }
    return Batch(**{**values, **changes})


def all_classes(size: int) -> torch.Tensor:
    return torch.arange(CLASSES).expand(size, CLASSES)


@pytest.mark.parametrize("head", ["conv", "conv1x1"])
def test_the_mean_of_a_convolutional_map_is_the_logit(head):
    result = cam(head).localize(torch.randn(4, 3, 32, 32))
    maps = result.score_maps(all_classes(4))
    assert maps.shape == (4, CLASSES, 8, 8)
    assert torch.equal(maps.mean(dim=(2, 3)), result.logits)


def test_the_mean_of_a_fully_connected_map_plus_the_bias_is_the_logit():
    model = cam("fc")
    result = model.localize(torch.randn(4, 3, 32, 32))
    maps = result.score_maps(all_classes(4))
    torch.testing.assert_close(
        maps.mean(dim=(2, 3)) + model.head.classifier.bias, result.logits, atol=1e-5, rtol=0
    )


def test_a_linear_layer_copied_into_a_1x1_convolution_gives_the_same_map_but_for_the_bias():
    features = torch.randn(3, 16, 8, 8)
    linear, convolution = FcHead(16, CLASSES), ConvHead(16, CLASSES, depth=0)
    with torch.no_grad():
        linear.classifier.weight.normal_()
        linear.classifier.bias.normal_()
        convolution.classifier.weight.copy_(linear.classifier.weight[:, :, None, None])
        convolution.classifier.bias.copy_(linear.classifier.bias)
    one, two = linear(features), convolution(features)
    torch.testing.assert_close(one.logits, two.logits, atol=1e-5, rtol=0)
    maps, shifted = one.maps_of(all_classes(3)), two.maps_of(all_classes(3))
    torch.testing.assert_close(maps + linear.classifier.bias[None, :, None, None], shifted, atol=1e-5, rtol=0)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    shifted_low, shifted_high = shifted.amin((2, 3), keepdim=True), shifted.amax((2, 3), keepdim=True)
    torch.testing.assert_close(
        (maps - low) / (high - low), (shifted - shifted_low) / (shifted_high - shifted_low), atol=1e-5, rtol=0
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(-7, 7), st.integers(-7, 7))
def test_maps_roll_with_the_features(down, right):
    features, weight = torch.randn(2, 16, 8, 8), torch.randn(CLASSES, 16)
    maps = class_activation_maps(features, weight, all_classes(2))
    rolled = class_activation_maps(features.roll((down, right), dims=(2, 3)), weight, all_classes(2))
    torch.testing.assert_close(rolled, maps.roll((down, right), dims=(2, 3)))


@pytest.mark.parametrize("head", HEADS)
def test_maps_of_several_classes_are_the_maps_of_each(head):
    model, images = cam(head), torch.randn(3, 3, 32, 32)
    asked = torch.tensor([[4, 0], [1, 1], [2, 3]])
    together = model.score_maps(images, asked)
    for column in range(2):
        torch.testing.assert_close(
            model.score_maps(images, asked[:, column : column + 1])[:, 0],
            together[:, column],
            atol=1e-6,
            rtol=0,
        )


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_gives_what_its_images_give_alone(head):
    model, images = cam(head), torch.randn(3, 3, 32, 32)
    together = model.localize(images)
    for number in range(3):
        alone = model.localize(images[number : number + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[number], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            alone.score_maps(all_classes(1))[0],
            together.score_maps(all_classes(3))[number],
            atol=1e-5,
            rtol=1e-5,
        )


def test_the_fully_connected_map_of_two_known_channels_is_the_weighted_sum():
    features = torch.tensor([[[1.0, 2], [3, 4]], [[0, 1], [0, 1]]])[None]
    weight = torch.tensor([[1.0, -2], [0.5, 1]])
    maps = class_activation_maps(features, weight, torch.tensor([[0, 1]]))
    torch.testing.assert_close(maps[0], torch.tensor([[[1.0, 0], [3, 2]], [[0.5, 2], [1.5, 3]]]))
    head = FcHead(2, 2)
    with torch.no_grad():
        head.classifier.weight.copy_(weight)
        head.classifier.bias.copy_(torch.tensor([0.1, -0.2]))
    torch.testing.assert_close(head(features).logits[0], torch.tensor([1.6, 1.55]))


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_the_cross_entropy_of_the_logits_and_reaches_every_parameter(head):
    model = Cam(toy_backbone(), CLASSES, HeadConfig(head=head)).train()
    given_batch = batch()
    terms = model.loss(given_batch)
    expected = F.cross_entropy(model(given_batch.images).logits, given_batch.labels)
    torch.testing.assert_close(sum(terms.values()), expected)
    sum(terms.values()).backward()
    assert [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_fresh_convolutions_are_xavier_uniform_without_bias_and_linear_layers_are_small():
    conv = ConvHead(16, CLASSES, width=32)
    for layer in conv.modules():
        if isinstance(layer, torch.nn.Conv2d):
            receptive = layer.kernel_size[0] ** 2
            bound = (6 / (receptive * (layer.in_channels + layer.out_channels))) ** 0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.abs().max() > 0.9 * bound
            assert not layer.bias.any()
    linear = FcHead(512, 200).classifier
    assert abs(float(linear.weight.detach().std()) - 0.01) < 5e-4


def test_dropout_is_before_every_convolution_and_silent_in_evaluation():
    head = ConvHead(16, CLASSES, width=16, dropout=0.5)
    features = torch.rand(2, 16, 4, 4)
    assert not torch.equal(head(features).logits, head(features).logits)
    assert torch.equal(head.eval()(features).logits, head(features).logits)
    kinds = [type(layer).__name__ for layer in [*head.trunk, head.classifier]]
    assert [kinds[number - 1] for number, kind in enumerate(kinds) if kind == "Conv2d"] == ["Dropout"] * 3
