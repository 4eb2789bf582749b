"""MA-CNN: groups of channels, maps that can and cannot be compact, both geometric losses, and the stages."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from reference_models.core.config import parse_settings
from reference_models.recognition.ma_cnn.channel_groups import (
    attention_maps,
    cauchy_loss,
    cluster_channels,
    distance_loss,
    diversity_loss,
    evidence,
    part_features,
    peak_vectors,
    peaks,
    random_partition,
    squared_distances,
)
from reference_models.recognition.ma_cnn.method import MaCnn, drop_values
from reference_models.recognition.ma_cnn.settings import MaCnnConfig
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.training.test_loop import request, same_weights
from wsolbench.exceptions import UsageError

CLASSES = 5
EPOCHS = 12
STAGES = {"A": 0, "B": 4, "C even": 5, "C odd": 6, "D": 9}
GOLDEN = torch.tensor(
    [[[0.5, 0.2, 0], [0.2, 0.1, 0], [0, 0, 0]], [[0, 0.1, 0.4], [0, 0.2, 0.3], [0, 0, 0]]],
    dtype=torch.float64,
)[None]


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


# --- groups of channels -------------------------------------------------------------------------------------


def test_a_channel_is_the_vector_of_its_peaks_in_all_images():
    features = torch.zeros(2, 2, 4, 8)
    features[0, 0, 1, 2] = features[1, 0, 3, 7] = features[0, 1, 0, 0] = features[1, 1, 2, 5] = 1
    expected = [[2.5 / 8, 7.5 / 8, 1.5 / 4, 3.5 / 4], [0.5 / 8, 5.5 / 8, 0.5 / 4, 2.5 / 4]]
    torch.testing.assert_close(peak_vectors(features), torch.tensor(expected))


def test_the_scale_of_a_channel_does_not_move_its_peaks():
    features, scale = torch.rand(3, 6, 5, 7), torch.rand(1, 6, 1, 1) + 0.1
    assert torch.equal(peak_vectors(features), peak_vectors(scale * features))


def test_channels_with_equal_peaks_fall_into_one_cluster():
    spots, rng = np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]), np.random.default_rng(3)
    of = rng.permutation(np.repeat(np.arange(4), 10))
    vectors = np.tile(spots[of], (1, 5)) + rng.normal(scale=0.01, size=(40, 10))
    found = cluster_channels(vectors, 4)
    assert found.shape == (4, 40)
    assert found.sum(axis=0).tolist() == [1] * 40
    for spot in range(4):
        rows = found[:, of == spot]
        assert sorted(rows.sum(axis=1).tolist()) == [0, 0, 0, 10]
    assert np.array_equal(found, cluster_channels(vectors, 4))


def test_the_control_divides_channels_into_groups_of_equal_size():
    found = random_partition(18, 4)
    assert sorted(found.sum(axis=1).tolist()) == [4, 4, 5, 5]
    assert found.sum(axis=0).tolist() == [1] * 18
    assert not np.array_equal(np.sort(found.argmax(axis=0)), found.argmax(axis=0))


def test_shares_are_those_of_two_layers_for_each_group():
    model, features = ma_cnn(group_width=3), torch.rand(2, 16, 8, 8)
    found = model.groups(features)
    for part in range(4):
        first, second = model.groups.first[part], model.groups.second[part]
        hidden = torch.tanh(features.mean(dim=(2, 3)) @ first.weight.T + first.bias)
        torch.testing.assert_close(found[:, part], hidden @ second.weight.T + second.bias)
        assert first.weight.shape == (3, 16)


# --- maps ---------------------------------------------------------------------------------------------------


def test_the_released_map_is_a_softmax_in_closed_form():
    summed = 300 * torch.randn(2, 4, 5, 6, dtype=torch.float64)
    found = attention_maps(summed, 16, "official")
    base = F.softplus(torch.tanh(0.1 * summed / 16)) ** 4
    torch.testing.assert_close(
        found.double(), base / base.sum(dim=(2, 3), keepdim=True), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("form", "bound"), [("paper", 2.0), ("official", 12.9)])
def test_negative_two_cells_of_a_map_of_features_that_are_not_negative_differ_by_a_bounded_factor(
    form, bound
):
    """The highest map of 28x28 cells that there can be: one cell without limit, the others 0."""
    summed = torch.zeros(1, 1, 28, 28)
    summed[..., 14, 14] = 1e6
    found = attention_maps(summed, 512, form)[0, 0]
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert (found.max() / found.min()).item() == pytest.approx(bound, abs=0.05)
    assert found.max().item() == pytest.approx({"paper": 0.00255, "official": 0.0162}[form], rel=5e-3)
    least = distance_loss(found[None, None].double(), peaks(found[None, None]), "cell").item()
    if form == "paper":  # no compact map has a Dis of more than half of the uniform one's
        assert least > 107
    bounds = attention_maps(50 * torch.rand(3, 4, 7, 7), 16, form).flatten(2)
    assert (bounds.amax(dim=2) / bounds.amin(dim=2)).max() <= bound + 0.05
    torch.testing.assert_close(bounds.sum(dim=2), torch.ones(3, 4))


def test_negative_the_sum_of_many_channels_saturates_the_printed_sigmoid():
    features = torch.rand(2, 512, 7, 7)
    shares = torch.full((2, 4, 512), 0.5, requires_grad=True)
    summed = evidence(shares, features)
    flat = attention_maps(summed, 512, "paper")
    torch.testing.assert_close(flat, torch.full_like(flat, 1 / 49))
    (gradient,) = torch.autograd.grad(
        distance_loss(flat, peaks(summed), "side").sum(), shares, retain_graph=True
    )
    assert not gradient.any()
    live = distance_loss(attention_maps(summed, 512, "official"), peaks(summed), "side").sum()
    assert torch.autograd.grad(live, shares)[0].any()


def test_a_uniform_map_gives_the_mean_of_the_features_and_a_single_cell_its_own():
    features = torch.rand(2, 3, 4, 5)
    maps = torch.full((2, 2, 4, 5), 1 / 20)
    maps[:, 1] = 0
    maps[:, 1, 2, 3] = 1
    found = part_features(maps, features)
    torch.testing.assert_close(found[:, 0], features.mean(dim=(2, 3)))
    torch.testing.assert_close(found[:, 1], features[:, :, 2, 3])


# --- losses -------------------------------------------------------------------------------------------------


def test_golden_values_of_the_losses():
    top = peaks(GOLDEN)
    assert distance_loss(GOLDEN, top, "cell")[0].tolist() == pytest.approx([0.6, 0.8])
    assert diversity_loss(GOLDEN, 0.02)[0].tolist() == pytest.approx([0.02, 0.02])
    assert cauchy_loss(GOLDEN, top, normalised=False)[0].tolist() == pytest.approx(
        [0.3161728, 0.3628395], abs=1e-7
    )
    assert distance_loss(GOLDEN, top, "side")[0].tolist() == pytest.approx([0.6 / 9, 0.8 / 9])


def losses_by_loops(maps: torch.Tensor, margin: float) -> tuple[list[float], list[float], list[float]]:
    """Dis in sides, Div and the Cauchy loss, cell by cell."""
    count, height, width = maps.shape
    spread, overlap, fit = [], [], []
    for i in range(count):
        cells = [(y, x) for y in range(height) for x in range(width)]
        ty, tx = max(cells, key=lambda cell: (float(maps[i][cell]), -cell[0], -cell[1]))
        spread.append(
            sum(float(maps[i, y, x]) * (((x - tx) / width) ** 2 + ((y - ty) / height) ** 2) for y, x in cells)
        )
        overlap.append(
            sum(
                float(maps[i, y, x]) * (max(float(maps[k, y, x]) for k in range(count) if k != i) - margin)
                for y, x in cells
            )
        )
        target = {(y, x): 1 / (1 + (x - tx) ** 2 + (y - ty) ** 2) for y, x in cells}
        total = sum(target.values())
        fit.append(sum((float(maps[i][cell]) - target[cell] / total) ** 2 for cell in cells) / 2)
    return spread, overlap, fit


def test_the_losses_are_those_of_the_loops():
    maps = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    maps = maps / maps.sum(dim=(2, 3), keepdim=True)
    top = peaks(maps)
    for number in range(2):
        spread, overlap, fit = losses_by_loops(maps[number], 0.02)
        assert distance_loss(maps, top, "side")[number].tolist() == pytest.approx(spread)
        assert diversity_loss(maps, 0.02)[number].tolist() == pytest.approx(overlap)
        assert cauchy_loss(maps, top)[number].tolist() == pytest.approx(fit)


def test_dis_is_0_for_a_single_cell_alone():
    maps = torch.zeros(1, 2, 3, 3)
    maps[0, 0, 1, 2] = 1
    maps[0, 1, 1, 2], maps[0, 1, 0, 0] = 0.9, 0.1
    found = distance_loss(maps, peaks(maps), "cell")[0]
    assert found[0] == 0
    assert found[1].item() == pytest.approx(0.1 * 5)


def test_div_is_least_for_distinct_cells_and_highest_for_equal_ones():
    apart, equal = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
    apart[0, 0, 0, 0] = apart[0, 1, 2, 2] = 1
    equal[0, :, 1, 1] = 1
    assert diversity_loss(apart, 0.02)[0].tolist() == pytest.approx([-0.02] * 2)
    assert diversity_loss(equal, 0.02)[0].tolist() == pytest.approx([0.98] * 2)


def test_negative_the_margin_has_no_gradient():
    summed = torch.randn(2, 4, 5, 5, requires_grad=True)
    gradients = [
        torch.autograd.grad(diversity_loss(attention_maps(summed, 4, "paper"), margin).sum(), summed)[0]
        for margin in (0.0, 0.5)
    ]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-4


def test_permuted_groups_have_permuted_losses():
    maps, order = attention_maps(torch.randn(2, 4, 5, 5), 4, "official"), [2, 0, 3, 1]
    for loss in (lambda m: distance_loss(m, peaks(m), "side"), lambda m: diversity_loss(m, 0.02)):
        torch.testing.assert_close(loss(maps[:, order]), loss(maps)[:, order])


@pytest.mark.parametrize("loss", ["dis", "cauchy"])
def test_descent_on_the_released_maps_makes_them_more_compact(loss):
    summed = torch.randn(1, 2, 7, 7).mul(5).requires_grad_()
    top = peaks(summed.detach())

    def spread() -> float:
        return distance_loss(attention_maps(summed, 1, "official"), top, "side").sum().item()

    before = spread()
    for _ in range(20):
        maps = attention_maps(summed, 1, "official")
        value = (cauchy_loss(maps, top) if loss == "cauchy" else distance_loss(maps, top, "side")).sum()
        (gradient,) = torch.autograd.grad(value, summed)
        with torch.no_grad():
            summed -= 2 * gradient / gradient.abs().max()
    assert spread() < 0.9 * before


def test_distances_are_between_centres_of_cells():
    found = squared_distances(torch.tensor([[5]]), (2, 4), "cell")[0, 0]  # row 1, column 1
    assert found.tolist() == [[2, 1, 2, 5], [1, 0, 1, 4]]


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


def module_of(name: str) -> str:
    several = ("map_classifiers", "part_networks", "view_classifiers")
    return ".".join(name.split(".")[: 2 if name.startswith(several) else 1])


@pytest.mark.parametrize("stage", LEARNS)
def test_a_stage_trains_its_modules_and_leaves_the_others_to_the_bit(stage):
    model = at_epoch(ma_cnn(map_form="official"), STAGES[stage])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(model.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for name, parameter in model.named_parameters()
        if module_of(name) in LEARNS[stage]
    )
    optimizer.step()
    moved = {
        module_of(name) for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == LEARNS[stage]


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
        model.zero_grad()
        sum(terms[name] for name in names).backward(retain_graph=True)
        reached = {
            name.split(".", maxsplit=1)[0]
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }
        assert reached == wanted


def test_copies_of_the_network_have_its_rate_and_its_frozen_stages():
    model, recipe = ma_cnn(), MaCnn.recipe_for("resnet50", 200, {})
    assert (recipe.epochs, recipe.lr, recipe.new_factor, recipe.bias_factor) == (100, 1e-3, 10, 2)
    old = {module_of(name) for name, _ in model.named_parameters() if not model.is_new(name, recipe)}
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
    def wanted(name):
        own = {"stage_epochs": "1,2,2,2", "group_width": "8", **settings}
        return request(tmp_path / name, epochs=7, val=None, settings=own)

    MaCnn.fit(wanted("unbroken"))
    resume = MaCnn.on_epoch
    for stop in (1, 2, 4, 6):

        def stopped(self, epoch, epochs, stop=stop):
            if epoch == stop:
                raise KeyError
            resume(self, epoch, epochs)

        with monkeypatch.context() as patch:
            patch.setattr(MaCnn, "on_epoch", stopped)
            with pytest.raises(KeyError):
                MaCnn.fit(wanted("broken"))
    MaCnn.fit(wanted("broken"))
    paths = [wanted(name).out / "last.safetensors" for name in ("unbroken", "broken")]
    assert same_weights(*paths)
    indicators = load_file(paths[0])["indicators"]
    assert indicators.sum(dim=0).tolist() == [1] * 64


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
