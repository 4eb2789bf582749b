"""Shapes from numbers: their masks, their boxes, and the network that draws them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.layers.shapes import (
    ShapeNet,
    count_numbers,
    dice_loss,
    half_extents,
    shape_boxes,
    shape_distance,
    shape_mask,
    train_shape_net,
)

UNIT = st.floats(0.05, 0.95)
SHAPES = ["ellipse", "rect", "rot_rect"]


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def outline(wide: float, high: float, angle: float, shape: str, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (dx, dy) around the centre, on the outline of a shape that is turned by `angle`."""
    turn = torch.linspace(0, 2 * math.pi, count, dtype=torch.float64)
    along, across = turn.cos(), turn.sin()
    if shape != "ellipse":
        # Exact corners: the longest of the two coordinates is 1.
        length = torch.maximum(along.abs(), across.abs())
        along, across = (
            torch.cat([part / length, torch.tensor(corners)]) for part, corners in ((along, [1.0, 1, -1, -1]), (across, [1.0, -1, 1, -1]))
        )
    along, across = along * wide / 2, across * high / 2
    return along * math.cos(angle) + across * math.sin(angle), along * math.sin(angle) - across * math.cos(angle)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_in_the_middle_on_the_outline_and_at_distance_2(shape):
    five = (0.5,) * (count_numbers(shape) - 4)
    mask = shape_mask(numbers(0.5, 0.5, 0.4, 0.4, *five), shape, (5, 5), 10.0)[0]
    torch.testing.assert_close(mask[2, 2], torch.tensor(0.968274), atol=1e-4, rtol=0)
    torch.testing.assert_close(mask[2, [1, 3]], torch.full((2,), 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(mask[[1, 3], 2], torch.full((2,), 0.5), atol=1e-5, rtol=0)
    twice = shape_mask(numbers(0.5, 0.5, 0.4 / math.sqrt(2), 0.9, *five), shape, (5, 5), 10.0)[0]
    torch.testing.assert_close(twice[2, 3], torch.tensor(0.031726), atol=1e-4, rtol=0)


@settings(max_examples=40)
@given(UNIT, UNIT, UNIT, UNIT, UNIT, st.sampled_from(SHAPES), st.floats(0.5, 50))
def test_masks_lie_between_0_and_1_and_are_one_half_on_the_outline(x, y, wide, high, angle, shape, sharpness):
    values = numbers(x, y, wide, high, angle)[:, : count_numbers(shape)]
    distance, mask = shape_distance(values, shape, (16, 20)), shape_mask(values, shape, (16, 20), sharpness)
    assert mask.min() > 0
    assert mask.max() < 1
    torch.testing.assert_close(mask, 0.5 - torch.atan(sharpness * (distance - 1)) / math.pi, atol=1e-6, rtol=0)
    assert ((mask > 0.5) == (distance < 1)).all()


@settings(max_examples=40)
@given(UNIT, UNIT, UNIT, UNIT, UNIT, st.sampled_from(SHAPES))
def test_points_of_the_outline_have_distance_1(x, y, wide, high, angle, shape):
    turn = 0.0 if shape == "rect" else math.pi * (angle - 0.5)
    for dx, dy in torch.stack(outline(wide, high, turn, shape, 7), dim=1).tolist():
        # The only pixel of an image of one pixel lies at (1/2, 1/2).
        values = numbers(0.5 - dx, 0.5 - dy, wide, high, angle)[:, : count_numbers(shape)]
        assert abs(float(shape_distance(values, shape, (1, 1))) - 1) < 1e-3


@settings(max_examples=40)
@given(UNIT, UNIT, UNIT, st.sampled_from(SHAPES))
def test_the_upright_box_is_the_extent_of_the_outline(wide, high, angle, shape):
    turn = 0.0 if shape == "rect" else math.pi * (angle - 0.5)
    expected = torch.stack([part.abs().max() for part in outline(wide, high, turn, shape)])
    values = numbers(0.5, 0.5, wide, high, angle)[:, : count_numbers(shape)]
    torch.testing.assert_close(half_extents(values, shape)[0].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("wide", "high", "angle", "expected"),
    [(0.6, 0.3, 0.5, (0.3, 0.15)), (0.6, 0.3, 0.75, (0.237171, 0.237171)), (0.8, 0.2, 0.6, (0.381676, 0.155961))],
)
def test_half_extents_of_three_known_ellipses(wide, high, angle, expected):
    torch.testing.assert_close(half_extents(numbers(0.5, 0.5, wide, high, angle), "ellipse")[0], torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", ["ellipse", "rot_rect"])
def test_half_a_turn_changes_nothing_and_a_quarter_swaps_the_sides(shape):
    values = numbers(0.4, 0.6, 0.7, 0.2, 0.3)
    half, quarter = values.clone(), numbers(0.4, 0.6, 0.2, 0.7, 0.8)
    half[0, 4] += 1
    for other in (half, quarter):
        torch.testing.assert_close(
            shape_mask(other, shape, (12, 12), 10.0), shape_mask(values, shape, (12, 12), 10.0), atol=1e-4, rtol=1e-4
        )


def test_a_turned_rectangle_without_an_angle_is_the_upright_one():
    upright, turned = numbers(0.4, 0.6, 0.7, 0.2), numbers(0.4, 0.6, 0.7, 0.2, 0.5)
    torch.testing.assert_close(shape_mask(turned, "rot_rect", (9, 9), 10.0), shape_mask(upright, "rect", (9, 9), 10.0))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_is_that_of_the_pixels_inside_and_is_cut_off_at_the_border(shape):
    values = numbers(0.55, 0.35, 0.5, 0.3, 0.7)[:, : count_numbers(shape)]
    rows, columns = (shape_distance(values, shape, (200, 400))[0] <= 1).nonzero(as_tuple=True)
    found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (shape_boxes(values, shape, (200, 400))[0] - found).abs().max() <= 2.5
    values[0, :2] = 0.95
    assert shape_boxes(values, shape, (200, 400))[0, 2:].tolist() == [400, 200]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_without_extent_have_finite_masks_and_gradients(shape):
    values = torch.zeros(2, count_numbers(shape), requires_grad=True)
    mask = shape_mask(values, shape, (8, 8), 10.0)
    mask.sum().backward()
    assert mask.isfinite().all()
    assert values.grad.isfinite().all()


def test_the_dice_loss_of_equal_and_of_separate_masks():
    one = torch.zeros(1, 20, 20)
    one[0, 3:9, 4:12] = 1
    assert dice_loss(one, one) == 0
    assert dice_loss(torch.zeros_like(one), torch.zeros_like(one)) == 0
    assert dice_loss(one, one.flip(1)) > 0.9
    half = one.clone()
    half[0, 3:6] = 0
    assert abs(float(dice_loss(half, one)) - (1 - 2 * 24 / 72)) < 0.01


def test_the_network_draws_224_pixels_or_the_size_that_is_asked_for():
    net = ShapeNet(4)
    drawn = net(torch.rand(2, 4), (224, 224))
    assert drawn.shape == (2, 224, 224)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert net(torch.rand(2, 4), (32, 48)).shape == (2, 32, 48)


def test_training_the_network_moves_it_once_and_leaves_it_frozen():
    net = ShapeNet(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train_shape_net(net, "ellipse", steps=2, batch_size=2, lr=0.1)
    after = {name: value.clone() for name, value in net.state_dict().items()}
    assert net.steps_done == 2
    assert all(not torch.equal(before[name], after[name]) for name in after)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in net.parameters())
    train_shape_net(net, "ellipse", steps=2, batch_size=2, lr=0.1)
    assert all(torch.equal(value, after[name]) for name, value in net.state_dict().items())
