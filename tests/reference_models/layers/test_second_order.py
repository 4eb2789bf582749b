"""Pooled products: identities, golden values, gradients, and what must not happen to degenerate features."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from reference_models.layers.second_order import (
    TensorSketch,
    centre,
    count_sketch,
    from_half_vector,
    half_vector,
    newton_schulz,
    released_sqrt,
    secant,
    second_moment,
    signed_sqrt,
    spd_log,
    spd_root,
    unit,
)


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues, and a random basis."""
    basis, _ = torch.linalg.qr(double(len(eigenvalues), len(eigenvalues), seed=seed))
    return (basis * eigenvalues.double()) @ basis.mT


# --- second moments -----------------------------------------------------------------------------------------


def test_the_second_moment_is_the_mean_outer_product():
    x = double(3, 4, 7)
    found = second_moment(x)
    for image in range(3):
        expected = sum(torch.outer(x[image, :, cell], x[image, :, cell]) for cell in range(7)) / 7
        torch.testing.assert_close(found[image], expected)
    assert torch.linalg.matrix_rank(second_moment(double(1, 8, 3))).item() == 3
    assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_the_second_moment_of_centred_features_is_numpys_covariance():
    x = double(2, 5, 9)
    for image in range(2):
        torch.testing.assert_close(second_moment(centre(x))[image], torch.cov(x[image], correction=0))


def test_the_half_vector_is_the_upper_triangle_by_rows_and_has_an_adjoint():
    s = double(2, 4, 4)
    s = s + s.mT
    assert half_vector(torch.arange(9.0).view(1, 3, 3)).tolist() == [[0, 1, 2, 4, 5, 8]]
    w = double(2, 3, 10)
    matrices = from_half_vector(w, 4)
    assert torch.equal(matrices, matrices.mT)
    torch.testing.assert_close(
        (matrices * s[:, None]).sum(dim=(2, 3)), (w * half_vector(s)[:, None]).sum(dim=2)
    )


# --- signed root and unit norm ------------------------------------------------------------------------------


def test_the_signed_root_is_the_difference_of_two_roots():
    x, eps = torch.cat([double(1000), torch.zeros(1, dtype=torch.float64)]), 1e-5
    expected = (x.clamp_min(0) + eps).sqrt() - ((-x).clamp_min(0) + eps).sqrt()
    torch.testing.assert_close(signed_sqrt(x), expected)
    torch.testing.assert_close(signed_sqrt(x, 0.0)[:-1], x[:-1].sign() * x[:-1].abs().sqrt())


def test_the_signed_root_has_a_finite_slope_at_zero_and_does_not_cancel():
    x = torch.zeros(3, requires_grad=True)
    signed_sqrt(x, 1e-5).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 0.5 / math.sqrt(1e-5)))
    small = torch.tensor([1e-12])
    torch.testing.assert_close(signed_sqrt(small), small * 0.5 / math.sqrt(1e-5), rtol=1e-5, atol=0)
    assert gradcheck(signed_sqrt, (double(20).requires_grad_(),))


def test_the_roots_that_are_not_used_jump_or_fail():
    """Negative: sqrt(x + eps) is NaN below -eps, and the exact root has an infinite slope at 0."""
    assert (torch.tensor([-1e-2]) + 1e-5).sqrt().isnan().all()
    x = torch.zeros(1, requires_grad=True)
    (x.sign() * x.abs().sqrt()).sum().backward()
    assert not x.grad.isfinite().all()


@pytest.mark.parametrize(("inside", "outside"), [(1e-8, 0.0), (0.0, 0.03)])
def test_the_root_of_released_code_is_exact_and_its_slope_bounded(inside, outside):
    x = torch.tensor([-4.0, 0.0, 9.0], requires_grad=True)
    root = released_sqrt(x, inside, outside)
    assert root.tolist() == [-2, 0, 3]
    root.sum().backward()
    expected = [0.5 / (math.sqrt(value + inside) + outside) for value in (4, 0, 9)]
    torch.testing.assert_close(x.grad, torch.tensor(expected))


