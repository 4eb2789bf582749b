"""Evaluate detectors: images, boxes and masks of all classes, COCO's average precision, record."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any

from wsolbench.datasets.coco import InstanceDataset
from wsolbench.datasets.subsets import limit_dataset
from wsolbench.exceptions import DataError
from wsolbench.methods import ObjectDetector
from wsolbench.metrics.catalog import METRICS
from wsolbench.metrics.coco_ap import KINDS, average_precision, coco_results
from wsolbench.protocol import DetectionProtocol
from wsolbench.records import MetricValue, RunRecord, provenance
from wsolbench.system.progress import track


@dataclass(frozen=True, kw_only=True)
class DetectorEvaluation:
    """The record of a run, and all detections in COCO's results format."""

    record: RunRecord
    results: list[dict[str, Any]]


def evaluate_detector(
    dataset: InstanceDataset, detector: ObjectDetector, *, limit: int | None = None
) -> DetectorEvaluation:
    """Run the detector on every image and compute the average precisions.

    Args:
        dataset: the split.
        detector: a detector in eval mode.
        limit: number of images to use, evenly spread, or None for all.

    Raises `DataError` if the detector was trained on other classes, and for images that cannot be read.
    """
    if detector.class_names != dataset.class_names:
        raise DataError(
            f"the checkpoint of {detector.method_name!r} was trained on other classes "
            f"({len(detector.class_names)}); expected those of {dataset.name} {dataset.split} "
            f"({len(dataset.class_names)}). Evaluate it on the data set that it was trained on"
        )
    scored, protocol, seconds = (
        limit_dataset(dataset, limit),
        DetectionProtocol(),
        {"detect": 0.0, "count": 0.0},
    )
    # Describe the run and refuse an invalid description before the work.
    description = RunRecord(
        method={**detector.describe(), "name": detector.method_name},
        dataset={
            "name": dataset.name,
            "split": dataset.split,
            "fingerprint": dataset.fingerprint,
            "images": len(scored),
            "limit": limit,
        },
        protocol=protocol,
        metrics=(),
        provenance={},
    )
    description.check()
    # Detect in every image.
    results: list[dict[str, Any]] = []
    start, boxes_only = time.perf_counter(), False
    for sample in track(scored.samples, f"detecting in {dataset.name} {dataset.split}", total=len(scored)):
        found = detector.detect(sample.image())
        boxes_only |= found.masks is None
        results += coco_results(sample.id, found, dataset.category_ids)
    seconds["detect"] = time.perf_counter() - start
    # Count masks only if the detector and all annotations have them.
    start = time.perf_counter()
    annotations = json.loads(dataset.annotations.read_text(encoding="utf-8"))
    countable = not boxes_only and all(item.get("segmentation") for item in annotations["annotations"])
    values: dict[str, float | None] = {}
    for kind in KINDS:
        if kind == "box" or countable:
            values |= average_precision(
                annotations, results, kind, protocol, image_ids=[sample.id for sample in scored.samples]
            )
    seconds["count"] = time.perf_counter() - start
    # Join everything in the record.
    without = (
        "the detector finds boxes only" if boxes_only else "an object of the data set has no segmentation"
    )
    record = replace(
        description,
        metrics=tuple(
            _metric(info.name, values, len(scored), without) for info in METRICS if info.needs == "instances"
        ),
        provenance=provenance(seconds=seconds, **detector.provenance()),
    )
    return DetectorEvaluation(record=record, results=results)


def _metric(name: str, values: dict[str, float | None], images: int, without: str) -> MetricValue:
    """Build the value of a metric. `without` is the reason for metrics that were not computed at all."""
    value = values.get(name)
    if value is not None:
        return MetricValue(name=name, value=value, n=images)
    empty = (
        "no object of this size"
        if name.endswith(("_small", "_medium", "_large"))
        else "no object in the evaluated images"
    )
    return MetricValue(name=name, value=None, n=0, reason=empty if name in values else without)
