"""SAT: the mask that a token asks for, its place in the attention, and the two terms that shape it."""

from __future__ import annotations

import pytest
import torch

from reference_models.core.tokens import attend, softmax
from reference_models.localization import sat
from reference_models.localization.sat import (
    area_loss,
    crisp_loss,
    foreground,
    mask_attention,
    smoothing_kernel,
)
from tests.reference_models.localization.token_models import (
    DEIT,
    SIDE,
    VIT,
    VIT_LAST_BLOCKS,
    VIT_WIDTH,
    losses_of_steps,
    small_model,
    square_batch,
)
from wsolbench.methods import load_method


def logits_of(tokens: int = 18) -> torch.Tensor:
    return 3 * torch.randn(2, 3, tokens, tokens)


# --- the mask -----------------------------------------------------------------------------------------------


def test_a_token_that_asks_nothing_halves_the_attention():
    logits = logits_of()
    logits[:, :, -1] = 0
    mask = foreground(logits)
    assert torch.equal(mask, torch.full((2, 18), 0.5))
    weights = mask_attention(logits, mask)
    torch.testing.assert_close(weights.sum(dim=-1), torch.full((2, 3, 18), 0.5))


def test_the_mask_is_the_sigmoid_of_the_mean_over_the_heads_of_the_last_row():
    logits = logits_of()
    mean = sum(logits[:, head, 17] for head in range(3)) / 3
    torch.testing.assert_close(foreground(logits), 1 / (1 + torch.exp(-mean)))
    changed = logits.clone()
    changed[:, :, :-1] = 0  # no other row matters
    assert torch.equal(foreground(changed), foreground(logits))


def test_the_mask_acts_on_the_keys_of_every_row():
    logits, mask = logits_of(), torch.rand(2, 18)
    ratio = mask_attention(logits, mask) / logits.softmax(dim=-1)
    for head in range(3):
        for row in (0, 5, 17):  # the class token, a patch, the location token
            torch.testing.assert_close(ratio[:, head, row], mask, atol=1e-5, rtol=1e-4)


def test_a_mask_of_ones_is_plain_attention_with_one_more_token(monkeypatch):
    model, images = small_model("sat"), torch.randn(2, 3, SIDE, SIDE)
    logits = logits_of()
    assert torch.equal(mask_attention(logits, torch.ones(2, 18)), softmax(logits))
    monkeypatch.setattr(sat, "foreground", lambda logits: torch.ones_like(logits[:, 0, -1]))
    with torch.no_grad():
        stages, mask = model.read(images)
        x = torch.cat([model.backbone.run(images, until="embed"), model.location.expand(2, 1, -1)], dim=1)
        for name in model.backbone.blocks:
            x = model.backbone.steps[name](x)
        expected = model.backbone.steps["norm"](x)[:, 1:-1].mT.reshape(2, -1, 4, 4)
    assert torch.equal(mask, torch.ones(2, 4, 4))
    torch.testing.assert_close(stages["patches"], expected, atol=2e-5, rtol=1e-4)


def test_only_the_last_three_blocks_are_masked_and_the_map_is_their_mean():
    model, images = small_model("sat"), torch.randn(2, 3, SIDE, SIDE)
    for parameter in (model.location_token, model.location_position):
        torch.nn.init.normal_(parameter)
    masks = []
    with torch.no_grad():
        x = torch.cat([model.backbone.run(images, until="embed"), model.location.expand(2, 1, -1)], dim=1)
        for name in model.backbone.blocks:
            block = model.backbone.steps[name]
            if name not in VIT_LAST_BLOCKS:
                x = block(x)
                continue

            def weighting(logits):
                masks.append(torch.sigmoid(logits[:, :, -1].mean(dim=1)))
                return torch.softmax(logits, dim=-1) * masks[-1].reshape(2, 1, 1, -1)

            x = attend(block, x, weighting).tokens
    result = model.localize(images)
    maps = result.score_maps(torch.tensor([[0, 2], [1, 1]]))
    assert len(masks) == 3
    expected = (sum(masks) / 3)[:, 1:-1].reshape(2, 1, 4, 4).expand(-1, 2, -1, -1)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)
    assert (maps > 0).all()
    assert (maps < 1).all()
    # Post-processes get the keys of the masked blocks, without the location token.
    tokens = result.tokens()
    torch.testing.assert_close(tokens.patches, result.stages["patches"], atol=2e-5, rtol=1e-4)
    assert tokens.keys.shape == (2, VIT_WIDTH, 4, 4)
    assert not tokens.keys.requires_grad


