"""Polar coordinates of cells, and the losses of their prediction: the paper's identities, and recorded
results of the released code."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.layers.polar import (
    PolarConfig,
    SpatialContext,
    angle_gaps,
    angle_loss,
    distance_loss,
    polar_coordinates,
    polar_losses,
    strongest_cell,
)
from tests.oracles.golden import golden
from wsolbench.exceptions import UsageError

OFFICIAL = PolarConfig(scl_form="official", gamma_norm="side", axis="row", ref_cell="forced")
# Row 0, column 1 of a 3 x 3 grid: the reference of the known values below.
REFERENCE = torch.tensor([1])
ELSEWHERE = (torch.arange(9) != 1).float().view(1, 3, 3)
HALF, QUARTER = torch.full((1, 3, 3), 0.5), torch.full((1, 3, 3), 0.25)


def stored(name: str) -> torch.Tensor:
    return torch.from_numpy(golden("lio")[name].copy())


def one_hot_maps(losses, count: int, side: int) -> torch.Tensor:
    """The loss of each cell alone: `losses(weight, image)` for the weights 1 at that cell and 0 elsewhere."""
    weights = torch.eye(side * side).view(-1, side, side)
    return torch.stack([losses(weights, image).view(side, side) for image in range(count)])


# --- (5) ----------------------------------------------------------------------------------------------------


def test_known_distances_and_directions():
    gamma, theta = polar_coordinates(REFERENCE, 3)
    expected = torch.tensor(
        [[0.235702, 0, 0.235702], [0.333333, 0.235702, 0.333333], [0.527046, 0.471405, 0.527046]]
    )
    torch.testing.assert_close(gamma[0], expected, atol=1e-5, rtol=0)
    directions = torch.tensor([[0.5, 0.5, 0], [0.375, 0.25, 0.125], [0.323792, 0.25, 0.176208]])
    torch.testing.assert_close(theta[0], directions, atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(st.integers(2, 12), st.data())
def test_coordinates_are_those_of_the_printed_formula_angles_modulo_one(side, data):
    reference = data.draw(st.integers(0, side * side - 1))
    gamma, theta = polar_coordinates(torch.tensor([reference]), side)
    y, x = divmod(reference, side)
    for v in range(side):
        for u in range(side):
            assert float(gamma[0, v, u]) == pytest.approx(
                math.hypot(x - u, y - v) / (math.sqrt(2) * side), abs=1e-6
            )
            printed = (math.atan2(y - v, x - u) + math.pi) / (2 * math.pi)
            assert float(theta[0, v, u]) == pytest.approx(0.0 if printed == 1.0 else printed, abs=1e-6)
    assert gamma.max() <= (side - 1) / side + 1e-6
    assert theta.min() >= 0
    assert theta.max() < 1


@pytest.mark.parametrize("side", [7, 14, 28])
def test_the_largest_distance_is_that_of_opposite_corners(side):
    gamma, _ = polar_coordinates(torch.tensor([0]), side)
    assert float(gamma[0, -1, -1]) == pytest.approx((side - 1) / side, abs=1e-6)
    assert float(gamma.max()) == float(gamma[0, -1, -1])


def test_angles_of_the_released_axes_run_the_other_way_from_a_quarter_before():
    reference = torch.tensor([17, 0, 48])
    _, theta = polar_coordinates(reference, 7)
    gamma, released = polar_coordinates(reference, 7, gamma_norm="side", axis="row")
    away = gamma > 0
    difference = torch.remainder(released - (0.75 - theta) + 0.5, 1.0) - 0.5
    torch.testing.assert_close(difference[away], torch.zeros_like(difference[away]), atol=1e-6, rtol=0)
    assert released.min() > 0
    assert released.max() <= 1
    assert (released[~away] == 0.5).all()
    assert gamma[1, -1, -1] == pytest.approx(6 * math.sqrt(2) / 7)


# --- (7), (8) -----------------------------------------------------------------------------------------------


def test_known_losses_of_one_prediction():
    gamma, theta = polar_coordinates(REFERENCE, 3)
    gaps = angle_gaps(QUARTER, theta)
    expected = torch.tensor([[0.75, 0.75, 0.25], [0.875, 0, 0.125], [0.926208, 0, 0.073792]])
    torch.testing.assert_close(gaps[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        distance_loss(HALF, gamma, ELSEWHERE), torch.tensor([0.1828237]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(angle_loss(gaps, ELSEWHERE), torch.tensor([0.3782454]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        angle_loss(gaps, ELSEWHERE, "circular"), torch.tensor([0.1476274]), atol=1e-5, rtol=0
    )
    # The reference does not count, whatever its weight.
    found = polar_losses(HALF, QUARTER, REFERENCE, torch.ones(1, 3, 3), PolarConfig())
    torch.testing.assert_close(
        torch.stack(found), torch.tensor([[0.1828237], [0.3782454]]), atol=1e-5, rtol=0
    )


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.001, 0.1))
def test_a_turn_of_all_predicted_angles_changes_nothing(seed, turn):
    generator = torch.Generator().manual_seed(seed)
    gaps, weight = (
        torch.rand(2, 5, 5, generator=generator) * 0.8 + 0.05,
        torch.rand(2, 5, 5, generator=generator) + 0.1,
    )
    torch.testing.assert_close(
        angle_loss(gaps, weight), angle_loss(gaps + turn, weight), atol=1e-5, rtol=1e-4
    )
    wide = torch.rand(2, 5, 5, generator=generator)
    moved = torch.remainder(wide + 7 * turn, 1.0)
    one, two = (angle_loss(values, weight, "circular") for values in (wide, moved))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_a_prediction_that_is_right_up_to_one_turn_of_all_costs_nothing():
    reference = torch.tensor([3, 24])
    gamma, theta = polar_coordinates(reference, 5)
    for config in (PolarConfig(), PolarConfig(angle_stat="circular"), PolarConfig(scl_form="official")):
        for loss in polar_losses(gamma, theta + 0.31, reference, torch.rand(2, 5, 5), config):
            assert loss.abs().max() < 2e-4


def test_only_the_cells_that_count_matter():
    reference, weight = torch.tensor([0, 8]), torch.rand(2, 5, 5)
    weight[:, 2:] = 0
    gamma, theta = torch.rand(2, 5, 5), torch.rand(2, 5, 5)
    before = polar_losses(gamma, theta, reference, weight, PolarConfig())
    gamma[:, 2:], theta[:, 2:] = 0.9, 0.1
    torch.testing.assert_close(polar_losses(gamma, theta, reference, weight, PolarConfig()), before)
    gamma.view(2, -1)[0, 0] = theta.view(2, -1)[0, 0] = 3.0  # the reference
    torch.testing.assert_close(polar_losses(gamma, theta, reference, weight, PolarConfig()), before)


@pytest.mark.parametrize("stat", ["literal", "circular"])
def test_weights_of_nothing_count_all_cells_alike(stat):
    config, reference = PolarConfig(angle_stat=stat), torch.tensor([6])
    gamma, theta = torch.rand(1, 4, 4), torch.rand(1, 4, 4)
    nothing = torch.zeros(1, 4, 4)
    nothing[0, 1, 2] = 5.0  # the reference alone is nothing, too
    for weight in (torch.zeros(1, 4, 4), nothing):
        found = polar_losses(gamma, theta, reference, weight, config)
        torch.testing.assert_close(found, polar_losses(gamma, theta, reference, torch.ones(1, 4, 4), config))


def test_a_common_factor_of_the_weights_does_not_matter_in_the_paper_s_form():
    reference, weight = torch.tensor([5, 2]), torch.rand(2, 4, 4)
    gamma, theta = torch.rand(2, 4, 4), torch.rand(2, 4, 4)
    for config, factor in (
        (PolarConfig(), 1.0),
        (PolarConfig(angle_stat="circular"), 1.0),
        (PolarConfig(scl_form="official"), 3.0),
    ):
        for more, one in zip(
            polar_losses(gamma, theta, reference, 3 * weight, config),
            polar_losses(gamma, theta, reference, weight, config),
            strict=True,
        ):
            torch.testing.assert_close(more, factor * one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stat", ["literal", "circular"])
@pytest.mark.parametrize("spread", [0.0, 0.125, 1.0])
def test_gradients_are_finite_where_roots_are_zero_and_where_directions_cancel(stat, spread):
    gaps = (spread * torch.arange(16.0).view(1, 4, 4) / 2).requires_grad_()
    angle_loss(gaps, torch.ones(1, 4, 4), stat).sum().backward()
    assert gaps.grad.isfinite().all()
    exact = torch.zeros(1, 4, 4, requires_grad=True)
    distance_loss(exact, torch.zeros(1, 4, 4), torch.ones(1, 4, 4)).sum().backward()
    assert exact.grad.isfinite().all()


# --- the head -----------------------------------------------------------------------------------------------


def test_the_prediction_is_a_linear_layer_on_the_reference_and_the_cell_with_an_activation():
    for act, function in (("relu", torch.relu), ("sigmoid", torch.sigmoid), ("none", lambda values: values)):
        head, reference = SpatialContext(6, 4, PolarConfig(coord_act=act)), torch.tensor([7, 2])
        h = head.structure(torch.randn(2, 6, 3, 3))
        assert (h >= 0).all()
        found = head.predict(h, reference)
        for image in range(2):
            for cell in range(9):
                pair = torch.cat([h[image].flatten(1)[:, reference[image]], h[image].flatten(1)[:, cell]])
                torch.testing.assert_close(found[image].flatten(1)[:, cell], function(head.predictor(pair)))
    assert (head.predictor.bias == 0.5).all()


def test_without_a_reference_the_strongest_cell_is_taken():
    h = torch.zeros(3, 2, 2, 3)[..., :2].contiguous()
    h[0, :, 1, 0], h[1, 0, 0, 1], h[1, 1, 1, 1] = 2.0, 3.0, 4.0
    assert strongest_cell(h).tolist() == [2, 3, 0]
    inside = torch.tensor([[[True, True], [False, True]]]).expand(3, 2, 2)
    assert strongest_cell(h, inside).tolist() == [0, 3, 0]
    head, features = SpatialContext(6, 4, PolarConfig()), torch.randn(2, 6, 3, 3)
    expected = strongest_cell(head.structure(features))
    assert torch.equal(head(features).reference, expected)
    torch.testing.assert_close(head(features).angle, head(features, torch.ones(2, 3, 3), expected).angle)


def test_the_loss_of_regions_does_not_depend_on_their_order_and_weights_get_no_gradient():
    head, features, order = (
        SpatialContext(6, 4, PolarConfig()),
        torch.randn(5, 6, 7, 7),
        torch.tensor([3, 0, 4, 1, 2]),
    )
    one, two = head(features), head(features[order])
    torch.testing.assert_close(one.distance[order], two.distance)
    torch.testing.assert_close(one.angle[order], two.angle)
    weight = torch.rand(5, 7, 7, requires_grad=True)
    result = head(features, weight)
    (result.distance + result.angle).sum().backward()
    assert weight.grad is None
    assert all(parameter.grad.any() for parameter in head.parameters())


def test_half_precision_around_it_changes_nothing():
    head, features = SpatialContext(6, 4, PolarConfig()), torch.randn(2, 6, 7, 7)
    plain = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(features)
    assert torch.equal(plain.angle, mixed.angle)
    assert torch.equal(plain.distance, mixed.distance)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(UsageError, match="angle_stat=circular needs scl_form=paper"):
        SpatialContext(6, 4, PolarConfig(angle_stat="circular", scl_form="official"))


# --- recorded results of the released code ------------------------------------------------------------------


@pytest.mark.parametrize("case", range(3))
def test_the_released_predictor_is_matched_in_value_and_gradient(case):
    x, mask = stored(f"rc_x_{case}").requires_grad_(), stored(f"rc_mask_{case}")
    count, channels, side = x.shape[:3]
    head = SpatialContext(channels, channels, OFFICIAL)
    with torch.no_grad():
        head.predictor.weight.copy_(stored(f"rc_weight_{case}"))
        head.predictor.bias.copy_(stored(f"rc_bias_{case}"))
    inside = mask > mask.mean(dim=(1, 2), keepdim=True)
    assert torch.equal(inside.float(), stored(f"rc_binary_mask_{case}"))
    reference = strongest_cell(x, inside)
    assert reference.tolist() == stored(f"rc_anchor_index_{case}").tolist()
    gamma, theta = head.predict(x, reference).unbind(dim=1)

    def losses(weights, image):
        cells = (len(weights), side, side)
        parts = polar_losses(
            gamma[image].expand(cells),
            theta[image].expand(cells),
            reference[image].expand(cells[0]),
            weights,
            OFFICIAL,
        )
        return side**2 * (parts[0] + parts[1])

    torch.testing.assert_close(
        one_hot_maps(losses, count, side), stored(f"rc_loss_map_{case}"), rtol=1e-5, atol=1e-6
    )
    distance, angle = polar_losses(gamma, theta, reference, inside.float(), OFFICIAL)
    loss = (distance + angle).mean()
    torch.testing.assert_close(loss, stored(f"rc_masked_mean_{case}"), rtol=1e-5, atol=1e-6)
    loss.backward()
    for name, gradient in (
        ("weight", head.predictor.weight.grad),
        ("bias", head.predictor.bias.grad),
        ("x", x.grad),
    ):
        torch.testing.assert_close(gradient, stored(f"rc_grad_{name}_{case}"), rtol=1e-4, atol=1e-6)
