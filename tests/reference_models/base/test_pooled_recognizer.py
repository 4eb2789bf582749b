"""Classifiers on pooled products: what each stage of a run trains, and at which rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from reference_models.core.pooled_recipes import HEAD_STAGES, POOLED
from reference_models.core.recipes import RECIPES
from reference_models.core.weights import Weights
from reference_models.recognition.b_cnn import BCnn, BCnnConfig
from reference_models.recognition.isqrt_cov import IsqrtCov
from tests.reference_models.conftest import toy_backbone, toy_batch
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method

CLASSES = 5
METHODS = ("b-cnn", "kernel-pooling", "hihca", "hbp", "isqrt-cov", "deep-kspd")
PAPERS = {
    "b-cnn": "bcnn",
    "kernel-pooling": "cbp",
    "hihca": "hihca",
    "hbp": "hbp",
    "isqrt-cov": "isqrt",
    "deep-kspd": "bcnn",
}


def pretrained(**settings) -> BCnn:
    """A model whose backbone counts as pretrained."""
    backbone = toy_backbone()
    backbone.weights = Weights("some", "0" * 64)
    return BCnn(backbone, CLASSES, BCnnConfig(**settings)).train()


def one_step(model: BCnn) -> set[str]:
    """Update once, as the training loop does; return what has moved, statistics included."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(model.loss(toy_batch(4, classes=CLASSES)).values()).backward()
    optimizer.step()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_the_first_stage_trains_the_head_alone_and_the_second_everything():
    model = pretrained(stage_epochs=(1, 2))
    model.on_epoch(0, 6)
    assert one_step(model) == {"classifier.weight", "classifier.bias"}
    model.train()
    model.on_epoch(2, 6)
    assert {name for name in model.state_dict() if not name.endswith("num_batches_tracked")} <= one_step(
        model
    )


def test_the_loop_switches_to_training_mode_before_each_epoch_and_the_backbone_still_rests():
    model = pretrained()
    for epoch, resting in ((0, True), (1, True), (2, False), (5, False)):
        model.train()
        model.on_epoch(epoch, 6)
        assert model.backbone.training is not resting
        assert model.classifier.weight.requires_grad


def test_frozen_stages_stay_frozen_in_the_second_stage():
    model = pretrained()
    model.backbone.freeze(1)
    for epoch in (0, 5):
        model.train()
        model.on_epoch(epoch, 6)
    moved = one_step(model)
    assert not [name for name in moved if name.startswith("backbone.steps.one.")]
    assert [name for name in moved if name.startswith("backbone.steps.two.")]


@pytest.mark.parametrize("settings", [{}, {"stage_epochs": (0, 1)}])
def test_there_is_no_first_stage_without_pretrained_weights_or_length(settings):
    model = pretrained(**settings)
    if not settings:
        model.backbone.weights = Weights("none")
    for epoch in range(3):
        model.on_epoch(epoch, 3)
        assert model.backbone.training
    assert model.lr_factor(RECIPES["finetune"], 0.5) == RECIPES["finetune"].lr_factor(0.5)
    one = pretrained()
    one.on_epoch(0, 1)  # a run of one epoch
    assert one.backbone.training