def test_unit_has_norm_one_ignores_scale_and_leaves_zero_without_a_gradient():
    y = torch.cat([double(4, 6), torch.zeros(1, 6, dtype=torch.float64)]).requires_grad_()
    z = unit(y)
    torch.testing.assert_close(z.norm(dim=1), torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(unit(3 * y), z)
    (z * double(5, 6, seed=1)).sum().backward()
    assert torch.equal(y.grad[4], torch.zeros(6))
    torch.testing.assert_close((y.grad * y).sum(dim=1).abs().max().item(), 0.0, atol=1e-12, rtol=0)
    assert gradcheck(unit, (double(3, 4).requires_grad_(),))


# --- class maps ---------------------------------------------------------------------------------------------


def toy_head(features: Tensor, eps: float = 1e-5):
    """Location l adds the vector `features[:, :, l]`: mean pooling, signed root, unit norm."""
    pooled = features.mean(dim=2)[:, None]

    def project(weights: Tensor) -> Tensor:
        return (weights[:, :, 0] @ features).unflatten(2, (features.shape[2], 1))

    return pooled, secant(pooled, unit(signed_sqrt(pooled, eps)), project, eps)


def test_the_secant_map_has_the_score_as_its_mean_and_the_gradient_map_zero():
    features = double(3, 6, 20)
    features[:, 2] = 0  # a dead channel
    _, head = toy_head(features)
    weights = double(3, 4, 6, seed=1)
    scores = (weights @ head.vector[:, :, None])[:, :, 0]
    torch.testing.assert_close(head.maps_of(weights).mean(dim=(2, 3)), scores)
    gradient = head.gradient_maps_of(weights)
    assert gradient.mean(dim=(2, 3)).abs().max() < 1e-3 * gradient.abs().max()
    assert gradient.abs().max() > 0.1


def test_the_gradient_map_is_the_derivative_by_the_weight_of_a_location():
    features, weights = double(2, 5, 6), double(2, 1, 5, seed=1)
    amounts = torch.ones(2, 1, 6, dtype=torch.float64, requires_grad=True)
    _, head = toy_head(features)
    _, scaled = toy_head(features * amounts)
    (weights[:, 0] * scaled.vector).sum().backward()
    torch.testing.assert_close(head.gradient_maps_of(weights)[:, 0, :, 0], amounts.grad[:, 0] * 6)


def test_the_gradient_map_of_tiny_products_is_exact_in_float32():
    # sqrt(P + eps) - sqrt(eps) has no digit left where P is 1e-11 and eps 1e-5.
    features, weights = torch.tensor([[[1e-11, 3e-11], [2e-11, 1e-11]]]), torch.tensor([[[1.0, 0.0]]])
    exact = toy_head(features.double())[1].gradient_maps_of(weights.double())
    rounded = toy_head(features)[1].gradient_maps_of(weights)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=0)


def test_the_golden_bilinear_map():
    f = torch.tensor([[[1.0, 0], [2, 1]]], dtype=torch.float64)
    phi = second_moment(f)
    assert phi[0].tolist() == [[0.5, 1], [1, 2.5]]
    pooled = phi.flatten(1)[:, None]
    z = unit(signed_sqrt(pooled, 0.0))
    torch.testing.assert_close(
        z[0, 0], torch.tensor([0.316228, 0.447214, 0.447214, 0.707107]).double(), atol=1e-6, rtol=0
    )
    outer = torch.einsum("bil,bjl->bijl", f, f).flatten(1, 2)
    head = secant(pooled, z, lambda v: (v[:, :, 0] @ outer)[..., None], 0.0)
    w = torch.tensor([[[1.0, 0, 0, -1]]], dtype=torch.float64)
    torch.testing.assert_close((w[0] @ head.vector[0]).item(), -0.390879, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        head.maps_of(w)[0, 0, :, 0], torch.tensor([-0.498915, -0.282843]).double(), atol=1e-6, rtol=0
    )


# --- sketches -----------------------------------------------------------------------------------------------


def sketch(hashes: list[list[int]], signs: list[list[int]], size: int) -> TensorSketch:
    made = TensorSketch(len(hashes[0]), size, len(hashes))
    made.hashes, made.signs = torch.tensor(hashes), torch.tensor(signs).double()
    return made


def test_the_golden_sketch():
    made = sketch([[0, 2, 3], [1, 1, 3]], [[1, -1, 1], [1, 1, -1]], 4)
    x = torch.tensor([[[1.0, 2, 3]]], dtype=torch.float64)
    assert count_sketch(x, made.hashes[0], made.signs[0], 4).tolist() == [[[1, 0, -2, 3]]]
    assert count_sketch(x, made.hashes[1], made.signs[1], 4).tolist() == [[[0, 3, 0, -3]]]
    torch.testing.assert_close(made(x)[0][0, 0], torch.tensor([9.0, 9, -9, -9]).double())


