"""Part features: crop each part and run the backbone on it, or RoIAlign the features of the whole image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align

from reference_models.core.backbone import Backbone
from reference_models.layers.regions import crop_resize


def reextract_features(
    backbone: Backbone,
    images: Float[Tensor, "b 3 S S"],
    boxes: Float[Tensor, "b k 4"],
    size: int,
    *,
    depth: int = 1,
    chunk: int = 256,
) -> list[Tensor]:
    """Crop each box, resize it to `size`, and return its last `depth` stages (B, K, D, h, w).

    In evaluation mode `chunk` boxes go through the backbone at a time, which bounds the memory. In training
    mode all do, because they share the statistics of batch norm.
    """
    crops = crop_resize(images, boxes, size)
    chunks = [crops] if backbone.training else torch.split(crops, chunk)
    stages = zip(*(list(backbone.stages(some).values())[-depth:] for some in chunks), strict=True)
    return [whole.view(*boxes.shape[:2], *whole.shape[1:]) for whole in map(torch.cat, stages)]


def aligned_regions(
    features: Float[Tensor, "b d h w"], boxes: Float[Tensor, "b k 4"], image_size: int, side: int
) -> Float[Tensor, "b k d {side} {side}"]:
    """RoIAlign the whole image's features, in float32: means of 2x2 samples, 0 outside the image."""
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype).repeat_interleave(
        boxes.shape[1]
    )[:, None]
    with torch.autocast(features.device.type, enabled=False):
        scale = features.shape[-1] / image_size
        cut: Tensor = roi_align(
            features.float(),
            torch.cat([index, boxes.flatten(0, 1)], dim=1),
            side,
            scale,
            sampling_ratio=2,
            aligned=True,
        )
    return cut.view(*boxes.shape[:2], *cut.shape[1:])


def grid_side(backbone: Backbone, size: int) -> int:
    """Return the side of the last stage's grid for an image of `size`. The mode of the backbone is kept."""
    training = backbone.training
    with torch.no_grad():
        side = backbone.eval().run(next(backbone.parameters()).new_zeros(1, 3, size, size)).shape[-1]
    backbone.train(training)
    return int(side)
