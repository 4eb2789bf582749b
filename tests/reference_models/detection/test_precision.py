"""Boxes are exact under mixed precision, and detections reach the host in one go."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from reference_models.detection.lio_mask_rcnn.networks import build
from wsolbench.testing.fake_cuda import FakeCuda


@pytest.mark.parametrize("backbone", ["tiny", "resnet50_fpn"])
def test_anchors_and_scores_are_float32_under_mixed_precision(backbone: str) -> None:
    torch.manual_seed(0)
    network = build(backbone, 3, min_size=128, max_size=192).eval()
    # A processor without bfloat16 emulates it: a minute for a thousand proposals.
    network.rpn._post_nms_top_n = {"training": 50, "testing": 50}
    network.roi_heads.detections_per_img = 5
    seen: dict[str, list] = {"anchors": [], "head": []}
    network.rpn.anchor_generator.register_forward_hook(
        lambda _m, _i, output: seen["anchors"].append(output[0])
    )
    network.rpn.head.register_forward_hook(lambda _m, _i, output: seen["head"].append(output))
    image = torch.rand(3, 128, 192)
    with torch.no_grad():
        network([image])
        with torch.autocast("cpu", torch.bfloat16):
            (found,) = network([image])
    exact, mixed = seen["anchors"]
    assert mixed.dtype == torch.float32
    assert torch.equal(exact, mixed)
    assert all(level.dtype == torch.float32 for levels in seen["head"][1] for level in levels)
    assert all(found[name].dtype == torch.float32 for name in ("boxes", "scores", "masks"))


def test_masks_are_pasted_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build("tiny", 3).eval()
    network.roi_heads.score_thresh = 0.0
    image = torch.rand(3, 96, 120)
    with torch.no_grad():
        (expected,) = network([image])
    with FakeCuda() as gpu, torch.no_grad():
        gpu.move(network)
        (found,) = network([gpu.tensor(image)])
        reads = [event for event in gpu.events if event.kind == "read"]
    assert len(expected["boxes"]) > 20
    assert len(reads) < 20  # not one or more for each object
    assert all(value.device.type == "cpu" for value in found.values())
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_boxes_are_coded_as_by_torchvision_to_the_bit() -> None:
    torch.manual_seed(0)
    own = build("tiny", 3).roi_heads.box_coder
    theirs = BoxCoder(own.weights, own.bbox_xform_clip)
    assert type(own) is not BoxCoder
    corners = torch.rand(500, 2) * 500
    proposals = torch.cat([corners, corners + torch.rand(500, 2) * 300 + 1], dim=1)
    boxes = torch.cat([corners + 3, corners + torch.rand(500, 2) * 200 + 4], dim=1)
    assert torch.equal(own.encode_single(boxes, proposals), theirs.encode_single(boxes, proposals))
    for classes in (1, 3):
        offsets = torch.randn(500, 4 * classes) * 3
        assert torch.equal(own.decode_single(offsets, boxes), theirs.decode_single(offsets, boxes))
        assert own.decode_single(offsets[:0], boxes[:0]).shape == (0, 4 * classes)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(37, 51), (300, 210), (64, 400)])
def test_images_and_objects_are_resized_as_by_torchvision_to_the_bit(
    size: tuple[int, int], training: bool
) -> None:
    torch.manual_seed(0)
    own = build("tiny", 3).transform.train(training)
    theirs = GeneralizedRCNNTransform(own.min_size, own.max_size, own.image_mean, own.image_std)
    corners = torch.rand(5, 2) * 20
    target = {
        "boxes": torch.cat([corners, corners + 1 + torch.rand(5, 2) * 9], dim=1),
        "labels": torch.ones(5, dtype=torch.int64),
        "masks": torch.randint(0, 2, (5, *size), dtype=torch.uint8),
    }
    image, given = torch.rand(3, *size), {name: value.clone() for name, value in target.items()}
    found, expected = (each([image], [target]) for each in (own, theirs.train(training)))
    assert torch.equal(found[0].tensors, expected[0].tensors)
    assert found[1][0].keys() == expected[1][0].keys()
    assert all(torch.equal(value, expected[1][0][name]) for name, value in found[1][0].items())
    assert all(torch.equal(value, given[name]) for name, value in target.items())
