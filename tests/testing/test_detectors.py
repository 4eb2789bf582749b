"""What a GPU would do with every detector, and that its faults are found without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reference_models.detection.lio_mask_rcnn.method import LioMaskRcnn
from wsolbench.methods import list_detectors
from wsolbench.testing import check_detector
from wsolbench.testing.detectors import DETECTION, MIXED_STEP, STEP

SMALL = {"min_size": "96", "max_size": "128"}


@pytest.mark.parametrize("name", [row.name for row in list_detectors()])
def test_a_gpu_could_run_a_detector(name: str) -> None:
    found = check_detector(name)
    assert set(found) == {STEP, MIXED_STEP, DETECTION}


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("tiny", {}),
        ("tiny", {"masks": "false", "scl_weight": "0"}),
        pytest.param("resnet50_c4", {}, marks=pytest.mark.slow),
        pytest.param("resnet50_fpn", {}, marks=pytest.mark.slow),
    ],
)
def test_mask_rcnn_waits_only_where_sizes_depend_on_the_data(backbone: str, settings: dict[str, str]) -> None:
    found = check_detector("lio-mask-rcnn", backbone=backbone, settings={**SMALL, **settings})
    for work, events in found.items():
        results = "lio_mask_rcnn/on_gpu.py" if work == DETECTION else "nowhere"  # they go to the host
        reads = {e.operator for e in events if e.kind == "read" and not e.where.startswith(results)}
        assert reads <= {
            "aten::nonzero",
            "torchvision::nms",
            "aten::_local_scalar_dense",  # whether boxes are degenerate
        }
        assert {event.where.partition(":")[0] for event in events if event.kind == "copy"} <= {
            "torchvision/ops/boxes.py"  # before its non-maximum suppression, which waits anyway
        }


class Fault(LioMaskRcnn):
    """Mask R-CNN whose loss has a term that is not as a GPU wants it."""

    def term(self, loss: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def loss(self, images, targets):
        terms = super().loss(images, targets)
        return {**terms, "more": self.term(terms["loss_mask"])}


class Mixing(Fault):
    def term(self, loss):
        return (loss * torch.ones(3)).sum()


class Copying(Fault):
    def term(self, loss):
        return loss * torch.tensor([1.0, 2.0], device=loss.device).sum()


class Drawing(Fault):
    def term(self, loss):
        return loss * torch.rand((), generator=torch.Generator().manual_seed(0), device=loss.device)


class Leaving(Fault):
    def loss(self, images, targets):
        return {name: term.cpu() for name, term in LioMaskRcnn.loss(self, images, targets).items()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Mixing, "DeviceMismatchError: aten::mul has tensors of the GPU and, of the CPU"),
        (Copying, r"the training step needs a copy by _to_copy in testing/test_detectors.py:\d+"),
        (Drawing, "the training step needs a generator by rand"),
        (Leaving, "the loss is on cpu; expected the GPU"),
    ],
)
def test_a_fault_of_a_detector_is_found(monkeypatch: Any, kind: type[Any], message: str) -> None:
    monkeypatch.setattr("wsolbench.testing.detectors.load_detector", lambda name: kind)
    with pytest.raises(AssertionError, match=f"detector 'fault' fails the check 'fake_gpu': .*{message}"):
        check_detector("fault", settings=SMALL)
