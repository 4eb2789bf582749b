"""Insertion and deletion: how fast the score of the class rises and falls in the order of the map.

V. Petsiuk, A. Das, K. Saenko, "RISE: randomized input sampling for explanation of black-box models", BMVC
2018. Deletion starts with the image and replaces its pixels by the mean colour, highest pixels of the map
first. Insertion starts with a blurred image and restores the pixels in the same order. Each is the area under
the curve of the softmax score of the true class over the share of changed pixels, in [0, 1]. A good map has a
high insertion and a low deletion.

A curve has 28 steps. The source changes 224 pixels at a time, which is 224 steps on 224 x 224 pixels. Of
equal pixels, the first in row-wise order comes first. The blur is the source's: a Gaussian of 11 x 11 pixels
with a sigma of 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from wsolbench.evaluation.extra_metrics.base import ExtraMetric, mean_of
from wsolbench.evaluation.split_scores import Metric, Summary
from wsolbench.records import MetricValue

if TYPE_CHECKING:
    import torch

STEPS = 28
"""Steps of a curve. Each changes 1 / 28 of the pixels."""
BLUR, SIGMA = 11, 5.0
"""Side of the blur's kernel in pixels, and its deviation."""


class InsertionDeletion(ExtraMetric):
    """Areas under the insertion and the deletion curve. They need the network: `eval`, not `score`."""

    columns = ("insertion", "deletion")
    needs_network = True

    def of_batch(
        self,
        classify: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        maps: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return insertion and deletion of each image, (B, 2)."""
        import torch

        places = ranks(maps, images.shape[-1])  # (B, 1, S, S)
        empty, blurred = torch.zeros_like(images), blur(images)
        insertion = area(classify, blurred, images, places, labels)
        deletion = area(classify, images, empty, places, labels)
        return torch.stack([insertion, deletion], dim=1)

    def metrics(self, summary: Summary) -> Iterator[Metric | MetricValue]:
        """Yield the mean of each area."""
        for info, column in zip(self.infos, self.columns, strict=True):
            yield mean_of(info.name, summary, self, column, reason="the method has no class scores")


def ranks(maps: torch.Tensor, side: int) -> torch.Tensor:
    """Return the place of each pixel in the order of falling values, (B, 1, S, S), as a share of all pixels.

    `maps` (B, h, w) are resized to the input first, bilinearly.
    """
    import torch
    from torch.nn.functional import interpolate

    resized = interpolate(maps[:, None].float(), (side, side), mode="bilinear", align_corners=False)
    order = resized.flatten(1).argsort(dim=1, descending=True, stable=True)  # (B, S S)
    shares = torch.arange(order.shape[1], device=maps.device, dtype=torch.float32) / order.shape[1]
    return (
        torch.empty_like(order, dtype=torch.float32)
        .scatter_(1, order, shares.expand(len(maps), -1))
        .reshape(resized.shape)
    )


def blur(images: torch.Tensor) -> torch.Tensor:
    """Return the images convolved with a Gaussian, with zeros around them."""
    import torch
    from torch.nn.functional import conv2d

    away = torch.arange(BLUR, device=images.device, dtype=torch.float32) - BLUR // 2
    kernel = torch.exp(-(away**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    across = kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = kernel.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    half = BLUR // 2
    rows = conv2d(images.float(), across, padding=(0, half), groups=channels)
    return conv2d(rows, down, padding=(half, 0), groups=channels)


def area(
    classify: Callable[[torch.Tensor], torch.Tensor],
    before: torch.Tensor,
    after: torch.Tensor,
    places: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Return the area (B,) under the score of `labels` while `before` becomes `after` in the order `places`.

    `classify` maps images (B, 3, S, S) to logits (B, C). `labels` is (B,).
    """
    import torch

    curve = []
    for step in range(STEPS + 1):
        mixed = torch.where(places < step / STEPS, after, before)
        scores = classify(mixed).float().softmax(dim=1)
        curve.append(scores.take_along_dim(labels[:, None], dim=1)[:, 0])
    heights = torch.stack(curve, dim=1)  # (B, STEPS + 1)
    return (heights[:, 1:] + heights[:, :-1]).mean(dim=1) / 2
