"""Shapes from numbers: their masks, their boxes, and the network that draws them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.localization.gc_net.shapes import (
    ShapeNet,
    count_numbers,
    dice_loss,
    draw_shapes,
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


def outline(
    wide: float, high: float, angle: float, shape: str, count: int = 4000
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (dx, dy) around the centre, on the outline of a shape that is turned by `angle`."""
    turn = torch.linspace(0, 2 * math.pi, count, dtype=torch.float64)
    along, across = turn.cos(), turn.sin()
    if shape != "ellipse":
        # Exact corners: the longest of the two coordinates is 1.
        length = torch.maximum(along.abs(), across.abs())
        along, across = (
            torch.cat([part / length, torch.tensor(corners)])
            for part, corners in ((along, [1.0, 1, -1, -1]), (across, [1.0, -1, 1, -1]))
        )
    along, across = along * wide / 2, across * high / 2
    return along * math.cos(angle) + across * math.sin(angle), along * math.sin(angle) - across * math.cos(
        angle
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_in_the_middle_on_the_outline_and_at_distance_2(shape):
    five = (0.5,) * (count_numbers(shape) - 4)
    mask = shape_mask(numbers(0.5, 0.5, 0.4, 0.4, *five), shape, (5, 5), 10.0)[0]
    torch.testing.assert_close(mask[2, 2], torch.tensor(0.968274), atol=1e-4, rtol=0)
    torch.testing.assert_close(mask[2, [1, 3]], torch.full((2,), 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(mask[[1, 3], 2], torch.full((2,), 0.5), atol=1e-5, rtol=0)
    wide = 0.4 / math.sqrt(2) if shape == "ellipse" else 0.2
    twice = shape_mask(numbers(0.5, 0.5, wide, 0.9, *five), shape, (5, 5), 10.0)[0]
    torch.testing.assert_close(twice[2, 3], torch.tensor(0.031726), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", ["rect", "rot_rect"])
def test_the_mask_of_a_rectangle_at_a_pixel_of_the_released_formula(shape):
    five = (0.5,) * (count_numbers(shape) - 4)
    mask = shape_mask(numbers(0.5, 0.5, 0.5, 0.25, *five), shape, (224, 224), 10.0)[0]
    assert abs(float(mask[112, 150]) - 0.9014) < 5e-5


@settings(max_examples=40)
@given(UNIT, UNIT, UNIT, UNIT, st.floats(1, 50))
def test_the_mask_of_a_rectangle_is_the_released_sum_of_two_absolute_values(x, y, wide, high, sharpness):
    mask = shape_mask(numbers(x, y, wide, high), "rect", (6, 8), sharpness)[0]
    for row in range(6):
        for column in range(8):
            right, down = ((column + 0.5) / 8 - x) / wide, ((row + 0.5) / 6 - y) / high
            distance = abs(right + down) + abs(right - down)
            assert (
                abs(float(mask[row, column]) - (0.5 - math.atan(sharpness * (distance - 1)) / math.pi)) < 1e-4
            )


@settings(max_examples=40)
@given(UNIT, UNIT, UNIT, UNIT, UNIT, st.sampled_from(SHAPES), st.floats(0.5, 50))
def test_masks_lie_between_0_and_1_and_are_one_half_on_the_outline(x, y, wide, high, angle, shape, sharpness):
    values = numbers(x, y, wide, high, angle)[:, : count_numbers(shape)]
    distance, mask = shape_distance(values, shape, (16, 20)), shape_mask(values, shape, (16, 20), sharpness)
    assert mask.min() > 0
    assert mask.max() < 1
    torch.testing.assert_close(
        mask, 0.5 - torch.atan(sharpness * (distance - 1)) / math.pi, atol=1e-6, rtol=0
    )
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
    [
        (0.6, 0.3, 0.5, (0.3, 0.15)),
        (0.6, 0.3, 0.75, (0.237171, 0.237171)),
        (0.8, 0.2, 0.6, (0.381676, 0.155961)),
    ],
)
def test_half_extents_of_three_known_ellipses(wide, high, angle, expected):
    torch.testing.assert_close(
        half_extents(numbers(0.5, 0.5, wide, high, angle), "ellipse")[0],
        torch.tensor(expected),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("shape", ["ellipse", "rot_rect"])
def test_half_a_turn_changes_nothing_and_a_quarter_swaps_the_sides(shape):
    values = numbers(0.4, 0.6, 0.7, 0.2, 0.3)
    half, quarter = values.clone(), numbers(0.4, 0.6, 0.2, 0.7, 0.8)
    half[0, 4] += 1
    for other in (half, quarter):
        torch.testing.assert_close(
            shape_mask(other, shape, (12, 12), 10.0),
            shape_mask(values, shape, (12, 12), 10.0),
            atol=1e-4,
            rtol=1e-4,
        )


def test_a_turned_rectangle_without_an_angle_is_the_upright_one():
    upright, turned = numbers(0.4, 0.6, 0.7, 0.2), numbers(0.4, 0.6, 0.7, 0.2, 0.5)
    torch.testing.assert_close(
        shape_mask(turned, "rot_rect", (9, 9), 10.0), shape_mask(upright, "rect", (9, 9), 10.0)
    )


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


def test_the_dice_loss_has_squares_in_its_sums_and_takes_the_batch_as_one_image():
    drawn, wanted = torch.rand(3, 4, 5), (torch.rand(3, 4, 5) > 0.5).float()
    both = squares = 0.0
    for p, t in zip(drawn.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        both, squares = both + p * t, squares + p * p + t * t
    assert float(dice_loss(drawn, wanted)) == pytest.approx(1 - (2 * both + 1) / (squares + 1), abs=1e-6)
    empty = torch.stack([torch.ones(4, 5), torch.zeros(4, 5)])
    assert float(dice_loss(empty * 0.5, empty)) == pytest.approx(1 - (2 * 10 + 1) / (5 + 20 + 1))


def test_the_network_has_the_released_layers():
    kinds = [type(layer).__name__ for layer in ShapeNet(5).draw]
    block = ["ConvTranspose2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*block, *block, *block, "Upsample", "ConvTranspose2d"]
    shapes = {name: tuple(value.shape) for name, value in ShapeNet(5).named_parameters()}
    assert [shape for name, shape in shapes.items() if len(shape) == 4] == [
        (1, 256, 3, 3),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 1, 4, 4),
    ]
    assert [name for name in shapes if name.endswith("bias")] == [
        "expand.bias",
        "draw.1.bias",
        "draw.4.bias",
        "draw.7.bias",
    ]
    sizes, layer_input = [], torch.rand(1, 1, 12, 12)
    for layer in ShapeNet(5).draw:
        layer_input = layer(layer_input)
        sizes.append(layer_input.shape[-1])
    assert sizes == [14, 14, 14, 28, 28, 28, 56, 56, 56, 112, 224]


def test_the_network_starts_with_the_released_weights():
    draw = ShapeNet(5).draw
    for number, mean in ((0, 0), (1, 1), (3, 0), (4, 1), (6, 0), (10, 0)):
        weight = draw[number].weight.detach()
        assert abs(float(weight.mean()) - mean) < 0.006
        assert 0.015 < float(weight.std()) < 0.025


def test_the_network_gets_corners_of_an_upright_rectangle_and_a_centred_angle_of_others():
    seen = []
    for net, given_numbers in (
        (ShapeNet(4), (0.4, 0.6, 0.2, 0.5)),
        (ShapeNet(5), (0.4, 0.6, 0.2, 0.5, 0.75)),
    ):
        net.expand.register_forward_pre_hook(lambda _layer, arguments: seen.append(arguments[0]))
        net.eval()(numbers(*given_numbers), (224, 224))
    torch.testing.assert_close(seen[0], numbers(0.3, 0.35, 0.5, 0.85))
    torch.testing.assert_close(seen[1], numbers(0.4, 0.6, 0.2, 0.5, 0.25))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_to_learn_from_lie_inside_the_image_and_have_the_released_sizes(shape):
    drawn = draw_shapes(shape, 4000, torch.Generator().manual_seed(3))
    assert drawn.shape == (4000, count_numbers(shape))
    extents = half_extents(drawn, "rect" if shape == "rect" else "rot_rect")
    assert (drawn[:, :2] - extents).min() > -1e-4
    assert (drawn[:, :2] + extents).max() < 1 + 1e-4
    sides = drawn[:, 2:4]
    assert sides.max() <= 0.95 + 1e-6
    if shape == "rect":
        assert sides.min() >= 0.05 - 1e-6
        ratio = sides[:, 1] / sides[:, 0]
        free = (sides > 0.0501).all(1) & (sides < 0.9499).all(1)
        assert 0.2 - 1e-5 <= ratio[free].min() < 0.25
        assert 1.7 < ratio[free].max() <= 1.8 + 1e-5
    else:
        turn, longer = drawn[:, 4], (sides[:, 0] > sides[:, 1]).float().mean()
        assert 0.45 < longer < 0.55
        assert abs(float(turn.mean()) - 0.5) < 0.03
        assert float(turn.std()) == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_the_rate_of_the_network_falls_after_a_sixth_a_third_two_thirds_and_five_sixths(monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def spy(optimizer, *arguments):
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, False)
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train_shape_net(ShapeNet(5), "ellipse", steps=12, batch_size=1, lr=0.1)
    assert rates == pytest.approx([0.1] * 3 + [0.01] * 2 + [1e-3] * 4 + [1e-4] * 2 + [1e-5])


def test_the_network_learns_in_training_mode_and_is_left_in_its_own():
    for mode in (True, False):
        net = ShapeNet(5).train(mode)
        train_shape_net(net, "ellipse", steps=1, batch_size=2, lr=0.1)
        assert net.training == mode
        assert net.draw[1].num_batches_tracked == 1


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
