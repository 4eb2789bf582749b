"""What a network proposes that has class maps and nothing else: regions around the peaks."""

from __future__ import annotations

from collections import OrderedDict

import torch

from reference_models.base import localizer
from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.layers import regions
from tests.reference_models.conftest import toy_backbone

CLASSES = 5
SIDE = 160 / 448 * 32


def network(head: str = "fc") -> HeadLocalizer:
    model = HeadLocalizer(toy_backbone(), CLASSES, HeadConfig(head=head)).eval()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_the_regions_lie_around_the_peaks_of_the_predicted_class():
    model, images = network(), torch.randn(4, 3, 32, 32)
    result = model.localize(images)
    proposals = result.propose()
    assert proposals.boxes.shape == (4, 4, 4)
    maps = result.score_maps(result.logits.argmax(1, keepdim=True))[:, 0]
    for cells, boxes, scores in zip(maps, proposals.boxes, proposals.scores, strict=True):
        for number, (box, score) in enumerate(zip(boxes, scores, strict=True)):
            row, column = divmod(int((cells.flatten() == score).nonzero()), 8)
            centre = torch.tensor([4 * column + 2.0, 4 * row + 2.0]).clamp(
                SIDE / 2, 32 - SIDE / 2
            )  # squares stay inside
            torch.testing.assert_close((box[:2] + box[2:]) / 2, centre)
            torch.testing.assert_close(box[2:] - box[:2], torch.full((2,), SIDE))
            if number == 0:
                assert score == cells.max()


def test_a_single_peak_inside_the_image_is_the_centre_of_the_best_region():
    model = network("conv1x1")
    features = torch.zeros(1, 16, 8, 8)
    features[0, :, 5, 3] = 1
    with torch.no_grad():
        model.head.classifier.weight.fill_(1)
    model.backbone.stages = lambda _images: OrderedDict(three=features)
    box = model.localize(torch.zeros(1, 3, 32, 32)).propose().boxes[0, 0]
    assert ((box[:2] + box[2:]) / 2).tolist() == [14, 22]


def test_regions_cost_nothing_until_they_are_asked_for(monkeypatch):
    asked: list[int] = []
    whole = regions.predicted_peaks
    monkeypatch.setattr(localizer, "predicted_peaks", lambda *arguments: asked.append(1) or whole(*arguments))
    result = network().localize(torch.randn(2, 3, 32, 32))
    result.score_maps(torch.zeros(2, 1, dtype=torch.int64))
    assert not asked
    first, second = result.propose(), result.propose()
    assert len(asked) == 2
    assert torch.equal(first.boxes, second.boxes)


def test_regions_have_no_graph_even_where_the_forward_pass_has_one():
    result = network()(torch.randn(2, 3, 32, 32))
    assert result.logits.requires_grad
    proposals = regions.predicted_peaks(result.logits, result.maps_of, 32)
    assert not proposals.scores.requires_grad
    assert proposals.scores.dtype == torch.float32


def test_regions_of_a_batch_are_those_of_each_image():
    model, images = network(), torch.randn(3, 3, 32, 32)
    together = model.localize(images).propose()
    for number in range(3):
        alone = model.localize(images[number : number + 1]).propose()
        torch.testing.assert_close(alone.boxes[0], together.boxes[number])
        torch.testing.assert_close(alone.scores[0], together.scores[number], atol=1e-5, rtol=1e-4)
