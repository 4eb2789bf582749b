"""Kernel-Pooling: weights of a kernel, what they may do, and the scale of the descriptors."""

from __future__ import annotations

import math

import pytest
import torch

from reference_models.core.recipes import RECIPES
from reference_models.layers.second_order import signed_sqrt, unit
from reference_models.recognition.kernel_pooling import (
    KernelPooling,
    KernelPoolingConfig,
    gaussian_weights,
)
from tests.reference_models.conftest import squares, toy_backbone

CLASSES = 3


def model(**settings) -> KernelPooling:
    return KernelPooling(toy_backbone(), CLASSES, KernelPoolingConfig(**{"sketch": 32, **settings})).eval()


def test_the_golden_weights_of_the_gaussian_kernel():
    expected = torch.tensor([1, 1, 0.707107, 0.408248, 0.204124])
    torch.testing.assert_close(gaussian_weights(0.5, 4), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("gamma", "largest"), [(0.25, 2e-4), (0.5, 4e-3), (1.0, 0.06)])
def test_four_orders_are_a_gaussian_kernel_for_small_gamma(gamma, largest):
    inner = torch.linspace(-1, 1, 201)  # of unit vectors: |x - y|^2 = 2 - 2 x.y
    series = sum(alpha**2 * inner**i for i, alpha in enumerate(gaussian_weights(gamma, 4)))
    error = (math.exp(-2 * gamma) * series - torch.exp(-gamma * (2 - 2 * inner))).abs().max()
    assert largest / 4 < error < largest


@pytest.mark.parametrize(
    "settings",
    [{}, {"descriptors": "unit"}, {"order": 2, "lower_orders": False}, {"order": 3, "sketch": 31}],
    ids=str,
)
def test_the_mean_of_a_class_s_map_and_its_bias_make_its_score(settings):
    net, images = model(**settings), torch.randn(3, 3, 32, 32)
    net.scale.fill_(2.0)
    result = net.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + net.classifier.bias, result.logits, atol=1e-5, rtol=0)


def test_a_common_factor_of_the_weights_changes_nothing():
    net, x = model(), 10 * torch.rand(2, 16, 4, 4)
    before = net.represent((x,)).vector
    (before * torch.randn(before.shape)).sum().backward()
    each = net.weights * net.weights.grad
    assert each.sum().abs() < 1e-3 * each.abs().max()
    with torch.no_grad():
        net.weights.mul_(3)
    torch.testing.assert_close(net.represent((x,)).vector, before, atol=2e-3, rtol=0)


def test_the_first_order_alone_is_the_mean_descriptor():
    net, x = model(), torch.rand(2, 16, 4, 4)
    with torch.no_grad():
        net.weights.copy_(torch.tensor([0.0, 1, 0, 0, 0]))
    expected = unit(signed_sqrt(x.mean(dim=(2, 3))))
    vector = net.represent((x,)).vector
    torch.testing.assert_close(vector[:, 1:17], expected)
    assert not vector[:, 17:].any()


def test_inner_products_of_pooled_vectors_are_the_kernel_on_average():
    x, y = torch.randn(2, 1, 16, 1, 1, generator=torch.Generator().manual_seed(0)) / 4
    drawn = []
    for seed in range(100):
        net = model(order=3, sketch=256, hash_seed=seed)
        pooled = []
        for each in (x, y):
            descriptors = net.descriptors(each)
            orders = [torch.ones(1, 1), descriptors.mean(dim=1), *net.sketches.pooled(descriptors)]
            pooled.append(torch.cat([a * o for a, o in zip(net.weights, orders, strict=True)], dim=1))
        drawn.append((pooled[0] * pooled[1]).sum().detach())
    inner = float((x * y).sum())
    expected = sum(float(alpha) ** 2 * inner**i for i, alpha in enumerate(gaussian_weights(1.0, 3)))
    values = torch.stack(drawn)
    assert abs(values.mean() - expected) < 4 * values.std() / 10


def test_the_mean_inner_product_of_descriptors_becomes_one_and_is_measured_once():
    net, train = model(), squares(12)
    net.before_training(train)
    scale = net.scale.clone()
    images = torch.stack([torch.from_numpy(sample.image().copy()) for sample in train.samples])
    spec = net.input_spec
    normal = (images / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    x = net.descriptors(net.backbone.run(normal.permute(0, 3, 1, 2).float())).flatten(0, 1)
    torch.testing.assert_close((x @ x.T).mean().item(), 1.0, atol=1e-3, rtol=0)
    torch.nn.init.normal_(net.backbone.steps["one"][0].weight)
    net.before_training(train)  # a resumed run
    assert torch.equal(net.scale, scale)


def test_the_weights_of_the_orders_do_not_decay():
    groups = {group["name"]: group for group in model().parameter_groups(RECIPES["finetune"])}
    assert groups["orders"]["weight_decay"] == 0
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model().parameters()))


def test_sizes_are_those_of_the_paper():
    vgg = KernelPooling.create(backbone="vgg16", num_classes=2, weights="none", settings={}, image_size=32)
    assert vgg.classifier.in_features == 12_801
    compact = KernelPooling.create(
        backbone="vgg16", num_classes=2, weights="none", settings={"variant": "compact"}, image_size=32
    )
    assert (compact.classifier.in_features, compact.weights) == (8192, None)
