"""HIHCA: polynomials of stacked layers, their first weights, and maps."""

from __future__ import annotations

import pytest
import torch

from reference_models.core.pooled_recipes import POOLED
from reference_models.core.weights import Weights
from reference_models.layers.products import pooled_products
from reference_models.layers.second_order import second_moment, signed_sqrt, unit
from reference_models.recognition.hbp import Hbp, HbpConfig
from reference_models.recognition.hihca import Hihca, HihcaConfig, random_signs
from tests.reference_models.conftest import toy_backbone
from wsolbench.exceptions import UsageError

CLASSES = 4


def model(**settings) -> Hihca:
    return Hihca(toy_backbone(), CLASSES, HihcaConfig(**{"width": 24, **settings})).eval()


def layers(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 12, 3, 4), torch.rand(count, 16, 3, 4)


def test_degree_two_is_a_form_of_the_second_moment():
    net, given = model(), layers()
    one, two = net.factors["2"]
    moment = second_moment(torch.cat([0.5 * given[0], given[1]], dim=1).flatten(2))
    expected = unit(signed_sqrt(torch.einsum("ki,bij,kj->bk", one, moment, two)))
    torch.testing.assert_close(net.represent(given).vector, expected, atol=1e-5, rtol=1e-4)


def test_products_mix_the_layers():
    net, (first, second) = model(), layers()

    def pooled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = net.stack((a, b))
        return torch.stack([u @ x for u in net.factors["2"]]).prod(dim=0).mean(dim=2)

    zero = torch.zeros_like
    mixed = pooled(first, second) - pooled(first, zero(second)) - pooled(zero(first), second)
    (u1, u2), eta = net.factors["2"], net.scales
    a, b = eta[0] * first.flatten(2), eta[1] * second.flatten(2)
    expected = ((u1[:, :12] @ a) * (u2[:, 12:] @ b) + (u1[:, 12:] @ b) * (u2[:, :12] @ a)).mean(dim=2)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-4)
    assert mixed.abs().max() > 1e-3


@pytest.mark.parametrize("degree", [2, 3])
def test_inner_products_have_the_expectation_of_the_scale(degree):
    x, y = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(1)).double()
    inner, width = (x * y).sum(), 40
    for alone in (True, False):
        drawn = []
        for _ in range(400):
            u = random_signs(degree, width, 5, alone=alone).double()
            drawn.append(((u @ x[0]).prod(dim=0) * (u @ y[0]).prod(dim=0)).sum())
        values = torch.stack(drawn)
        expected = inner**degree * (width ** (1 - degree) if alone else 1)
        assert (values.mean() - expected).abs() < 4 * values.std() / 20


def test_equal_factors_give_no_negative_value_and_their_order_does_not_matter():
    net, given = model(), layers()
    before = net.represent(given).vector
    with torch.no_grad():
        net.factors["2"].copy_(net.factors["2"].flip(0))
    torch.testing.assert_close(net.represent(given).vector, before)
    with torch.no_grad():
        net.factors["2"][0] = net.factors["2"][1]
    assert net.represent(given).vector.min() >= 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"degrees": (1, 2, 3)},
        {"layers": 1},
        {"variant": "official"},
        {"variant": "official", "degrees": (1, 2)},
    ],
    ids=str,
)
def test_the_mean_of_a_class_s_map_and_its_bias_make_its_score(settings):
    net, images = model(**settings), torch.randn(3, 3, 32, 32)
    result = net.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(maps.mean(dim=(2, 3)) + net.classifier.bias, result.logits, atol=1e-5, rtol=0)


def test_the_released_variant_sums_products_and_averages_the_descriptors():
    net, given = model(variant="official", degrees=(1, 2)), layers()
    x = torch.cat([0.5 * given[0], given[1]], dim=1).flatten(2)
    one, two = net.factors["2"]
    assert one.abs().unique().item() == pytest.approx(24**-0.5)  # not 24 ** -0.25
    pooled = torch.cat([x.mean(dim=2), ((one @ x) * (two @ x)).sum(dim=2)], dim=1)
    root = pooled.sign() * pooled.abs().sqrt()
    torch.testing.assert_close(net.represent(given).vector, root / root.norm(dim=1, keepdim=True))


def test_the_scales_have_ten_times_the_rate_and_the_decay_of_the_other_new_numbers():
    backbone = toy_backbone()
    backbone.weights = Weights("file", "0" * 64)
    net = Hihca(backbone, CLASSES, HihcaConfig(width=24, recipe="hihca"))
    groups = {group["name"]: group for group in net.parameter_groups(POOLED["hihca"])}
    assert (groups["scales"]["factor"], groups["scales"]["weight_decay"]) == (10, 5e-6)
    assert groups["new weights"]["weight_decay"] == 5e-6


def test_one_layer_of_scale_one_is_hbp_on_that_layer_without_bias():
    net, (_, x) = model(layers=1), layers()
    hbp = Hbp(toy_backbone(), CLASSES, HbpConfig(width=24))
    one, two = net.factors["2"]
    hbp.projections[0].weight.data, hbp.projections[1].weight.data = one.data, two.data
    (pair,) = hbp.factors((x, x))
    torch.testing.assert_close(net.represent((x,)).vector, unit(signed_sqrt(pooled_products(pair))))


def test_layers_and_degrees_are_checked():
    with pytest.raises(UsageError, match=r"layers=3 of method 'hihca': toy has 2 layers .* at most 2"):
        model(layers=3)
    for degrees in ((), (2, 2), (3, 2)):
        with pytest.raises(UsageError, match=r"degrees .*expected different degrees in ascending order"):
            HihcaConfig(degrees=degrees)
    with pytest.raises(UsageError, match=r"degrees of method 'hihca' is .*9"):
        HihcaConfig(degrees=(9,))
    with pytest.raises(UsageError, match="method 'hihca' needs the role 'last-layers'"):
        Hihca.create(backbone="timm:resnet18", num_classes=2, weights="none", settings={}, image_size=64)
