"""NTS-Net: who sees which parts, what each loss is made of, and whom it teaches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.outputs import Batch
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.navigator import best_cover, nominate, rank_loss
from reference_models.layers.regions import coverage, crop_resize
from reference_models.recognition.nts_net import NtsNet, NtsNetConfig, drop_values
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from wsolbench.exceptions import UsageError

CLASSES = 5


def nts(**settings) -> NtsNet:
    return NtsNet(toy_backbone(), CLASSES, NtsNetConfig(**settings)).eval()


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


def shown(model: NtsNet, run) -> list[torch.Tensor]:
    """All that the backbone is given while `run` runs."""
    seen: list[torch.Tensor] = []
    handle = model.backbone.steps["one"].register_forward_pre_hook(
        lambda _step, arguments: seen.append(arguments[0])
    )
    run()
    handle.remove()
    return seen


def proposed(model: NtsNet, images: torch.Tensor, count: int):
    return nominate(
        model.navigator(model.backbone.run(images), 32), 32, count, model.config.nms, model.config.nms_rule
    )


def pooled(model: NtsNet, images: torch.Tensor) -> torch.Tensor:
    return model.backbone.run(images).mean((2, 3))


# --- the forward pass ---------------------------------------------------------------------------------------


def test_the_prediction_is_of_the_best_parts_in_order_and_the_whole_image():
    model, images = nts(), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    found = proposed(model, images, 4)
    for image in range(3):
        parts = [
            pooled(model, crop_resize(images[image][None], box[None, None], 16))[0]
            for box in found.boxes[image]
        ]
        expected = model.concat_classifier(torch.cat([*parts, pooled(model, images)[image]]))
        torch.testing.assert_close(result.logits[image], expected, atol=1e-5, rtol=1e-4)
    raw = nts(predict="raw")
    raw.load_state_dict(model.state_dict())
    torch.testing.assert_close(raw.localize(images).logits, model.raw_classifier(pooled(model, images)))


def test_maps_are_those_of_the_raw_classifier_and_their_mean_and_bias_its_logits():
    model, images = nts(predict="raw"), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(
        maps.mean((2, 3)) + model.raw_classifier.bias, result.logits, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("settings", [{}, {"nms": 0.6}, {"nms": 0.1, "nms_rule": "ge"}], ids=str)
def test_parts_are_proposed_best_first_and_have_maps(settings):
    model, images = nts(**settings), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    found, wanted = result.propose(), proposed(model, images, 4)
    assert torch.equal(found.boxes, wanted.boxes)
    assert torch.equal(found.scores, wanted.scores)
    real = found.scores.masked_fill(found.padded, -torch.inf)
    assert (real[:, :-1] >= real[:, 1:]).all()
    assert torch.equal(result.extra_maps["parts"], coverage(found, 32))
    scored = model.navigator(model.backbone.run(images), 32)
    assert torch.equal(result.extra_maps["nav"], best_cover(scored, (8, 8), 32))
    assert list(result.extra_maps) == ["nav", "parts", "union"]


def test_four_parts_are_seen_at_test_and_six_in_training():
    model = nts()
    sizes = [tuple(seen.shape) for seen in shown(model, lambda: model.localize(torch.randn(2, 3, 32, 32)))]
    assert sizes == [(2, 3, 32, 32), (8, 3, 16, 16)]
    sizes = [tuple(seen.shape) for seen in shown(model, lambda: model.loss(batch(2)))]
    assert sizes == [(2, 3, 32, 32), (12, 3, 16, 16)]


def test_parts_have_the_asked_size_and_crop():
    model, images = nts(part_size=10, crop_mode="align_corners"), torch.randn(2, 3, 32, 32)
    seen = shown(model, lambda: model.localize(images))[1]
    assert torch.equal(seen, crop_resize(images, proposed(model, images, 4).boxes, 10, "align_corners"))


def test_two_passes_are_equal_also_with_dropout_at_test():
    images = torch.randn(3, 3, 32, 32)
    without, model = nts(), nts(dropout_in_eval=True)
    model.load_state_dict(without.state_dict())
    state = torch.get_rng_state()
    one, two, first = (
        model.localize(images).logits,
        model.localize(images).logits,
        model.localize(images[:1]).logits,
    )
    assert torch.equal(one, two)
    torch.testing.assert_close(one[:1], first)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.allclose(one, without.localize(images).logits)


# --- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_has_the_terms_of_the_paper(reduction):
    model, given = nts(dropout=0.0, part_reduction=reduction), batch()
    terms = model.loss(given)
    found, labels = proposed(model, given.images, 6), given.labels
    whole = pooled(model, given.images)
    parts = pooled(model, crop_resize(given.images, found.boxes, 16)).view(4, 6, 16)
    costs = torch.stack(
        [F.cross_entropy(model.part_classifier(parts[:, j]), labels, reduction="none") for j in range(6)],
        dim=1,
    )
    expected = {
        "rank": rank_loss(found.scores, costs),
        "part": costs.mean() * (1 if reduction == "mean" else 6),
        "raw": F.cross_entropy(model.raw_classifier(whole), labels),
        "concat": F.cross_entropy(
            model.concat_classifier(torch.cat([parts[:, :4].flatten(1), whole], dim=1)), labels
        ),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-5, rtol=1e-4)


def test_the_ranking_loss_teaches_the_navigator_alone_and_is_its_only_teacher():
    model = nts().train()
    terms = model.loss(batch())
    names = dict(model.named_parameters())
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(names.values()), retain_graph=True, allow_unused=True)
        reached = {
            key.split(".")[0]
            for key, gradient in zip(names, gradients, strict=True)
            if gradient is not None and gradient.any()
        }
        assert reached == ({"navigator"} if name == "rank" else {"backbone", f"{name}_classifier"})


def test_the_control_of_the_navigator_keeps_its_first_weights_and_all_other_losses():
    trained, control = nts(), nts(rank_loss="none")
    control.load_state_dict(trained.state_dict())
    wanted, terms = (model.loss(batch()) for model in (trained, control))
    assert terms.keys() == wanted.keys() - {"rank"}
    assert all(torch.equal(term, wanted[name]) for name, term in terms.items())
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in control.navigator.parameters())
    assert control.part_classifier.weight.grad.any()


def test_dropout_keeps_the_mean_and_is_drawn_by_the_generator():
    ones = torch.ones(50, 7, 40)
    one, two = (drop_values(ones, 0.3, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert abs(float((one == 0).float().mean()) - 0.3) < 0.02
    torch.testing.assert_close(one.unique(), torch.tensor([0, 1 / 0.7]))
    assert not torch.equal(one[0], one[1])
    shared = drop_values(ones, 0.3, torch.Generator().manual_seed(3), per_image=False)
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(shared[:, 0], shared[:, 1])
    assert torch.equal(drop_values(ones, 0.0, torch.Generator()), ones)


def test_training_draws_from_the_generator_of_the_batch():
    model = nts()
    state = torch.get_rng_state()
    one, two = model.loss(batch()), model.loss(batch())
    other = model.loss(replace(batch(), generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["raw"], other["raw"])
    assert torch.equal(state, torch.get_rng_state())


def test_mixed_precision_gives_nearly_the_same_losses_of_the_image():
    model = nts(dropout=0.0)
    plain = model.loss(batch())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.loss(batch())
    for name in ("raw", "part", "concat"):
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], plain[name], atol=0.1, rtol=0.1)


def pictures() -> Batch:
    """Eight pictures of four classes."""
    data = squares(8, classes=4)
    images = torch.stack(
        [torch.from_numpy(sample.image()).permute(2, 0, 1) / 128 - 1 for sample in data.samples]
    )
    return replace(
        toy_batch(8, classes=4), images=images, labels=torch.tensor([sample.label for sample in data.samples])
    )


def learned(model: NtsNet, parameters, terms: tuple[str, ...], *, steps: int, lr: float) -> list[float]:
    """The sum of some terms of the loss at each step of learning eight images by heart."""
    optimizer, given, losses = torch.optim.Adam(parameters, lr=lr), pictures(), []
    for _ in range(steps):
        optimizer.zero_grad()
        found = model.loss(given)
        sum(found.values()).backward()
        optimizer.step()
        losses.append(sum(float(found[name].detach()) for name in terms))
    return losses


def test_eight_images_can_be_learned_by_heart():
    model = NtsNet(toy_backbone(), 4, NtsNetConfig(dropout=0.2)).train()
    losses = learned(model, model.parameters(), ("raw", "part", "concat"), steps=30, lr=5e-3)
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_the_navigator_learns_the_order_of_the_parts_of_a_network_that_stays():
    model = NtsNet(toy_backbone(), 4, NtsNetConfig(dropout=0.0)).eval()
    torch.nn.init.normal_(model.part_classifier.weight)
    losses = learned(model, model.navigator.parameters(), ("rank",), steps=60, lr=2e-2)
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


# --- settings -----------------------------------------------------------------------------------------------


def test_the_official_variant_is_the_released_code():
    model = NtsNet.create(
        backbone="tiny", num_classes=3, weights="none", settings={"variant": "official"}, image_size=32
    )
    assert (model.config.nms_rule, model.config.crop_mode, model.config.dropout_in_eval) == (
        "ge",
        "align_corners",
        True,
    )
    assert model.config.navigator_init == "torch"
    assert model.localize(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)


def test_resnet_has_its_own_grid_and_the_released_recipe():
    assert NtsNet.grid_for("resnet50", NtsNetConfig()) == "stock"
    assert NtsNet.grid_for("resnet50", NtsNetConfig(grid="std14")) == "std14"
    assert NtsNet.grid_for("tiny", NtsNetConfig()) == "default"
    assert NtsNet.recipe_for("resnet50", 200, {}) == FINE_GRAINED["nts"]
    assert NtsNet.recipe_for("resnet50", 200, {"variant": "official", "recipe": "nts"}) == FINE_GRAINED["nts"]
    assert NtsNet.recipe_for("tiny", 200, {"variant": "official"}) == NtsNet.recipe_for("tiny", 200, {})
    assert NtsNet.recipe_for("tiny", 200, {}).optimizer == "adamw"


def test_at_the_size_of_the_paper_there_are_1614_anchors():
    model = NtsNet.create(backbone="resnet50", num_classes=2, weights="none", settings={}, image_size=448)
    assert model.navigator(torch.rand(1, 2048, 14, 14), 448).scores.shape == (1, 1614)
    assert (model.concat_classifier.in_features, model.part_classifier.in_features) == (10240, 2048)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"parts": 7}, "parts=7 and proposals=6"),
        ({"parts": 0}, "parts=0"),
        ({"nms": 1.5}, "setting nms of method 'nts-net' is 1.5"),
        ({"dropout": 1.0}, "setting dropout of method 'nts-net' is 1.0"),
        ({"part_size": -1}, "setting part_size of method 'nts-net' is -1"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message):
        nts(**setting)


def test_the_navigator_learns_at_the_base_rate_whatever_the_recipe_says_of_new_layers() -> None:
    model = NtsNet(toy_backbone(), 3, NtsNetConfig())
    model.backbone.weights = replace(model.backbone.weights, sha256="pretrained")
    recipe = replace(FINE_GRAINED["nts"], new_factor=10.0)
    factors = {
        id(parameter): group["factor"]
        for group in model.parameter_groups(recipe)
        for parameter in group["params"]
    }
    assert {factors[id(parameter)] for parameter in model.navigator.parameters()} == {1.0}
    assert {factors[id(parameter)] for parameter in model.part_classifier.parameters()} == {10.0}


def test_settings_of_dropout_and_of_the_navigator_reach_what_they_are_about() -> None:
    assert all(
        (layer.bias == 0).all()
        for layer in nts(navigator_init="even").navigator.modules()
        if isinstance(layer, torch.nn.Conv2d)
    )
    assert any(
        (layer.bias != 0).any()
        for layer in nts(navigator_init="torch").navigator.modules()
        if isinstance(layer, torch.nn.Conv2d)
    )

    def terms(dropout: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = nts(dropout=dropout).train()
        return model.loss(replace(batch(), generator=torch.Generator().manual_seed(0)))

    assert not torch.allclose(sum(terms(0.0).values()), sum(terms(0.9).values()))
    assert torch.equal(sum(terms(0.5).values()), sum(terms(0.5).values()))


def test_the_released_loop_runs_to_epoch_499_and_the_rate_falls_before_the_epochs_60_and_100() -> None:
    recipe = NtsNet.recipe_for("resnet50", 200, {"variant": "official"})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[60, 100], gamma=0.1)
    released = []
    for _epoch in range(1, 500):  # the loop of the released program: a step of the schedule comes first
        optimizer.step()
        scheduler.step()
        released.append(optimizer.param_groups[0]["lr"])
    assert [
        recipe.lr_factor((epoch + 0.5) / recipe.epochs) for epoch in range(recipe.epochs)
    ] == pytest.approx(released)
    paper = FINE_GRAINED["nts"]
    assert [round(paper.lr_factor((epoch + 0.5) / 110), 6) for epoch in (59, 60, 99, 100)] == [
        1,
        0.1,
        0.1,
        0.01,
    ]
