"""Where-to-Look: what its own choices weigh. The fusion loss on any grid, the first gain of (9), the axis of
(1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.localization import caam as module
from reference_models.localization.caam import (
    Caam,
    CaamConfig,
    ChannelAttention,
    channel_attention,
    fusion_loss,
)
from tests.reference_models.conftest import toy_backbone, toy_batch


@pytest.mark.parametrize(("side", "cells"), [(16, 16), (32, 64), (56, 196), (64, 256), (112, 784)])
def test_a_distance_of_maps_weighs_the_same_on_every_grid(side, cells, monkeypatch):
    """On 8 x 8 cells the mean alone would weigh 50 / 64 = 0.78, on the paper's 14 x 14 it is 50 / 196 =
    0.26."""
    seen = []
    monkeypatch.setattr(module, "fusion_loss", lambda *maps: seen.append(maps) or fusion_loss(*maps))
    model, given_batch = Caam(toy_backbone(), 3, CaamConfig()), toy_batch(2, classes=3)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    term = model.loss(replace(given_batch, images=images))["fusion"]
    ((first, second, _),) = seen
    assert first[0].numel() == cells
    torch.testing.assert_close(term, 50 / 196 * fusion_loss(first, second, "sum"))


def test_the_sum_is_weighed_by_beta_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "fusion_loss", lambda *maps: seen.append(maps) or fusion_loss(*maps))
    term = Caam(toy_backbone(), 3, CaamConfig(fuse_reduction="sum")).loss(toy_batch(2, classes=3))["fusion"]
    torch.testing.assert_close(term, 50 * fusion_loss(*seen[0]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"agg_width": "256"},
        {"agg_kernel": "1"},
        {"agg_relu": "false"},
        {"caam": "false"},
        {"ssam": "false"},
        {"caam": "false", "ssam": "false"},
        {"agg_conv": "shared"},
    ],
)
def test_the_convolution_starts_with_a_gain_of_1(settings):
    """He's initial weights by fan-out had 2.2, or 4.5 with 256 channels: they were made for F and are given
    2F."""
    model = Caam.create(backbone="efficientnet_lite0", num_classes=4, weights="none", settings=settings)
    features = torch.randn(4, 1280, 8, 8).relu()
    for view, attended in enumerate(model.add_attention(features, features)):
        bound = model.bind(attended, view)[..., 1:-1, 1:-1]  # a cell at the border sees zeros
        assert float(
            bound.detach().square().mean().sqrt() / features.square().mean().sqrt()
        ) == pytest.approx(1, abs=0.05)


@given(st.integers(0, 99), st.sampled_from(["softmax_ET", "transpose"]))
def test_by_columns_each_channel_is_a_weighted_mean_of_the_other_view_s(seed, q_tilde):
    first, second = 3 * torch.randn(
        2, 2, 6, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    product = first @ second.mT
    q = product.exp() / product.exp().sum(dim=1, keepdim=True)
    one, two = channel_attention(first, second, q_tilde, "column")
    torch.testing.assert_close(one, q.mT @ second, atol=1e-4, rtol=1e-4)
    assert (one <= second.amax(dim=1, keepdim=True) + 1e-4).all()
    assert (one >= second.amin(dim=1, keepdim=True) - 1e-4).all()
    other = product.mT.exp() / product.mT.exp().sum(dim=1, keepdim=True) if q_tilde == "softmax_ET" else q.mT
    torch.testing.assert_close(two, other.mT @ first, atol=1e-4, rtol=1e-4)


def test_by_rows_one_channel_can_collect_all_others_and_by_columns_it_cannot():
    first = torch.rand(1, 40, 9)
    second = torch.rand(1, 40, 9)
    second[:, 7] = 30  # every channel of the first view turns to this one
    rows, columns = (channel_attention(first, second, "softmax_ET", axis)[0] for axis in ("row", "column"))
    torch.testing.assert_close(rows[0, 7], second[0].sum(dim=0), atol=1e-3, rtol=0)
    assert rows[0, :7].abs().max() < 1e-3
    assert columns[0].max() <= 30.001


def test_the_axis_is_a_setting_of_the_method():
    model = Caam.create(
        backbone="tiny", num_classes=3, weights="none", settings={"q_axis": "column"}, image_size=32
    )
    assert (model.config.q_axis, model.channel.axis, Caam.Config().q_axis) == ("column", "column", "row")
    assert "q_axis" not in CaamConfig.at_test
    gates = ChannelAttention("softmax_ET", "column"), ChannelAttention("softmax_ET")
    for part in gates:
        torch.nn.init.ones_(part.scale)
    features = torch.rand(2, 8, 4, 4), torch.rand(2, 8, 4, 4)
    assert not torch.allclose(gates[0](*features)[0], gates[1](*features)[0])
    weights = channel_attention(*(f.flatten(2) for f in features), "softmax_ET", "column")[0].view(2, 8, 4, 4)
    torch.testing.assert_close(gates[0](*features)[0], features[0] + weights)
