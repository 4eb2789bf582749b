"""SCM: the Laplacian of the patches, its approximate inverse, and what the modules do to the maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.layers.maps import min_max
from reference_models.localization import scm
from reference_models.localization.scm import (
    START,
    Calibration,
    diffuse,
    grid_laplacian,
    newton_schulz,
    patch_similarity,
)
from tests.reference_models.localization.token_models import (
    CLASSES,
    SIDE,
    losses_of_steps,
    small_model,
    square_batch,
)

CPU = torch.device("cpu")
EVERY = torch.arange(CLASSES).expand(2, -1)


def weighted_laplacian(strength: float = 1.0, count: int = 2) -> torch.Tensor:
    laplacian = grid_laplacian(4, 4, CPU).double()
    return laplacian * (strength * patch_similarity(torch.randn(count, 5, 4, 4).double()) - 1)


def test_the_laplacian_counts_the_neighbours_of_each_patch():
    height, width = 3, 4
    found = grid_laplacian(height, width, CPU)
    cells = [(y, x) for y in range(height) for x in range(width)]
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            near = abs(y - v) + abs(x - u) == 1
            degree = sum(abs(y - b) + abs(x - a) == 1 for b, a in cells)
            assert found[i, j] == (degree if i == j else -int(near)), (i, j)
    assert not found.sum(dim=0).any()
    assert grid_laplacian(1, 1, CPU).tolist() == [[0]]


@pytest.mark.parametrize("steps", [4, 16])
def test_newton_schulz_has_the_closed_form_of_each_singular_value(steps):
    matrix = weighted_laplacian(0.7) + 0.3 * torch.rand(2, 16, 16)  # not symmetric
    left, values, right = torch.linalg.svd(matrix)
    inverted = (1 - (1 - START * values**2) ** (2**steps)) / values.clamp(min=1e-30)
    inverted = torch.where(values < 1e-9, 0.0, inverted)
    expected = (right.mT * inverted[:, None]) @ left.mT  # of X, which (4) transposes
    torch.testing.assert_close(newton_schulz(matrix, steps), expected.mT, atol=1e-12, rtol=1e-9)
    if steps == 4:  # far from an inverse: nearly a multiple of L
        matrix = weighted_laplacian(1.0)
        distance = (newton_schulz(matrix, 4) - 0.032 * matrix).norm() / (0.032 * matrix).norm()
        assert 0 < distance < 0.25


def test_the_start_of_the_iteration_is_a_constant_for_the_gradient():
    matrix = weighted_laplacian(count=1).requires_grad_()
    constant = matrix.detach().clone()
    (found,) = torch.autograd.grad(newton_schulz(matrix, 1).square().sum(), matrix)
    again = constant.clone().requires_grad_()
    identity, start = torch.eye(16, dtype=torch.float64), START * constant.mT
    (expected,) = torch.autograd.grad((start @ (2 * identity - again @ start)).square().sum(), again)
    torch.testing.assert_close(found, expected)


def test_at_first_the_diagonal_is_empty():
    matrix = weighted_laplacian(1.0)
    assert matrix.diagonal(dim1=1, dim2=2).abs().max() < 1e-12
    assert weighted_laplacian(0.5).diagonal(dim1=1, dim2=2).abs().max() > 0.9
    assert (matrix > -1e-12).all()  # neighbours pass on what is unlike


def test_similarity_is_the_cosine_of_two_patches():
    scores = torch.randn(2, 5, 3, 3)
    found = patch_similarity(scores)
    vectors = scores.flatten(2)
    for i in range(9):
        for j in range(9):
            expected = F.cosine_similarity(vectors[:, :, i], vectors[:, :, j], dim=1)
            torch.testing.assert_close(found[:, i, j], expected, atol=1e-5, rtol=1e-4)


def test_small_diffusion_keeps_its_map_at_any_scale_and_large_diffusion_does_not():
    diffusion, flow = torch.rand(2, 16, 16).double(), torch.rand(2, 4, 4).double()
    threshold = torch.tensor([0.5])
    maps = {scale: diffuse(scale * diffusion, flow, threshold) for scale in (0.01, 0.02, 1.0)}
    torch.testing.assert_close(maps[0.01], maps[0.02], atol=1e-2, rtol=0)
    cubes = (diffusion @ flow.flatten(1)[..., None]).reshape(2, 4, 4) ** 3  # tanhshrink(x) is about x^3 / 3
    torch.testing.assert_close(maps[0.01], min_max(cubes), atol=1e-2, rtol=0)
    assert (maps[1.0] - maps[0.01]).abs().max() > 0.05


def test_without_flow_nothing_flows():
    diffusion = torch.rand(2, 16, 16)
    found = diffuse(diffusion, torch.zeros(2, 4, 4), torch.tensor([0.5]))
    assert not found.any()
    module, scores = Calibration(4, 1.0, 0.5), torch.randn(2, CLASSES, 4, 4)
    after, flow = module(scores, torch.zeros(2, 4, 4))
    assert torch.equal(after, scores)
    assert not flow.any()
    for value in (0.0, 1.0):  # scores without any direction, and without any difference
        after, flow = module(torch.full((1, CLASSES, 4, 4), value), torch.rand(1, 4, 4))
        assert torch.isfinite(after).all()
        assert torch.isfinite(flow).all()


def test_a_module_adds_maps_in_the_unit_interval():
    scores, flow = torch.randn(2, CLASSES, 4, 4), torch.rand(2, 4, 4)
    after, more = Calibration(16, 1.0, 0.5)(scores, flow)
    added = (more - flow).detach()
    assert added.amin() == pytest.approx(0, abs=1e-6)
    assert added.amax() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(after.detach(), scores * (1 + added[:, None]))


def test_without_modules_training_is_that_of_ts_cam_and_maps_have_min_max_attention():
    model, other = small_model("scm", iterations=""), small_model("ts-cam")
    other.load_state_dict(model.state_dict())
    batch = square_batch(4)
    (found,), (expected,) = (each.train().loss(batch).values() for each in (model, other))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    images = batch.images[:2]
    one, two = model.eval().localize(images), other.eval().localize(images)
    torch.testing.assert_close(one.logits, two.logits)
    attention = two.extra_maps["attention"]
    scores = two.score_maps(EVERY) / attention[:, None]
    torch.testing.assert_close(
        one.score_maps(EVERY), min_max(attention)[:, None] * scores, atol=1e-4, rtol=1e-3
    )
    assert one.extra_maps["attention"].amin() == 0
    assert attention.amin() > 0  # another map than that of TS-CAM


def test_the_test_needs_no_module():
    model, images = small_model("scm").eval(), torch.randn(2, 3, SIDE, SIDE)
    before = model.score_maps(images, EVERY)
    with torch.no_grad():
        for parameter in model.calibrations.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(model.score_maps(images, EVERY), before)


def test_the_loss_reaches_the_numbers_of_each_module_and_the_attention(monkeypatch):
    kept = []

    def keep(attention):
        kept.append(attention)
        attention.retain_grad()
        return attention.sum(dim=1, keepdim=True)

    monkeypatch.setattr(scm, "sum_attention", keep)
    model = small_model("scm").train()
    (loss,) = model.loss(square_batch(6)).values()
    loss.backward()
    assert [module.steps for module in model.calibrations] == [16, 4, 4, 4]
    for module in model.calibrations:
        assert module.strength.grad.any()
        assert module.threshold.grad.any()
    assert kept[0].grad.any()


def test_a_few_steps_on_squares_lower_the_loss():
    losses = losses_of_steps(small_model("scm", side=32), 20, square_batch(side=32), lr=1e-3)
    assert losses[0] > 0.8
    assert losses[-1] < 0.7 * losses[0]