def test_rates_of_both_stages_are_those_of_the_sources():
    def rates(name: str, epochs: list[float]) -> list[float]:
        model, recipe = pretrained(recipe=name), POOLED[name]
        head = next(
            group for group in model.parameter_groups(recipe) if group["name"] == "classifier weights"
        )
        return [
            recipe.lr * head["factor"] * model.lr_factor(recipe, epoch / recipe.epochs) for epoch in epochs
        ]

    assert rates("bcnn", [0, 79.9, 80, 119.9, 120, 140]) == pytest.approx([1, 1, 1e-2, 1e-2, 1e-3, 1e-4])
    assert rates("cbp", [0, 20, 30, 40, 50, 60, 89]) == pytest.approx(
        [1, 1 / 4, 1 / 16, 1 / 64, 1 / 256, 1e-3, 1e-3]
    )
    assert rates("hbp", [0, 119.9, 120, 170, 220, 270]) == pytest.approx([1, 1 / 256, 1e-3, 5e-4, 5e-4, 5e-4])
    assert rates("hihca", [0, 20, 29.9, 30]) == pytest.approx([1, 1e-3, 1e-3, 1e-4])
    assert rates("bcnn_umass", [0, 24, 25, 50]) == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3])
    assert rates("isqrt", [0, 99]) == pytest.approx([6e-3, 6e-3])
    assert rates("isqrt_hawkeye", [10]) == pytest.approx([8e-5])
    for name, stage in HEAD_STAGES.items():
        assert sum(stage.lengths) == POOLED[name].epochs


def test_settings_replace_lengths_and_rates():
    model = pretrained(recipe="bcnn", stage_epochs=(1, 3), head_rate=7.0, head_factor=2.0)
    recipe = POOLED["bcnn"]
    assert [model.place_at(epoch, 160).stage for epoch in (39, 40)] == [0, 1]
    assert model.lr_factor(recipe, 0.1) == 7
    factors = {group["name"]: group["factor"] for group in model.parameter_groups(recipe)}
    assert factors["classifier weights"] == 2


