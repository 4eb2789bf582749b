"""What post-processes share: which features they get, on which grid, and how many images at a time."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.core.outputs import ForwardPass
from reference_models.layers import correlation
from reference_models.layers.correlation import (
    map_chunks,
    pool_to_one_grid,
    resize_to_grid,
    select_features,
    symmetric_product,
    unit_pixels,
)
from wsolbench.exceptions import UsageError


def result(stages: int = 3, *, penultimate: bool = True) -> ForwardPass:
    return ForwardPass(
        logits=None,
        maps_of=lambda class_ids: torch.zeros(*class_ids.shape, 2, 2),
        stages=OrderedDict(
            (f"s{number}", torch.full((1, 1, 2, 2), float(number))) for number in range(stages)
        ),
        penultimate=torch.full((1, 1, 2, 2), 9.0) if penultimate else None,
    )


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("-1",), [2]),
        (("-2", "-1"), [1, 2]),
        (("-1", "-3"), [2, 0]),
        (("penultimate",), [9]),
        (("-1", "penultimate"), [2, 9]),
    ],
    ids=str,
)
def test_features_are_counted_from_the_last_stage(names, values):
    assert [int(features.max()) for features in select_features(result(), names, who="x")] == values


@pytest.mark.parametrize(
    ("given_result", "names", "message"),
    [
        (result(2), ("-3",), "3 feature stages"),
        (result(penultimate=False), ("penultimate",), "last linear layer"),
    ],
)
def test_features_that_a_method_has_not_are_named(given_result, names, message):
    with pytest.raises(UsageError, match=f"'x' needs.*{message}"):
        select_features(given_result, names, who="x")


def test_features_with_a_graph_are_refused():
    trained = result()
    trained.stages["s2"].requires_grad_()
    assert len(select_features(trained, ("-3", "-2"), who="x")) == 2
    with pytest.raises(RuntimeError, match="localize"):
        select_features(trained, ("-2", "-1"), who="x")


def test_the_coarsest_grid_is_that_of_all_and_cells_are_averaged():
    fine, coarse = torch.randn(2, 3, 8, 6), torch.randn(2, 5, 4, 3)
    one, two = pool_to_one_grid([fine, coarse])
    torch.testing.assert_close(one, fine.reshape(2, 3, 4, 2, 3, 2).mean((3, 5)))
    assert two is coarse


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_to_a_finer_grid_the_filter_is_plain_bilinear(height, width, seed):
    maps = torch.randn(2, 2, height, width, generator=torch.Generator().manual_seed(seed))
    plain = F.interpolate(maps, (2 * height + 1, 2 * width), mode="bilinear")
    torch.testing.assert_close(resize_to_grid(maps, 2 * height + 1, 2 * width), plain)
    assert resize_to_grid(maps, height, width) is maps


def test_to_a_coarser_grid_no_pixel_is_left_out():
    for pixel in range(36):
        maps = torch.zeros(36)
        maps[pixel] = 1.0
        assert resize_to_grid(maps.reshape(1, 1, 6, 6), 2, 2).sum() > 0


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_pixels_have_length_1_row_by_row_and_zeros_stay(scale):
    features = scale * torch.randn(2, 5, 3, 4, dtype=torch.bfloat16)
    features[0, :, 1, 2] = 0
    pixels = unit_pixels(features)
    assert pixels.dtype == torch.float32
    lengths = pixels.norm(dim=2)
    assert lengths[0, 6] == 0
    lengths[0, 6] = 1
    torch.testing.assert_close(lengths, torch.ones(2, 12))
    torch.testing.assert_close(pixels[1, 7], F.normalize(features[1, :, 1, 3].float(), dim=0))


@pytest.mark.parametrize("rows", [1, 4, 7, 20])
def test_a_symmetric_product_is_that_of_all_its_rows_and_columns(rows, monkeypatch):
    monkeypatch.setattr(correlation, "BLOCK_ROWS", rows)
    pixels = torch.randn(2, 21, 5)
    product = symmetric_product(pixels, pixels.mT)
    torch.testing.assert_close(product, pixels @ pixels.mT)
    torch.testing.assert_close(symmetric_product(product, product), product @ product)


@pytest.mark.parametrize(("budget", "sizes"), [(1, [1] * 5), (250, [2, 2, 1]), (500, [5])])
def test_chunks_are_as_large_as_the_memory_allows_and_in_order(monkeypatch, budget, sizes):
    monkeypatch.setattr(correlation, "CHUNK_BYTES", {"cpu": budget})
    features, coarse = [torch.randn(5, 3, 2, 2), torch.randn(5, 4, 2, 2)], torch.randn(5, 1, 2, 2)
    seen = []

    def compute(some: list[torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
        seen.append(len(maps))
        return maps + sum(each.sum(1, keepdim=True) for each in some)

    torch.testing.assert_close(map_chunks(compute, features, coarse, 100), compute(features, coarse))
    assert seen[:-1] == sizes
