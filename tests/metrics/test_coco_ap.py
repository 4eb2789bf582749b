"""COCO's average precision: perfect detections, none, crowds, sizes, and agreement with pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.datasets.coco_layout import write_coco
from wsolbench.datasets.coco import InstanceDataset, load_instances
from wsolbench.exceptions import UsageError
from wsolbench.metrics.coco_ap import KINDS, Kind, average_precision, coco_results
from wsolbench.protocol import DetectionProtocol, EvalProtocol, protocol_from_json
from wsolbench.types import Detections

NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> InstanceDataset:
    """Eight images of objects of about 16 x 28 and 18 x 28 pixels, which are small by COCO's definition."""
    return load_instances(write_coco(tmp_path_factory.mktemp("coco"), count=9), "train")


def truth_of(dataset: InstanceDataset) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(dataset.annotations.read_text())
    return values


def perfect(dataset: InstanceDataset) -> list[dict[str, Any]]:
    results = []
    for sample in dataset.samples:
        own = sample.select(~sample.crowd)
        found = Detections(
            boxes=own.boxes,
            scores=np.linspace(0.9, 0.5, len(own.labels)),
            labels=own.labels,
            masks=own.masks() > 0,
        )
        results += coco_results(sample.id, found, dataset.category_ids)
    return results


