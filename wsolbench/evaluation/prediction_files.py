"""Files of predictions: JSON for programs, CSV for tables, and COCO's results format for viewers.

    predictions.json     model, protocol and threshold; for each image size, labels, the single box, all boxes
    predictions.csv      one line per box: image,width,height,label,name,probability,x0,y0,x1,y1
    coco_images.json     images and categories in COCO's format, without annotations
    coco_results.json    boxes in COCO's results format, for these images and categories

Boxes are xyxy in pixels of the stored image, continuous with exclusive end; in COCO's files, they are
x,y,width,height.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.datasets.coco import xywh
from wsolbench.datasets.coco_export import category_of
from wsolbench.evaluation.predict import Prediction
from wsolbench.system.files import write_json, write_text
from wsolbench.types import Boxes

JSON, CSV, IMAGES, RESULTS = "predictions.json", "predictions.csv", "coco_images.json", "coco_results.json"
COLUMNS = ("image", "width", "height", "label", "name", "probability", "x0", "y0", "x1", "y1")


def write_predictions(
    folder: Path,
    predictions: Mapping[str, Prediction],
    class_names: Sequence[str],
    description: Mapping[str, Any],
    *,
    all_boxes: bool = False,
) -> list[Path]:
    """Write the four files into a folder, and return their paths.

    Args:
        folder: output folder.
        predictions: the prediction of each image, by its name.
        class_names: names of the classes of the model. May be empty.
        description: what the predictions come from, JSON values only. It is the start of the JSON file.
        all_boxes: whether CSV and COCO's results have the boxes of all regions, and not the single box.
    """
    boxes = {name: chosen_boxes(found, all_boxes=all_boxes) for name, found in predictions.items()}
    images = {name: number for number, name in enumerate(predictions, start=1)}
    write_json(
        folder / JSON,
        {**description, "images": [_as_json(name, found) for name, found in predictions.items()]},
    )
    write_text(folder / CSV, _as_csv(predictions, boxes))
    write_json(folder / IMAGES, _as_coco(predictions, images, class_names))
    results = [
        {
            "image_id": images[name],
            "category_id": category_of(found.labels[0].index if found.labels else 0),
            "bbox": box,
            "score": found.labels[0].probability if found.labels else 1.0,
        }
        for name, found in predictions.items()
        for box in xywh(boxes[name])
    ]
    write_text(folder / RESULTS, json.dumps(results, allow_nan=False) + "\n")
    return [folder / name for name in (JSON, CSV, IMAGES, RESULTS)]


def chosen_boxes(found: Prediction, *, all_boxes: bool) -> Boxes:
    """Return the boxes of all regions, or the single box. A box without area is left out."""
    boxes = found.boxes if all_boxes else found.box[None]
    return np.asarray(boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)])


def _as_json(name: str, found: Prediction) -> dict[str, Any]:
    return {
        "image": name,
        "width": found.size[0],
        "height": found.size[1],
        "labels": [
            {"label": label.index, "name": label.name, "probability": label.probability}
            for label in found.labels
        ],
        "box": found.box.tolist(),
        "boxes": found.boxes.tolist(),
    }


def _as_csv(predictions: Mapping[str, Prediction], boxes: Mapping[str, Boxes]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, found in predictions.items():
        writer.writerows(_rows(name, found, boxes[name]))
    return text.getvalue()


def _rows(name: str, found: Prediction, boxes: Boxes) -> Iterator[list[Any]]:
    """Yield one row per box. An image without a box has one row with empty corners."""
    best = found.labels[0] if found.labels else None
    label = ["", "", ""] if best is None else [best.index, best.name, f"{best.probability:.6g}"]
    for box in boxes.tolist() or [[""] * 4]:
        yield [name, *found.size, *label, *(f"{side:.6g}" if side != "" else "" for side in box)]


def _as_coco(
    predictions: Mapping[str, Prediction], images: Mapping[str, int], class_names: Sequence[str]
) -> dict[str, Any]:
    names = class_names or ("object",)
    return {
        "images": [
            {"id": images[name], "file_name": name, "width": found.size[0], "height": found.size[1]}
            for name, found in predictions.items()
        ],
        "categories": [{"id": category_of(label), "name": name} for label, name in enumerate(names)],
        "annotations": [],
    }
