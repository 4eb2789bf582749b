"""Export of any data set with boxes to COCO's layout, for pycocotools and other detectors.

    DIR/annotations/instances_<split>.json
    DIR/<split>/...                              images, named as in the data set

See `wsolbench.datasets.coco`. The annotations are written last and atomically: if they exist, the export is
complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.datasets.coco import annotation_file, mask_run_lengths, xywh
from wsolbench.datasets.formats.imagefiles import absent_files
from wsolbench.datasets.formats.tables import read_json
from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.decoding import read_size
from wsolbench.system.files import atomic_path, make_folder, write_text
from wsolbench.system.lazy import pycocotools
from wsolbench.system.progress import track
from wsolbench.types import Dataset, Sample


@dataclass(frozen=True, kw_only=True)
class Export:
    """Summary of an export.

    Attributes:
        annotations: the annotation file.
        images: number of images.
        without_box: number of images without a box. For a detector they contain no object.
        objects: number of objects.
        without_mask: number of objects with a box but no segmentation.
        written: False if everything existed already.
    """

    annotations: Path
    images: int
    without_box: int
    objects: int
    without_mask: int
    written: bool


def image_numbers(dataset: Dataset) -> dict[str, int]:
    """Return COCO's number of each image id of a split: from 1 in the order of the split."""
    return {image_id: number for number, image_id in enumerate(dataset.ids, start=1)}


def category_of(label: int) -> int:
    """Return COCO's number of a class: from 1 in the order of the classes."""
    return label + 1


def export_coco(dataset: Dataset, folder: Path) -> Export:
    """Write images and annotations of a split into `folder`, which may contain other splits.

    A class is a category, numbered from 1 in the order of the classes. Each ground-truth box is an object
    of its image's class. Its segmentation is its mask, as run lengths, if the image has as many masks as
    boxes and each mask has pixels inside its box. An image file is copied unchanged, unless it has another
    size than its annotations or is a part of the stored file; then it is written as PNG. The same data give
    the same bytes.

    An existing export is kept, and only missing image files are written again. Raises `UsageError` for a data
    set without boxes and if the folder contains something else under this name. Raises `DataError` for images
    and masks that cannot be read.
    """
    if not dataset.has_boxes:
        raise UsageError(
            f"{dataset.name}/{dataset.split} has no boxes; expected a data set with boxes for COCO's format"
        )
    path, images = annotation_file(folder, dataset.split), folder / dataset.split
    made_of = {"dataset": dataset.name, "split": dataset.split, "fingerprint": dataset.fingerprint}
    if path.exists():
        return _complete(dataset, path, images, made_of)
    make_folder(images)
    # Write the images, and collect the rows of the annotation file.
    rows: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    names, numbers = _file_names(dataset), image_numbers(dataset)
    for stored, sample in zip(
        names,
        track(dataset.samples, f"exporting {dataset.name} {dataset.split}", total=len(dataset)),
        strict=True,
    ):
        (width, height), number = sample.size, numbers[sample.id]
        name = _write_image(sample, images, stored)
        rows.append({"id": number, "file_name": name, "width": width, "height": height})
        for box, segmentation in zip(xywh(sample.boxes), _segmentations(sample), strict=True):
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": number,
                    **_object(box, category_of(sample.label), segmentation),
                }
            )
    # Write the annotation file last.
    values = {
        "info": {"description": f"{dataset.name} {dataset.split}", "wsolbench": made_of},
        "categories": [
            {"id": category_of(label), "name": name} for label, name in enumerate(dataset.class_names)
        ],
        "images": rows,
        "annotations": objects,
    }
    write_text(path, json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n")
    return _summarize(values, path, written=True)


def _complete(dataset: Dataset, path: Path, images: Path, made_of: dict[str, str]) -> Export:
    """Complete the export at `path`: check that it is of this data set, and write missing image files."""
    try:
        values = read_json(path)
        found = dict(values["info"]["wsolbench"])
        classes = [row["name"] for row in values["categories"]]
        files = [str(images / row["file_name"]) for row in values["images"]]
        export = _summarize(values, path, written=False)
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise UsageError(
            f"{path} exists and is not an export of this program; choose another folder with --out"
        ) from error
    # Which fields, classes and numbers of images differ?
    differs = [
        f"{name} {found.get(name)!r}, not {value!r}"
        for name, value in made_of.items()
        if found.get(name) != value
    ]
    differs += [
        f"class {there!r}, not {name!r}"
        for there, name in zip_longest(classes, dataset.class_names)
        if there != name
    ][:1]
    if len(files) != len(dataset):
        differs.append(f"{len(files)} images, not {len(dataset)}")
    if differs:
        shown = ", ".join(differs)
        raise UsageError(
            f"{path} is an export of other data ({shown}); choose another folder with --out, or delete it"
        )
    absent = absent_files(files)
    for file, name, sample in zip(files, _file_names(dataset), dataset.samples, strict=True):
        if file in absent:
            _write_image(sample, images, name)
    return replace(export, written=bool(absent))


def _summarize(values: dict[str, Any], path: Path, *, written: bool) -> Export:
    images, objects = values["images"], values["annotations"]
    return Export(
        annotations=path,
        images=len(images),
        without_box=len({row["id"] for row in images} - {item["image_id"] for item in objects}),
        objects=len(objects),
        without_mask=sum("segmentation" not in item for item in objects),
        written=written,
    )


def _file_names(dataset: Dataset) -> list[str]:
    """Return the ids, without the folder of the split if all are in it."""
    inside = f"{dataset.split}/"
    ids = dataset.ids
    return (
        [name.removeprefix(inside) for name in ids]
        if all(name.startswith(inside) for name in ids)
        else list(ids)
    )


def _write_image(sample: Sample, folder: Path, name: str) -> str:
    """Write the image of `sample`, and return the name of the file with its suffix."""
    if (
        sample.path is not None
        and sample.crop is None
        and Path(name).suffix
        and read_size(sample.path) == sample.size
    ):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(sample.path, temporary)
        return name
    from PIL import Image

    name = name if name.endswith(".png") else f"{name}.png"
    image = Image.fromarray(sample.image())
    with atomic_path(folder / name) as temporary:
        (image if image.size == sample.size else image.resize(sample.size, Image.Resampling.BILINEAR)).save(
            temporary
        )
    return name


def _segmentations(sample: Sample) -> Sequence[dict[str, Any] | None]:
    """Return the run lengths of the mask of each box, or None for all if masks and boxes do not correspond.

    Masks and boxes correspond by their order only. So there must be as many masks as boxes, and each mask
    must have pixels inside its box. Otherwise a mask is of another object, and the order cannot be trusted.
    """
    nothing = [None] * len(sample.boxes)
    if len(sample.mask_paths) != len(sample.boxes):
        return nothing
    found = []
    for path, box in zip(sample.mask_paths, sample.boxes, strict=True):
        mask = replace(sample, mask_paths=(path,)).mask()
        assert mask is not None
        (x0, y0), (x1, y1) = np.floor(box[:2].clip(0.0)).astype(int), np.ceil(box[2:]).astype(int)
        if not mask[y0:y1, x0:x1].any():
            return nothing
        found.append(mask_run_lengths(mask))
    return found


def _object(box: Sequence[float], category: int, segmentation: dict[str, Any] | None) -> dict[str, Any]:
    """Build an entry of `annotations`. `box` is x, y, width, height."""
    values: dict[str, Any] = {"category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    if segmentation is None:
        return values
    return {**values, "area": int(pycocotools("mask").area(segmentation)), "segmentation": segmentation}