def test_the_sketch_of_an_order_is_the_count_sketch_of_the_tensor_power():
    channels, size, orders = 5, 7, 4
    made = TensorSketch(channels, size, orders, seed=3)
    x = double(channels)
    for order, found in zip(range(2, orders + 1), made(x[None, None]), strict=True):
        expected = torch.zeros(size, dtype=torch.float64)
        for places in itertools.product(range(channels), repeat=order):
            steps = list(enumerate(places))
            cell = sum(int(made.hashes[t, j]) for t, j in steps) % size
            expected[cell] += math.prod(float(made.signs[t, j]) * float(x[j]) for t, j in steps)
        torch.testing.assert_close(found[0, 0], expected, atol=1e-12, rtol=0)


def products(made: TensorSketch, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(made(x[None, None]), made(y[None, None]), strict=True)])


def test_inner_products_of_sketches_are_powers_on_average():
    x, y = unit(double(6)), unit(double(6, seed=1))
    y = unit(y + 1.5 * x)
    expected = torch.stack([(x @ y) ** i for i in (2, 3, 4)])
    spread = {}
    for size in (32, 128):
        drawn = torch.stack([products(TensorSketch(6, size, 4, seed=seed), x, y) for seed in range(400)])
        error = drawn.std(dim=0) / len(drawn) ** 0.5
        assert ((drawn.mean(dim=0) - expected).abs() < 4 * error).all()
        spread[size] = drawn.std(dim=0)
        bound = torch.tensor([math.sqrt((3**i - 1) / size) for i in (2, 3, 4)])
        assert (spread[size] < bound).all()
    assert abs(spread[32][0] / spread[128][0] - 2) < 0.4  # 1 / sqrt(d); higher orders have heavy tails


def test_one_hash_for_all_factors_is_biased():
    """Negative: the factors of a power need hashes of their own."""
    x, drawn = unit(double(6)), []
    for seed in range(400):
        made = TensorSketch(6, 128, 2, seed=seed)
        made.hashes[1], made.signs[1] = made.hashes[0], made.signs[0]
        drawn.append(products(made, x, x)[0])
    values = torch.stack(drawn)
    assert values.mean() - 1 > 10 * values.std() / len(values) ** 0.5


def test_pooled_sketches_are_means_whatever_the_chunk():
    made, x = TensorSketch(5, 16, 3, chunk=4), double(2, 11, 5)
    for found, each in zip(made.pooled(x), made(x), strict=True):
        torch.testing.assert_close(found, each.mean(dim=1))
    assert [tuple(buffer.shape) for _, buffer in made.named_buffers()] == [(3, 5), (3, 5)]
    again = TensorSketch(5, 16, 3)
    assert torch.equal(again.hashes, made.hashes)
    assert not torch.equal(TensorSketch(5, 16, 3, seed=1).hashes, made.hashes)


def test_gradients_of_sketches():
    made = TensorSketch(3, 4, 3, seed=1)
    assert gradcheck(lambda x: tuple(made.pooled(x)), (double(1, 2, 3).requires_grad_(),))


# --- Newton-Schulz ------------------------------------------------------------------------------------------


def law(eigenvalue: float, steps: int) -> float:
    for _ in range(steps):
        eigenvalue *= ((3 - eigenvalue) / 2) ** 2
    return eigenvalue


def test_the_golden_steps_and_the_scalar_law():
    sigma = torch.tensor([[[2.0, 1], [1, 2]]], dtype=torch.float64)
    expected = [(1.1875, 0.5), (1.299561, 0.430786), (1.353674, 0.378374), (1.365572, 0.366479)]
    for steps, (one, two) in enumerate([*expected, (1.366025, 0.366026)], start=1):
        root, _ = newton_schulz(sigma, steps)
        torch.testing.assert_close(root[0, 0], torch.tensor([one, two]).double(), atol=1e-6, rtol=0)
    found = [round(law(1 / share, 5), 4) for share in (256, 64, 16, 8)]
    assert found == [0.2007, 0.5864, 0.9657, 0.9985]


