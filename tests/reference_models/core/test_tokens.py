"""Token backbones: tokens behind the patches, attention of single blocks, and blocks that are skipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_models.core.backbone import load_backbone
from reference_models.core.tokens import softmax
from wsolbench.exceptions import UsageError
from wsolbench.methods import load_method

VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return load_backbone(VIT, weights="none", grid="tokens").eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_appended_tokens_are_no_patches(backbone, images):
    plain, more = backbone.embed(images), torch.randn(2, 192)
    longer = backbone.embed(images, more)
    assert longer.shape == (2, plain.shape[1] + 2, 192)
    assert torch.equal(longer[:, :-2], plain)
    assert torch.equal(longer[1, -2:], more)
    assert torch.equal(backbone.to_map(longer, appended=2), backbone.to_map(plain))


@torch.no_grad()
def test_a_token_that_nobody_attends_to_changes_nothing(backbone, images):
    def without_last(logits):
        hidden = torch.zeros_like(logits)
        hidden[..., -1] = -torch.inf
        return softmax(logits + hidden)

    weightings = dict.fromkeys(backbone.blocks, without_last)
    found, plain = backbone.tokens(images, torch.randn(1, 192), weightings), backbone.tokens(images)
    for name in ("patches", "prefix", "queries", "keys", "values", "attention"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), atol=1e-5, rtol=1e-4)
    moved = backbone.tokens(images, torch.randn(1, 192))  # with the usual weights it matters
    assert not torch.allclose(moved.patches, plain.patches, atol=1e-3)


@torch.no_grad()
def test_one_block_can_have_weights_of_its_own(backbone, images):
    traced = dict(backbone.trace(images, weightings={"block5": torch.zeros_like}))
    plain = dict(backbone.trace(images))
    assert list(traced) == backbone.blocks
    assert torch.equal(traced["block4"].tokens, plain["block4"].tokens)
    assert not traced["block5"].weights.any()
    assert not torch.allclose(traced["block6"].tokens, plain["block6"].tokens)
    torch.testing.assert_close(plain["block6"].class_row.sum(dim=1), torch.ones(2))


def test_later_blocks_are_skipped_more_often_and_only_in_training(images):
    backbone = load_backbone(VIT, weights="none", grid="tokens")
    before = list(backbone.state_dict())
    backbone.set_drop_path(0.22)
    blocks = [backbone.steps[name] for name in backbone.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.02 * number for number in range(12)])
    assert rates == [getattr(block.drop_path2, "drop_prob", 0.0) for block in blocks]
    assert list(backbone.state_dict()) == before
    with torch.no_grad():
        backbone.eval()
        assert torch.equal(backbone.run(images), backbone.run(images))
        backbone.train()
        assert not torch.equal(backbone.run(images), backbone.run(images))
        backbone.set_drop_path(0.0)
        assert torch.equal(backbone.run(images), backbone.run(images))
    assert all(isinstance(block.drop_path1, nn.Identity) for block in blocks)


def test_a_skipped_block_gives_its_input(images):
    backbone = load_backbone(VIT, weights="none", grid="tokens").train()
    backbone.set_drop_path(0.999999)
    with torch.no_grad():
        x = backbone.embed(images)
        assert torch.equal(backbone.steps["block11"](x), x)
        assert torch.equal(backbone.attend("block11", x).tokens, x)
        assert not torch.equal(backbone.steps["block0"](x), x)


def test_networks_without_blocks_refuse_to_skip_any():
    backbone = load_backbone("tiny", weights="none")
    backbone.set_drop_path(0.0)
    with pytest.raises(UsageError, match=r"recipe\.drop_path=0\.1: tiny \(std16\) has no blocks"):
        backbone.set_drop_path(0.1)


def test_recipes_of_convolutional_methods_skip_no_block():
    recipe = load_method("cam").recipe_for("tiny", 4, {})
    assert (recipe.drop_path, recipe.decay_vectors) == (0.0, True)
    assert load_method("ts-cam").recipe_for(VIT, 4, {}).drop_path == 0.1
