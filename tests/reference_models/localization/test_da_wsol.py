"""DA-WSOL: three sets of pixels, the discrepancy of two of them, and centres that are running means."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st

from reference_models.base.head_localizer import HeadConfig
from reference_models.localization.cam import Cam
from reference_models.localization.da_wsol import (
    DaWsol,
    DaWsolConfig,
    bandwidth,
    draw,
    linear_mmd,
    mean_of,
    three_means,
)
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.methods import TrainRequest, load_method
from wsolbench.testing import run_check

CLASSES = 3


def da_wsol(**settings) -> DaWsol:
    return DaWsol(toy_backbone(), CLASSES, DaWsolConfig(**{"samples": 4, "start": 0, **settings})).train()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the three sets -----------------------------------------------------------------------------------------


def lloyd(points: np.ndarray, centres: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster one image. Empty clusters take the pixels that are farthest from their centres, in turn."""

    def nearest() -> np.ndarray:
        return np.array([np.argmin([np.sum((p - c) ** 2) for c in centres]) for p in points])

    centres = centres.copy()
    for _ in range(rounds):
        labels = nearest()
        distance = [
            np.sum((point - centres[label]) ** 2) for point, label in zip(points, labels, strict=True)
        ]
        far = [pixel for pixel in np.argsort(distance)[::-1] if distance[pixel] > 0]
        empty = [number for number in range(3) if not (labels == number).any()]
        ordered = sorted(distance, reverse=True)[: len(empty) + 1]
        assume(not empty or min(-np.diff(ordered), default=1) > 1e-9)  # else rounding decides
        for number, pixel in zip(empty, far, strict=False):
            labels[pixel] = number
        for number in range(3):
            if (labels == number).any():
                centres[number] = points[labels == number].mean(axis=0)
    return nearest(), centres


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 4))
def test_clusters_of_a_batch_are_those_of_each_image_alone(seed, count, rounds):
    rng = np.random.default_rng(seed)
    points, centres = rng.normal(size=(2, count, 5)), rng.normal(size=(2, 3, 5))
    labels, means = three_means(torch.tensor(points), torch.tensor(centres), rounds)
    for row in range(2):
        expected, final = lloyd(points[row], centres[row], rounds)
        assert labels[row].tolist() == expected.tolist()
        np.testing.assert_allclose(means[row].numpy(), final, atol=1e-9)


def test_an_empty_cluster_takes_the_farthest_pixel():
    # As in scikit-learn: the distance is that to the pixel's own centre, before the centres move.
    pixels = torch.tensor([[[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]]])
    labels, means = three_means(pixels, torch.tensor([[[-50.0], [1.0], [10.0]]]), 10)
    assert labels.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert means.flatten().tolist() == [12.0, 1.0, 10.5]
    # Two empty clusters: the farthest pixel goes to the first one.
    labels, means = three_means(pixels, torch.tensor([[[-50.0], [1.0], [-90.0]]]), 1)
    assert means.flatten().tolist() == [12.0, 3.25, 11.0]


def test_clusters_are_those_of_scikit_learn_from_the_same_centres():
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(30, 4))
        centres = np.stack([np.full(4, 40.0), points.mean(axis=0), points[0]])  # the first one is empty
        expected = cluster.KMeans(3, init=centres, n_init=1, tol=0, max_iter=50).fit(points)
        labels, means = three_means(torch.tensor(points)[None], torch.tensor(centres)[None], 50)
        np.testing.assert_allclose(means[0].numpy(), expected.cluster_centers_, atol=1e-9)
        assert labels[0].tolist() == expected.labels_.tolist()


def test_equal_pixels_stay_in_their_cluster_and_ties_go_to_the_first():
    pixels, centres = torch.zeros(1, 4, 2), torch.tensor([[[5.0, 5.0], [0.0, 0.0], [0.0, 0.0]]])
    labels, means = three_means(pixels, centres, 3)
    assert labels.tolist() == [[1, 1, 1, 1]]
    assert torch.equal(means, centres)


