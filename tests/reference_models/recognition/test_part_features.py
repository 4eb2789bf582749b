"""Features of parts: seen again by the backbone, or cut out of those of the whole image."""

from __future__ import annotations

import pytest
import torch

from reference_models.core.backbone import load_backbone
from reference_models.layers.regions import crop_resize
from reference_models.recognition.ssanet.part_features import aligned_regions, grid_side, reextract_features
from tests.reference_models.conftest import toy_backbone

BOXES = torch.tensor([[[0.0, 0, 16, 16], [8, 4, 30, 20]], [[-4, 10, 12, 30], [2, 2, 20, 36]]])


def test_parts_are_seen_by_the_backbone_as_images_of_their_own():
    backbone, images = toy_backbone().eval(), torch.randn(2, 3, 32, 32)
    crops = crop_resize(images, BOXES, 16)
    expected = list(backbone.stages(crops).values())
    for chunk in (1, 3, 100):
        found = reextract_features(backbone, images, BOXES, 16, depth=2, chunk=chunk)
        assert len(found) == 2
        for stage, wanted in zip(found, expected[-2:], strict=True):
            torch.testing.assert_close(stage.flatten(0, 1), wanted)


def test_in_training_all_parts_share_one_batch():
    backbone, images = toy_backbone().train(), torch.randn(2, 3, 32, 32)
    sizes: list[int] = []
    backbone.steps["one"].register_forward_pre_hook(lambda _step, arguments: sizes.append(len(arguments[0])))
    reextract_features(backbone, images, BOXES, 16, chunk=1)
    assert sizes == [4]


def test_regions_of_a_ramp_are_ramps_and_zero_outside():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    found = aligned_regions(ramp, torch.tensor([[[8.0, 8, 24, 24], [64, 0, 96, 32]]]), 32, 2)
    torch.testing.assert_close(
        found[0, 0, 0], torch.tensor([[2.5, 4.5], [2.5, 4.5]])
    )  # cells 2-3 and 4-5 of the grid
    assert not found[0, 1].any()


@pytest.mark.parametrize("training", [True, False])
def test_the_grid_of_a_part_is_found_without_a_trace(training):
    backbone = toy_backbone().train(training)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert (grid_side(backbone, 32), grid_side(backbone, 16), grid_side(backbone, 18)) == (8, 4, 5)
    assert all(module.training == training for module in backbone.modules())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert grid_side(load_backbone("tiny", weights="none"), 64) == 8


def test_a_mean_over_regions_has_the_gradient_of_their_cells():
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    aligned_regions(features, torch.tensor([[[0.0, 0, 16, 16]]]), 32, 2).sum().backward()
    assert features.grad[:, :, :4, :4].any()
    assert not features.grad[:, :, 5:, 5:].any()
    torch.testing.assert_close(features.grad.sum(), torch.tensor(8.0))
    assert (features.grad >= 0).all()
