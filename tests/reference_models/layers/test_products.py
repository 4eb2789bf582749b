"""Pooled products of projections: forms of rank one, chunks, maps."""

from __future__ import annotations

import torch

from reference_models.layers import products
from reference_models.layers.products import Factor, pooled_products, product_maps


def factors(width: int = 6) -> list[Factor]:
    one, two = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    return [
        Factor(one, torch.randn(width, 3, dtype=torch.float64)),
        Factor(two, torch.randn(width, 4, dtype=torch.float64)),
    ]


def test_a_product_of_two_is_a_form_of_rank_one():
    one, two = factors()
    moment = torch.einsum("bil,bjl->bij", one.features, two.features) / 5
    expected = torch.einsum("ki,bij,kj->bk", one.weight, moment, two.weight)
    torch.testing.assert_close(pooled_products([one, two]), expected)
    torch.testing.assert_close(pooled_products([two, one]), expected)


def test_biases_are_added_before_the_product():
    one, two = factors()
    bias = torch.randn(6, dtype=torch.float64)
    with_bias = Factor(one.features, one.weight, bias)
    expected = pooled_products([one, two]) + bias * (two.weight @ two.features).mean(dim=2)
    torch.testing.assert_close(pooled_products([with_bias, two]), expected)


def test_chunks_change_nothing_and_maps_have_the_pooled_values_as_their_mean(monkeypatch):
    pair, weights = factors(), torch.randn(2, 3, 6, dtype=torch.float64)
    whole, maps = pooled_products(pair), product_maps(weights, pair)
    monkeypatch.setattr(products, "CHUNK", 4)
    torch.testing.assert_close(pooled_products(pair), whole)
    torch.testing.assert_close(product_maps(weights, pair), maps)
    torch.testing.assert_close(maps.mean(dim=2), (weights * whole[:, None]).sum(dim=2))
