"""Checks of what a GPU would do with a detector, on a fake one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wsolbench.methods import load_detector
from wsolbench.methods.device import send
from wsolbench.testing.subject import require

if TYPE_CHECKING:
    from wsolbench.testing.fake_cuda import Event, FakeCuda

CLASSES = ("class 0", "class 1")
HEIGHT, WIDTH = 96, 120
"""Size of the images that are checked."""
STEP, MIXED_STEP, DETECTION = "training step", "training step in mixed precision", "detection"


def detector_waits(
    name: str, *, backbone: str = "tiny", settings: Mapping[str, str] | None = None
) -> dict[str, list[Event]]:
    """Run a detector on a fake GPU and return what the host waits for.

    The keys are `STEP` and `MIXED_STEP`, for a step on two images, and `DETECTION`, for one image. A detector
    waits for sizes that depend on the data: non-maximum suppression, and the choice of regions. What is done
    only once, in the first step, is not counted.

    Args:
        name: as `wsolbench list detectors` has it.
        backbone: a small backbone that the detector accepts.
        settings: settings of the detector, as `--set name=value` gives them.

    Raises `AssertionError` for a loss or detections that are not as on the CPU, and `DeviceMismatchError` for
    tensors of both devices in one operation.
    """
    import torch

    from wsolbench.testing.fake_cuda import FakeCuda

    found: dict[str, list[Event]] = {}
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = load_detector(name).create(  # type: ignore[attr-defined]
            backbone=backbone, class_names=CLASSES, weights="none", settings=settings or {}
        )
        expected = model.detect(image)
        with FakeCuda() as gpu:
            gpu.move(model)
            for _ in range(2):
                gpu.events.clear()
                detections = model.detect(image)
            found[DETECTION] = list(gpu.events)
            for part in ("boxes", "scores", "labels"):
                require(
                    np.allclose(getattr(detections, part), getattr(expected, part), atol=1e-4),
                    f"on a GPU, detections have other {part}",
                )
            model.train()
            for key, mixed in ((STEP, False), (MIXED_STEP, True)):
                for _ in range(2):
                    gpu.events.clear()
                    _train_on(gpu, model, mixed)
                found[key] = list(gpu.events)
    return found


def _train_on(gpu: FakeCuda, model: Any, mixed: bool) -> None:
    """Run one training step on two random images, with gradients of 1."""
    import torch

    device = torch.device("cuda")
    images = [send(torch.rand(3, HEIGHT, WIDTH), device) for _ in range(2)]
    targets = []
    for _ in images:
        corners = torch.rand(3, 2) * 40
        boxes = torch.cat([corners, corners + 10 + torch.rand(3, 2) * 40], dim=1)
        masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        target = {"boxes": boxes, "labels": torch.tensor([1, 2, 1]), "masks": masks}
        targets.append({part: send(tensor, device) for part, tensor in target.items()})
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=1e-4, fused=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
        terms = model.loss(images, targets)
    total = torch.stack([term.float() for term in terms.values()]).sum()
    require(total.device.type == "cuda", f"the loss is on {total.device}; expected the GPU")
    require(
        bool(gpu.values(total.detach()).isfinite()), f"on a GPU, the loss is {gpu.values(total.detach())}"
    )
    total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for parameter in learnt:
        parameter.grad = None


def check_detector(
    name: str, *, backbone: str = "tiny", settings: Mapping[str, str] | None = None
) -> dict[str, list[Event]]:
    """Check that a GPU could train a detector and detect with it, in full and in mixed precision.

    Arguments and result are those of `detector_waits`: waits that the detector needs are listed, not refused.

    Raises `AssertionError` for tensors of both devices in one operation, for numbers that the host's
    generator draws for the device, and for blocking copies to the device, except those inside of torchvision.
    """
    try:
        found = detector_waits(name, backbone=backbone, settings=settings)
        for work, events in found.items():
            faults = [
                str(event)
                for event in events
                if event.kind == "generator"
                or (event.kind == "copy" and not event.where.startswith("torchvision/"))
            ]
            require(not faults, f"on a GPU, the {work} needs a {', a '.join(dict.fromkeys(faults))}")
    except (AssertionError, RuntimeError) as error:
        reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise AssertionError(f"detector {name!r} fails the check 'fake_gpu': {reason}") from error
    return found
