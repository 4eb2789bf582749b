"""TriLite: three regions that share each patch, pooled and scored, on a network that never changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from reference_models.localization.trilite import (
    background_loss,
    pool_region,
    split_regions,
)
from tests.reference_models.conftest import squares
from tests.reference_models.localization.token_models import (
    SIDE,
    VIT,
    VIT_LAST_BLOCKS,
    VIT_WIDTH,
    losses_of_steps,
    small_model,
    square_batch,
)
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest, load_method

DINO, DINO_SIDE = "timm:vit_small_patch14_dinov2", 56


def trained(out, **changes):
    values = {"backbone": VIT, "image_size": 32, "batch_size": 6, "epochs": 1, "device": "cpu", "workers": 0}
    return load_method("trilite").fit(
        TrainRequest(train=squares(12), out=out, weights="none", **{**values, **changes})
    )


# --- equations ----------------------------------------------------------------------------------------------


def test_the_regions_share_each_patch():
    logits = 5 * torch.randn(2, 3, 4, 4)
    regions = split_regions(logits)
    torch.testing.assert_close(regions.sum(dim=1), torch.ones(2, 4, 4))
    exponentials = logits.exp()
    torch.testing.assert_close(regions, exponentials / exponentials.sum(dim=1, keepdim=True))


def test_a_region_is_pooled_patch_by_patch():
    region, features = torch.rand(2, 3, 3), torch.randn(2, 5, 3, 3)
    total = sum(region[:, y, x, None] * features[:, :, y, x] for y in range(3) for x in range(3))
    torch.testing.assert_close(
        pool_region(region, features), total / (region.sum(dim=(1, 2))[:, None] + 1e-6)
    )
    assert not pool_region(torch.zeros(2, 3, 3), features).any()


def test_constant_features_are_the_same_in_every_region():
    constant = torch.randn(2, 5, 1, 1).expand(-1, -1, 4, 4)
    front, back = (pool_region(0.1 + torch.rand(2, 4, 4), constant) for _ in range(2))
    torch.testing.assert_close(front, constant[:, :, 0, 0], atol=5e-6, rtol=5e-6)
    torch.testing.assert_close(back, front, atol=5e-6, rtol=5e-6)


def test_without_dropout_constant_features_score_alike_in_every_region():
    model = small_model("trilite").eval()
    constant = torch.randn(2, VIT_WIDTH, 1, 1).expand(-1, -1, 4, 4)
    _, front, back = model.score_regions(constant)
    torch.testing.assert_close(front, back, atol=1e-5, rtol=1e-4)
    _, front, back = model.score_regions(torch.randn(2, VIT_WIDTH, 4, 4))
    assert not torch.allclose(front, back, atol=1e-3)


@pytest.mark.parametrize(("right", "cost"), [(0.0, 0.0), (0.5, math.log(2)), (1.0, 16.118)])
def test_a_background_that_knows_the_class_is_dear(right, cost):
    logits = torch.tensor([[right, 1 - right]]).clamp(min=1e-30).log()
    assert background_loss(logits, torch.tensor([0])) == pytest.approx(cost, abs=1e-3)


def test_the_loss_is_that_of_the_equations_written_out():
    batch = square_batch(4)
    model = small_model("trilite", alpha=7, dropout=0, class_dropout=0).train()
    with torch.no_grad():
        x = model.backbone.run(batch.images, until=VIT_LAST_BLOCKS[-1])
        features = x[:, 1:].mT.reshape(4, VIT_WIDTH, 4, 4)
        conv, norm = model.region_head
        raw = F.conv2d(features, conv.weight, padding=1)
        mean, var = raw.mean(dim=(0, 2, 3)), raw.var(dim=(0, 2, 3), unbiased=False)
        scaled = (raw - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
        p = scaled.softmax(dim=1)
        pooled = [
            (p[:, r, None] * features).sum(dim=(2, 3)) / p[:, r].sum(dim=(1, 2))[:, None] for r in (0, 1)
        ]
        front, back = (model.patch_classifier(each) for each in pooled)
        right = back.softmax(dim=1)[torch.arange(4), batch.labels]
        expected = {
            "cross_entropy": F.cross_entropy(model.global_classifier(x[:, 0]), batch.labels),
            "foreground": F.cross_entropy(front, batch.labels),
            "background": -7 * torch.log(1 - right).mean(),
        }
    assert conv.bias is None
    found = model.loss(batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_without_alpha_background_and_third_region_can_be_exchanged():
    def total(model):
        return torch.stack(list(model.loss(square_batch(4)).values())).sum().detach()

    for alpha, same in ((0, True), (100, False)):
        model = small_model("trilite", alpha=alpha, dropout=0, class_dropout=0).train()
        before = total(model)
        with torch.no_grad():
            kernel = model.region_head[0].weight
            kernel.copy_(kernel[[0, 2, 1]].clone())
        assert torch.allclose(total(model), before, atol=1e-5) == same
        with torch.no_grad():
            kernel.copy_(kernel[[1, 0, 2]].clone())  # the foreground cannot
        assert not torch.allclose(total(model), before, atol=1e-5)


# --- the frozen network -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "side"), [(VIT, SIDE), (DINO, DINO_SIDE)])
def test_steps_change_the_head_and_nothing_of_the_backbone(backbone, side):
    model = small_model("trilite", backbone, side)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses_of_steps(model, 3, square_batch(6, side))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert not [name for name in changed if name.startswith("backbone.")]
    assert not any(parameter.grad is not None for parameter in model.backbone.parameters())
    assert {name for name in before if not name.startswith("backbone.")} == changed


def test_a_run_leaves_the_backbone_as_it_was(tmp_path, capsys):
    first = load_file(trained(tmp_path / "one"))
    second = load_file(trained(tmp_path / "two", epochs=2))
    kept = [name for name in first if name.startswith("backbone.")]
    assert len(kept) > 60
    assert all(torch.equal(first[name], second[name]) for name in kept)
    assert not torch.equal(first["region_head.1.running_mean"], second["region_head.1.running_mean"])
    assert "weights of this one are random" in capsys.readouterr().err


def test_features_have_a_graph_only_where_a_post_process_asks_for_one():
    model, images = small_model("trilite"), torch.randn(2, 3, SIDE, SIDE)
    for wanted in (False, True):
        result = model.localize(images, gradients=wanted)
        assert result.stages[VIT_LAST_BLOCKS[-1]].requires_grad is wanted
        assert result.logits.requires_grad is wanted
    stages, features, class_token = model.train().read(images.requires_grad_())
    assert not any(each.requires_grad for each in (*stages.values(), features, class_token))


def test_as_many_numbers_are_trained_as_the_paper_says():
    model = load_method("trilite").create(
        backbone=DINO, num_classes=1000, weights="none", settings={}, image_size=DINO_SIDE
    )
    trained_numbers = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert trained_numbers == 780_374
    assert (model.alpha, model.drop_regions.p, model.drop_class.p, model.class_rate) == (500, 0.25, 0.25, 50)


# --- sizes, rates, maps -------------------------------------------------------------------------------------


def test_a_loaded_model_sees_images_of_twice_the_size(tmp_path):
    kind, path = load_method("trilite"), trained(tmp_path)
    sides = [
        kind.load(path, device="cpu", settings=settings).input_spec.size
        for settings in ({}, {"test_scale": "1"}, {"test_scale": "1.7"}, {"test_scale": "0.25"})
    ]
    assert sides == [64, 32, 48, 16]  # whole patches of 16
    model = kind.load(path, device="cpu", settings={})
    assert model.describe()["image_size"] == 64
    assert model.score_maps(torch.randn(1, 3, 64, 64), torch.zeros(1, 1).long()).shape == (1, 1, 4, 4)
    with pytest.raises(UsageError, match="has been trained"):
        kind.load(path, device="cpu", settings={"alpha": "3"})


def test_dinov2_is_trained_at_224_and_seen_at_448():
    kind = load_method("trilite")
    model = kind.create(backbone=DINO, num_classes=3, weights="none", settings={})
    assert model.input_spec.size == 224
    assert model.input_spec.size * model.config.test_scale == 448
    assert model.backbone.layout[-1].stride == 14


def test_the_classifier_of_the_class_token_learns_faster():
    for classes, lr, factor in ((200, 5e-5, 10), (1000, 5e-6, 50)):
        kind = load_method("trilite")
        model = kind.create(backbone=VIT, num_classes=classes, weights="none", settings={}, image_size=32)
        recipe = kind.recipe_for(VIT, classes, {})
        rates = {
            id(parameter): recipe.lr * group["factor"]
            for group in model.parameter_groups(recipe)
            for parameter in group["params"]
        }
        for name, parameter in model.named_parameters():
            fast = name.startswith("global_classifier")
            assert rates[id(parameter)] == pytest.approx(lr * factor if fast else lr), name


def test_maps_are_the_foreground_for_every_class_and_labels_those_of_the_class_token():
    model, images = small_model("trilite"), torch.randn(2, 3, SIDE, SIDE)
    result = model.localize(images)
    maps = result.score_maps(torch.tensor([[0, 1], [2, 0]]))
    assert torch.equal(maps[:, 0], maps[:, 1])
    rest = result.extra_maps["background"] + result.extra_maps["third"]
    torch.testing.assert_close(maps[:, 0] + rest, torch.ones(2, 4, 4))
    with torch.no_grad():
        x = model.backbone.run(images, until=VIT_LAST_BLOCKS[-1])
        torch.testing.assert_close(result.logits, model.global_classifier(x[:, 0]), atol=1e-5, rtol=1e-4)
        assert torch.equal(result.penultimate, model.backbone.to_map(x))


def test_a_constant_image_has_a_finite_map():
    model = small_model("trilite").train()
    batch = square_batch(4)
    terms = model.loss(replace(batch, images=torch.zeros_like(batch.images)))
    assert all(torch.isfinite(term) for term in terms.values())


def test_a_few_steps_on_squares_lower_the_loss():
    model = small_model("trilite", alpha=1, dropout=0, class_dropout=0)
    losses = losses_of_steps(model, 30, square_batch(), lr=1e-2)
    assert losses[-1] < 0.8 * losses[0]
