"""Copies of a backbone that end at an inner stage."""

from __future__ import annotations

import torch

from reference_models.core.backbone import load_backbone
from reference_models.layers.trunks import copy_trunk
from tests.reference_models.conftest import toy_backbone


def test_a_trunk_ends_at_the_stride_that_is_asked_for():
    backbone = load_backbone("efficientnet_lite0", weights="none", grid="stock", image_size=64)
    trunk = copy_trunk(backbone, 16).eval()
    assert trunk.layout[-1].stride == 16
    images = torch.randn(1, 3, 64, 64)
    (*_, last) = trunk.stages(images).values()
    name = list(trunk.stages(images))[-1]
    torch.testing.assert_close(last, backbone.eval().stages(images)[name])
    assert len(trunk.steps) < len(backbone.steps)
    trunk.steps[name].requires_grad_(False)
    assert all(parameter.requires_grad for parameter in backbone.parameters())  # nothing is shared


def test_a_network_without_so_fine_a_stage_is_copied_as_a_whole():
    backbone = toy_backbone()
    assert list(copy_trunk(backbone, 1).steps) == ["one", "two", "three"]
    assert list(copy_trunk(backbone, 2).steps) == ["one"]
