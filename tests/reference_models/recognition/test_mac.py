"""SSANET's alignment of parts of equal rank (MAC): its loss, and the gradient that the paper prints."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference_models.recognition.ssanet.part_agreement import mac_loss, pair_loss

KNOWN = torch.tensor([[0.9, 0.1, 0.2, 0], [0.3, 0.8, 0.1, 0.1], [0.2, 0.2, 0.4, 0.5], [0, 0.1, 0.3, 0.7]])


def test_the_loss_of_a_known_pair():
    assert abs(float(pair_loss(KNOWN)) - 1.0324284) < 1e-6
    by_hand = [
        math.log(1 + sum(math.exp(KNOWN[j, m] - KNOWN[j, j]) for m in range(4) if m != j)) for j in range(4)
    ]
    assert abs(float(pair_loss(KNOWN)) - sum(by_hand) / 4) < 1e-6


@given(st.integers(0, 999))
def test_the_loss_of_a_pair_is_a_cross_entropy_in_known_bounds(seed):
    similarities = 2 * torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed)) - 1
    expected = (
        F.cross_entropy(similarities.view(-1, 4), torch.arange(4).repeat(3), reduction="none")
        .view(3, 4)
        .mean(1)
    )
    torch.testing.assert_close(pair_loss(similarities), expected)
    assert (pair_loss(similarities) >= math.log(1 + 3 * math.exp(-2))).all()
    assert (pair_loss(similarities) <= math.log(1 + 3 * math.exp(2))).all()


def test_the_loss_of_equal_similarities_is_that_of_a_guess():
    torch.testing.assert_close(pair_loss(torch.full((4, 4), 0.3)), torch.tensor(math.log(4)))


def test_its_gradient_is_that_of_equations_4_and_5():
    similarities = KNOWN.clone().requires_grad_()
    pair_loss(similarities).backward()
    for j in range(4):
        for z in range(4):
            rivals = sum(math.exp(KNOWN[j, m] - KNOWN[j, z]) for m in range(4) if m != j)
            expected = -1 / (1 + 1 / rivals) if z == j else 1 / (math.exp(KNOWN[j, j] - KNOWN[j, z]) + rivals)
            assert abs(float(similarities.grad[j, z]) - expected / 4) < 1e-6


@pytest.mark.parametrize(
    ("with_self", "reduction"), [(False, "mean"), (True, "mean"), (False, "sum"), (True, "sum")]
)
def test_all_ordered_pairs_of_images_count(with_self, reduction):
    parts = torch.randn(3, 4, 6)
    pairs = []
    for one in range(3):
        for two in range(3):
            if one != two or with_self:
                cosines = torch.stack(
                    [F.cosine_similarity(parts[one, j][None], parts[two]) for j in range(4)]
                )
                pairs.append(pair_loss(cosines))
    expected = torch.stack(pairs).mean() if reduction == "mean" else torch.stack(pairs).sum()
    torch.testing.assert_close(mac_loss(parts, with_self=with_self, reduction=reduction), expected)
    torch.testing.assert_close(mac_loss(7 * parts, with_self=with_self, reduction=reduction), expected)


def test_a_single_image_has_no_pair_and_parts_of_zeros_no_bad_gradient():
    assert float(mac_loss(torch.randn(1, 4, 6), with_self=False, reduction="mean")) == 0
    zeros = torch.zeros(2, 4, 6, requires_grad=True)
    mac_loss(zeros, with_self=False, reduction="mean").backward()
    assert torch.isfinite(zeros.grad).all()


def test_similarities_are_computed_in_float32_under_autocast_too():
    parts = torch.randn(3, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mac_loss(parts, with_self=False, reduction="mean")
    assert torch.equal(mixed, mac_loss(parts, with_self=False, reduction="mean"))