def test_a_short_run_has_a_classifier_rate_near_one_and_adam_the_base_rate():
    model, recipe = pretrained(), RECIPES["finetune"]
    factors = {group["name"]: group["factor"] for group in model.parameter_groups(recipe)}
    assert 0.5 < recipe.lr * factors["classifier weights"] < 2
    assert factors["backbone weights"] == 1
    adam = replace(recipe, optimizer="adamw", new_factor=1.0)
    assert {group["factor"] for group in model.parameter_groups(adam)} == {1}
    grouped = [id(each) for group in model.parameter_groups(recipe) for each in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    assert IsqrtCov.short_stage.head_factor == 10  # no unit norm


@pytest.mark.parametrize("name", METHODS)
def test_the_networks_of_the_papers_have_the_paper_s_recipe_and_448_pixels(name):
    method = load_method(name)
    for backbone in ("vgg16", "resnet50"):
        assert method.recipe_name(backbone, 200) == PAPERS[name]
        assert (method.default_size(backbone, 200), method.default_size(backbone, 1000)) == (448, None)
    assert method.recipe_name("efficientnet_lite0", 200) == "finetune"
    assert method.recipe_name("tiny", 200) == "tiny"
    assert method.default_size("tiny", 200) is None
    baseline = load_method("baseline")
    assert baseline.recipe_for("resnet50", 200, {"recipe": PAPERS[name]}) == method.recipe_for(
        "resnet50", 200, {}
    )


def test_the_official_variant_has_its_recipe_and_its_stages():
    method = load_method("b-cnn")
    assert method.recipe_for("vgg16", 200, {"variant": "official"}) == POOLED["bcnn_umass"]
    model = method.create(
        backbone="vgg16",
        num_classes=2,
        weights="none",
        settings={"variant": "official", "reduce": "4"},
        image_size=32,
    )
    assert model.head_stage == HEAD_STAGES["bcnn_umass"]


@pytest.mark.parametrize("lengths", [(1,), (1, 0), (1, 2, 3)])
def test_lengths_of_the_stages_are_checked(lengths):
    with pytest.raises(
        UsageError, match=r"stage_epochs is .*expected the lengths of two stages.*stage_epochs=1,2"
    ):
        BCnnConfig(stage_epochs=lengths)


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_eight_images(name):
    method = load_method(name)
    model = method(toy_backbone(), CLASSES, method.Config()).train()
    given, losses = toy_batch(8, classes=CLASSES), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(sum(model.loss(given).values()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("stops_at", [1, 2], ids=["in the first stage", "between the stages"])
@pytest.mark.parametrize("name", ["b-cnn", "kernel-pooling"])
def test_an_interrupted_run_equals_an_unbroken_one(tmp_path, monkeypatch, name, stops_at):
    start = load_method("cam").fit(request(tmp_path / "start", epochs=1))
    kind = load_method(name)
    wanted = {"weights": str(start), "settings": {"stage_epochs": "2,2"}, "epochs": 4, "val": None}
    whole = kind.fit(request(tmp_path / "whole", **wanted))
    on_epoch = kind.on_epoch

    def stop(self, epoch, epochs):
        if epoch == stops_at:
            raise KeyboardInterrupt
        on_epoch(self, epoch, epochs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "on_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            kind.fit(request(tmp_path / "broken", **wanted))
    one, two = load_file(whole), load_file(kind.fit(request(tmp_path / "broken", **wanted)))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    # The backbone has moved in the second stage.
    before = load_file(start)
    assert any(not torch.equal(before[key], one[key]) for key in before if key.startswith("backbone."))


@pytest.mark.parametrize(
    ("name", "group"), [("kernel-pooling", "orders"), ("deep-kspd", "theta"), ("hihca", "scales")]
)
def test_numbers_inside_a_representation_have_the_base_rate_in_the_first_stage(name, group):
    kind = load_method(name)
    backbone = toy_backbone()
    backbone.weights = Weights("some", "0" * 64)
    model = kind(backbone, CLASSES, kind.Config(recipe="cbp", stage_epochs=(1, 1)))
    recipe = replace(POOLED["cbp"], epochs=4)
    groups = {each["name"]: each for each in model.parameter_groups(recipe)}
    factor = groups[group]["factor"]
    assert [model.group_factor(groups[group], recipe, done) for done in (0.1, 0.6)] == [factor, factor]
    head = groups["classifier weights"]
    assert model.group_factor(head, recipe, 0.1) == 1000 * model.group_factor(head, recipe, 0.6)


@pytest.mark.parametrize("recipe", ["cbp", "hbp", "hihca"])
def test_heads_of_recipes_with_a_large_decay_have_that_of_the_first_stage(recipe):
    model = pretrained(recipe=recipe)
    groups = {each["name"]: each for each in model.parameter_groups(POOLED[recipe])}
    decays = {name: each.get("weight_decay", POOLED[recipe].weight_decay) for name, each in groups.items()}
    assert decays["backbone weights"] == 5e-4
    assert decays["classifier weights"] == decays["classifier biases"] == 5e-6


def test_a_decay_of_5e4_at_a_rate_of_1_keeps_a_classifier_on_unit_vectors_from_learning():
    """Classes with cosines of 0.65 within and 0.5 between: the classifier of `cbp`, with either decay."""
    generator = torch.Generator().manual_seed(0)
    classes, dimensions = 50, 256
    common, own = (
        torch.randn(dimensions, generator=generator),
        torch.randn(classes, dimensions, generator=generator),
    )
    labels = torch.arange(classes).repeat_interleave(8)
    noise = torch.randn(len(labels), dimensions, generator=generator)
    vectors = 0.5**0.5 * common / common.norm() + 0.15**0.5 * (own / own.norm(dim=1, keepdim=True))[labels]
    vectors = torch.nn.functional.normalize(vectors + 0.35**0.5 * noise / noise.norm(dim=1, keepdim=True))
    shares = {}
    for decay in (5e-4, HEAD_STAGES["cbp"].weight_decay):
        linear = torch.nn.Linear(dimensions, classes)
        optimizer = torch.optim.SGD(linear.parameters(), lr=1.0, momentum=0.9, weight_decay=decay)
        for _ in range(600):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(vectors), labels).backward()
            optimizer.step()
        shares[decay] = float(
            linear(vectors).detach().softmax(dim=1)[torch.arange(len(labels)), labels].mean()
        )
    assert shares[5e-4] < 0.6
    assert shares[5e-6] > 0.9
