"""The direction of the descriptors of a set: another implementation, its sign, and boxes of its components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.layers.descriptors import (
    border_excess,
    check_inner_cells,
    largest_box,
    pool_descriptors,
    principal_direction,
)
from wsolbench.exceptions import UsageError

SEEDS = st.integers(0, 2**31)


def drawn(seed: int, count: int = 5, channels: int = 6, side: int = 5) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, side, side + 1, generator=source) + 3


@settings(max_examples=25)
@given(SEEDS)
def test_the_direction_is_that_of_a_decomposition_of_all_cells(seed):
    features = drawn(seed)
    found = principal_direction([features[:2], features[2:3], features[3:]])
    rows = features.double().movedim(1, 3).flatten(0, 2).numpy()
    _, _, axes = np.linalg.svd(rows - rows.mean(axis=0))
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(axis=0))
    assert abs(float(axes[0] @ found.axis.numpy())) == pytest.approx(1)
    heat = found.heat(features)
    np.testing.assert_allclose(heat.numpy().ravel(), (rows - rows.mean(axis=0)) @ found.axis.numpy())
    assert float(heat.mean()) == pytest.approx(0, abs=1e-10)


@settings(max_examples=25)
@given(SEEDS)
def test_the_order_of_the_images_and_their_batches_change_nothing(seed):
    features = drawn(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    one, two = principal_direction([features]), principal_direction(features[order].split(2))
    torch.testing.assert_close(one.mean, two.mean)
    torch.testing.assert_close(one.axis, two.axis)


@settings(max_examples=25)
@given(SEEDS)
def test_negated_turned_and_shifted_features_have_the_same_heat(seed):
    features, source = drawn(seed).double(), torch.Generator().manual_seed(seed)
    heat = principal_direction([features]).heat(features)
    torch.testing.assert_close(principal_direction([-features]).heat(-features), heat)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=source, dtype=torch.float64)).Q
    moved = torch.einsum("cd,bdhw->bchw", turn, features) + 7
    torch.testing.assert_close(principal_direction([moved]).heat(moved), heat, atol=1e-7, rtol=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_object_is_inside_and_the_sign_is_one_for_all_images(sign):
    # Four images have the object in the middle and one at the border.
    features = 0.1 * drawn(0, side=7)
    pattern = torch.randn(6, 1, 1, generator=torch.Generator().manual_seed(1))
    features[:4, :, 2:5, 2:5] += sign * 3 * pattern
    features[4, :, :3, :3] += sign * 3 * pattern
    heat = principal_direction([features]).heat(features)
    assert heat[:4, 2:5, 2:5].min() > 0
    assert heat[4, :3, :3].min() > 0
    assert heat[4, 3:, 3:].max() < 0
    assert border_excess(heat[:, None]).sum() <= 0


def test_the_border_is_compared_with_the_inside():
    values = torch.zeros(1, 2, 4, 5)
    values[:, :, 1:-1, 1:-1] = 2
    values[:, 1] = 5
    assert border_excess(values).tolist() == [[-2, 0]]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_descriptors_have_no_direction(value):
    features = torch.full((3, 4, 5, 5), value)
    found = principal_direction([features])
    assert not found.axis.any()
    assert not found.heat(features).any()
    # Two directions of equal strength.
    cross = torch.zeros(1, 2, 4, 4)
    cross[0, 0, 0, :2] = cross[0, 1, 3, :2] = torch.tensor([1.0, -1.0])
    assert not principal_direction([cross]).axis.any()


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        principal_direction([])


def grown(heat: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """Components of positive cells by a walk over eight neighbours."""
    left, found = set(zip(*np.nonzero(heat > 0), strict=True)), set()
    while left:
        edge, inside = [left.pop()], set()
        while edge:
            y, x = edge.pop()
            inside.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.add(frozenset(inside))
    return found


@settings(max_examples=60)
@given(SEEDS, st.floats(-1, 1))
def test_the_box_is_that_of_a_largest_component_in_whole_cells(seed, shift):
    heat = np.random.default_rng(seed).normal(size=(7, 14)) + shift
    box, components = largest_box(heat), grown(heat)
    if not components:
        assert not box.any()
        return
    most = max(map(len, components))
    boxes = []
    for cells in components:
        rows, columns = zip(*cells, strict=True)
        if len(cells) == most:
            boxes.append([min(columns), min(rows), max(columns) + 1, max(rows) + 1])
    scaled = box * [14, 7, 14, 7]
    np.testing.assert_allclose(scaled, scaled.round(), atol=1e-12)
    assert scaled.round().tolist() in boxes


def test_cells_that_touch_at_a_corner_are_one_component():
    heat = -np.ones((4, 4))
    heat[0, 0] = heat[1, 1] = heat[3, 3] = 1
    assert largest_box(heat).tolist() == [0, 0, 0.5, 0.5]
    assert largest_box(np.zeros((4, 4))).tolist() == [0, 0, 0, 0]  # positive cells alone


def test_a_finer_grid_is_max_pooled_and_a_coarser_one_stays():
    features = torch.randn(2, 3, 28, 28)
    pooled = torch.nn.functional.max_pool2d(features, 2)
    assert torch.equal(pool_descriptors(features, 14), pooled)
    assert torch.equal(pool_descriptors(features[..., :5, :9], 14), features[..., :5, :9])
    with pytest.raises(UsageError, match=r"method 'psol'.*have 2x9 cells, expected at least 3x3"):
        check_inner_cells(features[..., :2, :9], who="psol")