def noisy(dataset: InstanceDataset, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    results = []
    for result in perfect(dataset):
        if rng.random() < 0.2:
            continue
        x, y, width, height = np.array(result["bbox"]) + rng.normal(0, 3, 4)
        box = [float(x), float(y), float(max(width, 1)), float(max(height, 1))]
        results.append(
            {
                **result,
                "bbox": box,
                "score": float(rng.random()),
                "category_id": int(rng.choice([3, 7], p=[0.3, 0.7])),
            }
        )
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_detections_have_ap_1_and_no_detections_0(dataset: InstanceDataset, kind: Kind) -> None:
    truth = truth_of(dataset)
    before = copy.deepcopy(truth)
    best, worst = average_precision(truth, perfect(dataset), kind), average_precision(truth, [], kind)
    assert set(best) == {f"{kind}_{name}" for name in NAMES}
    for name in ("ap", "ap50", "ap75", "ap_small"):
        assert best[f"{kind}_{name}"] == pytest.approx(1.0)
        assert worst[f"{kind}_{name}"] == 0.0
    assert best[f"{kind}_ap_large"] is worst[f"{kind}_ap_large"] is None
    assert truth == before


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_the_numbers_are_those_that_pycocotools_prints(dataset: InstanceDataset, seed: int) -> None:
    results = noisy(dataset, seed)
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        # pycocotools computes the area from the box if a result has one.
        given_to = [
            {key: value for key, value in result.items() if kind == "box" or key != "bbox"}
            for result in copy.deepcopy(results)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(dataset.annotations))
            evaluation = COCOeval(truth, truth.loadRes(given_to), theirs)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ours = average_precision(truth_of(dataset), results, kind)  # type: ignore[arg-type]
        expected = [None if value == -1 else pytest.approx(value) for value in evaluation.stats[:6]]
        assert [ours[f"{kind}_{name}"] for name in NAMES] == expected


def test_the_order_of_detections_does_not_matter_and_only_the_named_images_count(
    dataset: InstanceDataset,
) -> None:
    results = noisy(dataset, 1)
    truth = truth_of(dataset)
    assert average_precision(truth, results, "box") == average_precision(truth, results[::-1], "box")
    some = [sample.id for sample in dataset.samples[:3]]
    only = [result for result in results if result["image_id"] in some]
    part = average_precision(truth, results, "box", image_ids=some)
    assert part == average_precision(truth, only, "box", image_ids=some)
    assert part["box_ap"] != average_precision(truth, results, "box")["box_ap"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_of_the_objects_do_not_matter(dataset: InstanceDataset, kind: Kind) -> None:
    """pycocotools stores matches by id, and treats 0 as unmatched."""
    truth, found = truth_of(dataset), [perfect(dataset), noisy(dataset, 2)]
    expected = [average_precision(truth, results, kind) for results in found]
    for ids in (
        range(len(truth["annotations"])),
        [f"object {number}" for number in range(len(truth["annotations"]))],
    ):
        renamed = {
            **truth,
            "annotations": [{**item, "id": new} for item, new in zip(truth["annotations"], ids, strict=True)],
        }
        assert [average_precision(renamed, results, kind) for results in found] == expected


def test_ids_of_images_may_be_text(dataset: InstanceDataset) -> None:
    truth, results = truth_of(dataset), noisy(dataset, 2)
    renamed = {
        **truth,
        "images": [{**row, "id": f"image {row['id']}"} for row in truth["images"]],
        "annotations": [{**item, "image_id": f"image {item['image_id']}"} for item in truth["annotations"]],
    }
    found = [{**result, "image_id": f"image {result['image_id']}"} for result in results]
    some = [sample.id for sample in dataset.samples[:3]]
    assert average_precision(renamed, found, "box") == average_precision(truth, results, "box")
    named = average_precision(renamed, found, "box", image_ids=[f"image {number}" for number in some])
    assert named == average_precision(truth, results, "box", image_ids=some)


@pytest.mark.parametrize("without", [{"area": None, "iscrowd": None}, {}], ids=["null", "missing"])
def test_an_object_without_an_area_has_that_of_its_box_and_is_no_crowd(
    dataset: InstanceDataset, without: dict[str, None]
) -> None:
    truth = truth_of(dataset)
    objects = [item for item in truth["annotations"] if not item["iscrowd"]]
    bare = [
        {key: value for key, value in item.items() if key not in {"area", "iscrowd"}} | without
        for item in objects
    ]
    expected = average_precision({**truth, "annotations": objects}, noisy(dataset, 3), "box")
    assert average_precision({**truth, "annotations": bare}, noisy(dataset, 3), "box") == expected


def test_what_is_found_in_a_crowd_counts_neither_way(dataset: InstanceDataset) -> None:
    crowd = dataset.samples[-1]
    inside = Detections(boxes=crowd.boxes / 2 + 2, scores=np.array([0.99]), labels=crowd.labels)
    outside = Detections(
        boxes=np.array([[45.0, 35.0, 60.0, 50.0]]), scores=np.array([0.99]), labels=crowd.labels
    )
    values = [
        average_precision(
            truth_of(dataset),
            [*perfect(dataset), *coco_results(crowd.id, found, dataset.category_ids)],
            "box",
        )["box_ap"]
        for found in (inside, outside)
    ]
    assert values[0] == pytest.approx(1.0)
    assert values[1] is not None
    assert values[1] < 0.99


def test_a_limit_of_detections_and_the_areas_are_those_of_the_protocol(dataset: InstanceDataset) -> None:
    truth = truth_of(dataset)
    all_large = average_precision(
        truth, perfect(dataset), "box", DetectionProtocol(small_below=1.0, large_above=2.0)
    )
    assert (all_large["box_ap_small"], all_large["box_ap_large"]) == (None, pytest.approx(1.0))
    twice = [
        *({**result, "score": 1.0, "bbox": [0, 0, 2, 2]} for result in perfect(dataset)),
        *perfect(dataset),
    ]
    assert average_precision(truth, twice, "box", DetectionProtocol(max_detections=1))["box_ap"] == 0.0


def test_the_protocol_is_stored_with_all_its_fields_and_read_back() -> None:
    for protocol in (DetectionProtocol(), DetectionProtocol(name="mine", ious=(0.5,), max_detections=10)):
        assert protocol_from_json(json.loads(json.dumps(protocol.to_json()))) == protocol
    assert protocol_from_json(EvalProtocol.preset("spa").to_json()) == EvalProtocol.preset("spa")
    with pytest.raises(UsageError, match="unknown protocol field 'iou'; did you mean 'ious'"):
        protocol_from_json({"name": "coco", "detection": {"iou": [0.5]}})


def test_results_are_in_cocos_format(dataset: InstanceDataset, tmp_path: Path) -> None:
    (result,) = coco_results(
        5,
        Detections(boxes=np.array([[1.0, 2.0, 11.0, 6.0]]), scores=np.array([0.5]), labels=np.array([1])),
        dataset.category_ids,
    )
    assert result == {"image_id": 5, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 4.0], "score": 0.5}
    with_mask = perfect(dataset)[0]
    assert json.loads(json.dumps(with_mask)) == with_mask