@pytest.mark.parametrize("steps", [1, 3, 5, 9])
def test_every_eigenvalue_follows_the_scalar_law(steps):
    values = torch.tensor([0.01, 0.2, 1.0, 3.0, 7.0], dtype=torch.float64)
    root, _ = newton_schulz(positive(values)[None], steps)
    ratios = torch.linalg.eigvalsh(root[0]) ** 2 / values
    expected = torch.tensor(
        [law(float(value / values.sum()), steps) for value in values], dtype=torch.float64
    )
    torch.testing.assert_close(ratios, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", ["trace", "frobenius"])
def test_twelve_steps_give_the_root_and_five_do_not(scale):
    sigma = positive(torch.linspace(0.1, 1, 16))[None]
    root, inverse = newton_schulz(sigma, 12, scale)
    torch.testing.assert_close(root @ root, sigma, atol=1e-5, rtol=0)
    torch.testing.assert_close(root @ inverse, torch.eye(16)[None].double(), atol=1e-4, rtol=0)
    five, factor = newton_schulz(sigma, 5, scale)
    torch.testing.assert_close(sigma @ factor, five)  # S = A F at any number of steps
    if scale == "trace":
        assert (five @ five - sigma).abs().max() > 1e-2  # negative: five steps are not the root
    nine, _ = newton_schulz(9 * sigma, 5, scale)
    torch.testing.assert_close(nine, 3 * five)


def test_the_gradient_of_many_steps_is_that_of_the_exact_root():
    sigma, weights = positive(torch.linspace(0.3, 1, 5))[None].requires_grad_(), double(1, 5, 5, seed=1)
    weights = weights + weights.mT
    (newton_schulz(sigma, 14)[0] * weights).sum().backward()
    values, vectors = torch.linalg.eigh(sigma.detach()[0])
    inner = vectors.mT @ weights[0] @ vectors / (values.sqrt()[:, None] + values.sqrt())
    torch.testing.assert_close(sigma.grad[0], vectors @ inner @ vectors.mT, atol=1e-6, rtol=0)
    assert gradcheck(lambda s: newton_schulz(s, 5), (sigma.detach()[:, :3, :3].clone().requires_grad_(),))


def test_the_rank_stays_and_wrong_steps_are_refused():
    x = double(1, 8, 3)
    root, _ = newton_schulz(second_moment(x), 5)
    assert torch.linalg.matrix_rank(root).item() == 3
    for steps in (0, 21):
        with pytest.raises(ValueError, match="expected 1 to 20"):
            newton_schulz(torch.eye(2)[None], steps)


# --- root by eigenvalues ------------------------------------------------------------------------------------


def test_the_golden_root_of_a_kernel_matrix():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    kernel = torch.exp(-0.5 * torch.cdist(x, x) ** 2)[None]
    expected = [
        [0.941126, 0.146066, 0.304870],
        [0.146066, 0.941126, 0.304870],
        [0.304870, 0.304870, 0.902280],
    ]
    torch.testing.assert_close(spd_root(kernel, 0.0)[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)


def symmetric_root(upper: Tensor) -> Tensor:
    return spd_root((upper + upper.mT) / 2, 1e-3)


def test_the_root_squared_is_the_matrix_and_its_gradient_solves_the_lyapunov_equation():
    kernel = positive(torch.tensor([0.0, 0.0, 0.5, 2.0]))[None].requires_grad_()
    root = spd_root(kernel, 1e-3)
    torch.testing.assert_close(root @ root, kernel + 1e-3 * torch.eye(4))
    gradient = double(1, 4, 4, seed=1)
    (root * gradient).sum().backward()
    solved = root @ kernel.grad + kernel.grad @ root
    torch.testing.assert_close(solved.detach(), (gradient + gradient.mT) / 2, atol=1e-9, rtol=0)
    assert kernel.grad.norm() <= gradient.norm() / (2 * math.sqrt(1e-3)) + 1e-9
    assert gradcheck(symmetric_root, (positive(torch.tensor([0.3, 1, 2]))[None].requires_grad_(),))


def test_repeated_eigenvalues_have_a_gradient_and_plain_autograd_has_none():
    kernel = torch.eye(4)[None].requires_grad_()
    (spd_root(kernel, 1e-3) * torch.randn(4, 4)).sum().backward()
    assert kernel.grad.isfinite().all()
    other = torch.eye(4)[None].requires_grad_()
    values, vectors = torch.linalg.eigh(other)
    (vectors * values.sqrt()[:, None] @ vectors.mT * torch.randn(4, 4)).sum().backward()
    assert not other.grad.isfinite().all()  # negative


def test_the_exponential_of_the_logarithm_is_the_matrix():
    kernel = positive(torch.tensor([0.0, 0.3, 1.0, 1.0]))[None]
    torch.testing.assert_close(
        torch.linalg.matrix_exp(spd_log(kernel, 1e-3)), kernel + 1e-3 * torch.eye(4), atol=1e-9, rtol=0
    )


def test_the_gradient_of_the_logarithm_is_right_where_eigenvalues_differ_repeat_and_nearly_repeat():
    def symmetric(upper: Tensor) -> Tensor:
        return spd_log((upper + upper.mT) / 2, 1e-3)

    for values in ([0.3, 1, 2], [0.5, 1, 1], [0.5, 1, 1 + 1e-9], [1, 1, 1]):
        matrix = positive(torch.tensor(values, dtype=torch.float64))[None].requires_grad_()
        assert gradcheck(symmetric, (matrix,)), values
    # Of the identity it is G itself, divided by 1 + eps.
    one, gradient = torch.eye(3).double()[None].requires_grad_(), double(1, 3, 3, seed=1)
    (spd_log(one, 1e-3) * gradient).sum().backward()
    torch.testing.assert_close(one.grad, (gradient + gradient.mT) / 2 / 1.001)


@pytest.mark.parametrize("function", [spd_root, spd_log])
def test_equal_rows_and_the_identity_have_bounded_gradients_in_float32(function):
    bound = {spd_root: 1 / (2 * math.sqrt(1e-3)), spd_log: 1e3}[function]
    equal = torch.ones(1, 6, 6)
    pair = torch.eye(6)[None].clone()
    pair[0, 0, 1] = pair[0, 1, 0] = 1
    for matrix in (equal, pair, torch.eye(6)[None]):
        start, gradient = matrix.clone().requires_grad_(), torch.randn(1, 6, 6)
        (function(start, 1e-3) * gradient).sum().backward()
        assert start.grad.isfinite().all()
        assert start.grad.norm() <= bound * gradient.norm() * (1 + 1e-3)


# --- degenerate features, mixed precision -------------------------------------------------------------------

DEGENERATE = {
    "zero": torch.zeros(1, 32, 9),
    "constant": torch.full((1, 32, 9), 2.0),
    "one pixel": torch.rand(1, 32, 1, generator=torch.Generator().manual_seed(0)),
    "rank 2": torch.rand(1, 32, 3, generator=torch.Generator().manual_seed(0)),
    "dead channels": torch.rand(1, 32, 9, generator=torch.Generator().manual_seed(0))
    * (torch.arange(32) < 4)[:, None],
    "condition 1e8": torch.rand(1, 32, 64, generator=torch.Generator().manual_seed(0))
    * torch.logspace(0, -4, 32)[:, None],
    "large": 1e4 * torch.rand(1, 32, 9, generator=torch.Generator().manual_seed(0)),
}


def heads(x: Tensor) -> dict[str, Tensor]:
    made = TensorSketch(32, 16, 4)
    return {
        "bilinear": unit(signed_sqrt(second_moment(x).flatten(1))),
        "root": half_vector(newton_schulz(second_moment(centre(x)), 20)[0]),
        "frobenius": half_vector(newton_schulz(second_moment(x), 5, "frobenius")[0]),
        "sketch": unit(signed_sqrt(torch.cat(made.pooled(x.mT), dim=1))),
        "kernel": half_vector(spd_root(torch.exp(-(torch.cdist(x, x) ** 2)), 1e-3)),
    }


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_features_give_finite_values_and_gradients(name, mixed):
    start = DEGENERATE[name].clone().requires_grad_()
    x = start.bfloat16() if mixed else start
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = heads(x)
    for each in found.values():
        assert each.dtype == torch.float32
        assert each.isfinite().all()
    total = sum((each * torch.randn(each.shape)).sum() for each in found.values())
    total.backward()
    assert start.grad.isfinite().all()


def test_autocast_changes_nothing():
    x = torch.rand(2, 32, 9)
    plain = heads(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = heads(x)
    for name in plain.keys() - {"kernel"}:  # its distances are the test's own
        assert torch.equal(plain[name], mixed[name])
