"""Catalogue of all metrics that a record can hold: name, title in tables, required annotations, unit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Literal

from wsolbench.exceptions import UsageError, unknown_name

ENTRY_POINT_GROUP = "wsolbench.metrics"
"""Group of entry points that offer extra metrics (`wsolbench.evaluation.extra_metrics.base`)."""


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """One metric: a row of `wsolbench list metrics`."""

    name: str
    title: str
    summary: str
    needs: Literal[
        "labels", "boxes", "boxes and labels", "masks", "masks or boxes", "key points", "instances"
    ]
    better: Literal["higher", "lower", "neither"] = "higher"
    unit: Literal["fraction", "level", "pixels", "number"] = "fraction"
    """`fraction` is printed in percent. A `level` is 0 to 255."""
    top: float | None = 1.0
    """Largest possible value, or None if there is no bound."""
    version: int = 1
    """Version of the definition: a change of the value of the same run increments it.

    Records store it, and the leaderboard never mixes two versions.
    """

    @property
    def scale(self) -> float:
        """Factor that a value is multiplied by for printing."""
        return 100.0 if self.unit == "fraction" else 1.0

    @property
    def decimals(self) -> int:
        """Number of printed digits after the decimal point."""
        return {"fraction": 1, "level": 0, "pixels": 1, "number": 2}[self.unit]

    def format(self, value: float) -> str:
        """Format a value for tables: fractions in percent with one decimal, others in their unit."""
        return f"{self.scale * value:.{self.decimals}f}"


@dataclass(frozen=True, kw_only=True)
class ExtraMetricInfo:
    """Metrics that are computed on request: an entry of the group `wsolbench.metrics`."""

    name: str
    """Name for `--extra-metrics`, lower case with dashes."""
    infos: tuple[MetricInfo, ...]
    """The metrics that records hold, in table order."""
    implementation: str
    """Import path of the subclass of `ExtraMetric`, `package.module:Class`."""


_AP = (
    ("", "AP", "mean over IoU 0.50 to 0.95 and classes"),
    ("50", "AP50", "at IoU 0.50"),
    ("75", "AP75", "at IoU 0.75"),
    ("_small", "APS", "of objects below 32 x 32 pixels"),
    ("_medium", "APM", "of objects between 32 x 32 and 96 x 96 pixels"),
    ("_large", "APL", "of objects above 96 x 96 pixels"),
)

METRICS: tuple[MetricInfo, ...] = (
    MetricInfo(name="top1_cls", title="Top-1 Cls", needs="labels", summary="the best class is the true one"),
    MetricInfo(
        name="top5_cls", title="Top-5 Cls", needs="labels", summary="the true class is among the best five"
    ),
    MetricInfo(
        name="mean_class_accuracy",
        title="Mean-class Cls",
        needs="labels",
        summary="Top-1 accuracy averaged over classes",
    ),
    MetricInfo(
        name="gt_known",
        title="GT-known",
        needs="boxes",
        summary="box of the true class's map at IoU 0.5, one box per image",
    ),
    MetricInfo(
        name="top1_loc",
        title="Top-1 Loc",
        needs="boxes and labels",
        summary="GT-known, and the best class is the true one",
    ),
    MetricInfo(
        name="top5_loc",
        title="Top-5 Loc",
        needs="boxes and labels",
        summary="GT-known, and the true class is among the best five",
    ),
    MetricInfo(
        name="max_box_acc",
        title="MaxBoxAcc",
        needs="boxes",
        summary="one box per image, IoU 0.5, best threshold (CVPR 2020)",
    ),
    MetricInfo(
        name="max_box_acc_v2",
        title="MaxBoxAccV2",
        needs="boxes",
        summary="mean over the IoU thresholds, best threshold for each (TPAMI)",
    ),
    MetricInfo(
        name="pxap",
        title="PxAP",
        needs="masks",
        summary="area under the pixel precision-recall curve, pixels pooled",
    ),
    MetricInfo(
        name="peak_iou",
        title="Peak-IoU",
        needs="masks",
        summary="best pixel IoU over thresholds, pixels pooled over the data set",
    ),
    MetricInfo(
        name="peak_t",
        title="Peak-T",
        needs="masks",
        better="neither",
        unit="level",
        top=255.0,
        summary="the threshold of Peak-IoU, 0 to 255",
    ),
    MetricInfo(
        name="mean_image_iou",
        title="Mean image IoU",
        needs="masks",
        summary="mean over images of the pixel IoU at the best common threshold",
    ),
    MetricInfo(
        name="error_right",
        title="Right",
        needs="boxes and labels",
        summary="class correct and IoU above the threshold",
    ),
    MetricInfo(
        name="error_cls", title="Cls", needs="boxes and labels", better="lower", summary="best class is wrong"
    ),
    MetricInfo(
        name="error_m_ins",
        title="M-Ins",
        needs="boxes and labels",
        better="lower",
        summary="the box covers several objects",
    ),
    MetricInfo(
        name="error_part",
        title="Part",
        needs="boxes and labels",
        better="lower",
        summary="the box lies on a part of the object",
    ),
    MetricInfo(
        name="error_more",
        title="More",
        needs="boxes and labels",
        better="lower",
        summary="the box contains the object and much background",
    ),
    MetricInfo(
        name="error_other",
        title="Other",
        needs="boxes and labels",
        better="lower",
        summary="none of the other categories",
    ),
    MetricInfo(
        name="keypoint_distance",
        title="Key-point distance",
        needs="key points",
        better="lower",
        top=None,
        summary=(
            "distance from a proposal's centre to the nearest visible key point, in diagonals of the "
            "ground-truth box; @j: of the j-th proposal"
        ),
    ),
    MetricInfo(
        name="keypoint_distance_px",
        title="Key-point distance, px",
        needs="key points",
        better="lower",
        unit="pixels",
        top=None,
        summary="the same distance in pixels of an input of side 448",
    ),
    MetricInfo(
        name="keypoint_hit",
        title="Key-point hit",
        needs="key points",
        summary="share of proposals that contain a visible key point",
    ),
    MetricInfo(
        name="keypoint_distinct",
        title="Distinct key points",
        needs="key points",
        unit="number",
        top=None,
        summary="different nearest key points among the four best proposals per image",
    ),
    MetricInfo(
        name="keypoint_covered",
        title="Covered key points",
        needs="key points",
        unit="number",
        top=None,
        summary=(
            "different nearest key points within 0.1 diagonals of the ground-truth box, among the four best "
            "proposals per image"
        ),
    ),
    *(
        MetricInfo(
            name=f"{kind}_ap{end}",
            title=f"{kind.title()} {title}",
            needs="instances",
            summary=f"COCO average precision of {what}, {when}",
        )
        for kind, what in (("box", "boxes"), ("mask", "masks"))
        for end, title, when in _AP
    ),
)
"""All metrics in table order.

