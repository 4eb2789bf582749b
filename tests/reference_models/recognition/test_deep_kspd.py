"""DeepKSPD: the kernel of channel maps, its function, their gradients, and maps of derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from reference_models.core.pooled_recipes import POOLED
from reference_models.core.weights import Weights
from reference_models.layers.second_order import spd_root
from reference_models.recognition.deep_kspd import (
    DeepKspd,
    DeepKspdConfig,
    kernel_maps,
    kernel_matrix,
    squared_distances,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.testing import squares

CLASSES = 4
EVERY = [
    {},
    {"power": "log"},
    {"power": "none"},
    {"root": "newton_schulz"},
    {"vector_norm": False},
    {"reduce": 6},
]


def model(**settings) -> DeepKspd:
    net = DeepKspd(toy_backbone(), CLASSES, DeepKspdConfig(**settings)).eval()
    torch.nn.init.normal_(net.classifier.weight)
    return net


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the kernel ---------------------------------------------------------------------------------------------


def test_the_golden_kernel_and_its_eigenvalues():
    x = torch.tensor([[[1.0, 0], [0, 1], [1, 1]]], dtype=torch.float64)
    kernel = kernel_matrix(x, torch.tensor(1.0).double())[0]  # theta 0.5 of the sum over two locations
    found = torch.stack([kernel[0, 1], kernel[0, 2], kernel[1, 2]])
    torch.testing.assert_close(
        found, torch.tensor([0.367879, 0.606531, 0.606531]).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        torch.linalg.eigvalsh(kernel),
        torch.tensor([0.306675, 0.632121, 2.061204]).double(),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("locations", [1, 3, 64])
def test_the_kernel_has_a_unit_diagonal_no_negative_eigenvalue_and_the_trace_of_its_size(locations):
    x = torch.randn(2, 16, locations) + 100  # an offset that all channels share
    kernel = kernel_matrix(x, torch.tensor(0.7))
    assert torch.equal(kernel.diagonal(dim1=1, dim2=2), torch.ones(2, 16))
    assert torch.linalg.eigvalsh(kernel).min() > -1e-5
    assert kernel.sum(dim=(1, 2)).min() > 0
    expected = (-0.7 * torch.cdist(x.double(), x.double()) ** 2 / locations).exp()
    torch.testing.assert_close(kernel.double(), expected, atol=1e-5, rtol=1e-4)
    shuffled = x[..., torch.randperm(locations)]
    torch.testing.assert_close(kernel_matrix(shuffled, torch.tensor(0.7)), kernel, atol=1e-5, rtol=1e-4)


def test_theta_near_0_makes_all_channels_equal_and_the_root_of_rank_one():
    kernel = kernel_matrix(features(1, 8, 20), torch.tensor(1e-12).double())
    torch.testing.assert_close(kernel, torch.ones_like(kernel), atol=1e-10, rtol=0)
    values = torch.linalg.eigvalsh(spd_root(kernel, 0.0))[0]
    assert values[-1] == pytest.approx(math.sqrt(8))
    assert values[:-1].abs().max() < 1e-4


def test_gradients_of_features_and_theta_are_those_of_the_closed_form():
    x, theta = features(2, 5, 7).requires_grad_(), torch.tensor(0.8).double().requires_grad_()
    upstream = features(2, 5, 5, seed=1)
    kernel = kernel_matrix(x, theta)
    (spd_root(kernel, 1e-3) * upstream).sum().backward()
    # Solve R S + S R = sym(G) without eigenvectors, as a linear system.
    root, symmetric = spd_root(kernel, 1e-3).detach(), (upstream + upstream.mT) / 2
    identity = torch.eye(5).double()
    solved = torch.stack(
        [
            torch.linalg.solve(torch.kron(r, identity) + torch.kron(identity, r), g.flatten()).view(5, 5)
            for r, g in zip(root, symmetric, strict=True)
        ]
    )
    weights = solved * kernel.detach()  # W
    laplacian = weights - torch.diag_embed(weights.sum(dim=2))
    with torch.no_grad():
        expected = 4 * theta * laplacian @ x / 7
        of_theta = -(weights * squared_distances(x)).sum()
    torch.testing.assert_close(x.grad, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(theta.grad, of_theta, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("settings", EVERY[:4], ids=str)
def test_gradients_are_those_of_finite_differences(settings):
    net = model(**settings).double()

    def vector(x: Tensor, theta: Tensor) -> Tensor:
        return net.vector_of(kernel_matrix(x, theta))

    assert gradcheck(
        vector, (features(1, 4, 3).requires_grad_(), torch.tensor(0.9).double().requires_grad_())
    )


@pytest.mark.parametrize("settings", EVERY, ids=str)
@pytest.mark.parametrize("mixed", [False, True])
def test_dead_equal_and_unrelated_channels_have_finite_gradients(settings, mixed):
    net = model(**settings)
    alive = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    some = torch.arange(16)[:, None, None] < 5
    for name, x in {
        "zero": torch.zeros(1, 16, 4, 4),
        "dead": alive * some,
        "equal": torch.where(some, alive[:, :1], alive),
        "unrelated": 1e3 * alive,  # K is the identity
        "one location": alive[..., :1, :1],
    }.items():
        start = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), net.full_precision(x):
            representation = net.represent((start,))
        assert representation.vector.dtype == torch.float32
        (representation.vector * torch.randn_like(representation.vector)).sum().backward()
        assert start.grad.isfinite().all(), name
        assert net.log_theta.grad.isfinite()
        maps = representation.maps_of(net.classifier.weight[None, :2])
        assert maps.isfinite().all()
        assert maps.shape == (1, 2, *x.shape[2:])


# --- maps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_a_map_is_the_derivative_of_its_score_by_the_weight_of_each_location(settings):
    net = model(**settings).double()
    x = (features(2, 16, 3, 4) + 1).requires_grad_()
    representation = net.represent((x,))
    scores = net.classifier(representation.vector)
    maps = representation.maps_of(net.classifier.weight.expand(2, -1, -1))
    reduced = net.reduce(x).flatten(2).detach()
    for name in range(CLASSES):
        # Weights of the locations in D.
        share = torch.ones(12).double().requires_grad_()
        weighted = kernel_matrix(reduced * share.sqrt(), net.theta())
        score = net.classifier(net.vector_of(weighted))[0, name]
        (by_share,) = torch.autograd.grad(score, share)
        torch.testing.assert_close(maps[0, name].flatten(), 12 * by_share, atol=1e-10, rtol=1e-8)
        # Half of features times gradient; the mean is the derivative by log theta.
        (by_theta,) = torch.autograd.grad(scores[0, name], net.log_theta, retain_graph=True)
        torch.testing.assert_close(maps[0, name].mean(), by_theta, atol=1e-10, rtol=1e-8)
    if not settings.get("reduce"):
        (by_x,) = torch.autograd.grad(scores[1, 2], x)
        torch.testing.assert_close(maps[1, 2], 12 / 2 * (x * by_x)[1].sum(dim=0), atol=1e-10, rtol=1e-8)


def test_maps_of_several_classes_are_the_sums_over_pairs_of_channels():
    x, theta, gradients = features(2, 3, 5), torch.tensor(0.4).double(), features(2, 2, 3, 3, seed=1)
    kernel = kernel_matrix(x, theta)
    differences = (x[:, :, None] - x[:, None]) ** 2
    expected = -theta * torch.einsum("bkij,bij,bijl->bkl", gradients, kernel, differences)
    torch.testing.assert_close(kernel_maps(gradients, kernel, x, theta), expected)


# --- theta and settings -------------------------------------------------------------------------------------


def test_the_scale_is_the_mean_distance_of_training_images_and_is_measured_once():
    net, train = model(theta=0.5), squares(12)
    net.before_training(train)
    kept = net.scale.clone()
    found = []
    for sample in train.samples:
        image = torch.from_numpy(sample.image()).permute(2, 0, 1)[None] / 255
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (net.input_spec.mean, net.input_spec.std)
        )
        with torch.no_grad():
            x = net.backbone.run((image - mean) / std)[0].flatten(1)
        distances = torch.cdist(x, x) ** 2 / x.shape[1]
        found.append(distances.sum() / (16 * 15))
    torch.testing.assert_close(kept, torch.stack(found).mean(), atol=0, rtol=1e-4)
    torch.testing.assert_close(net.theta().detach(), 0.5 / kept)
    net.before_training(squares(12, seed=3))  # a resumed run
    assert torch.equal(net.scale, kept)


def test_theta_has_the_rate_of_new_layers_and_no_decay():
    net = model()
    groups = {group["name"]: group for group in net.parameter_groups(POOLED["isqrt"])}
    assert groups["theta"]["weight_decay"] == 0
    assert len(groups["theta"]["params"]) == 1
    assert groups["theta"]["factor"] == 1  # without pretrained weights every layer is new
    net.backbone.weights = Weights("file", "0" * 64)
    groups = {group["name"]: group for group in net.parameter_groups(POOLED["isqrt"])}
    assert groups["theta"]["factor"] == 5


def test_a_vector_without_unit_norm_has_a_smaller_rate_in_the_first_stage():
    assert model().head_stage.head_factor == 300
    assert model(vector_norm=False).head_stage.head_factor == 10
    assert model(vector_norm=False, recipe="bcnn").head_stage.head_factor == 1


def test_newton_schulz_steps_tend_to_the_root_where_eigenvalues_are_large():
    kernel = kernel_matrix(features(1, 8, 6), torch.tensor(0.3).double())
    exact, steps = (
        DeepKspd.function_of(model(root=root, iterations=20, eps=0.05), kernel)
        for root in ("eigen", "newton_schulz")
    )
    torch.testing.assert_close(steps, exact, atol=1e-6, rtol=0)


def test_a_logarithm_of_newton_schulz_steps_is_refused():
    with pytest.raises(UsageError, match=r"root=newton_schulz and power=log.*use power=root or root=eigen"):
        DeepKspdConfig(power="log", root="newton_schulz")


def test_networks_with_many_channels_are_reduced_to_256():
    net = DeepKspd.create(backbone="resnet50", num_classes=2, weights="none", settings={}, image_size=64)
    assert net.classifier.in_features == 256 * 257 // 2
    images = torch.randn(1, 3, 64, 64)
    assert net.localize(images).score_maps(torch.tensor([[0, 1]])).isfinite().all()


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_every_form_learns_eight_images(settings):
    net, given, losses = model(**settings).train(), toy_batch(8, classes=CLASSES), []
    torch.nn.init.normal_(net.classifier.weight, std=0.01)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(sum(net.loss(given).values()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
