"""Classifiers of parts: which candidate goes on, and to what."""

from __future__ import annotations

import pytest
import torch

from reference_models.recognition.ssanet.part_heads import PartHeadConfig, PartHeads
from reference_models.recognition.ssanet.scale_alignment import scale_candidates
from wsolbench.exceptions import UsageError

BOXES = torch.tensor([[[0.0, 0, 16, 16], [8, 4, 30, 20]], [[-4, 10, 12, 30], [2, 2, 20, 36]]])


def heads(**settings) -> PartHeads:
    """For three stages of 4, 6 and 8 channels, and parts on a 4x4 grid."""
    return PartHeads((4, 6, 8), 4, 5, 2, PartHeadConfig(**settings), who="toy")


def looked(seen: list[torch.Tensor]):
    """Three stages of noise for each box, always the same for one box; `seen` gets the boxes."""

    def look(boxes: torch.Tensor) -> list[torch.Tensor]:
        seen.append(boxes)
        rows = []
        for box in boxes.flatten(0, 1):
            generator = torch.Generator().manual_seed(int((box * 10).round().sum()) + 1000)
            rows.append(
                [
                    torch.rand(channels, side, side, generator=generator)
                    for channels, side in ((4, 8), (6, 4), (8, 4))
                ]
            )
        stages = [torch.stack(stage) for stage in zip(*rows, strict=True)]
        return [stage.view(*boxes.shape[:2], *stage.shape[1:]) for stage in stages]

    return look


@pytest.mark.parametrize("dsm", ["full", "fixed", "one"])
@pytest.mark.parametrize("feature", ["flatten", "gap"])
def test_the_aligned_candidate_goes_on_to_oriented_pooling(dsm, feature):
    module, seen = heads(dsm=dsm, dsm_feature=feature), []
    torch.nn.init.normal_(module.mining.weight)
    look = looked(seen)
    classes = torch.tensor([1, 4])
    reading = module(look, BOXES, classes)
    candidates = scale_candidates(BOXES, 2**0.25, 5)
    assert torch.equal(seen[0], candidates.flatten(1, 2))
    features = look(seen[0])[-1].view(2, 2, 5, 8, 4, 4)
    phi = features.flatten(3) if feature == "flatten" else features.mean((4, 5))
    scored = module.mining(phi)
    assert torch.equal(reading.scales, scored.logits)
    best = module.mining.pick_aligned(phi, scored.shift, classes)
    for image in range(2):
        for part in range(2):
            assert torch.equal(reading.boxes[image, part], candidates[image, part, best[image, part]])
            assert torch.equal(reading.features[image, part], features[image, part, best[image, part]])
    assert torch.equal(
        reading.orientations, module.orienting(reading.features.flatten(0, 1))[0].view(2, 2, 5)
    )


def test_without_a_class_the_one_that_the_scales_predict_is_aligned():
    module = heads()
    torch.nn.init.normal_(module.mining.weight)
    reading = module(looked([]), BOXES)
    told = module(looked([]), BOXES, reading.scales.sum(1).argmax(1))
    assert torch.equal(reading.boxes, told.boxes)
    others = [module(looked([]), BOXES, torch.tensor([label, label])).boxes for label in range(5)]
    assert any(not torch.equal(boxes, reading.boxes) for boxes in others)


@pytest.mark.parametrize("dsm", ["spp", "fpn", "none"])
def test_without_scale_mining_parts_stay_where_they_are(dsm):
    module, seen = heads(dsm=dsm), []
    look = looked(seen)
    reading = module(look, BOXES)
    assert torch.equal(reading.boxes, BOXES)
    stages = [stage.flatten(0, 1) for stage in look(BOXES)]
    assert torch.equal(reading.features.flatten(0, 1), stages[-1])
    if dsm == "none":
        assert reading.scales is None
    else:
        torch.testing.assert_close(reading.scales.flatten(0, 1), module.pyramid(stages))


def test_oriented_pooling_can_be_left_out():
    assert heads(op=False)(looked([]), BOXES).orientations is None
    assert heads()(looked([]), BOXES, orient=False).orientations is None


def test_pooling_is_the_mean_or_the_maximum():
    features = torch.randn(2, 3, 8, 4, 4)
    assert torch.equal(heads().pool(features), features.mean((3, 4)))
    assert torch.equal(heads(part_pool="max").pool(features), features.amax((3, 4)))


def test_only_scale_mining_on_pooled_vectors_starts_from_a_linear_classifier():
    classifier = torch.nn.Linear(8, 5)
    for settings, starts in (({"dsm_feature": "gap"}, True), ({}, False)):
        module = heads(**settings)
        before = module.mining.weight.clone()
        module.start_from(classifier)
        assert torch.equal(before, module.mining.weight) != starts
    heads(dsm="none").start_from(classifier)  # has nothing to start


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": 4}, "scales=4"),
        ({"scales": -1}, "scales=-1"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"op_patches": 0}, "op_patches=0"),
        ({"op_patch": -1}, "op_patch=-1"),
        ({"op_patch": 3}, "patches of 3 cells cannot be spread"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message.replace("=", "(?:=| of .* is )")):
        heads(**settings)
