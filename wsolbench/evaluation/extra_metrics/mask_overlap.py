"""mIoU and Dice of the foreground with the mask, at best, transferred and fixed thresholds.

mIoU is that of semantic segmentation with two classes: the mean of the IoU of the object and the IoU of the
background, with pixels pooled over the data set. Dice is 2 |A and B| / (|A| + |B|) of each image, averaged
over images. The foreground is {level >= t} of the 8-bit map, as for Peak-IoU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Float64, Integer, Num

from wsolbench.evaluation.extra_metrics.base import ExtraMetric
from wsolbench.evaluation.scores import ImageScores
from wsolbench.evaluation.split_scores import ImageRows, Metric, Rates, Summary
from wsolbench.evaluation.summary import at_best
from wsolbench.metrics.peak_iou import pixels_above
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.records import MetricValue

LEVELS = 256

Curve = Callable[[Rates], Float64[np.ndarray, "r 256"]]
"""Maps means of a table to the measure at each level."""


class MaskOverlap(ExtraMetric):
    """Overlap of the foreground at a threshold with the mask."""

    def metrics(self, summary: Summary) -> Iterator[Metric | MetricValue]:
        """Yield mIoU and Dice under each policy."""
        n = summary.split.count["with mask"]
        if not summary.split.count["with object"]:
            reason = "no mask has an object pixel" if n else "no image has a mask"
            for info in self.infos:
                yield MetricValue(name=info.name, value=None, n=n, reason=reason)
            return
        other = summary.other
        if other is not None and not other.count["with object"]:
            other = None
        tables: dict[str, tuple[ImageRows, Curve]] = {
            "miou": (
                ImageRows(images="with mask", of=lambda part: part.level_histogram.reshape(len(part), -1)),
                lambda rates: mean_iou(rates.reshape(len(rates), 2, LEVELS)),
            ),
            "dice": (ImageRows(images="with object", of=_dice), lambda rates: rates),
        }
        grid = np.arange(LEVELS) / (LEVELS - 1)
        for name, (rows, curve) in tables.items():
            # The threshold of each policy, in levels.
            policies = [ThresholdPolicy.oracle()]
            if summary.fixed_tau is not None:
                policies.append(ThresholdPolicy.fixed(summary.fixed_tau))
            if other is not None:
                best = int(curve(other.means([rows])[rows][None])[0].argmax())
                policies.append(ThresholdPolicy.transfer([grid[best]]))
            means = curve(summary.split.means([rows])[rows][None])  # (1, 256)
            for policy in policies:
                (level,) = policy.pick(means, grid)
                if policy.kind == "oracle":
                    curves = partial(_one_curve, curve=curve)
                    yield at_best(name, rows, curves, policy, (float(grid[level]),))
                else:
                    value = partial(_at_level, curve=curve, level=int(level))
                    yield Metric(name=name, rows=rows, value=value, policy=policy, tau=(float(grid[level]),))


def _one_curve(rates: Rates, curve: Curve) -> Float64[np.ndarray, "r 1 t"]:
    return np.asarray(curve(rates))[:, None]


def _at_level(rates: Rates, curve: Curve, level: int) -> Float64[np.ndarray, " r"]:
    return np.asarray(curve(rates))[:, level]


def _dice(part: ImageScores) -> Float64[np.ndarray, "m 256"]:
    return dice(part.level_histogram)


def mean_iou(histogram: Num[np.ndarray, "*r 2 256"]) -> Float64[np.ndarray, "*r 256"]:
    """Return the mean of the IoU of object and background for each level.

    The histogram must have an object pixel. Without a background pixel, the IoU of the background is 1 where
    nothing is called background, and 0 elsewhere.
    """
    true_positives, false_positives = pixels_above(histogram)
    positives, negatives = true_positives[..., :1], false_positives[..., :1]
    missed = positives - true_positives
    of_object = true_positives / (positives + false_positives)
    union = negatives + missed
    of_background = np.divide(
        negatives - false_positives, union, out=np.ones(union.shape), where=np.asarray(union > 0)
    )
    return np.asarray((of_object + of_background) / 2)


def dice(histogram: Integer[np.ndarray, "*r 2 256"]) -> Float64[np.ndarray, "*r 256"]:
    """Return the Dice coefficient of {level >= t} with the object for each level t."""
    true_positives, false_positives = pixels_above(histogram)
    return np.asarray(2 * true_positives / (true_positives[..., :1] + true_positives + false_positives))
