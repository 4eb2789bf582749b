"""What an extra metric is: numbers of each image, and metrics that are functions of their means.

A package offers extra metrics through an entry point of the group `wsolbench.metrics`: a function without
arguments that returns `ExtraMetricInfo` rows, which name the classes. `wsolbench eval --extra-metrics NAME`
computes their numbers for each image and stores them with the per-image scores, so that intervals and
comparisons need no map.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Float64

from wsolbench.evaluation.scores import ImageScores, frame_mask
from wsolbench.evaluation.split_scores import ImageRows, Metric, Summary, ratio
from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.maps import frame_size
from wsolbench.metrics.catalog import ExtraMetricInfo, MetricInfo, offered_metrics
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue
from wsolbench.types import Sample

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredImage:
    """What an extra metric may read of an image.

    Attributes:
        sample: the image and its annotations.
        map: (H, W) the map in the frame of the protocol, in [0, 1].
        boxes: (r, 4) xyxy ground-truth boxes in the frame, in the protocol's convention.
        protocol: the protocol of the run.
    """

    sample: Sample
    map: Float[np.ndarray, "fh fw"]
    boxes: Float64[np.ndarray, "r 4"]
    protocol: EvalProtocol

    @cached_property
    def mask(self) -> Bool[np.ndarray, "fh fw"] | None:
        """The ground-truth mask in the frame, or None."""
        mask = self.sample.mask()
        if mask is None:
            return None
        return frame_mask(mask, frame_size(self.sample.size, self.protocol), self.protocol)

    @cached_property
    def object_pixels(self) -> Bool[np.ndarray, "fh fw"] | None:
        """Pixels of the object: the mask, or else the filled boxes. None without either, or if empty."""
        region = self.mask
        if region is None:
            region = np.zeros(self.map.shape, dtype=np.bool_)
            last = 1 if self.protocol.gt_end == "inclusive" else 0
            for x0, y0, x1, y1 in self.boxes:
                region[int(y0) : int(np.ceil(y1)) + last, int(x0) : int(np.ceil(x1)) + last] = True
        return region if region.any() else None


class ExtraMetric:
    """Base of all extra metrics.

    Class attributes:
        columns: names of the numbers that are stored for each image, in order. Empty if the scores that
            every run stores are enough.
        needs_network: whether the numbers come from `of_batch`, which runs the network, and not from
            `of_image`.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    needs_network: ClassVar[bool] = False

    def __init__(self, info: ExtraMetricInfo) -> None:
        self.info = info

    @property
    def name(self) -> str:
        """Name for `--extra-metrics`."""
        return self.info.name

    @property
    def infos(self) -> tuple[MetricInfo, ...]:
        """The metrics that records hold."""
        return self.info.infos

    def of_image(self, image: ScoredImage) -> Sequence[float] | None:
        """Return the number of each column, or None for an image on which they are undefined."""
        raise NotImplementedError

    def of_batch(
        self,
        classify: Callable[[torch.Tensor], torch.Tensor],
        images: torch.Tensor,
        maps: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the numbers of each image, (B, c), without reading the device.

        `classify` maps images (B, 3, S, S) to logits (B, C), `images` are the network's input, `maps`
        (B, h, w) the raw maps, and `labels` (B,) the true classes.
        """
        raise NotImplementedError

    def metrics(self, summary: Summary) -> Iterator[Metric | MetricValue]:
        """Yield the metrics of a split, in table order."""
        raise NotImplementedError


def numbers_of(
    image: ScoredImage, extra: Sequence[ExtraMetric], measured: Mapping[str, Sequence[float]]
) -> dict[str, Float64[np.ndarray, "1 c"]]:
    """Return the row of each extra metric for one image. Undefined numbers are NaN.

    `measured` has the numbers of metrics that need the network, if it has class scores.

    Raises `UsageError` for a metric that returns another number of values than it declares.
    """
    rows = {}
    for metric in extra:
        if metric.needs_network:
            found = measured.get(metric.name)
        else:
            found = metric.of_image(image) if metric.columns else ()
        row = np.array([np.nan] * len(metric.columns) if found is None else list(found), dtype=np.float64)
        if row.shape != (len(metric.columns),):
            raise UsageError(
                f"extra metric {metric.name!r} returned {row.size} numbers for {image.sample.id!r}; expected "
                f"{len(metric.columns)}: {', '.join(metric.columns)}"
            )
        rows[metric.name] = row[None]
    return rows


def find_extra_metrics(names: Sequence[str]) -> tuple[ExtraMetric, ...]:
    """Return the extra metrics of these names. Raises `UsageError` for an unknown or a repeated name."""
    offered = offered_metrics()
    for name in names:
        if name not in offered:
            raise unknown_name("extra metric", name, offered)
    if len(set(names)) < len(names):
        raise UsageError(f"extra metrics {','.join(names)}; expected each name once")
    return tuple(load_extra_metric(offered[name]) for name in names)


def load_extra_metric(info: ExtraMetricInfo) -> ExtraMetric:
    """Return the implementation of an extra metric."""
    module, _, name = info.implementation.partition(":")
    metric: ExtraMetric = getattr(importlib.import_module(module), name)(info)
    return metric


def mean_of(
    name: str, summary: Summary, metric: ExtraMetric, column: str, *, reason: str
) -> Metric | MetricValue:
    """Return the mean of a column over the images on which it is defined.

    The column must be in [0, 1]. If it is defined on no image, the result is a value with this reason.
    """
    of = partial(_value_and_weight, metric=metric.name, column=metric.columns.index(column))
    rows = ImageRows(images="all", of=of)
    count = round(float(summary.split.means([rows])[rows][1]) * summary.split.count["all"])
    if not count:
        return MetricValue(name=name, value=None, n=0, reason=reason)
    return Metric(name=name, rows=rows, value=ratio, n=count)


def _value_and_weight(part: ImageScores, metric: str, column: int) -> Float64[np.ndarray, "m 2"]:
    values = part.extra[metric][:, column]
    known = ~np.isnan(values)
    return np.stack([np.where(known, values, 0.0), known], axis=1)