@pytest.mark.parametrize(("grid", "samples"), [((28, 28), 32), ((14, 14), 8), ((16, 16), 10), ((2, 2), 2)])
def test_by_default_the_number_of_samples_is_in_proportion_to_the_grid(grid, samples):
    count = grid[0] * grid[1]
    model = da_wsol(samples=None)
    for number, wanted in ((samples - 1, True), (samples - 2, False)):  # of the source
        labels = torch.full((1, count), 2)
        labels[:, :number] = 1
        if count < 2 * samples:
            break
        _, enough = model.discrepancy(torch.rand(1, count, 16), torch.rand(1, 16), labels, generator())
        assert enough.tolist() == [wanted]


def test_first_epochs_are_those_of_the_released_scripts():
    assert da_wsol(start=None).start == 1
    inception = toy_backbone()
    inception.profile = replace(inception.profile, kin="inception")
    assert DaWsol(inception, CLASSES, DaWsolConfig()).start == 6
    assert DaWsol(inception, CLASSES, DaWsolConfig(start=2)).start == 2


def test_drawn_pixels_are_of_the_set_and_none_is_drawn_twice():
    pixels = torch.arange(20.0).reshape(1, 20, 1).expand(50, -1, -1)
    member = torch.zeros(50, 20, dtype=torch.bool)
    member[:, 3:11] = True
    drawn = draw(pixels, member, 5, generator())[..., 0]
    assert drawn.shape == (50, 5)
    assert drawn.min() >= 3
    assert drawn.max() <= 10
    assert all(len(set(row.tolist())) == 5 for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) > 40
    assert torch.equal(drawn, draw(pixels, member, 5, generator())[..., 0])


# --- MMD ----------------------------------------------------------------------------------------------------


