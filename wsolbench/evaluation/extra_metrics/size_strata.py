"""MaxBoxAcc for small, medium and large objects.

A stratum holds the images whose largest ground-truth box covers a share of the image in its range. The
threshold is that of all images, under each policy, so the strata are parts of MaxBoxAcc. The shares at which
strata end are this project's: COCO's 32 x 32 and 96 x 96 pixels make nearly every object of this field large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float64

from wsolbench.evaluation.extra_metrics.base import ExtraMetric, ScoredImage
from wsolbench.evaluation.scores import ImageScores
from wsolbench.evaluation.split_scores import ImageRows, Metric, Summary, ratio
from wsolbench.evaluation.summary import box_curves
from wsolbench.metrics.max_box_acc import passes
from wsolbench.protocol import DELTA
from wsolbench.records import MetricValue

STRATA = {"small": (0.0, 0.1), "medium": (0.1, 0.3), "large": (0.3, np.inf)}
"""Stratum -> range of the share of the image that the largest box covers, with an exclusive end."""


class SizeStrata(ExtraMetric):
    """MaxBoxAcc by the area of the largest ground-truth box."""

    columns = ("share",)

    def of_image(self, image: ScoredImage) -> Sequence[float] | None:
        """Return the share of the image that its largest ground-truth box covers, or None without a box."""
        boxes = np.asarray(image.sample.boxes, dtype=np.float64)
        if not len(boxes):
            return None
        width, height = image.sample.size
        return [float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).max()) / (width * height)]

    def metrics(self, summary: Summary) -> Iterator[Metric | MetricValue]:
        """Yield MaxBoxAcc of each stratum under each policy."""
        if not summary.split.count["with boxes"]:
            for info in self.infos:
                yield MetricValue(name=info.name, value=None, n=0, reason="no image has a true box")
            return
        curves = box_curves(summary.split, summary.protocol, summary.other)
        for info, (low, high) in zip(self.infos, STRATA.values(), strict=True):
            inside = partial(_inside, low=low, high=high)
            rows = ImageRows(images="with boxes", of=inside)
            count = round(float(summary.split.means([rows])[rows][0]) * summary.split.count["with boxes"])
            if not count:
                yield MetricValue(name=info.name, value=None, n=0, reason="no object has this size")
                continue
            for policy, (index,) in curves.policies((0,), summary.protocol, summary.fixed_tau, shared=False):
                of = partial(_hits, index=int(index), iou_test=summary.protocol.iou_test, low=low, high=high)
                yield Metric(
                    name=info.name,
                    rows=ImageRows(images="with boxes", of=of),
                    value=ratio,
                    policy=policy,
                    tau=(summary.protocol.taus[index],),
                    n=count,
                )


def _inside(part: ImageScores, low: float, high: float) -> Float64[np.ndarray, "m 1"]:
    share = part.extra["size-strata"][:, 0]
    return np.asarray((share >= low) & (share < high), dtype=np.float64)[:, None]


def _hits(
    part: ImageScores, index: int, iou_test: str, low: float, high: float
) -> Float64[np.ndarray, "m 2"]:
    """Return whether an image is a hit of the stratum, and whether it is in the stratum."""
    inside = _inside(part, low, high)
    return np.concatenate([passes(part.single_iou[:, [index]], DELTA, iou_test) * inside, inside], axis=1)
