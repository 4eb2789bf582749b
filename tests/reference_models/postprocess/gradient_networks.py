"""Networks and measures for the tests of post-processes that weight features."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from reference_models.localization.cam import Cam
from wsolbench.methods import load_post

KINDS = ("grad-cam", "hirescam", "grad-cam-elementwise", "layercam", "grad-cam-pp", "bagcams")
ASKED = torch.tensor([[0, 2], [1, 1]])


def network(head: str = "fc", backbone: str = "tiny", size: int = 64, **settings: str) -> Cam:
    """A classifier with random weights and scores of about 1. Batch norm of `tiny` adds no constant."""
    model = Cam.create(
        backbone=backbone,
        num_classes=3,
        weights="none",
        settings={"head": head, **settings},
        image_size=size,
    )
    with torch.no_grad():
        model.head.classifier.weight.mul_(100)
    return model


def maps(name: str, model: Cam, images: torch.Tensor, asked: torch.Tensor, **settings: str) -> torch.Tensor:
    post = load_post(name).create(settings)
    return post.maps(model.localize(images, gradients=post.needs_gradients), asked)


def stretched(values: torch.Tensor) -> torch.Tensor:
    """Min-max normalise in float64, without a small number in the divisor."""
    values = values.double()
    low, high = values.amin(dim=(-2, -1), keepdim=True), values.amax(dim=(-2, -1), keepdim=True)
    return (values - low) / (high - low)


class Scores(nn.Module):
    """A model that returns its scores alone, as libraries expect it."""

    def __init__(self, model: Cam) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def from_library(kind: type, model: Cam, step: str, images: torch.Tensor, asked: list[int]) -> np.ndarray:
    """Raw maps (B, h, w) of pytorch-grad-cam, before its ReLU, min-max and resizing."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(one) for one in asked]
    layer = model.backbone.steps[step]
    with kind(model=Scores(model), target_layers=[layer]) as cam:
        cam(input_tensor=images, targets=targets)
        seen = cam.activations_and_grads
        a, g = (found[0].numpy() if found else None for found in (seen.activations, seen.gradients))
        return cam.get_cam_image(images, layer, targets, a, g, False)