def reference_mmd(source: np.ndarray, target: np.ndarray) -> float:
    """The discrepancy of one image, with the matrix of all kernels."""
    both = np.concatenate([source, target])
    squared = np.array([[np.sum((a - b) ** 2) for b in both] for a in both])
    m = squared.sum() / (len(both) ** 2 - len(both))
    kernel = sum(np.exp(-squared / (m * 2.0**k)) for k in range(-2, 3))
    n, total = len(source), 0.0
    for i in range(n):
        j = (i + 1) % n
        total += kernel[i, j] + kernel[n + i, n + j] - kernel[i, n + j] - kernel[j, n + i]
    return total / n


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_the_discrepancy_is_that_of_loops_over_the_ring(seed, count):
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(2, 2, count, 4))
    target += 0.5
    found = linear_mmd(torch.tensor(source), torch.tensor(target))
    expected = [reference_mmd(one, two) for one, two in zip(source, target, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_the_discrepancy_of_equal_sets_is_0_and_of_distant_ones_2_kernels():
    points = torch.randn(3, 8, 5, generator=generator())
    assert not linear_mmd(points, points).any()
    source, target = torch.zeros(1, 4, 2), torch.full((1, 4, 2), 3.0)
    m = float(bandwidth(torch.cat([source, target], dim=1)))
    far = sum(np.exp(-18 / (m * 2.0**k)) for k in range(-2, 3))
    assert float(linear_mmd(source, target)) == pytest.approx(2 * (5 - far))
    assert not linear_mmd(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)).any()  # no distance at all


def test_at_equal_laws_the_discrepancy_is_0_in_the_mean_and_negative_in_half_of_the_draws():
    source, target = torch.randn(2, 2000, 32, 16, generator=generator())
    found = linear_mmd(source, target)
    assert abs(float(found.mean())) < 4 * float(found.std()) / 2000**0.5
    assert 0.45 < float((found < 0).float().mean()) < 0.55
    assert float(linear_mmd(source, target + 1).mean()) > 20 * float(found.std()) / 2000**0.5


def test_the_bandwidth_is_the_mean_of_all_distances_and_a_constant():
    points = torch.randn(2, 7, 3, generator=generator(), requires_grad=True)
    found = bandwidth(points)
    pairs = torch.cdist(points.detach(), points.detach()).square().sum(dim=(1, 2)) / (7 * 6)
    torch.testing.assert_close(found, pairs)
    assert not found.requires_grad


# --- the loss -----------------------------------------------------------------------------------------------


def test_without_weights_and_in_the_first_epoch_it_is_cam():
    batch = toy_batch(4, classes=CLASSES)
    plain = Cam(toy_backbone(), CLASSES, HeadConfig(head="conv1x1")).train()
    model = da_wsol(adaptation=0.0, universum=0.0, start=1)
    plain.load_state_dict(model.state_dict(), strict=False)
    expected = plain.loss(batch)
    first = model.loss(batch)
    assert set(first) == {"cross_entropy"}
    assert model.class_counts.sum() == model.universum_count == 0
    assert torch.equal(first["cross_entropy"], expected["cross_entropy"])
    later = model.loss(replace(batch, epoch=1))
    assert set(later) == {"cross_entropy", "adaptation", "universum"}
    assert sum(later.values()) == later["cross_entropy"]
    asked, images = torch.tensor([[2, 0]] * 4), batch.images
    plain.load_state_dict(model.state_dict(), strict=False)
    one, two = model.eval().localize(images), plain.eval().localize(images)
    assert torch.equal(one.score_maps(asked), two.score_maps(asked))


def test_if_no_image_has_enough_pixels_only_the_universum_is_added():
    batch = toy_batch(4, classes=CLASSES)
    for samples in (40, 1000):  # of 64 pixels
        model = da_wsol(samples=samples)
        terms = model.loss(batch)
        assert terms["adaptation"] == 0
        assert terms["universum"] > 0
        sum(terms.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_images_with_too_few_pixels_do_not_count():
    model, pixels = da_wsol(), torch.rand(2, 20, 16)
    labels = torch.tensor([[1] * 10 + [2] * 10, [1] * 2 + [2] * 18])
    discrepancy, enough = model.discrepancy(pixels, pixels.mean(dim=1), labels, generator())
    assert enough.tolist() == [True, False]  # 3 of s and 4 of t are needed
    assert float(mean_of(discrepancy, enough)) == float(discrepancy[0])


def test_the_terms_have_the_released_weights_and_pull_features():
    model, batch = da_wsol(samples=2), toy_batch(6, classes=CLASSES)
    doubled = DaWsol(toy_backbone(), CLASSES, replace(model.config, adaptation=0.6, universum=4.0)).train()
    doubled.load_state_dict(model.state_dict())
    one, two = model.loss(batch), doubled.loss(replace(batch, generator=generator()))
    assert one["adaptation"] != 0
    torch.testing.assert_close(two["adaptation"], 2 * one["adaptation"])
    torch.testing.assert_close(two["universum"], 2 * one["universum"])
    (one["adaptation"] + one["universum"]).backward()
    for name, parameter in model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == name.startswith("backbone."), name


def test_the_universum_is_the_mean_of_background_pixels_and_its_gradient_reaches_no_others():
    pixels = torch.rand(2, 6, 3, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 2, 1, 2], [1, 1, 1, 0, 2, 2]])
    value = mean_of(pixels.relu().mean(dim=2), labels == 0)
    torch.testing.assert_close(value, pixels[labels == 0].mean())
    value.backward()
    assert not pixels.grad[labels != 0].any()
    assert mean_of(torch.rand(3), torch.zeros(3, dtype=torch.bool)) == 0


# --- the centres --------------------------------------------------------------------------------------------


