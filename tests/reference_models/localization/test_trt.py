"""TRT: the patches that are kept, their weights, the map that both make, and the two stages of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from reference_models.localization.trt import fuse_attention, keep_attended
from reference_models.training.loop import prepare_run
from tests.reference_models.localization.token_models import (
    CLASSES,
    DEIT,
    SIDE,
    VIT,
    losses_of_steps,
    small_model,
    square_batch,
)
from wsolbench.exceptions import UsageError
from wsolbench.methods import Numerics, load_method

EVERY = torch.arange(CLASSES).expand(2, -1)


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE)


def restless_model(**settings):
    """A model whose attention and weights differ between patches, unlike those of small random weights."""
    model = small_model("trt", **settings)
    with torch.no_grad():
        for module in [model.scorer.block, *(model.backbone.steps[name] for name in model.backbone.blocks)]:
            module.attn.qkv.weight.normal_(std=0.3)
        model.scorer.head.weight.normal_()
    return model


# --- the patches that are kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.05, 0.3, 0.6, 0.95])
def test_the_most_attended_patches_below_theta_together_are_kept(theta):
    attention = (2 * torch.randn(40, 16)).softmax(dim=1)
    kept = keep_attended(attention, theta)
    for values, found in zip(attention.tolist(), kept.tolist(), strict=True):
        total, expected = 0.0, set()
        for place in sorted(range(16), key=lambda place: -values[place]):
            total += values[place]
            if total < theta or not expected:
                expected.add(place)
            else:
                break
        assert {place for place, is_kept in enumerate(found) if is_kept} == expected


def test_one_patch_is_kept_if_it_has_the_share_theta_alone():
    attention = torch.tensor([[0.05, 0.8, 0.1, 0.05], [0.25, 0.25, 0.25, 0.25]])
    kept = keep_attended(attention, 0.6)
    assert kept.tolist() == [[False, True, False, False], [True, True, False, False]]


def test_above_1_every_patch_is_kept():
    for scale in (0, 1, 100):
        assert keep_attended((scale * torch.randn(50, 196)).softmax(dim=1), 1.01).all()


def test_the_map_has_the_sum_1_and_the_mass_of_the_attention_on_the_kept_patches():
    attention = torch.randn(20, 16).softmax(dim=1)
    kept = keep_attended(attention, 0.6)
    weights = torch.rand(20, 16) * kept
    weights /= weights.sum(dim=1, keepdim=True)
    fused = fuse_attention(weights, attention, kept)
    torch.testing.assert_close(fused.sum(dim=1), torch.ones(20))
    torch.testing.assert_close((fused * kept).sum(dim=1), (attention * kept).sum(dim=1))
    assert torch.equal(fused[~kept], attention[~kept])
    ratio = torch.where(kept, fused / weights, 0).amax(dim=1)
    torch.testing.assert_close(ratio, (attention * kept).sum(dim=1))


# --- the first stage ----------------------------------------------------------------------------------------


def test_weights_are_those_of_the_kept_patches_alone():
    model = restless_model()
    patches = torch.randn(3, 16, model.backbone.channels[-1])
    kept = torch.rand(3, 16) < 0.5
    kept[0] = False
    kept[:, 4] = True
    with torch.no_grad():
        weights = model.scorer(patches, kept)
        for row in range(3):
            alone = model.scorer.block(patches[row, kept[row]][None])  # the block of timm, without a mask
            scores = model.scorer.norm(alone) @ model.scorer.head.weight[0]
            torch.testing.assert_close(
                weights[row, kept[row]], scores[0].softmax(dim=0), atol=1e-5, rtol=1e-4
            )
            assert not weights[row, ~kept[row]].any()
    torch.testing.assert_close(weights[0], torch.eye(16)[4])


@pytest.mark.parametrize("backbone", [VIT, "timm:deit_tiny_distilled_patch16_224"])
def test_the_classifier_sees_the_class_token_and_the_weighted_mean_alone(backbone, images):
    model = small_model("trt", backbone)
    network = model.backbone
    with torch.no_grad():
        reading = model.read(images)
        # Attention of the class token, without that of the last block.
        rows = [network.attention(images, name)[:, :, 0].mean(dim=1) for name in network.blocks[:-1]]
        attention = sum(rows)[:, network.prefix :]
        attention = attention / attention.sum(dim=1, keepdim=True)
        torch.testing.assert_close(reading.attention, attention, atol=1e-5, rtol=1e-4)
        # Scores, image by image.
        tokens = network.run(images, until=network.blocks[-2])
        for row in range(2):
            mean = sum(
                weight * token
                for weight, token in zip(reading.weights[row], tokens[row, network.prefix :], strict=True)
            )
            pair = network.steps[network.blocks[-1]](torch.stack([tokens[row, 0], mean])[None])
            logits = model.classifier(network.steps["norm"](pair)[0, 0])
            torch.testing.assert_close(reading.logits[row], logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reading.weights.sum(dim=1), torch.ones(2))
    assert torch.equal(reading.kept, keep_attended(reading.attention, 0.6))
    assert torch.equal(reading.before, network.run(images, until=network.blocks[-3])) or torch.allclose(
        reading.before, network.run(images, until=network.blocks[-3]), atol=1e-5
    )


def test_scores_can_be_differentiated_by_the_last_stage(images):
    result = small_model("trt").localize(images, gradients=True)
    assert list(result.stages) == ["block3", "block4"]
    (gradient,) = torch.autograd.grad(result.logits[:, 0].sum(), result.stages["block4"])
    assert gradient.any()


def test_the_map_of_every_class_is_the_fused_attention_times_its_scores(images):
    model = restless_model()
    plain = small_model("trt", coupled=False)
    plain.load_state_dict(model.state_dict())
    result, fused = model.localize(images), plain.score_maps(images, EVERY)
    torch.testing.assert_close(fused.sum(dim=(2, 3)), torch.ones(2, CLASSES))
    assert torch.equal(fused, result.extra_maps["reattention"][:, None].expand(-1, CLASSES, -1, -1))
    kept = keep_attended(result.extra_maps["attention"].flatten(1), 0.6)
    masses = [(each.flatten(1) * kept).sum(dim=1) for each in (fused[:, 0], result.extra_maps["attention"])]
    torch.testing.assert_close(*masses)
    with torch.no_grad():
        branch, network = model.branch, model.backbone
        tokens = branch.norm(branch.block(network.run(images, until="block3")))[:, 1:]
        scores = branch.head.classifier(tokens.mT.reshape(2, -1, 4, 4))
    torch.testing.assert_close(result.score_maps(EVERY), fused * scores, atol=1e-6, rtol=1e-3)


def test_with_all_patches_the_map_is_their_weights(images):
    model = restless_model(theta=1.1, coupled=False)
    with torch.no_grad():
        weights = model.read(images).weights
    torch.testing.assert_close(model.score_maps(images, EVERY)[:, 1].flatten(1), weights)


def test_a_constant_image_has_finite_maps():
    result = small_model("trt").localize(torch.zeros(2, 3, SIDE, SIDE))
    assert torch.isfinite(result.score_maps(EVERY)).all()
    assert torch.isfinite(result.logits).all()


# --- the two stages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "term"), [(0, "cross_entropy"), (1, "branch")])
def test_a_step_reaches_every_parameter_of_its_stage_and_changes_no_other_module(epoch, term):
    model, batch = small_model("trt").train(), square_batch(4)
    recipe = replace(model.recipe_for(VIT, CLASSES, {}), drop_path=0.0)
    run = prepare_run(model, recipe, torch.device("cpu"), Numerics())
    model.on_epoch(epoch, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    terms = model.loss(batch)
    assert list(terms) == [term]
    terms[term].backward()
    run.optimizers[0].step()
    own = {name for name in before if name.startswith("branch.") == (term == "branch")}
    reached = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    assert reached == {name for name, _ in model.named_parameters() if name in own}
    assert {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)} == own
    assert (model.backbone.training, model.branch.training) == (term != "branch", term == "branch")


def test_a_run_of_one_epoch_trains_both_and_the_branch_changes_nothing_else():
    model = small_model("trt").train()
    model.on_epoch(0, 1)
    terms = model.loss(square_batch(4))
    assert set(terms) == {"cross_entropy", "branch"}
    terms["branch"].backward()
    reached = {name for name, each in model.named_parameters() if each.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if name.startswith("branch.")}


def test_new_blocks_start_as_the_last_one_and_are_skipped_as_often():
    model = small_model("trt").train()
    for module in (model.scorer, model.branch):
        pairs = zip(module.block.parameters(), model.last_block.parameters(), strict=True)
        assert all(torch.equal(one, two) and one is not two for one, two in pairs)
    model.backbone.set_drop_path(0.1)
    for epoch in range(2):
        model.on_epoch(epoch, 2)
        paths = [model.scorer.block.drop_path1, model.branch.block.drop_path2]
        assert [path.drop_prob for path in paths] == [0.1, 0.1]
        assert [path.training for path in paths] == [epoch == 0, epoch == 1]


@pytest.mark.parametrize(
    ("classes", "lengths", "falls", "factor"),
    [(200, (30, 20), ((15, 30), (10, 20)), 0.1), (1000, (12, 12), (range(2, 13, 2),) * 2, 0.4)],
)
def test_each_stage_has_the_released_schedule(classes, lengths, falls, factor):
    model = load_method("trt").create(
        backbone=VIT, num_classes=classes, weights="none", settings={}, image_size=SIDE
    )
    recipe, start = model.recipe_for(DEIT, classes, {}), 0
    assert recipe.epochs == sum(lengths)
    for length, own in zip(lengths, falls, strict=True):
        for epoch in range(1, length + 1):
            expected = factor ** sum(epoch >= fall for fall in own)
            progress = (start + epoch - 0.5) / recipe.epochs
            assert model.lr_factor(recipe, progress) == pytest.approx(expected), (length, epoch)
        start += length


def test_unset_settings_are_those_of_the_released_configurations():
    kind = load_method("trt")
    for classes, side, theta, smoothing in ((200, 224, 0.6, 0), (200, 384, 0.65, 0), (1000, 224, 0.95, 0.1)):
        model = kind.create(backbone=VIT, num_classes=classes, weights="none", settings={}, image_size=side)
        config = model.describe()["config"]
        assert (config["theta"], config["smoothing"]) == (theta, smoothing)
    assert small_model("trt", theta=0.5).config.theta == 0.5
    assert kind.recipe_for(VIT, 200, {"stage_epochs": "4,3"}).epochs == 7
    with pytest.raises(UsageError, match="stage_epochs=5 of method 'trt' has 1 lengths"):
        kind.recipe_for(VIT, 200, {"stage_epochs": "5"})


def test_labels_of_the_first_stage_can_be_smoothed():
    model, batch = small_model("trt", smoothing=0.25).train(), square_batch(4)
    with torch.no_grad():
        logs = F.log_softmax(model.read(batch.images).logits, dim=1)
        right = logs[torch.arange(4), batch.labels]
        expected = -(0.75 * right + 0.25 * logs.mean(dim=1)).mean()
        torch.testing.assert_close(model.loss(batch)["cross_entropy"], expected)


def test_a_few_steps_on_squares_lower_both_losses():
    losses = losses_of_steps(small_model("trt", side=32), 20, square_batch(side=32), lr=1e-3)
    assert losses[0] > 1.6
    assert losses[-1] < 0.7 * losses[0]
