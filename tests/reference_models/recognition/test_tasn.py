"""TASN: the trilinear product, what the network sees, and what teaches what."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.core.config import parse_settings
from reference_models.core.outputs import Batch
from reference_models.core.recipes import FINE_GRAINED
from reference_models.layers.regions import PEAK_SIDE
from reference_models.recognition.baseline import Baseline
from reference_models.recognition.tasn.attention import trilinear
from reference_models.recognition.tasn.maps import distinct_maps, mean_map, pick_channel
from reference_models.recognition.tasn.method import Tasn, TasnConfig, soft_cross_entropy
from reference_models.recognition.tasn.sampler import (
    limit_zoom_in_rounds,
    make_densities,
    normalise_density,
    sample_view,
)
from tests.reference_models.conftest import squares, toy_backbone, toy_batch
from tests.reference_models.recognition.training_checks import check_stopped_run, losses_on_eight_images
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import UsageError

CLASSES = 4


def network(size: int = 32, **settings) -> Tasn:
    """A model whose classifiers are not near zero."""
    config = parse_settings(TasnConfig, {k: str(v) for k, v in settings.items()}, what="tasn")
    model = Tasn(toy_backbone(size), CLASSES, config)
    for classifier in (model.classifier, model.attention.classifier):
        torch.nn.init.normal_(classifier.weight, std=0.5)
    return model.eval()


def batch(count: int = 4, seed: int = 0) -> Batch:
    return toy_batch(count, classes=CLASSES, seed=seed)


def shown(model: Tasn, run) -> list[torch.Tensor]:
    """All that the network of the views is given while `run` runs."""
    seen: list[torch.Tensor] = []
    handle = model.backbone.steps["one"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run()
    handle.remove()
    return seen


# --- the trilinear product ----------------------------------------------------------------------------------


def trilinear_by_loops(x: torch.Tensor, scale: float) -> torch.Tensor:
    """M of one image (c, n), one sum after another."""
    channels, cells = x.shape
    first = [[math.exp(scale * x[a, i]) for i in range(cells)] for a in range(channels)]
    first = [[value / sum(row) for value in row] for row in first]
    result = torch.zeros_like(x)
    for a in range(channels):
        relation = [sum(first[a][i] * x[b, i].item() for i in range(cells)) for b in range(channels)]
        weights = [math.exp(value) for value in relation]
        for i in range(cells):
            result[a, i] = sum(w * x[b, i].item() for b, w in enumerate(weights)) / sum(weights)
    return result


def test_golden_values_of_the_trilinear_product():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    found = trilinear(x.view(1, 3, 1, 2), 1.0).view(3, 2)
    expected = [[0.785624, 0.659693], [0.659693, 0.785624], [0.725931, 0.725931]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [0.5, 7.0])
def test_the_trilinear_product_is_the_loops(scale):
    x = torch.rand(2, 5, 2, 3, dtype=torch.float64)
    for one, found in zip(x, trilinear(x, scale), strict=True):
        torch.testing.assert_close(found.flatten(1), trilinear_by_loops(one.flatten(1), scale))


def test_each_map_is_a_mean_of_the_channels():
    x = torch.rand(2, 6, 4, 4, dtype=torch.float64)
    maps = trilinear(x, 7.0)
    assert (maps <= x.amax(1, keepdim=True)).all()
    assert (maps >= x.amin(1, keepdim=True)).all()
    # Rows of N2 sum to 1: constant channels stay.
    constant = torch.full((1, 6, 4, 4), 3.0, dtype=torch.float64)
    torch.testing.assert_close(trilinear(constant, 7.0), constant)
    assert (maps.std(1) > 0).any()  # the maps are not all the same


def test_maps_follow_permutations_of_channels_and_cells():
    x = torch.rand(1, 6, 1, 9, dtype=torch.float64)
    maps, channels, cells = trilinear(x, 7.0), torch.randperm(6), torch.randperm(9)
    torch.testing.assert_close(trilinear(x[:, channels], 7.0), maps[:, channels])
    torch.testing.assert_close(trilinear(x[..., cells], 7.0), maps[..., cells])


def test_large_features_make_equal_maps_of_which_one_counts():
    """A row of N2 is then the channel with the largest product, which many channels share."""
    x = 300 * torch.rand(2, 12, 5, 5, generator=torch.Generator().manual_seed(2))
    maps = trilinear(x, 7.0)
    kept = distinct_maps(maps)
    for one, which in zip(maps.flatten(2), kept, strict=True):
        for number in range(12):  # every map is that of exactly one kept channel
            same = (one[which] - one[number]).abs().amax(1) < 1e-3
            assert same.sum() == 1
        assert which.sum() < 12
    expected = torch.stack([one[which].mean(0) for one, which in zip(maps, kept, strict=True)])
    torch.testing.assert_close(mean_map(maps, kept), expected)
    assert not torch.allclose(mean_map(maps), expected, rtol=0.01)
    assert distinct_maps(torch.rand(1, 50, 3, 3)).all()
    assert distinct_maps(torch.zeros(1, 5, 3, 3)).sum() == 1


def test_one_of_the_distinct_maps_is_drawn_each_as_often():
    values = torch.tensor([0.0, 7, 7, 3, 3, 5])[None, :, None, None].expand(3000, 6, 2, 2)
    drawn = pick_channel(values, torch.Generator().manual_seed(1), distinct_maps(values))[:, 0, 0].long()
    counts = torch.bincount(drawn, minlength=8)[[0, 3, 5, 7]]
    assert counts.sum() == 3000
    assert ((counts - 750).abs() < 5 * (3000 * 3 / 16) ** 0.5).all()


def test_the_product_is_computed_in_single_precision():
    x = torch.rand(1, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = trilinear(x, 7.0)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, trilinear(x, 7.0))


# --- what the network sees ----------------------------------------------------------------------------------


def test_the_structure_is_sampled_by_the_mean_map_and_the_detail_by_one_channel():
    model, given = network(), batch()
    structure, detail = shown(model, lambda: model.loss(given))
    assert structure.shape == detail.shape == (4, 3, 16, 16)
    maps = model.attend(model.attention(given.images)[1])
    expected = sample_view(given.images, make_densities(maps.mean(1), 32, max_zoom=4.0), 16)
    torch.testing.assert_close(structure, expected)
    channel = torch.randint(maps.shape[1], (4,), generator=torch.Generator().manual_seed(0))
    chosen = torch.stack([maps[number, one] for number, one in enumerate(channel.tolist())])
    torch.testing.assert_close(
        detail, sample_view(given.images, make_densities(chosen, 32, max_zoom=4.0), 16)
    )


def test_every_channel_can_be_the_detail_s_and_the_generator_decides():
    maps = torch.arange(6.0)[None, :, None, None].expand(2000, 6, 1, 1)
    drawn = pick_channel(maps, torch.Generator().manual_seed(1)).flatten().long()
    counts = torch.bincount(drawn, minlength=6)
    assert ((counts - 2000 / 6).abs() < 5 * (2000 * 5 / 36) ** 0.5).all()
    assert torch.equal(drawn, pick_channel(maps, torch.Generator().manual_seed(1)).flatten().long())
    model, before = network(), torch.get_rng_state()
    model.loss(batch())
    assert torch.equal(before, torch.get_rng_state())


def test_the_master_alone_predicts_from_one_view_at_test():
    model, images = network(), torch.randn(3, 3, 32, 32)
    seen = shown(model, lambda: model.localize(images))
    assert [one.shape for one in seen] == [(3, 3, 16, 16)]
    pooled = model.backbone.run(seen[0]).mean((2, 3))
    torch.testing.assert_close(model.localize(images).logits, model.classifier(pooled))
    assert torch.equal(model.localize(images).logits, model.localize(images).logits)


def test_class_maps_have_the_scores_of_the_attention_network_as_their_means():
    model, images = network(predict="attention"), torch.randn(3, 3, 32, 32)
    result = model.localize(images)
    maps = result.score_maps(torch.arange(CLASSES).expand(3, CLASSES))
    torch.testing.assert_close(
        maps.mean((2, 3)) + model.attention.classifier.bias, result.logits, atol=1e-4, rtol=1e-4
    )


def test_proposals_are_squares_around_the_peaks_of_the_mean_map():
    result = network().localize(torch.randn(3, 3, 32, 32))
    found = result.propose()
    assert found.boxes.shape == (3, 4, 4)
    torch.testing.assert_close(found.boxes[..., 2] - found.boxes[..., 0], torch.full((3, 4), 32 * PEAK_SIDE))
    assert torch.equal(found.scores[:, 0], result.extra_maps["attention"].amax((1, 2)))


def test_the_master_s_map_without_attention_is_that_of_the_resized_image():
    model, images = network(attention="uniform"), torch.randn(2, 3, 32, 32)
    result = model.localize(images)
    small = F.interpolate(images, size=(16, 16), mode="bilinear")
    features = model.backbone.run(small)
    predicted = result.logits.argmax(1)
    maps = torch.einsum("bd,bdhw->bhw", model.classifier.weight[predicted], features)[:, None]
    expected = F.interpolate(maps, size=(8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(result.extra_maps["master"], expected, atol=1e-4, rtol=1e-4)
    # Both views are the resized image.
    for view in shown(model, lambda: model.loss(replace(batch(2), images=images))):
        torch.testing.assert_close(view, small, atol=1e-5, rtol=1e-5)


def test_maps_without_mixing_are_the_features():
    model, images = network(attention="features"), torch.randn(2, 3, 32, 32)
    features = model.attention(images)[1]
    torch.testing.assert_close(model.localize(images).extra_maps["attention"], features.mean(1))
    mixed = network().localize(images).extra_maps["attention"]
    assert not torch.allclose(mixed, features.mean(1))


def test_convolutions_share_their_weights_over_dilations():
    model, images = network(), torch.randn(2, 3, 32, 32)
    stages, found = model.attention(images)
    x = list(stages.values())[-1]
    for layer, dilations in ((model.attention.first, (1, 2)), (model.attention.second, (1, 2, 3))):
        total = 0.0
        for dilation in dilations:
            one = torch.nn.Conv2d(*layer.weight.shape[1::-1], 3, padding=dilation, dilation=dilation)
            one.load_state_dict(layer.state_dict())
            total = total + one(x).relu()
        x = total
    torch.testing.assert_close(found, x)


# --- the loss -----------------------------------------------------------------------------------------------


def test_golden_value_and_gradient_of_the_soft_cross_entropy():
    student = torch.tensor([[1.0, 2, 0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1, 0]])
    loss = soft_cross_entropy(student, teacher, 10.0)
    assert loss.item() == pytest.approx(1.0987813, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[0].tolist() == pytest.approx([-0.00349404, 0.00349404, 0], abs=1e-7)


def test_the_soft_cross_entropy_is_least_where_the_student_is_the_teacher():
    teacher = torch.randn(5, 7)
    probabilities = (teacher / 3).softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(teacher + 2, teacher, 3.0), entropy)
    assert soft_cross_entropy(torch.randn(5, 7), teacher, 3.0) > entropy


def test_terms_are_the_cross_entropies_and_twice_the_distillation():
    model, given = network(), batch()
    terms = model.loss(given)
    assert list(terms) == ["master", "part", "attention", "distill"]
    views = shown(model, lambda: model.loss(batch()))
    master, part = (model.classifier(model.backbone.run(view).mean((2, 3))) for view in views)
    own = model.attention.classifier(model.attention(given.images)[1].mean((2, 3)))
    torch.testing.assert_close(terms["master"], F.cross_entropy(master, given.labels))
    torch.testing.assert_close(terms["part"], F.cross_entropy(part, given.labels))
    torch.testing.assert_close(terms["attention"], F.cross_entropy(own, given.labels))
    targets = (part / 10).softmax(1)
    expected = -2 * (targets * (master / 10).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["distill"], expected)


def gradient_of(model: Tasn, *names: str) -> set[str]:
    """Modules that the gradient of some terms reaches."""
    model.zero_grad()
    terms = model.loss(batch())
    sum(terms[name] for name in names).backward()
    reached = {
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    return {".".join(name.split(".")[:2]) for name in reached}


def test_attention_learns_from_its_own_cross_entropy_alone():
    model = network()
    assert all(name.startswith("attention") for name in gradient_of(model, "attention"))
    assert not any(name.startswith("attention") for name in gradient_of(model, "master", "part", "distill"))


def test_the_teacher_gets_no_gradient_unless_the_released_code_is_asked_for():
    model = network(heads="separate")
    assert "distilled.part" not in gradient_of(model, "distill")
    assert "distilled.part" in gradient_of(network(heads="separate", teacher_gradient=True), "distill")
    assert "distilled.master" in gradient_of(model, "distill")


def test_the_released_variant_has_three_classifiers_with_half_the_weight():
    model, given = network(variant="official"), batch()
    with torch.no_grad():
        model.attention.second.weight.mul_(100)  # large features, so that some maps are equal
    terms = model.loss(given)
    assert list(terms) == ["master", "part", "attention", "master_distilled", "part_distilled", "distill"]
    pooled = [model.backbone.run(view).mean((2, 3)) for view in shown(model, lambda: model.loss(batch()))]
    for name, head, features in (
        ("master", model.classifier, pooled[0]),
        ("part", model.classifier, pooled[1]),
        ("master_distilled", model.distilled["master"], pooled[0]),
        ("part_distilled", model.distilled["part"], pooled[1]),
    ):
        torch.testing.assert_close(terms[name], F.cross_entropy(head(features), given.labels) / 2)
    student, teacher = (
        model.distilled[name](one) for name, one in zip(("master", "part"), pooled, strict=True)
    )
    torch.testing.assert_close(terms["distill"], soft_cross_entropy(student, teacher, 10.0))
    assert model.config.structure_power == 2
    # The structure is sampled by the square of the resized mean of the distinct maps.
    maps = model.attend(model.attention(given.images)[1])
    kept = distinct_maps(maps)
    assert not kept.all()
    maps = torch.stack([one[which].mean(0) for one, which in zip(maps, kept, strict=True)])
    resized = F.interpolate(maps[:, None], size=(32, 32), mode="bilinear", align_corners=True)[:, 0] ** 2
    densities = limit_zoom_in_rounds(
        (normalise_density(resized.amax(1)), normalise_density(resized.amax(2))), 4.0
    )
    expected = sample_view(given.images, densities, 16, "released")
    torch.testing.assert_close(shown(model, lambda: model.localize(given.images))[0], expected)


def test_without_details_the_network_sees_the_structure_alone():
    model = network(views="structure")
    assert list(model.loss(batch())) == ["master", "attention"]
    assert len(shown(model, lambda: model.loss(batch()))) == 1


@pytest.mark.parametrize(
    "settings", [{}, {"variant": "official"}, {"views": "structure"}, {"distill_weight": 0}]
)
def test_every_parameter_gets_a_gradient(settings):
    model = network(**settings).train()
    sum(model.loss(batch()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- networks -----------------------------------------------------------------------------------------------


def test_next_to_the_paper_s_network_attention_is_a_resnet18():
    model = Tasn.create(backbone="resnet50", num_classes=CLASSES, weights="none", settings={}, image_size=64)
    assert model.attention.trunk.name == "timm:resnet18"
    assert model.attention(torch.zeros(1, 3, 64, 64))[1].shape == (1, 512, 4, 4)
    assert model.view_size == 32
    recipe = Tasn.recipe_for("resnet50", 200, {})
    assert not model.is_new("attention.trunk.steps.net.conv1.weight", recipe)
    assert model.is_new("attention.first.weight", recipe)


def test_a_copy_keeps_frozen_what_is_frozen():
    model = network()
    model.backbone.weights = replace(model.backbone.weights, sha256="0" * 64)
    model.backbone.freeze(2)
    model.train().on_epoch(0, 10)
    trunk = model.attention.trunk
    frozen = {name for name, step in trunk.steps.items() if not step.training}
    assert frozen == {"one", "two"}
    learning = {name.split(".")[1] for name, parameter in trunk.named_parameters() if parameter.requires_grad}
    assert learning == {"three"}
    network().train().on_epoch(0, 10)  # without frozen stages


def test_the_view_has_the_size_that_is_asked_for():
    model = network(view_scale=0.75)
    assert [view.shape[-1] for view in shown(model, lambda: model.loss(batch()))] == [24, 24]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view_scale": 0.1}, "views of 3 pixels; expected at least 4"),
        ({"max_zoom": 0.5}, "max_zoom"),
        ({"temperature": 0}, "temperature"),
        ({"attention_backbone": "nonesuch"}, "nonesuch"),
        ({"attention_backbone": "efficientnet_lite0"}, "attention_backbone=copy"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        network(**settings)


def test_the_recipe_is_the_released_one():
    recipe = Tasn.recipe_for("resnet50", 200, {})
    assert recipe == FINE_GRAINED["tasn"] == Baseline.recipe_for("resnet50", 200, {"recipe": "tasn"})
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (300, 96, 0.1, 0)
    factors = [recipe.lr_factor(epoch / 300) for epoch in (0, 99, 100, 199, 200, 299)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Tasn.recipe_for("tiny", 12, {}).optimizer == "adamw"


# --- runs ---------------------------------------------------------------------------------------------------


def test_eight_images_are_learned():
    model = Tasn(toy_backbone(), 3, TasnConfig())
    losses = losses_on_eight_images(model)
    assert all(losses[-1][name] < 0.5 * losses[0][name] for name in ("master", "part", "attention"))


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    options = {
        "train": squares(8),
        "epochs": 2,
        "batch_size": 4,
        "settings": {"recipe.lr": "0.01", "norm_statistics": "per_input"},
    }
    check_stopped_run(Tasn, lambda name: request(tmp_path / name, **options), (1,), monkeypatch)