def test_centres_are_running_means_of_source_and_universum_centres():
    model = da_wsol()
    sources: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    backgrounds = []
    for seed, classes in enumerate([[0, 1, 1], [1, 0, 1], [0, 0, 1]]):
        pixels = torch.rand(3, 20, 16, generator=generator(seed))
        pooled = pixels.mean(dim=1)
        starts = [
            torch.stack(
                [
                    model.universum,
                    pooled[row],
                    torch.stack(sources[label]).mean(dim=0) if sources[label] else pooled[row],
                ]
            )
            for row, label in enumerate(classes)
        ]
        expected, means = three_means(pixels, torch.stack(starts), model.config.rounds)
        labels = model.assign(pixels, pooled, torch.tensor(classes))
        assert torch.equal(labels, expected)
        for label in {label for label in classes if not sources[label]}:  # once for a new class
            own = [pooled[row] for row, each in enumerate(classes) if each == label]
            sources[label].append(torch.stack(own).mean(dim=0))
        for row, label in enumerate(classes):
            sources[label].append(means[row, 1])
            backgrounds.append(means[row, 0])
        torch.testing.assert_close(model.universum, torch.stack(backgrounds).mean(dim=0))
        for label in (0, 1):
            torch.testing.assert_close(model.class_centres[label], torch.stack(sources[label]).mean(dim=0))
    assert model.class_counts.tolist() == [len(sources[0]), len(sources[1]), 0]
    assert model.universum_count == 9
    assert not model.class_centres[2].any()


def test_the_centres_are_in_the_checkpoint_and_not_learnt():
    model, batch = da_wsol(), toy_batch(4, classes=CLASSES)
    model.loss(batch)
    state = copy.deepcopy(model.state_dict())
    assert {"universum", "universum_count", "class_centres", "class_counts"} <= set(state)
    assert state["class_counts"].tolist() == [3, 2, 2]  # two images, one, one, and once for each new class
    assert not {"universum", "class_centres"} & {name for name, _ in model.named_parameters()}


def test_a_constant_image_has_finite_terms():
    model = da_wsol()
    batch = replace(toy_batch(2, classes=CLASSES), images=torch.zeros(2, 3, 32, 32))
    terms = model.loss(batch)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


# --- recipes, training --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "classes", "weights", "lr", "epochs", "decay"),
    [
        ("resnet50", 200, (0.3, 2.0), 1e-3, 50, 1e-4),
        ("resnet50", 1000, (0.3, 3.0), 1e-5, 10, 1e-4),
        ("inception_v3", 200, (1.4, 4.0), 2e-3, 50, 5e-4),
        ("inception_v3", 1000, (0.1, 0.3), 1e-3, 10, 5e-4),
    ],
)
def test_unset_values_are_those_of_the_released_scripts(backbone, classes, weights, lr, epochs, decay):
    method = load_method("da-wsol")
    with torch.device("meta"):
        model = method.create(backbone=backbone, num_classes=classes, weights="none", settings={})
    assert (model.config.adaptation, model.config.universum) == weights
    recipe = method.recipe_for(backbone, classes, {})
    assert (recipe.lr, recipe.epochs, recipe.weight_decay, recipe.batch_size) == (lr, epochs, decay, 32)
    # The rate falls before the epoch with the number 30, or 3, counted from 1.
    fall = 29 if classes == 200 else 2
    assert recipe.lr_factor((fall - 0.01) / epochs) == 1
    assert recipe.lr_factor(fall / epochs) == pytest.approx(0.1)


def test_a_gpu_would_not_wait_for_the_three_sets():
    run_check("da-wsol", "fake_gpu", settings={"start": "0", "samples": "8"})


def test_mixed_precision_keeps_the_three_sets_finite():
    run_check("da-wsol", "half_precision", settings={"start": "0", "samples": "8"})


def test_training_on_squares_lowers_the_loss(train_set, tmp_path):
    request = TrainRequest(
        train=train_set,
        out=tmp_path,
        backbone="tiny",
        weights="none",
        epochs=5,
        batch_size=8,
        image_size=64,
        workers=0,
        device="cpu",
        settings={"samples": "8"},
    )
    method = load_method("da-wsol")
    model = method.load(method.fit(request), device="cpu", settings={})
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert rows[0].get("adaptation") in ("", None)
    losses = [float(row["train_loss"]) for row in rows]
    assert losses[-1] < losses[1]
    assert model.universum_count == 4 * len(train_set)
    assert F.cosine_similarity(model.class_centres, model.class_centres.roll(1, 0)).max() < 1
