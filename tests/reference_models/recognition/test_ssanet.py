"""SSANET: what it predicts, the rows of the paper's tables, and its settings."""

from __future__ import annotations

import pytest
import torch

from reference_models.layers.navigator import nominate
from reference_models.layers.regions import coverage
from reference_models.recognition.ssanet.method import Ssanet, fuse_scores
from reference_models.recognition.ssanet.part_agreement import mac_loss
from reference_models.recognition.ssanet.scale_alignment import scale_candidates
from tests.reference_models.conftest import toy_batch
from tests.reference_models.recognition.ssanet_models import (
    CLASSES,
    at_stage,
    batch,
    proposed,
    seen_parts,
    shown,
    ssanet,
)
from wsolbench.exceptions import UsageError

# --- the prediction -----------------------------------------------------------------------------------------


def test_the_prediction_is_the_sum_of_both_modules_over_the_aligned_parts():
    model, images = ssanet(), torch.randn(3, 3, 32, 32)
    torch.nn.init.normal_(model.heads.mining.weight)
    result = model.localize(images)
    boxes = proposed(model, images, 4).boxes
    candidates = scale_candidates(boxes, 2**0.25, 5)
    features = seen_parts(model, images, candidates.flatten(1, 2)).view(3, 4, 5, 16, 4, 4)
    scored = model.heads.mining(features.flatten(3))
    predicted = scored.logits.sum(1).argmax(1)
    best = model.heads.mining.pick_aligned(features.flatten(3), scored.shift, predicted)
    logits = []
    for image in range(3):
        chosen = torch.stack([features[image, part, best[image, part]] for part in range(4)])
        logits.append(scored.logits[image].sum(0) + model.heads.orienting(chosen)[0].sum(0))
    torch.testing.assert_close(result.logits, torch.stack(logits), atol=1e-5, rtol=1e-4)
    found = result.propose()
    assert torch.equal(found.boxes, candidates.take_along_dim(best[..., None, None], 2)[:, :, 0])
    assert torch.equal(found.scores, proposed(model, images, 4).scores)
    assert torch.equal(result.extra_maps["parts"], coverage(found, 32))


def test_maps_are_those_of_the_global_classifier():
    model, images = ssanet(), torch.randn(2, 3, 32, 32)
    maps = model.localize(images).score_maps(torch.arange(CLASSES).expand(2, CLASSES))
    expected = torch.einsum("cd,bdhw->bchw", model.global_classifier.weight, model.backbone.run(images))
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)


ROWS = [  # settings; stages; terms of each; what predicts
    ({"dsm": "none", "op": False, "mac_weight": 0.0}, ["1a"], "plain"),
    ({"dsm": "none", "op": False}, ["1a"], "plain"),
    ({"dsm": "none", "op": False, "part_pool": "max"}, ["1a"], "plain"),
    ({"dsm": "none"}, ["1a", "2", "3"], "orientations"),
    ({"op": False}, ["1a", "1b", "3"], "scales"),
    ({"op": False, "dsm": "fixed"}, ["1a", "1b", "3"], "scales"),
    ({"op": False, "dsm": "one"}, ["1a", "1b", "3"], "scales"),
    ({"op": False, "dsm": "spp"}, ["1a", "1b", "3"], "scales"),
    ({}, ["1a", "1b", "2", "3"], "both"),
]


@pytest.mark.parametrize(("settings", "stages", "predicts"), ROWS)
def test_every_row_of_the_tables_trains_its_stages_and_predicts_by_what_it_has(settings, stages, predicts):
    model, images = ssanet(**settings), torch.randn(2, 3, 32, 32)
    assert [sorted(names) for names, _ in model.stages] == [[name] for name in stages]
    result = model.localize(images)
    reading = model.heads(lambda boxes: [seen_parts(model, images, boxes)], proposed(model, images, 4).boxes)
    plain = model.part_classifier(model.heads.pool(reading.features))
    parts = {"plain": [plain], "scales": [reading.scales], "orientations": [reading.orientations]}
    parts["both"] = [reading.scales, reading.orientations]
    torch.testing.assert_close(
        result.logits, sum(part.sum(1) for part in parts[predicts]), atol=1e-5, rtol=1e-4
    )
    both = ssanet(fusion="G+P", **settings)
    both.load_state_dict(model.state_dict())
    whole = model.global_classifier(model.backbone.run(images).mean((2, 3)))
    torch.testing.assert_close(both.localize(images).logits, result.logits + whole, atol=1e-5, rtol=1e-4)


def test_a_feature_pyramid_needs_four_stages_of_each_part():
    model = Ssanet.create(
        backbone="tiny", num_classes=3, weights="none", settings={"dsm": "fpn", "op": "false"}, image_size=32
    )
    assert model.localize(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)
    assert [layer.in_channels for layer in model.heads.pyramid.lateral] == [24, 48, 64, 64]


def test_softmax_can_be_summed_instead_of_scores():
    scores = [torch.randn(3, 5), torch.randn(3, 5)]
    torch.testing.assert_close(fuse_scores(scores, "logits"), scores[0] + scores[1])
    mean = (scores[0].softmax(1) + scores[1].softmax(1)) / 2
    torch.testing.assert_close(fuse_scores(scores, "softmax"), mean.log())


