"""CATR: class maps of the attention, the losses that shape it, and their weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from reference_models.layers.token_maps import read_attention, read_heads
from reference_models.localization.catr import (
    IMAGES_OF_A_GPU,
    Constraint,
    Stimulation,
    low_attention,
    mean_attention,
    price_of_weights,
    released_settings,
    weigh_losses,
)
from tests.reference_models.localization.token_models import (
    CLASSES,
    DEIT,
    SIDE,
    VIT,
    losses_of_steps,
    small_model,
    square_batch,
)

EVERY = torch.arange(CLASSES).expand(2, -1)
TERMS = ["cross_entropy", "stimulation", "low_attention", "agreement", "weights"]


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE)


@pytest.mark.parametrize("backbone", [VIT, DEIT])
def test_the_attention_of_the_heads_has_the_mean_that_other_methods_read(backbone, images):
    model = small_model("catr", backbone)
    with torch.no_grad():
        stages, heads = read_heads(model.backbone, images)
        theirs, mean = read_attention(model.backbone, images)
        expected = model.backbone.attention(images, model.backbone.blocks[1])  # (B, H, T, T)
    torch.testing.assert_close(heads.mean(dim=2), mean)
    assert all(torch.equal(stages[name], theirs[name]) for name in theirs)
    row = expected[:, :, 0, model.backbone.prefix :].unflatten(2, (4, 4))
    torch.testing.assert_close(heads[:, 1], row)
    # F: a mean over the blocks of a sum over the heads, at most the number of heads in total.
    torch.testing.assert_close(mean_attention(heads), heads.shape[2] * mean.mean(dim=1))
    assert (mean_attention(heads).sum(dim=(1, 2)) < heads.shape[2]).all()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
def test_low_attention_is_what_loops_find(share):
    attention = torch.rand(3, 4, 5)
    attention[0, 0] = 0.1  # ties
    found = low_attention(attention, share)
    for image, value in zip(attention, found.tolist(), strict=True):
        ranked = sorted(image.flatten().tolist())
        threshold = ranked[int(share * len(ranked))]
        assert value == pytest.approx(sum(each for each in ranked if each <= threshold) / len(ranked))


def test_low_attention_has_a_slope_where_attention_is_low_and_nowhere_else():
    attention = torch.rand(1, 4, 4).requires_grad_()
    low_attention(attention, 0.25).sum().backward()
    ranked = attention.detach().flatten().argsort()
    expected = torch.zeros(16)
    expected[ranked[:5]] = 1 / 16  # rank 4 is the fifth value
    torch.testing.assert_close(attention.grad.flatten(), expected)


def test_the_map_is_attention_times_both_class_maps(images):
    model = small_model("catr")
    result = model.localize(images)
    with torch.no_grad():
        stages, heads = read_heads(model.backbone, images)
        tokens, stimulated = model.head.classifier(stages["patches"]), model.stimulation(heads)
    torch.testing.assert_close(tokens.mean(dim=(2, 3)), result.logits)
    expected = result.extra_maps["attention"][:, None] * (tokens + stimulated)
    torch.testing.assert_close(result.score_maps(EVERY), expected)
    assert (stimulated - stimulated.mean()).abs().max() > 1e-4


def test_the_network_of_the_attention_joins_its_two_scales():
    torch.manual_seed(0)
    model, heads = Stimulation(6, CLASSES, 8).eval(), torch.rand(2, 3, 2, 4, 4)
    maps = torch.stack([heads[:, block, head] for block in range(3) for head in range(2)], dim=1)
    halved = maps.unflatten(3, (2, 2)).unflatten(2, (2, 2)).amax(dim=(3, 5))  # the largest of 2 x 2
    inner = F.interpolate(model.down[1](halved), scale_factor=2, mode="bilinear")
    expected = model.classifier(model.up(torch.cat([maps, inner], dim=1)))
    torch.testing.assert_close(model(heads), expected)
    assert model(torch.rand(1, 3, 2, 5, 5)).shape == (1, CLASSES, 5, 5)


def test_the_agreement_reads_the_first_blocks_alone():
    torch.manual_seed(0)
    model, heads = Constraint(2, 3).eval(), torch.rand(2, 4, 3, 4, 4)
    found = model(heads)
    assert found.shape == (2, 4, 4)
    assert ((found > 0) & (found < 1)).all()
    other = heads.clone()
    other[:, 2:] = 0
    assert torch.equal(model(other), found)
    other[:, 1] = 0
    assert not torch.equal(model(other), found)
    # Written out, with norms that are the identity up to their small constant.
    mixed = [
        F.leaky_relu(
            (block[0].weight[0, :, 0, 0, None, None] * heads[:, number]).sum(1) / math.sqrt(1 + 1e-5)
        )
        for number, block in enumerate(model.blocks)
    ]
    joined = F.conv2d(torch.stack(mixed, dim=1), model.join[0].weight, padding=1)[:, 0] / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(found, joined.sigmoid())


def test_the_terms_are_those_of_a_loss_that_is_written_out():
    model, batch = small_model("catr"), square_batch()
    with torch.no_grad():
        model.weighting.copy_(torch.tensor([1.0, 0.5, 2.0, -1.5]))
        stages, heads = read_heads(model.backbone, batch.images)
        attention = heads.mean(dim=1).sum(dim=1)
        found = {name: float(value) for name, value in model.loss(batch).items()}
    assert list(found) == TERMS
    targets = F.one_hot(batch.labels, CLASSES).float()
    logits = model.head.classifier(stages["patches"]).mean(dim=(2, 3))
    scores = model.stimulation(heads).mean(dim=(2, 3))
    plain = [-(targets * each.log_softmax(1)).sum(1).mean() for each in (logits, scores)]
    plain.append(IMAGES_OF_A_GPU * low_attention(attention, 0.25).mean())
    plain.append((model.constraint(heads) - attention).pow(2).mean())
    for name, value, weight in zip(TERMS, plain, (1.0, 0.5, 2.0, -1.5), strict=False):
        assert found[name] == pytest.approx(float(value.detach()) / (2 * weight**2), rel=1e-5)
    price = sum(math.log(1 + weight**2) for weight in (1.0, 0.5, 2.0, -1.5))
    assert found["weights"] == pytest.approx(price, rel=1e-6)


@pytest.mark.parametrize("loss", [0.1, 1.0, 7.0])
def test_the_best_weight_of_a_loss_has_a_closed_form(loss):
    """L / (2 p^2) + log(1 + p^2) is least at p^2 = (L + sqrt(L^2 + 8 L)) / 4."""
    best = math.sqrt((loss + math.sqrt(loss**2 + 8 * loss)) / 4)
    at = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    total = weigh_losses(torch.tensor([loss], dtype=torch.float64), at).sum() + price_of_weights(at)
    (slope,) = torch.autograd.grad(total, at)
    assert abs(float(slope)) < 1e-12


def test_the_loss_does_not_depend_on_how_often_an_image_is_in_the_batch():
    model, batch = small_model("catr").eval(), square_batch()
    from dataclasses import replace

    doubled = replace(batch, images=torch.cat([batch.images] * 2), labels=torch.cat([batch.labels] * 2))
    one, two = model.loss(batch), model.loss(doubled)
    for name in TERMS:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)


def test_gradients_reach_every_parameter_also_through_the_attention():
    model = small_model("catr").train()
    sum(model.loss(square_batch()).values()).backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    # Without the classifier of the tokens, the stimulation still teaches the query and key of each block.
    model.zero_grad()
    model.loss(square_batch())["stimulation"].backward()
    for name in model.backbone.blocks:
        assert model.backbone.steps[name].attn.qkv.weight.grad.any()


def test_released_values_depend_on_the_number_of_classes():
    assert released_settings(200, 12) == {"low_share": 0.25, "early_blocks": 9, "width": 16}
    assert released_settings(1000, 12) == {"low_share": 0.1, "early_blocks": 10, "width": 512}
    model = small_model("catr")
    assert (model.config.low_share, model.config.early_blocks, model.config.width) == (0.25, 4, 16)
    assert len(model.constraint.blocks) == 4  # three quarters of six, to the nearest even number
    assert small_model("catr", early_blocks=2, low_share=0.5).config.early_blocks == 2
    recipe = model.recipe_for("timm:deit_small_patch16_224", 1000, {})
    assert (recipe.epochs, recipe.lr, recipe.schedule) == (14, 5e-4, "cosine")


def test_a_constant_image_has_finite_maps():
    maps = small_model("catr").score_maps(torch.zeros(1, 3, SIDE, SIDE), EVERY[:1])
    assert torch.isfinite(maps).all()


def test_a_few_steps_on_squares_lower_the_loss():
    losses = losses_of_steps(small_model("catr", side=32), 20, square_batch(side=32), lr=1e-3)
    assert losses[-1] < losses[0] - 0.3
