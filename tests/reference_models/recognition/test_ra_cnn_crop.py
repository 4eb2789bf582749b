"""The attention crop of RA-CNN: the soft square and its derivatives, the push of equation (10), and limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.layers.regions import crop_resize
from reference_models.recognition.ra_cnn.attention_crop import (
    bound_place,
    box_mask,
    compose,
    corners,
    mask_derivatives,
    pixel_weights,
    positions,
    rank_loss,
    sample_box,
    surrogate_gradient,
    weak_place,
)

VIEW = 224


def exact(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def pixels(side: int = VIEW) -> torch.Tensor:
    """Centres of the pixels of a row, in pixels."""
    return torch.arange(side, dtype=torch.float64)[None] + 0.5


def blob(x: float, y: float, sigma: float, side: int = VIEW) -> torch.Tensor:
    row = pixels(side)[0]
    return torch.exp(-((row[None] - x) ** 2 + (row[:, None] - y) ** 2) / (2 * sigma**2))[None]


# --- the square and its derivatives -------------------------------------------------------------------------


def test_golden_values_of_the_mask():
    at = exact(0.25, 0.5, 0.75)
    mask = box_mask(at, at, exact(0.5, 0.5, 0.25), 10.0)[0]
    assert mask[1, 1].item() == pytest.approx(0.7195851, abs=1e-7)
    assert [mask[0, 1].item(), mask[1, 2].item()] == pytest.approx([0.4184644] * 2, abs=1e-7)
    assert mask[2, 0].item() == pytest.approx(0.2433519, abs=1e-7)
    for k, expected in ((11.2, 0.7838475), (22.4, 0.9853173)):
        assert box_mask(at, at, exact(0.5, 0.5, 0.25), k)[0, 1, 1].item() == pytest.approx(expected, abs=1e-7)


def test_a_steep_mask_is_1_inside_a_half_on_an_edge_a_quarter_in_a_corner_and_0_outside():
    at = exact(0.1, 0.25, 0.5)
    mask = box_mask(at, at, exact(0.5, 0.5, 0.25), 1000.0)[0]
    expected = torch.tensor([[0, 0, 0], [0, 0.25, 0.5], [0, 0.5, 1]], dtype=torch.float64)
    torch.testing.assert_close(mask, expected)


def test_the_printed_derivatives_are_those_of_the_mask():
    x, y = torch.rand(3, 6, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    place = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    found = mask_derivatives(x, y, place.detach(), 10.0)
    mask = box_mask(x, y, place, 10.0)
    for image in range(3):
        for row in range(5):
            for column in range(6):
                (gradient,) = torch.autograd.grad(mask[image, row, column], place, retain_graph=True)
                torch.testing.assert_close(
                    found[image, :, row, column], gradient[image], atol=1e-12, rtol=1e-12
                )


def test_golden_values_of_the_push():
    weight, place = blob(150, 100, 15), exact(100, 100, 50)
    soft = mask_derivatives(pixels(), pixels(), place, 0.05)
    assert surrogate_gradient(weight, soft, 0.0)[0].tolist() == pytest.approx([-12.289, 0, -18.835], abs=1e-3)
    assert surrogate_gradient(weight, soft, 0.005)[0, 2].item() == pytest.approx(-11.767, abs=1e-3)
    hard = mask_derivatives(pixels(), pixels(), place, 10.0)
    assert surrogate_gradient(weight, hard, 0.0)[0].tolist() == pytest.approx([-4.992, 0, -5.012], abs=1e-3)


@pytest.mark.parametrize("offset", [None, 0.005])
def test_weights_push_the_square_towards_themselves(offset):
    place = exact(112, 112, 80)
    derivatives = mask_derivatives(pixels(), pixels(), place, 0.05)

    def push(weight):
        return surrogate_gradient(weight, derivatives, offset)[0].tolist()

    middle, right, low = push(blob(112, 112, 10)), push(blob(170, 112, 10)), push(blob(112, 170, 10))
    assert middle[:2] == pytest.approx([0, 0], abs=1e-9)
    assert right[0] < -1  # descent raises t_x
    assert right[1] == pytest.approx(0, abs=1e-9)
    assert low[1] < -1
    ring = blob(112, 32, 5) + blob(112, 192, 5) + blob(32, 112, 5) + blob(192, 112, 5)
    assert middle[2] > 0 > push(ring)[2]  # weights at the edge enlarge it, weights inside shrink it


def test_negative_with_k_per_pixel_only_pixels_at_the_edges_count():
    place = exact(112, 112, 56)
    near = ((pixels()[0] - 56).abs() < 1) | ((pixels()[0] - 168).abs() < 1)
    shares = [
        (sizes[:, near].sum() / sizes.sum()).item()
        for k in (10.0, 10.0 / VIEW)
        for sizes in (mask_derivatives(pixels(), pixels(), place, k)[0, 0].abs(),)
    ]
    assert shares[0] > 0.9999
    assert shares[1] < 0.1


@pytest.mark.parametrize("half", [1 / 6, 0.25, 0.4, 0.5])
def test_negative_with_the_released_offset_equal_weights_enlarge_every_square(half):
    place = exact(0.5, 0.5, half)
    derivatives = mask_derivatives(*positions(corners(place), 32), place, 10.0)
    weight = torch.ones(1, 32, 32, dtype=torch.float64)
    assert surrogate_gradient(weight, derivatives, 1.0)[0, 2] < -500
    torch.testing.assert_close(
        surrogate_gradient(weight, derivatives, None), torch.zeros_like(place), atol=1e-9, rtol=0
    )


def test_negative_for_a_small_square_k_10_is_too_soft_for_the_sign_table():
    for half, inside_shrinks in ((1 / 6, False), (0.25, True), (0.5, True)):
        place = exact(0.5, 0.5, half)
        derivatives = mask_derivatives(*positions(corners(place), 32), place, 10.0)
        push = surrogate_gradient(blob(16, 16, 2, side=32), derivatives, None)[0, 2]
        assert (push > 0) == inside_shrinks


def test_weights_are_squared_norms_or_sums_of_absolute_values_and_0_without_a_gradient():
    gradient = torch.zeros(2, 3, 2, 2)
    gradient[0, :, 0, 1] = torch.tensor([3.0, 0, -4])
    gradient[0, :, 1, 1] = torch.tensor([0.0, 1, 2])
    assert pixel_weights(gradient, "squared")[0].tolist() == [[0, 1], [0, pytest.approx(0.2)]]
    assert pixel_weights(gradient, "absolute")[0].tolist() == [[0, 2], [0, 1.5]]
    assert not pixel_weights(gradient, "squared")[1].any()
    assert not pixel_weights(gradient, "absolute")[1].any()


# --- crops --------------------------------------------------------------------------------------------------


def test_the_sampler_gives_the_crops_of_the_other_methods():
    view, place = torch.randn(3, 3, 32, 32), torch.tensor([[0.4, 0.6, 0.3], [0.5, 0.5, 0.5], [0.2, 0.8, 0.2]])
    expected = crop_resize(view, 32 * corners(place)[:, None], 16)
    torch.testing.assert_close(sample_box(view, place, 16), expected, atol=1e-5, rtol=1e-5)


def test_the_whole_view_is_resized_at_half_pixels():
    view = torch.randn(2, 3, 32, 32)
    place = torch.full((2, 3), 0.5)
    expected = F.interpolate(view, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop_resize(view, 32 * corners(place)[:, None], 16), expected)


def test_a_crop_of_a_crop_is_the_crop_of_the_composed_box():
    row = torch.arange(64, dtype=torch.float64) + 0.5
    ramp = torch.stack([row.expand(64, 64), row[:, None].expand(64, 64)])[None]  # x and y: exact when resized
    outer, inner = exact(0.4, 0.5, 0.3), exact(0.6, 0.4, 0.25)
    twice = sample_box(sample_box(ramp, outer, 64), inner, 8)
    once = crop_resize(ramp, 64 * compose(corners(outer), corners(inner))[:, None], 8)
    torch.testing.assert_close(twice, once)
    # By hand: the outer box is (0.1, 0.2, 0.7, 0.8), of side 0.6.
    expected = exact(0.1 + 0.6 * 0.35, 0.2 + 0.6 * 0.15, 0.1 + 0.6 * 0.85, 0.2 + 0.6 * 0.65)
    torch.testing.assert_close(compose(corners(outer), corners(inner)), expected)


def test_the_exact_gradients_are_those_of_finite_differences():
    view, place = torch.randn(1, 2, 12, 12, dtype=torch.float64), exact(0.47, 0.53, 0.29).requires_grad_()
    weight = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: (weight * sample_box(view, t, 5)).sum(), (place,))


# --- limits and the weak label ------------------------------------------------------------------------------


def test_squares_have_a_third_of_the_view_or_more_and_lie_inside():
    raw = torch.rand(200, 3)
    place = bound_place(raw, 1 / 6, inside=True)
    assert place[:, 2].min() == pytest.approx(1 / 6)
    assert place[:, 2].max() <= 0.5
    box = torch.cat([place[:, :2] - place[:, 2:], place[:, :2] + place[:, 2:]], dim=1)
    assert box.min() > -1e-6
    assert box.max() < 1 + 1e-6
    free = (raw[:, 2] > 1 / 6) & (raw[:, 2] < 0.5) & ((raw[:, :2] - 0.5).abs().amax(dim=1) < 0.5 - raw[:, 2])
    assert free.any()
    assert torch.equal(place[free], raw[free])


def test_a_place_at_a_limit_can_come_back_but_not_go_on():
    raw = torch.tensor([[0.9, 0.1, 0.05], [0.5, 0.5, 0.8]], requires_grad=True)
    place = bound_place(raw, 1 / 6, inside=True)
    outward = torch.tensor([[-1.0, 1, 1], [0, 0, -1]])  # descent leads farther out
    (gradient,) = torch.autograd.grad(place, raw, outward, retain_graph=True)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(place, raw, -outward)
    assert torch.equal(gradient, -outward)


def test_the_weak_label_is_half_of_the_view_around_the_strongest_cell():
    features = torch.rand(4, 3, 5, 8)
    features[0, :, 2, 5] += 9  # inside
    features[1, :, 0, 7] += 9  # a corner
    features[2, 0, 4, 0] += 2  # one channel alone: the mean decides
    features[2, :, 2, 3] += 1
    features[3] = 1  # all cells equal: the first
    expected = [[5.5 / 8, 0.5, 0.25], [0.75, 0.25, 0.25], [3.5 / 8, 0.5, 0.25], [0.25, 0.25, 0.25]]
    torch.testing.assert_close(weak_place(features), torch.tensor(expected))


def test_the_ranking_is_0_if_the_closer_view_is_surer_by_the_margin():
    coarse, fine = torch.tensor([0.3, 0.32, 0.1]), torch.tensor([0.32, 0.5, 0.1])
    torch.testing.assert_close(rank_loss(coarse, fine, 0.05), torch.tensor([0.03, 0, 0.05]))
    probability = torch.tensor([0.1, 0.9], requires_grad=True)
    (gradient,) = torch.autograd.grad(
        rank_loss(torch.tensor([0.5, 0.5]), probability, 0.05).sum(), probability
    )
    assert gradient.tolist() == [-1, 0]
