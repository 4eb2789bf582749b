"""The dense CRF term of F-CAM: loops over all pairs of pixels, its gradient, and what it asks for."""

from __future__ import annotations

import math

import pytest
import torch

from reference_models.localization.f_cam.dense_crf import dense_crf_loss, pair_energy
from reference_models.localization.f_cam.method import FCam, FCamConfig
from tests.reference_models.conftest import toy_backbone, toy_batch

SIGMAS = {"sigma_rgb": 15.0, "sigma_xy": 3.0}


def scene(
    height: int = 5, width: int = 4, images: int = 2, labels: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours within a few standard deviations of each other, and scores of each label, in float64."""
    torch.manual_seed(0)
    colours = 128 + 20 * torch.randn(images, 3, height, width, dtype=torch.float64)
    return colours, torch.randn(images, labels, height, width, dtype=torch.float64)


def affinity_of(colours: torch.Tensor, i: tuple[int, int], j: tuple[int, int]) -> float:
    near = sum((a - b) ** 2 for a, b in zip(i, j, strict=True)) / (2 * SIGMAS["sigma_xy"] ** 2)
    alike = sum(float(each[i] - each[j]) ** 2 for each in colours) / (2 * SIGMAS["sigma_rgb"] ** 2)
    return math.exp(-near - alike)


@pytest.mark.parametrize("labels", [2, 3])
def test_the_energy_is_that_of_loops_over_all_pairs(labels):
    colours, scores = scene(labels=labels)
    shares = scores.softmax(dim=1)
    for image, found in enumerate(pair_energy(colours, shares, **SIGMAS)):
        expected = 0.0
        cells = [(row, column) for row in range(5) for column in range(4)]
        for i in cells:
            for j in cells:
                different = sum(float(one[i] * (1 - one[j])) for one in shares[image])
                expected += affinity_of(colours[image], i, j) * different
        assert float(found) == pytest.approx(expected, rel=1e-10)
        assert expected > 1


@pytest.mark.parametrize("entries", [1, 130, 2**24])
def test_rows_of_the_matrix_may_come_in_any_number_of_parts(entries):
    colours, scores = scene()
    whole = pair_energy(colours, scores.softmax(dim=1), **SIGMAS)
    torch.testing.assert_close(pair_energy(colours, scores.softmax(dim=1), entries=entries, **SIGMAS), whole)


def test_its_gradient_is_the_slope_and_that_of_the_released_form():
    colours, scores = scene()
    leaf = scores.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda at: pair_energy(colours, at.softmax(dim=1), **SIGMAS), leaf, eps=1e-6, atol=1e-6
    )
    (own,) = torch.autograd.grad(pair_energy(colours, leaf.softmax(dim=1), **SIGMAS).sum(), leaf)
    cells = [(row, column) for row in range(5) for column in range(4)]
    matrices = torch.stack(
        [
            torch.tensor([[affinity_of(one, i, j) for j in cells] for i in cells], dtype=torch.float64)
            for one in colours
        ]
    )
    shares = leaf.softmax(dim=1).flatten(2)
    released = -torch.einsum("bki,bij,bkj->b", shares, matrices, shares)
    (theirs,) = torch.autograd.grad(released.sum(), leaf)
    torch.testing.assert_close(own, theirs)
    difference = pair_energy(colours, leaf.softmax(dim=1), **SIGMAS) - released
    torch.testing.assert_close(difference, matrices.sum(dim=(1, 2)))


def test_one_label_costs_nothing_and_labels_can_be_exchanged():
    colours, scores = scene()
    one = torch.zeros_like(scores)
    one[:, 1] = 1.0
    torch.testing.assert_close(
        pair_energy(colours, one, **SIGMAS), torch.zeros(2).double(), atol=1e-9, rtol=0
    )
    shares = scores.softmax(dim=1)
    energy = pair_energy(colours, shares, **SIGMAS)
    torch.testing.assert_close(pair_energy(colours, shares.flip(1), **SIGMAS), energy)
    assert (energy > 0).all()


def test_a_cut_along_an_edge_of_colour_is_cheaper_than_one_through_a_surface():
    colours = torch.zeros(1, 3, 8, 8)
    colours[..., 4:] = 200.0
    upright, flat = torch.zeros(2, 1, 2, 8, 8).unbind(0)
    upright[:, 1, :, 4:], upright[:, 0, :, :4] = 1.0, 1.0
    flat[:, 1, 4:], flat[:, 0, :4] = 1.0, 1.0  # the same area
    along, through = (float(pair_energy(colours, each, **SIGMAS)) for each in (upright, flat))
    assert along < 1e-3 * through
    # Without a difference of colour both cost the same.
    grey = torch.zeros(1, 3, 8, 8)
    assert float(pair_energy(grey, upright, **SIGMAS)) == pytest.approx(
        float(pair_energy(grey, flat, **SIGMAS))
    )


def test_a_coarser_grid_estimates_the_sum_over_all_pairs_of_pixels():
    """Smooth colours and shares, and distances of many cells: a cell stands for its pixels."""
    place = torch.linspace(0, 3, 48, dtype=torch.float64)
    colours = (60 + 20 * (place[:, None].sin() + place)).expand(1, 3, -1, -1)
    shares = torch.stack(
        [place[:, None].cos().square() * torch.ones(48), place[:, None].sin().square() * torch.ones(48)]
    )[None]
    options = {"sigma_rgb": 15.0, "sigma_xy": 24.0}
    exact = dense_crf_loss(colours, shares, side=48, **options)
    torch.testing.assert_close(exact, pair_energy(colours, shares, **options).mean())
    for side, error in ((24, 0.01), (12, 0.03)):
        assert float(dense_crf_loss(colours, shares, side=side, **options) / exact) == pytest.approx(
            1, abs=error
        )


def f_cam(**settings) -> FCam:
    return FCam(toy_backbone(), 5, FCamConfig(erosion=3, **settings)).train()


def test_the_switch_adds_one_term_that_only_the_decoder_learns_from():
    batch = toy_batch(3, classes=5)
    assert set(f_cam().decoder_loss(batch)) == {"seeds", "area"}
    model = f_cam(crf=2e-9)
    terms = model.decoder_loss(batch)
    assert set(terms) == {"seeds", "area", "crf"}
    terms["crf"].backward()
    reached = {name.split(".")[0] for name, each in model.named_parameters() if each.grad is not None}
    assert reached == {"decoder"}
    assert any(each.grad.any() for each in model.decoder.parameters())
    # The weight is a factor, and other terms do not change.
    torch.manual_seed(0)
    twice = f_cam(crf=4e-9)
    twice.load_state_dict(model.state_dict())
    batch = toy_batch(3, classes=5)
    one, two = model.eval().decoder_loss(batch)["crf"], twice.eval().decoder_loss(batch)["crf"]
    torch.testing.assert_close(two, 2 * one)


def test_the_term_reads_the_colours_of_the_images_before_normalisation():
    model = f_cam(crf=1.0)
    pixels = torch.randint(0, 256, (2, 3, 16, 16)).float()
    spec = model.backbone.input_spec
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    torch.testing.assert_close(model.colours((pixels / 255 - mean) / std), pixels, atol=1e-3, rtol=0)


def test_learning_from_the_term_alone_gives_one_label_to_one_surface():
    torch.manual_seed(0)
    colours = torch.zeros(1, 3, 12, 12)
    colours[..., 3:9, 3:9] = 220.0
    scores = (0.5 * torch.randn(1, 2, 12, 12)).requires_grad_()
    with torch.no_grad():
        scores[0, 1, 5:7, 5:7] += 3  # what is certain inside, and outside
        scores[0, 0, :2] += 3
    optimizer = torch.optim.SGD([scores], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        pair_energy(colours, scores.softmax(dim=1), sigma_rgb=15.0, sigma_xy=4.0).sum().backward()
        optimizer.step()
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[3:9, 3:9] = True
    assert torch.equal(scores[0, 1] > scores[0, 0], expected)
