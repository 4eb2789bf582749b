"""MA-CNN: the stages of a run and their results. `test_ma_cnn_groups.py` has the groups of channels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.config import parse_settings
from reference_models.recognition.ma_cnn.channel_groups import cluster_channels, peak_vectors
from reference_models.recognition.ma_cnn.method import MaCnn, drop_values
from reference_models.recognition.ma_cnn.settings import MaCnnConfig
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.recognition.training_checks import (
    check_one_step,
    check_stopped_run,
    module_of,
    reached_by,
)
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError

CLASSES = 5
EPOCHS = 12
STAGES = {"A": 0, "B": 4, "C even": 5, "C odd": 6, "D": 9}


def ma_cnn(**settings) -> MaCnn:
    """A model whose groups and classifiers are not near their start."""
    config = parse_settings(MaCnnConfig, {key: str(value) for key, value in settings.items()}, what="ma-cnn")
    model = MaCnn(toy_backbone(), CLASSES, config)
    model.before_training(squares(6, size=32))
    for layer in model.groups.second:
        torch.nn.init.normal_(layer.weight, std=1.0)
    for layer in (
        model.whole_classifier,
        *model.map_classifiers,
        *model.view_classifiers,
        model.concat_classifier,
    ):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return model.eval()


def at_epoch(model: MaCnn, epoch: int, epochs: int = EPOCHS) -> MaCnn:
    model.train().on_epoch(epoch, epochs)
    return model


# --- the stages of a run ------------------------------------------------------------------------------------

LEARNS = {
    "A": {"backbone", "whole_classifier"},
    "B": {"groups"},
    "C even": {"groups"},
    "C odd": {"backbone", "whole_classifier", *(f"map_classifiers.{i}" for i in range(4))},
    "D": {
        "concat_classifier",
        *(f"{kind}.{i}" for kind in ("part_networks", "view_classifiers") for i in range(4)),
    },
}


LISTS = ("map_classifiers", "part_networks", "view_classifiers")


@pytest.mark.parametrize("stage", LEARNS)
def test_a_stage_trains_its_modules_and_leaves_the_others_to_the_bit(stage):
    model = at_epoch(ma_cnn(map_form="official"), STAGES[stage])
    check_one_step(model, toy_batch(4, classes=CLASSES), LEARNS[stage], LISTS)


def test_the_order_of_the_terms():
    model = ma_cnn()
    assert ["+".join(sorted(model.terms_at(epoch, EPOCHS))) for epoch in range(EPOCHS)] == [
        *["whole"] * 4,
        "fit",
        *["group", "map+whole"] * 2,
        *["view"] * 3,
    ]
    assert ma_cnn(shared="true").terms_at(9, EPOCHS) == {"view", "whole"}


def test_a_run_of_fewer_epochs_than_stages_trains_everything():
    model = at_epoch(ma_cnn(map_form="official"), 0, 3)
    sum(model.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_clusters_are_those_of_the_whole_training_images_and_are_found_once():
    model = ma_cnn()
    assert not model.indicators.any()
    at_epoch(model, STAGES["B"])
    images = torch.stack(
        [torch.from_numpy(sample.array).permute(2, 0, 1) / 255 for sample in model.training_images.samples]
    )
    spec = model.input_spec
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.mean, spec.std))
    with torch.no_grad():
        features = model.eval().backbone.run((images - mean) / std)
    expected = torch.from_numpy(cluster_channels(peak_vectors(features).numpy(), 4))
    assert torch.equal(model.indicators, expected)
    model.indicators.zero_()
    at_epoch(model, STAGES["B"])
    assert not model.indicators.any()  # a checkpoint's are kept


def test_layers_learn_the_clusters():
    model = at_epoch(ma_cnn(), STAGES["B"])
    batch, optimizer = toy_batch(8, classes=CLASSES), torch.optim.Adam(model.groups.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch)["fit"].backward()
        optimizer.step()
    shares = model.groups(model.backbone.run(batch.images)).sigmoid()
    assert torch.equal(shares.round(), model.indicators.expand_as(shares))


def test_parts_start_from_the_trained_network():
    model = ma_cnn()
    torch.nn.init.normal_(model.backbone.steps["one"][0].weight)
    at_epoch(model, STAGES["D"])
    for network in model.part_networks:
        assert all(map(torch.equal, network.state_dict().values(), model.backbone.state_dict().values()))
    assert torch.equal(model.view_classifiers[2].weight, model.whole_classifier.weight)


def test_the_cross_entropies_give_the_groups_no_gradient_and_the_group_losses_nothing_else():
    model = at_epoch(ma_cnn(map_form="official"), 0, 3)
    terms = model.loss(toy_batch(4, classes=CLASSES))
    for names, wanted in ((("dis", "div", "fit"), {"groups"}), (("map",), {"backbone", "map_classifiers"})):
        assert reached_by(model, sum(terms[name] for name in names)) == wanted


def test_copies_of_the_network_have_its_rate_and_its_frozen_stages():
    model, recipe = ma_cnn(), MaCnn.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.lr, recipe.new_factor, recipe.bias_factor) == (100, 1e-3, 10, 2)
    old = {module_of(name, LISTS) for name, _ in model.named_parameters() if not model.is_new(name, recipe)}
    assert old == {"backbone", *(f"part_networks.{i}" for i in range(4))}
    model.backbone.frozen = ("one",)
    at_epoch(model, STAGES["D"])
    assert all(not network.steps["one"][0].weight.requires_grad for network in model.part_networks)
    times = (0, 17.9, 18.1, 30, 34, 35, 58.9, 59.1, 75, 89.9, 90.1)
    factors = [model.lr_factor(recipe, time / 100) for time in times]
    assert factors == pytest.approx([1, 1, 0.1, 1, 0.1, 1, 1, 0.1, 1, 1, 0.1])


@pytest.mark.parametrize(
    "settings", [{}, {"shared": "true", "norm_statistics": "per_input", "map_form": "official"}]
)
def test_a_run_that_was_stopped_in_any_stage_ends_as_an_unbroken_one(tmp_path, monkeypatch, settings):
    own = {"stage_epochs": "1,2,2,2", "group_width": "8", **settings}
    found = check_stopped_run(
        MaCnn,
        lambda name: request(tmp_path / name, epochs=7, val=None, settings=own),
        (1, 2, 4, 6),
        monkeypatch,
    )
    assert found["indicators"].sum(dim=0).tolist() == [1] * 64


# --- results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"shared": "true"}])
def test_logits_are_those_of_image_and_parts_together_or_the_sum_of_the_maps(settings):
    model, images = ma_cnn(**settings), torch.randn(3, 3, 32, 32)
    found = model.localize(images)
    with torch.no_grad():
        features = model.backbone.run(images)
        shares = model.groups(features).sigmoid()
        summed = torch.einsum("bnc,bchw->bnhw", shares, features)
        top = summed.flatten(2).argmax(dim=2)
        side = 96 / 448 * 32
        views = [features.mean(dim=(2, 3))]
        for part in range(4):
            crops = []
            for number in range(3):
                centre = [
                    min(max(4 * (each + 0.5), side / 2), 32 - side / 2)
                    for each in (int(top[number, part]) % 8, int(top[number, part]) // 8)
                ]
                low = [each - side / 2 for each in centre]
                x, y = (2 * (start + (torch.arange(16) + 0.5) / 16 * side) / 32 - 1 for start in low)
                at = torch.stack([x.expand(16, 16), y[:, None].expand(16, 16)], dim=2)[None]
                crops.append(
                    F.grid_sample(images[number][None], at, padding_mode="border", align_corners=False)[0]
                )
            network = model.backbone if settings else model.part_networks[part]
            views.append(network.run(torch.stack(crops)).mean(dim=(2, 3)))
        expected = model.concat_classifier(torch.cat(views, dim=1))
        torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=1e-4)
        maps = torch.sigmoid(summed)
        maps = maps / maps.sum(dim=(2, 3), keepdim=True)
        classified = [
            layer(torch.einsum("bhw,bchw->bc", maps[:, i], features))
            for i, layer in enumerate(model.map_classifiers)
        ]
        model.config = replace(model.config, predict="maps")
        torch.testing.assert_close(model.localize(images).logits, sum(classified), atol=1e-4, rtol=1e-4)


def test_proposals_are_the_squares_around_the_peaks_the_strongest_first():
    model, images = ma_cnn(map_form="official", part_side=128), torch.randn(4, 3, 32, 32)
    result = model.localize(images)
    found, side = result.propose(), 128 / 448 * 32
    maps = torch.stack([result.extra_maps[f"part{i}"] for i in range(1, 5)], dim=1)
    torch.testing.assert_close(found.scores, maps.amax(dim=(2, 3)).sort(dim=1, descending=True).values)
    torch.testing.assert_close(found.boxes[..., 2:] - found.boxes[..., :2], torch.full((4, 4, 2), side))
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 32
    for number in range(4):
        best = int(maps[number].amax(dim=(1, 2)).argmax())
        cell = int(maps[number, best].argmax())
        wanted = [min(max(4 * (each + 0.5), side / 2), 32 - side / 2) for each in (cell % 8, cell // 8)]
        centre = (found.boxes[number, 0, :2] + found.boxes[number, 0, 2:]) / 2
        torch.testing.assert_close(centre, torch.tensor(wanted))
    features = model.backbone.run(images)
    torch.testing.assert_close(result.extra_maps["object"], features.sum(dim=1).detach())


def test_class_maps_are_those_of_the_classifier_of_stage_a():
    model, images = ma_cnn(), torch.randn(2, 3, 32, 32)
    classes = torch.tensor([[0, 3], [2, 1]])
    maps = model.localize(images).score_maps(classes)
    with torch.no_grad():
        logits = model.whole_classifier(model.backbone.run(images).mean(dim=(2, 3)))
    torch.testing.assert_close(
        maps.mean(dim=(2, 3)) + model.whole_classifier.bias[classes], logits.gather(1, classes)
    )


def test_dropout_draws_from_the_batch_and_keeps_the_mean():
    values = torch.ones(200, 100)
    one, two = (drop_values(values, 0.5, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(one, two)
    assert set(one.unique().tolist()) == {0, 2}
    assert one.mean().item() == pytest.approx(1, abs=0.03)
    model = at_epoch(ma_cnn(), STAGES["D"])
    losses = [model.loss(toy_batch(4, classes=CLASSES, seed=seed))["concat"].item() for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_maps_are_single_precision_under_autocast():
    model, images = ma_cnn(map_form="official"), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        maps = model.localize(images).extra_maps["part1"]
    assert maps.dtype == torch.float32
    assert math.isclose(maps.sum().item(), 2, abs_tol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage_epochs": "1,2,3"}, "has 3 lengths"),
        ({"norm_statistics": "per_input"}, "shared=true"),
        ({"part_size": "1"}, "at least 2 pixels"),
        ({"parts": "1"}, r"in \[2, 8\]"),
        ({"part_side": "500"}, r"in \[8, 448\]"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        ma_cnn(**settings)
