"""iSQRT-COV: the root of the covariance, and maps that add up to the score."""

from __future__ import annotations

import pytest
import torch

from reference_models.recognition.isqrt_cov import IsqrtCov, IsqrtCovConfig
from tests.reference_models.conftest import toy_backbone

CLASSES = 4


def model(**settings) -> IsqrtCov:
    net = IsqrtCov(toy_backbone(), CLASSES, IsqrtCovConfig(**{"reduced": 6, **settings})).eval()
    torch.nn.init.normal_(net.classifier.weight)
    return net


@pytest.mark.parametrize("settings", [{}, {"iterations": 12}, {"pre": "frobenius"}], ids=str)
def test_the_mean_of_a_class_s_map_and_its_bias_make_its_score(settings):
    net, images = model(**settings), torch.randn(3, 3, 32, 32)
    result = net.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(
        maps.mean(dim=(2, 3)) + net.classifier.bias, result.logits, atol=1e-4, rtol=1e-4
    )


def test_with_enough_steps_the_vector_is_the_root_of_the_covariance():
    net, x = model(iterations=20), 3 * torch.randn(2, 16, 5, 5)
    reduced = net.reduce(x).flatten(2)
    for image in range(2):
        values, vectors = torch.linalg.eigh(torch.cov(reduced[image], correction=0))
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        rows, columns = torch.triu_indices(6, 6)
        torch.testing.assert_close(
            net.represent((x,)).vector[image], root[rows, columns], atol=2e-3, rtol=1e-3
        )


def test_it_ignores_where_cells_are_and_grows_with_the_features():
    net, x = model(), torch.randn(2, 16, 4, 4)
    vector = net.represent((x,)).vector
    shuffled = x.flatten(2)[..., torch.randperm(16)].view_as(x)
    torch.testing.assert_close(net.represent((shuffled,)).vector, vector, atol=1e-5, rtol=1e-4)
    net.reduce[1].bias.data.zero_()
    torch.testing.assert_close(
        net.represent((3 * x,)).vector, 3 * net.represent((x,)).vector, atol=1e-4, rtol=1e-4
    )


def test_constant_features_give_zero():
    net, x = model(), torch.ones(2, 16, 4, 4, requires_grad=True)
    representation = net.represent((x,))
    assert representation.vector.abs().max() < 1e-5
    representation.vector.sum().backward()
    assert x.grad.isfinite().all()
    assert representation.maps_of(torch.randn(2, 1, 21)).isfinite().all()


def test_the_last_stage_has_stride_one_and_the_covariance_256_channels():
    assert IsqrtCov.grid_for("resnet50", IsqrtCovConfig()) == "std14"
    net = IsqrtCov.create(backbone="resnet50", num_classes=2, weights="none", settings={}, image_size=64)
    assert net.classifier.in_features == 32_896
    assert net.localize(torch.randn(1, 3, 64, 64)).score_maps(torch.tensor([[0]])).shape[2:] == (4, 4)