def test_the_backbone_sees_each_part_at_five_scales_at_test_and_six_parts_in_training():
    model = ssanet()
    assert shown(model, lambda: model.localize(torch.randn(2, 3, 32, 32))) == [
        (2, 3, 32, 32),
        (40, 3, 16, 16),
    ]
    model = ssanet(crop_chunk=15)
    assert shown(model, lambda: model.localize(torch.randn(2, 3, 32, 32)))[1:] == [
        (15, 3, 16, 16),
        (15, 3, 16, 16),
        (10, 3, 16, 16),
    ]
    model = at_stage(0)
    assert shown(model, lambda: model.loss(batch(2))) == [(2, 3, 32, 32), (12, 3, 16, 16)]
    model = ssanet(part_source="roi")
    assert shown(model, lambda: model.localize(torch.randn(2, 3, 32, 32))) == [(2, 3, 32, 32)]


def test_at_the_size_of_the_paper_there_are_its_features():
    model = Ssanet.create(backbone="resnet50", num_classes=2, weights="none", settings={}, image_size=448)
    assert model.heads.mining.weight.shape == (1, 2, 5, 100_352)
    assert (
        model.heads.orienting.classifier.in_features,
        model.heads.orienting.patch,
        model.heads.orienting.stride,
    ) == (55_296, 3, 2)
    assert model.navigator(torch.rand(1, 2048, 14, 14), 448).scores.shape == (1, 1614)


def test_chunks_change_no_result():
    one, many, images = ssanet(), ssanet(crop_chunk=7), torch.randn(2, 3, 32, 32)
    many.load_state_dict(one.state_dict())
    torch.testing.assert_close(
        one.localize(images).logits, many.localize(images).logits, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "settings", [{"variant": "light"}, {"part_source": "roi"}, {"anchors": "single"}, {"dsm_share": "false"}]
)
def test_other_choices_give_a_network_that_works(settings):
    model = Ssanet.create(backbone="tiny", num_classes=3, weights="none", settings=settings, image_size=32)
    expected = {"light": (1, 3, 5, 64), "false": (4, 3, 5, 256)}.get(
        next(iter(settings.values())), (1, 3, 5, 256)
    )
    assert model.heads.mining.weight.shape == expected
    assert torch.isfinite(model.localize(torch.randn(2, 3, 32, 32)).logits).all()
    model.train().on_epoch(0, 1)
    sum(model.loss(toy_batch(4, classes=3)).values()).backward()
    assert model.heads.mining.weight.grad.any()


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"parts": 7}, "parts=7 and proposals=6"),
        ({"parts": 0}, "parts=0"),
        ({"nms": -0.1}, "nms=-0.1"),
        ({"mac_weight": -1.0}, "mac_weight=-1.0"),
        ({"part_size": -2}, "part_size=-2"),
        ({"crop_chunk": 0}, "crop_chunk=0"),
        ({"stage_epochs": (90, 90)}, "stage_epochs=90,90 "),
        ({"module_rate": 0.0}, "module_rate=0.0"),
        ({"stage_epochs": (90, 0, 90, 1)}, "stage_epochs=90,0,90,1"),
        ({"part_source": "roi", "dsm": "fpn"}, "part_source=roi and dsm=fpn"),
        ({"scales": 2}, "scales=2 and alpha"),
    ],
)
def test_impossible_settings_are_refused(setting, message):
    with pytest.raises(UsageError, match=message.replace("=", "(?:=| of .* is )")):
        ssanet(**setting)


def test_settings_reach_what_they_are_about():
    model, given = at_stage(0, mac_self=True, mac_reduction="sum", nms=0.6).eval(), batch()
    boxes = proposed(model, given.images, 6).boxes
    parts = seen_parts(model, given.images, boxes).mean((3, 4))
    expected = 0.5 * mac_loss(parts[:, :4], with_self=True, reduction="sum")
    torch.testing.assert_close(model.loss(given)["mac"], expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(
        boxes, nominate(model.navigator(model.backbone.run(given.images), 32), 32, 6, 0.25).boxes
    )
    assert ssanet(anchors="single").navigator.kind == "single"
    assert ssanet(op_variant="rotated_maps").heads.orienting.variant == "rotated_maps"
    small = ssanet(part_size=12)
    assert shown(small, lambda: small.localize(given.images))[1][2:] == (12, 12)

    plain = ssanet()
    heads = [ssanet(op_patches=count).heads.orienting for count in (1, 2, 3)]
    assert [(head.patch, head.stride) for head in heads] == [(4, 1), (2, 2), (2, 1)]  # of a side of 4 cells
    with torch.no_grad():
        logits = plain(given.images).logits
        for setting in ({"fuse": "softmax"}, {"alpha": 1.9}):
            other = ssanet(**setting)
            other.load_state_dict(plain.state_dict())
            assert not torch.allclose(other(given.images).logits, logits), setting
        other = ssanet(fuse="softmax")
        other.load_state_dict(plain.state_dict())
        torch.testing.assert_close(other(given.images).logits.exp().sum(1), torch.ones(len(given.images)))
