"""Evaluation of detectors, with made-up ones: perfect, of boxes alone, of other classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.coco_layout import edited, write_coco
from wsolbench.datasets.coco import InstanceDataset, load_instances
from wsolbench.evaluation.detectors import evaluate_detector
from wsolbench.exceptions import DataError
from wsolbench.records import read_record
from wsolbench.types import Detections


class Perfect:
    """Knows the truth by the pixels."""

    method_name = "perfect"

    def __init__(self, dataset: InstanceDataset, *, masks: bool = True) -> None:
        self.class_names, self.masks = dataset.class_names, masks
        self.truth = {sample.image().tobytes(): sample.select(~sample.crowd) for sample in dataset.samples}

    def detect(self, image: np.ndarray) -> Detections:
        own = self.truth[image.tobytes()]
        scores = np.linspace(0.9, 0.8, len(own.labels))
        return Detections(
            boxes=own.boxes, scores=scores, labels=own.labels, masks=own.masks() > 0 if self.masks else None
        )

    def describe(self) -> dict[str, Any]:
        return {"method": "perfect", "backbone": None}

    def provenance(self) -> dict[str, Any]:
        return {"device": "cpu"}


@pytest.fixture
def dataset(tmp_path: Path) -> InstanceDataset:
    return load_instances(write_coco(tmp_path / "coco"), "train")


def test_a_perfect_detector_has_ap_1_in_a_record_that_is_read_back(
    dataset: InstanceDataset, tmp_path: Path
) -> None:
    evaluation = evaluate_detector(dataset, Perfect(dataset))  # type: ignore[arg-type]
    record = read_record(evaluation.record.write(tmp_path / "records"))
    assert record.metrics == evaluation.record.metrics
    assert len(record.metrics) == 12
    for name in ("box_ap", "box_ap75", "mask_ap", "mask_ap50"):
        metric = record.metric(name)
        assert metric is not None
        assert metric.value == pytest.approx(1.0)
        assert (metric.n, metric.low, metric.high) == (4, None, None)
    assert record.dataset == {
        "name": "coco",
        "split": "train",
        "fingerprint": dataset.fingerprint,
        "images": 4,
        "limit": None,
    }
    assert len(evaluation.results) == 6
    json.dumps(evaluation.results)


def test_a_limited_evaluation_counts_the_images_it_has_seen(dataset: InstanceDataset) -> None:
    record = evaluate_detector(dataset, Perfect(dataset), limit=2).record  # type: ignore[arg-type]
    assert (record.dataset["images"], record.dataset["limit"]) == (2, 2)
    value = record.metric("box_ap")
    assert value is not None
    assert value.value == pytest.approx(1.0)


def test_without_any_object_it_is_not_the_size_that_is_blamed(dataset: InstanceDataset) -> None:
    crowd = replace(dataset, samples=dataset.samples[-1:])
    record = evaluate_detector(crowd, Perfect(dataset)).record  # type: ignore[arg-type]
    reasons = {metric.name: metric.reason for metric in record.metrics}
    sizes = ("_small", "_medium", "_large")
    assert {reasons[name] for name in reasons if name.endswith(sizes)} == {"no object of this size"}
    assert {reasons[name] for name in reasons if not name.endswith(sizes)} == {
        "no object in the evaluated images"
    }


def test_metrics_of_masks_are_undefined_for_boxes_alone_and_say_why(
    dataset: InstanceDataset, tmp_path: Path
) -> None:
    boxes_only = evaluate_detector(dataset, Perfect(dataset, masks=False)).record  # type: ignore[arg-type]
    path = write_coco(tmp_path / "plain") / "annotations/instances_train2017.json"
    objects = json.loads(path.read_text())["annotations"]
    detector = Perfect(dataset)
    no_truth = []
    for nothing in ({}, {"segmentation": None}, {"segmentation": []}):
        bare = {key: value for key, value in objects[0].items() if key != "segmentation"} | nothing
        edited(path, annotations=[bare, *objects[1:]])
        no_truth.append(evaluate_detector(load_instances(tmp_path / "plain", "train"), detector).record)  # type: ignore[arg-type]
    expected = "an object of the data set has no segmentation"
    for record, reason in (
        (boxes_only, "the detector finds boxes only"),
        *((record, expected) for record in no_truth),
    ):
        mask, box = record.metric("mask_ap"), record.metric("box_ap")
        assert mask is not None
        assert box is not None
        assert (mask.value, mask.reason) == (None, reason)
        assert box.value == pytest.approx(1.0)


def test_a_detector_of_other_classes_is_refused(dataset: InstanceDataset) -> None:
    detector = Perfect(dataset)
    detector.class_names = ("apple", "pear")
    with pytest.raises(DataError, match="was trained on other classes"):
        evaluate_detector(dataset, detector)  # type: ignore[arg-type]