`max_box_acc_v2` has one extra row per IoU threshold, named `max_box_acc_v2@0.3` and so on. Key-point
distances have one per rank of the proposal, `keypoint_distance@1`.
"""


@cache
def offered_metrics() -> dict[str, ExtraMetricInfo]:
    """Return the extra metrics of all installed packages by name, sorted. No implementation is imported.

    Raises `UsageError` for two of the same name, and for two metrics of records with the same name.
    """
    found: dict[str, ExtraMetricInfo] = {}
    names = {info.name: "wsolbench" for info in METRICS}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        offered: Iterable[ExtraMetricInfo] = point.load()()
        for metric in offered:
            if metric.name in found:
                raise UsageError(f"two extra metrics are called {metric.name!r}; expected one")
            found[metric.name] = metric
            for info in metric.infos:
                if names.setdefault(info.name, metric.name) != metric.name:
                    raise UsageError(
                        f"metric {info.name!r} is offered by {names[info.name]} and by {metric.name}; "
                        "expected one. Uninstall one of the packages"
                    )
    return dict(sorted(found.items()))


@cache
def all_metrics() -> tuple[MetricInfo, ...]:
    """Return all metrics that a record can hold, in table order: `METRICS`, then the extra ones."""
    return (*METRICS, *(info for metric in offered_metrics().values() for info in metric.infos))


def metric_info(name: str) -> MetricInfo:
    """Return the entry of a metric; `name@delta` gives that of `name`.

    Raises `UsageError` naming the closest metric.
    """
    base = name.partition("@")[0]
    for info in METRICS:
        if info.name == base:
            return info
    for info in all_metrics():
        if info.name == base:
            return info
    raise unknown_name("metric", name, [info.name for info in all_metrics()])


def metric_title(name: str) -> str:
    """Return the title in tables: `max_box_acc_v2@0.3` is "MaxBoxAccV2 @ 0.3"."""
    base, _, delta = name.partition("@")
    return f"{metric_info(base).title} @ {delta}" if delta else metric_info(base).title
