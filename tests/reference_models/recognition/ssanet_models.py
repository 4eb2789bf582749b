"""Small SSANETs and what they propose and see, for its tests."""

from __future__ import annotations

import torch

from reference_models.core.outputs import Batch
from reference_models.layers.navigator import nominate
from reference_models.layers.regions import crop_resize
from reference_models.recognition.ssanet.method import Ssanet, SsanetConfig
from tests.reference_models.conftest import toy_backbone, toy_batch

CLASSES = 5


def ssanet(**settings) -> Ssanet:
    return Ssanet(toy_backbone(), CLASSES, SsanetConfig(**settings)).eval()


def at_stage(number: int, **settings) -> Ssanet:
    """A model in training, in one of its stages."""
    model = ssanet(**settings).train()
    start = sum(length for _, length in model.stages[:number])
    model.on_epoch(start, sum(length for _, length in model.stages))
    return model


def batch(count: int = 4) -> Batch:
    return toy_batch(count, classes=CLASSES)


def shown(model: Ssanet, run) -> list[tuple[int, ...]]:
    """Shapes of all that the backbone is given while `run` runs."""
    seen: list[tuple[int, ...]] = []
    handle = model.backbone.steps["one"].register_forward_pre_hook(
        lambda _step, arguments: seen.append(tuple(arguments[0].shape))
    )
    run()
    handle.remove()
    return seen


def proposed(model: Ssanet, images: torch.Tensor, count: int):
    return nominate(model.navigator(model.backbone.run(images), 32), 32, count, model.config.nms)


def seen_parts(model: Ssanet, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    features = model.backbone.run(crop_resize(images, boxes, 16))
    return features.view(*boxes.shape[:2], *features.shape[1:])
