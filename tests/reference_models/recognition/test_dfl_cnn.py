"""DFL-CNN: filters that see one cell, a side branch without weights, and initial filters that are trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reference_models.core.backbone import load_backbone
from reference_models.core.config import parse_settings
from reference_models.core.recipes import FINE_GRAINED
from reference_models.recognition.dfl_cnn import (
    DflCnn,
    DflCnnConfig,
    cluster_filters,
    side_scores,
    strong_cells,
    strongest,
)
from reference_models.training.passes import Passes
from reference_models.training.run_folder import STATE
from tests.reference_models.conftest import toy_backbone, toy_batch
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest
from wsolbench.testing import squares

CLASSES = 3


def dfl(**settings) -> DflCnn:
    given = {"filters": "2", **{name: str(value) for name, value in settings.items()}}
    return DflCnn(toy_backbone(), CLASSES, parse_settings(DflCnnConfig, given, what="dfl-cnn")).eval()


# --- the streams --------------------------------------------------------------------------------------------


def test_golden_values_of_the_side_branch():
    assert side_scores(torch.tensor([[1.0, 3.0, 2.0, 6.0]]), 2).tolist() == [[2.0, 4.0]]


def test_the_side_branch_is_mean_pooling_over_channels():
    peaks = torch.randn(4, 15)
    expected = F.avg_pool1d(peaks[:, None], kernel_size=5, stride=5)[:, 0]
    torch.testing.assert_close(side_scores(peaks, 3), expected)


def test_strongest_responses_are_those_of_a_loop_over_cells():
    model = dfl()
    inner = torch.randn(2, 12, 5, 4)
    values, cells = strongest(model.respond(inner))
    for image in range(2):
        for number, weight in enumerate(model.bank):
            responses = [float(weight.detach() @ inner[image, :, v, u]) for v in range(5) for u in range(4)]
            assert values[image, number].item() == pytest.approx(max(responses), abs=1e-5)
            assert cells[image, number] == responses.index(max(responses))


def test_the_gradient_of_the_side_branch_reaches_one_cell_per_filter():
    model = dfl()
    inner = torch.zeros(1, 12, 6, 6, requires_grad=True)  # equal responses: still one cell
    for features in (inner, torch.randn(1, 12, 6, 6, requires_grad=True)):
        peaks, cells = strongest(model.respond(features))
        (gradient,) = torch.autograd.grad(side_scores(peaks, CLASSES)[0, 1], features)
        reached = gradient[0].abs().sum(dim=0).flatten().nonzero().flatten().tolist()
        assert set(reached) == set(cells[0, 2:4].tolist())  # the filters of class 1


def test_the_order_of_a_class_s_filters_does_not_matter():
    model, images = dfl(filters=3), torch.randn(2, 3, 32, 32)
    before = model.localize(images)
    maps = before.score_maps(torch.tensor([[0, 1, 2]]).expand(2, 3))
    order = torch.tensor([0, 1, 2, 5, 3, 4, 6, 7, 8])  # within class 1
    with torch.no_grad():
        model.bank.copy_(model.bank[order])
        model.patch_classifier.weight.copy_(model.patch_classifier.weight[:, order])
    after = model.localize(images)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(after.score_maps(torch.tensor([[0, 1, 2]]).expand(2, 3)), maps)
    torch.testing.assert_close(after.propose().boxes, before.propose().boxes)


def test_terms_and_logits_are_those_of_three_streams():
    model, batch = dfl(side_weight=0.3), toy_batch(5, classes=CLASSES)
    model.gamma.fill_(0.4)
    stages = model.backbone.stages(batch.images)
    responses = torch.einsum("fd,bdhw->bfhw", 0.4 * model.bank, stages["two"])
    peaks = responses.amax(dim=(2, 3))
    y_g = stages["three"].mean(dim=(2, 3)) @ model.global_classifier.weight.T + model.global_classifier.bias
    y_p = peaks @ model.patch_classifier.weight.T + model.patch_classifier.bias
    y_s = (peaks[:, 0::2] + peaks[:, 1::2]) / 2
    expected = [F.cross_entropy(y, batch.labels) for y in (y_g, y_p, y_s)]
    terms = model.loss(batch)
    for name, weight, value in zip(("global", "patches", "side"), (1, 1, 0.3), expected, strict=True):
        torch.testing.assert_close(terms[name], weight * value)
    for predict, logits in (("all", y_g + y_p + 0.3 * y_s), ("g", y_g), ("p", y_p)):
        chosen = dfl(side_weight=0.3, predict=predict)
        chosen.load_state_dict(model.state_dict())
        torch.testing.assert_close(chosen.localize(batch.images).logits, logits)


def test_without_its_weight_there_is_no_side_branch():
    model, batch = dfl(side_weight=0.0), toy_batch(4, classes=CLASSES)
    assert set(model.loss(batch)) == {"global", "patches"}
    images = batch.images
    expected = sum(dfl_stream(model, predict, images) for predict in ("g", "p"))
    torch.testing.assert_close(model.localize(images).logits, expected)


def dfl_stream(model: DflCnn, predict: str, images: torch.Tensor) -> torch.Tensor:
    one = dfl(side_weight=0.0, predict=predict)
    one.load_state_dict(model.state_dict())
    return one.localize(images).logits


def test_a_class_s_map_is_at_most_its_side_score():
    model, images = dfl(filters=4), torch.randn(3, 3, 32, 32)
    maps = model.localize(images).score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    peaks, _ = strongest(model.respond(model.read(images)[1]))
    scores = side_scores(peaks, CLASSES)
    assert (maps.amax(dim=(2, 3)) <= scores + 1e-6).all()
    one = dfl(filters=1)
    one.gamma.fill_(0.4)
    result = one.localize(images)
    peaks, _ = strongest(one.respond(one.read(images)[1]))
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(maps.amax(dim=(2, 3)), peaks)


def test_the_extra_map_is_the_class_activation_map_of_the_whole_image_stream():
    model, images = dfl(), torch.randn(2, 3, 32, 32)
    result = model.localize(images)
    weight = model.global_classifier.weight[result.logits.argmax(dim=1)]
    expected = torch.einsum("bd,bdhw->bhw", weight, result.stages["three"])
    torch.testing.assert_close(result.extra_maps["cam_g"], expected)


# --- regions ------------------------------------------------------------------------------------------------


def test_a_filter_s_region_is_around_the_cell_that_carries_its_vector():
    model = dfl(patch_side=28)  # 2 of 32 pixels
    inner = torch.zeros(1, 12, 8, 8)
    inner[0, 3, 2, 5], inner[0, 4, 6, 1] = 2.0, 3.0
    with torch.no_grad():
        model.bank.zero_()
        model.bank[2, 3] = model.bank[3, 4] = 1.0  # both of class 1
    peaks, cells = strongest(model.respond(inner))
    assert cells[0, 2:4].tolist() == [2 * 8 + 5, 6 * 8 + 1]
    found = model.regions(peaks[:, 2:4], cells[:, 2:4], inner, 32)
    centres = (found.boxes[0, :, :2] + found.boxes[0, :, 2:]) / 2
    # The stride is 4 pixels; the stronger response first.
    assert centres.tolist() == [[1.5 * 4, 6.5 * 4], [5.5 * 4, 2.5 * 4]]
    assert found.scores.tolist() == [[3.0, 2.0]]
    assert (found.boxes[0, :, 2:] - found.boxes[0, :, :2] == 2).all()
    assert not found.padded.any()


def test_regions_are_those_of_the_predicted_class_without_copies():
    model, images = dfl(filters=6), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    found = result.propose()
    assert found.boxes.shape == (3, 4, 4)
    predicted = result.logits.argmax(dim=1)
    peaks, _ = strongest(model.respond(model.read(images)[1]))
    own = peaks.view(3, CLASSES, 6)[torch.arange(3), predicted]
    torch.testing.assert_close(found.scores[:, 0], own.amax(dim=1))
    with torch.no_grad():
        model.bank.copy_(model.bank[:1].expand_as(model.bank))  # all filters at one cell
    assert model.localize(images).propose().padded.tolist() == [[False, True, True, True]] * 3


# --- initial filters ----------------------------------------------------------------------------------------


def test_strong_cells_are_local_maxima_of_the_energy_above_its_mean():
    features = torch.randn(4, 3, 7, 6).abs()
    vectors, counts = strong_cells(features, 5)
    for image in range(4):
        energy = features[image].norm(dim=0)
        peaks = []
        for v in range(7):
            for u in range(6):
                around = energy[max(v - 1, 0) : v + 2, max(u - 1, 0) : u + 2]
                if energy[v, u] == around.max() and energy[v, u] > energy.mean():
                    peaks.append((float(energy[v, u]), v, u))
        expected = [features[image, :, v, u] / value for value, v, u in sorted(peaks, reverse=True)[:5]]
        assert counts[image].sum() == len(expected)
        torch.testing.assert_close(vectors[image, : len(expected)], torch.stack(expected))


def test_constant_features_have_no_strong_cell():
    assert not strong_cells(torch.ones(2, 3, 5, 5))[1].any()
    assert not strong_cells(torch.zeros(2, 3, 5, 5))[1].any()


def test_filters_are_unit_vectors_one_for_each_group_of_patches():
    rng = np.random.default_rng(0)
    groups = np.eye(6)[[0, 2, 5]].repeat(20, axis=0) + 0.01 * rng.standard_normal((60, 6))
    filters = cluster_filters(groups, 3, rng)
    np.testing.assert_allclose(np.linalg.norm(filters, axis=1), 1)
    assert sorted(filters.argmax(axis=1)) == [0, 2, 5]
    assert filters.max(axis=1).min() > 0.99


def test_equal_patches_give_equal_filters_and_few_patches_are_repeated():
    rng = np.random.default_rng(0)
    one = np.array([[0.6, 0.8, 0.0]])
    np.testing.assert_allclose(cluster_filters(one.repeat(7, axis=0), 3, rng), one.repeat(3, axis=0))
    few = cluster_filters(one, 4, rng)
    assert few.shape == (4, 3)
    np.testing.assert_allclose(few, one.repeat(4, axis=0), atol=0.01)
    assert len(np.unique(few, axis=0)) == 4


def test_the_initial_filters_are_the_weights_that_train():
    """What public re-implementations miss: the values are in the parameter that the optimiser holds."""
    model, train = dfl().train(), squares(12)
    groups = model.objectives(FINE_GRAINED["dfl"])[0].groups
    (held,) = [parameter for group in groups for parameter in group["params"] if parameter is model.bank]
    random = model.bank.detach().clone()
    model.before_training(train)
    assert held is model.bank
    assert model.initialised
    assert (held - random).abs().max() > 0.1
    torch.testing.assert_close(held.norm(dim=1), torch.ones(6))
    # Independently: filters are in the span of their class's strong cells, and closest to them.
    model.eval()
    for batch in Passes(train=train, model=model, device=torch.device("cpu"))():
        inner = model.backbone.stages(batch.images)["two"]
        vectors, counts = strong_cells(inner)
        for label in range(CLASSES):
            own = vectors[batch.labels == label][counts[batch.labels == label]]
            filters = held[2 * label : 2 * label + 2].detach()
            solution = torch.linalg.lstsq(own.T.double(), filters.T.double()).solution
            torch.testing.assert_close(own.T.double() @ solution, filters.T.double(), atol=1e-4, rtol=0)
            assert (own @ filters.T).amax(dim=1).min() > 0.5
        # gamma: the mean strongest response is 1.
        peaks = model.gamma * torch.einsum("fd,bdhw->bfhw", held, inner).amax(dim=(2, 3))
        assert peaks.mean().item() == pytest.approx(1, rel=1e-4)
    again = held.detach().clone()
    model.before_training(squares(12, seed=5))
    assert torch.equal(held, again)  # a resumed run keeps what it has learnt


def test_initial_filters_repeat_and_random_ones_stay():
    one, two = dfl(), dfl()
    two.load_state_dict(one.state_dict())
    for model in (one, two):
        model.before_training(squares(12))
    assert torch.equal(one.bank, two.bank)
    random = dfl(bank_init="random")
    before = random.bank.detach().clone()
    random.before_training(squares(12))
    assert torch.equal(random.bank, before)
    assert random.gamma != 1
    assert random.initialised


def test_a_class_without_strong_cells_keeps_its_filters():
    model = dfl()
    before = model.bank.detach().clone()
    model.before_training(squares(4, classes=2))  # class 2 has no image
    after = model.bank.detach()
    assert torch.equal(after[4:], before[4:])
    assert (after[:4] - before[:4]).abs().amax(dim=1).min() > 0.05


# --- runs, backbones, settings ------------------------------------------------------------------------------


class KilledError(Exception):
    """Where a run is broken off."""


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_run_ends_with_the_bytes_of_an_unbroken_one(epoch, tmp_path, monkeypatch):
    def request(name: str) -> TrainRequest:
        return TrainRequest(
            train=squares(18),
            out=tmp_path / name,
            backbone="tiny",
            weights="none",
            image_size=32,
            epochs=3,
            batch_size=6,
            device="cpu",
            workers=0,
            settings={"filters": "3"},
        )

    whole = DflCnn.fit(request("whole"))
    loss = DflCnn.loss

    def broken(self, batch):
        if (batch.epoch, batch.step) == (epoch, 3 * epoch + 1):
            raise KilledError
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DflCnn, "loss", broken)
        with pytest.raises(KilledError):
            DflCnn.fit(request("killed"))
    assert (tmp_path / "killed" / STATE).exists() == (epoch > 0)
    assert DflCnn.fit(request("killed")).read_bytes() == Path(whole).read_bytes()
    assert DflCnn.load(whole, device="cpu").initialised


@pytest.mark.parametrize(
    ("name", "step", "stride", "channels"),
    [
        ("vgg16", "relu4_3", 8, 512),
        ("resnet50", "layer3_5", 16, 1024),
        ("efficientnet_lite0", "blocks4_2", 16, 112),
        ("tiny", "stage2", 8, 64),
        ("timm:resnet10t", "stage4", 16, 256),
    ],
)
def test_filters_look_at_an_inner_step(name, step, stride, channels):
    backbone = load_backbone(name, weights="none", grid=DflCnn.grid_for(name, DflCnnConfig()))
    model = DflCnn(backbone, CLASSES, DflCnnConfig()).eval()
    with torch.no_grad():
        inner = model.read(torch.zeros(1, 3, 64, 64))[1]
    assert (model.step.name, model.step.stride, model.step.channels) == (step, stride, channels)
    assert inner.shape == (1, channels, 64 // stride, 64 // stride)


def test_a_backbone_of_one_stage_is_refused():
    backbone = toy_backbone()
    backbone.roles = {}
    with pytest.raises(UsageError, match="method 'dfl-cnn' needs the role 'patches'"):
        DflCnn(backbone, CLASSES, DflCnnConfig())


def test_size_and_recipe_on_the_networks_of_the_paper():
    for backbone in ("vgg16", "resnet50"):
        assert DflCnn.recipe_for(backbone, 200, {}) == FINE_GRAINED["dfl"]
        assert DflCnn.default_size(backbone, 200) == 448
        assert DflCnn.default_size(backbone, 1000) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": "0"}, "filters of dfl-cnn is 0; expected a whole number in"),
        ({"bank_init": "kmeans"}, "expected one of clusters, random"),
        ({"predict": "side"}, "expected one of all, g, p"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        dfl(**settings)
