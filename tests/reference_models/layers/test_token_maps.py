"""Attention of the class token, read in the pass that also gives the stages, and scores of patch tokens."""

from __future__ import annotations

import pytest
import torch

from reference_models.core.backbone import load_backbone
from reference_models.layers.token_maps import TokenHead, read_attention, sum_attention

VIT, REGISTERS = "timm:vit_tiny_patch16_224", "timm:vit_small_patch14_reg4_dinov2"


@pytest.mark.parametrize(("name", "side"), [(VIT, 64), (REGISTERS, 56)])
def test_the_class_token_keeps_a_share_of_its_attention(name, side):
    backbone = load_backbone(name, weights="none", grid="tokens").eval()
    with torch.no_grad():
        stages, attention = read_attention(backbone, torch.randn(2, 3, side, side))
    total, blocks = sum_attention(attention).sum(dim=(1, 2, 3)), len(backbone.blocks)
    assert attention.shape == (2, blocks, 4, 4)
    assert (total < blocks).all()
    assert (total > 0).all()
    assert [tuple(stage.shape[2:]) for stage in stages.values()] == [(4, 4)] * 4


@torch.no_grad()
def test_stages_and_attention_of_one_pass_are_those_of_the_backbone():
    backbone, images = load_backbone(VIT, weights="none", grid="tokens").eval(), torch.randn(2, 3, 64, 64)
    stages, attention = read_attention(backbone, images)
    expected = backbone.stages(images)
    torch.testing.assert_close(attention, backbone.tokens(images).attention)
    assert list(stages) == list(expected)
    for name in expected:
        torch.testing.assert_close(stages[name], expected[name], atol=2e-5, rtol=1e-4)


def test_the_head_is_a_convolution_with_a_bias_and_a_mean():
    head, patches = TokenHead(5, 3), torch.zeros(2, 5, 4, 4)
    found = head(patches)
    torch.testing.assert_close(found.logits, head.classifier.bias.expand(2, 3))
    patches[:, 2, 1, 1] = 1  # one token: its scores spread over 3 x 3 patches
    classes = torch.tensor([[2], [0]])
    change = head(patches).maps_of(classes) - found.maps_of(classes)
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[:3, :3] = True
    assert not change[:, :, ~near].any()
    torch.testing.assert_close(change[0, 0, :3, :3], head.classifier.weight[2, 2].flip(0, 1))
    torch.testing.assert_close(change[1, 0, :3, :3], head.classifier.weight[0, 2].flip(0, 1))
