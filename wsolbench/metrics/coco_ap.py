"""COCO's average precision (AP) of detected boxes and masks, computed by pycocotools.

Source: T.-Y. Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014. The conventions are in
`DetectionProtocol`. AP is not a mean over images, so it has neither per-image scores nor a bootstrap
interval over images. Compare runs with several seeds.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from wsolbench.datasets.coco import mask_run_lengths, xywh
from wsolbench.protocol import DetectionProtocol
from wsolbench.system.lazy import pycocotools
from wsolbench.types import Detections

Kind = Literal["box", "mask"]
KINDS: tuple[Kind, ...] = ("box", "mask")
_AREAS = ("", "_small", "_medium", "_large")


def coco_results(image_id: int | str, found: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the detections of one image in COCO's results format, masks as run-length encodings."""
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, label, score in zip(
            xywh(found.boxes), found.labels.tolist(), found.scores.tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for result, mask in zip(results, found.masks, strict=True):
            result["segmentation"] = mask_run_lengths(mask)
    return results


def average_precision(
    annotations: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    kind: Kind,
    protocol: DetectionProtocol | None = None,
    *,
    image_ids: Sequence[int | str] | None = None,
) -> dict[str, float | None]:
    """AP over all IoU thresholds, at 0.50, at 0.75, and of small, medium and large objects.

    Args:
        annotations: content of an annotation file (`instances_*.json`), not modified. For mask AP, its
            objects need a segmentation.
        results: detections in COCO's results format, with `bbox`. For mask AP, also with `segmentation` as
            compressed run-length encoding.
        kind: whether boxes or masks are compared.
        protocol: IoU thresholds, areas and number of detections. If None, COCO's.
        image_ids: images to evaluate. If None, all.

    The keys are `box_ap`, `box_ap50`, `box_ap75`, `box_ap_small`, `box_ap_medium`, `box_ap_large`, or
    `mask_...`. Values are fractions, or None if there is no object of that size. Crowd objects are ignored.
    """
    protocol = protocol or DetectionProtocol()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        # Ground truth and detections as pycocotools objects.
        truth = _coco(
            annotations,
            [_true(number, item) for number, item in enumerate(annotations["annotations"], start=1)],
        )
        found = _coco(
            annotations, [_counted(number, result, kind) for number, result in enumerate(results, start=1)]
        )
        evaluation = pycocotools("cocoeval").COCOeval(truth, found, {"box": "bbox", "mask": "segm"}[kind])
        # Evaluation with the protocol's thresholds, areas and images.
        params, small, large = evaluation.params, protocol.small_below, protocol.large_above
        params.iouThrs = np.array(protocol.ious)
        params.recThrs = np.linspace(0.0, 1.0, protocol.recalls)
        params.maxDets = [protocol.max_detections]
        params.areaRng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
        params.areaRngLbl = list(_AREAS)
        if image_ids is not None:
            params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    # Means over the entries of each metric; precision is (IoU thresholds, recalls, classes, areas).
    precision = evaluation.eval["precision"][..., 0]
    found_at = {f"{kind}_ap{name}": precision[:, :, :, area] for area, name in enumerate(_AREAS)}
    for overlap in (0.5, 0.75):
        at = np.isclose(params.iouThrs, overlap)
        found_at[f"{kind}_ap{round(100 * overlap)}"] = precision[at, :, :, 0]
    return {name: _mean(values) for name, values in found_at.items()}


def _mean(values: np.ndarray) -> float | None:
    """Return the mean of the defined values, or None. A class without objects has precision -1."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else None


def _true(number: int, item: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ground-truth object in pycocotools' form.

    pycocotools stores a match as the object's id and treats 0 as unmatched, so objects are numbered from 1.
    """
    area, (_, _, width, height) = item.get("area"), item["bbox"]
    return {
        **item,
        "id": number,
        "iscrowd": int(item.get("iscrowd") or 0),
        "area": width * height if area is None else area,
    }


def _counted(number: int, result: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Return a detection in pycocotools' form.

    Its area decides whether a false positive is small. It is the area of the box or of the mask.
    """
    area = (
        result["bbox"][2] * result["bbox"][3]
        if kind == "box"
        else pycocotools("mask").area(result["segmentation"])
    )
    return {**result, "id": number, "iscrowd": 0, "area": float(area)}


def _coco(annotations: Mapping[str, Any], objects: list[dict[str, Any]]) -> Any:
    coco = pycocotools("coco").COCO()
    coco.dataset = {
        "images": annotations["images"],
        "categories": annotations["categories"],
        "annotations": objects,
    }
    coco.createIndex()
    return coco