def test_a_distilled_transformer_has_two_tokens_before_the_patches():
    model = small_model("sat", "timm:deit_tiny_distilled_patch16_224")
    maps = model.score_maps(torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, 1, dtype=torch.long))
    assert maps.shape == (1, 1, 4, 4)


# --- the terms ----------------------------------------------------------------------------------------------


def test_the_area_is_that_of_the_batch():
    masks = torch.stack([torch.full((4, 4), 0.05), torch.full((4, 4), 0.45)])
    assert area_loss(masks, 0.25) == pytest.approx(0, abs=1e-7)
    single = (area_loss(masks[:1], 0.25) + area_loss(masks[1:], 0.25)) / 2
    assert single == pytest.approx(0.2)
    assert area_loss(masks + 0.3, 0.25) == pytest.approx(0.3)


def test_the_kernel_is_nearly_the_identity():
    kernel = smoothing_kernel().double()
    expected = torch.tensor([[0.003, 0.046, 0.003], [0.046, 0.805, 0.046], [0.003, 0.046, 0.003]])
    torch.testing.assert_close(kernel, expected.double(), atol=1e-3, rtol=0)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)


def test_crisp_masks_are_cheap_and_blurred_ones_cost_a_quarter_at_most():
    identity = torch.zeros(3, 3)
    identity[1, 1] = 1
    binary = (torch.rand(3, 6, 6) < 0.4).float()
    assert crisp_loss(binary, identity) == 0
    assert crisp_loss(torch.full((3, 6, 6), 0.5), identity) == 0.25
    values = torch.rand(3, 6, 6)
    assert crisp_loss(values, identity) == pytest.approx(float((values * (1 - values)).mean()))
    assert 0 < crisp_loss(values, smoothing_kernel()) <= 0.25
    assert crisp_loss(torch.zeros(1, 6, 6), smoothing_kernel()) == 0


def test_zeros_surround_the_mask():
    kernel, ones = smoothing_kernel(), torch.ones(1, 5, 5)
    side, corner = float(kernel[0].sum()), float(kernel[0].sum() + kernel[1:, 0].sum())
    u_edge, u_corner = 1 - side, 1 - corner
    assert u_corner < u_edge < 1
    expected = (12 * u_edge * (1 - u_edge) + 4 * u_corner * (1 - u_corner)) / 25
    assert crisp_loss(ones, kernel) == pytest.approx(expected, rel=1e-4)


def test_the_terms_are_those_of_the_mask_and_have_their_weights():
    batch = square_batch(4)
    model = small_model("sat", area=0.4, area_weight=2, crisp_weight=3).train()
    _, mask = model.read(batch.images)
    terms = model.loss(batch)
    torch.testing.assert_close(terms["area"], 2 * area_loss(mask, 0.4))
    torch.testing.assert_close(terms["crisp"], 3 * crisp_loss(mask, smoothing_kernel()))


def test_the_area_alone_teaches_the_token():
    model = small_model("sat").train()
    model.loss(square_batch(4))["area"].backward()
    assert model.location_token.grad.any()
    assert not model.head.classifier.weight.grad


# --- the method ---------------------------------------------------------------------------------------------


def test_unset_areas_are_those_of_the_scripts():
    kind = load_method("sat")
    for classes, area in ((200, 0.25), (1000, 0.35)):
        model = kind.create(backbone=VIT, num_classes=classes, weights="none", settings={}, image_size=SIDE)
        assert (model.area, model.describe()["config"]["area"]) == (area, area)
    assert kind.recipe_for(DEIT, 1000, {}).epochs == 1
    assert kind.recipe_for(DEIT, 200, {}).lr_factor(0.99) == 1


def test_a_constant_image_has_a_finite_map():
    maps = small_model("sat").score_maps(torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 1, dtype=torch.long))
    assert torch.isfinite(maps).all()


def test_a_few_steps_on_squares_lower_the_loss():
    losses = losses_of_steps(small_model("sat", side=32), 20, square_batch(side=32), lr=1e-3)
    assert losses[0] > 0.8
    assert losses[-1] < 0.7 * losses[0]
