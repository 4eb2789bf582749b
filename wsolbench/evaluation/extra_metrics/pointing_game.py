"""The pointing game, and its energy form.

J. Zhang, S. A. Bargal, Z. Lin, J. Brandt, X. Shen, S. Sclaroff, "Top-down neural attention by excitation
backprop", IJCV 2018: an image is a hit if the highest pixel of its map lies within 15 pixels of the object.
H. Wang et al., "Score-CAM", CVPR workshops 2020: the share of the map's sum that lies in the object.

The object is the mask, or else the filled boxes. Pixels are those of the frame (`frame_size`, usually 224).
Of several highest pixels, the share of those that hit counts, so that a box as a map is judged by its area
and not by its first pixel. A constant map has no highest pixel, and misses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float

from wsolbench.evaluation.extra_metrics.base import ExtraMetric, ScoredImage, mean_of
from wsolbench.evaluation.split_scores import Metric, Summary
from wsolbench.records import MetricValue

TOLERANCE = 15.0
"""Largest distance of a hit in pixels (IJCV 2018)."""


class PointingGame(ExtraMetric):
    """Whether the highest pixel lies on the object, and how much of the map does."""

    columns = ("hit", "near", "energy")

    def of_image(self, image: ScoredImage) -> Sequence[float] | None:
        """Return hit, hit within the tolerance, and energy. None for an image without an object."""
        if image.object_pixels is None:
            return None
        hit, near = pointing_hits(image.map, image.object_pixels, TOLERANCE)
        return hit, near, energy(image.map, image.object_pixels)

    def metrics(self, summary: Summary) -> Iterator[Metric | MetricValue]:
        """Yield the mean of each column."""
        for info, column in zip(self.infos, self.columns, strict=True):
            yield mean_of(info.name, summary, self, column, reason="no image has a mask or a box")


def pointing_hits(
    score_map: Float[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"], tolerance: float
) -> tuple[float, float]:
    """Return the share of the highest pixels in the region, and that within `tolerance` pixels of it."""
    highest = score_map == score_map.max()
    if highest.all():
        return 0.0, 0.0
    outside = np.asarray(~region, dtype=np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[highest]
    return float((distance == 0).mean()), float((distance <= tolerance).mean())


def energy(score_map: Float[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]) -> float:
    """Return the share of the sum of a map in [0, 1] that lies in the region. It is 0 for a map of zeros."""
    total = score_map.sum(dtype=np.float64)
    return float(score_map[region].sum(dtype=np.float64) / total) if total > 0 else 0.0
