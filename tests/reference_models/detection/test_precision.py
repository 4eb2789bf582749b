"""Boxes are exact under mixed precision, and detections reach the host in one go."""

from __future__ import annotations

import pytest
import torch

from reference_models.detection.lio_mask_rcnn.networks import build
from wsolbench.testing.fake_cuda import FakeCuda


@pytest.mark.parametrize("backbone", ["tiny", "resnet50_fpn"])
def test_anchors_and_scores_are_float32_under_mixed_precision(backbone: str) -> None:
    torch.manual_seed(0)
    network = build(backbone, 3, min_size=128, max_size=192).eval()
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
