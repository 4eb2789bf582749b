"""B-CNN: the mean outer product, what it ignores, and its maps."""

from __future__ import annotations

import pytest
import torch

from reference_models.layers.second_order import EPS
from reference_models.recognition.b_cnn import BCnn, BCnnConfig, outer_product_maps
from tests.reference_models.conftest import toy_backbone

CLASSES = 5


def model(**settings) -> BCnn:
    return BCnn(toy_backbone(), CLASSES, BCnnConfig(**settings)).eval()


def features(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 16, 4, 5)


def test_the_vector_is_the_normalised_mean_outer_product():
    x = features(2)
    found = model().represent((x,)).vector
    for image in range(2):
        phi = torch.zeros(16, 16)
        for row in range(4):
            for column in range(5):
                phi += torch.outer(x[image, :, row, column], x[image, :, row, column]) / 20
        y = (phi + EPS).sqrt() - EPS**0.5
        torch.testing.assert_close(found[image].view(16, 16), y / y.norm())


def test_it_ignores_where_cells_are_and_the_scale_of_the_features():
    x, net = features(), model()
    vector = net.represent((x,)).vector
    shuffled = x.flatten(2)[..., torch.randperm(20)].view_as(x)
    torch.testing.assert_close(net.represent((shuffled,)).vector, vector)
    torch.testing.assert_close(net.represent((3 * x,)).vector, vector, atol=1e-2, rtol=0)
    order = torch.randperm(16)
    permuted = net.represent((x[:, order],)).vector.view(3, 16, 16)
    torch.testing.assert_close(permuted, vector.view(3, 16, 16)[:, order][:, :, order])


@pytest.mark.parametrize("settings", [{}, {"reduce": 6}, {"sqrtm": 5}], ids=str)
def test_the_mean_of_a_class_s_map_and_its_bias_make_its_score(settings):
    net, images = model(**settings), torch.randn(3, 3, 32, 32)
    result = net.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + net.classifier.bias, result.logits, atol=1e-5, rtol=0)
    # The root of the matrix depends on every location, so its control map would not be the derivative.
    assert ("gradient" in result.extra_maps) == ("sqrtm" not in settings)
    if not settings:
        gradient = result.extra_maps["gradient"]
        assert gradient.mean(dim=(1, 2)).abs().max() < 0.1 * gradient.abs().max()


def test_a_map_is_the_sum_over_pairs_of_channels():
    v, left, right = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3)
    expected = torch.einsum("bkij,bihw,bjhw->bkhw", v, left, right)
    torch.testing.assert_close(outer_product_maps(v, left, right), expected)


def test_the_root_of_the_matrix_squared_is_the_mean_outer_product():
    x = torch.rand(1, 16, 8, 8, dtype=torch.float64)
    net = model(sqrtm=16)
    y = net.represent((x,)).vector.view(16, 16)
    root = y.sign() * (y.abs() + 0) ** 2  # up to a factor, and eps of the signed root
    phi = torch.einsum("il,jl->ij", x[0].flatten(1), x[0].flatten(1)) / 64
    again = root @ root
    torch.testing.assert_close(again / again.norm(), phi / phi.norm(), atol=3e-3, rtol=0)


def test_dead_features_have_a_finite_gradient():
    for x in (torch.zeros(2, 16, 4, 4), torch.rand(2, 16, 4, 4) * (torch.arange(16) < 3)[:, None, None]):
        given = x.clone().requires_grad_()
        representation = model().represent((given,))
        (representation.vector * torch.randn(256)).sum().backward()
        assert given.grad.isfinite().all()
        assert representation.maps_of(torch.randn(2, 1, 256)).isfinite().all()


def test_wide_networks_are_reduced_and_vgg16_is_not():
    def width(name: str) -> int:
        with torch.device("meta"):
            made = BCnn.create(backbone=name, num_classes=2, weights="none", settings={}, image_size=32)
        return made.classifier.in_features

    assert (width("vgg16"), width("resnet50")) == (512 * 512, 256 * 256)
