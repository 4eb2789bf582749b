"""COCO: images with objects of many classes, their boxes and masks; for detectors.

T.-Y. Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014.

    root/
      annotations/instances_train2017.json, instances_val2017.json
      train2017/, val2017/                    images, by `file_name`

`wsolbench export` writes any data set with boxes in this layout, without the `2017`.

Boxes are (x, y, width, height), floats counted from 0. Category ids have gaps; classes are counted from 0 in their order. Segmentations
are polygons or run lengths. A crowd (`iscrowd`) is a region with many objects: detectors do not learn from it, and what they find
there counts neither way.

A `Sample` has one label, and its boxes and masks are all of that class. An image here has objects of many classes, so it is an
`InstanceSample`, and the data set is for `wsolbench train-detector` and `eval-detector` alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from wsolbench._lazy import pycocotools
from wsolbench.datasets.base import DatasetInfo, Missing, resolve_root, wrong_root
from wsolbench.datasets.imagefiles import absent_files
from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.files import sha256_of_file
from wsolbench.types import Boxes, Sample

INFO = DatasetInfo(
    name="coco",
    summary="COCO 2017: 123,287 images with boxes and masks of 80 classes, for detectors",
    splits=("train", "val"),
    root_holds="annotations/instances_<split>2017.json and the images in <split>2017/, or both as `wsolbench export` names them",
    expected={"train": 118287, "val": 5000},
    citation="Lin et al., ECCV 2014",
    license="annotations CC BY 4.0; the images belong to their photographers (Flickr)",
)


@dataclass(frozen=True, eq=False, kw_only=True)
class InstanceSample:
    """One image and its objects.

    Attributes:
        id: COCO's number of the image.
        file_name: path of the image file below the split's folder.
        path: the image file.
        size: (width, height).
        boxes: (R, 4) xyxy, as they are annotated.
        labels: (R,) class indices.
        crowd: (R,) which are crowds.
        segmentations: R polygons or run lengths as in the file; None for an object without.
    """

    id: int
    file_name: str
    path: Path
    size: tuple[int, int]
    boxes: Boxes
    labels: Int64[np.ndarray, " r"]
    crowd: Bool[np.ndarray, " r"]
    segmentations: tuple[Any, ...]

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels, RGB. Raises `DataError` when the file is missing or broken, or has another size than the annotations say."""
        pixels = Sample(id=self.file_name, label=0, path=self.path).image()
        if pixels.shape[1::-1] != self.size:
            found = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise DataError(f"image {self.path} is {found}, but its annotations are for {self.size[0]}x{self.size[1]}")
        return pixels

    def masks(self) -> UInt8[np.ndarray, "r h w"]:
        """The objects' masks, 1 inside. Raises `DataError` for a segmentation that is missing or broken."""
        (width, height), decode = self.size, pycocotools("mask").decode
        found = np.zeros((len(self.boxes), height, width), dtype=np.uint8)
        for mask, segmentation in zip(found, self.segmentations, strict=True):
            try:
                mask[:] = decode(run_lengths(segmentation, self.size))
            except Exception as error:  # pycocotools raises whatever a broken one makes it stumble on
                raise DataError(f"an object of image {self.file_name!r} has a segmentation that cannot be read: {error!r}") from error
        return found

    def chosen(self, kept: Bool[np.ndarray, " r"]) -> InstanceSample:
        """The image with some of its objects."""
        return replace(
            self,
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            crowd=self.crowd[kept],
            segmentations=tuple(item for item, keep in zip(self.segmentations, kept, strict=True) if keep),
        )

    def learnable(self) -> InstanceSample:
        """The objects that a detector learns from: no crowds; boxes cut at the border that are a pixel wide and high after that."""
        boxes = np.clip(self.boxes, 0.0, np.array([*self.size, *self.size], dtype=np.float64))
        return replace(self, boxes=boxes).chosen(((boxes[:, 2:] - boxes[:, :2]) >= 1.0).all(axis=1) & ~self.crowd)


@dataclass(frozen=True, kw_only=True)
class InstanceDataset:
    """One split with objects, in the order of the file.

    Attributes:
        class_names: by class index.
        category_ids: COCO's number of each class.
        fingerprint: 16 hex digits of the SHA-256 of the annotation file.
        annotations: that file, which pycocotools reads.
    """

    name: str
    split: str
    samples: Sequence[InstanceSample]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    fingerprint: str
    annotations: Path

    def __len__(self) -> int:
        return len(self.samples)


def load(root: Path, split: str, *, missing: Missing = "error") -> NoReturn:  # noqa: ARG001 - the signature of all data sets
    """Raises `UsageError`: an image of COCO has more than one label."""
    raise UsageError(
        "the images of 'coco' have objects of many classes, so the data set is for detectors; "
        "use `wsolbench train-detector` and `wsolbench eval-detector`"
    )


def load_instances(root: Path | str | None, split: str) -> InstanceDataset:
    """One split of a folder in COCO's layout.

    Args:
        root: the folder; None: `WSOLBENCH_COCO_ROOT`, or `coco` in `WSOLBENCH_DATA`.
        split: `train` or `val` of COCO 2017; or the name in the file, as in `instances_test.json`.

    Raises `UsageError` on a folder without annotations and on an unknown split, `DataError` on annotations that are broken or contradict
    each other and on images that are missing.
    """
    folder = resolve_root(INFO, root)
    path, images = _files(folder, split)
    values = _read(path)
    made_of = values.get("info", {}).get("wsolbench", {}) if isinstance(values.get("info"), dict) else {}
    categories = sorted(_rows(path, values, "categories", ("id", "name")), key=lambda row: int(row["id"]))
    ids = tuple(int(row["id"]) for row in categories)
    samples = _samples(path, values, images, {number: index for index, number in enumerate(ids)})
    absent = absent_files(str(sample.path) for sample in samples)
    if absent:
        raise DataError(
            f"{len(absent):,} of {len(samples):,} images of {path.name} are not in {images}, for instance {Path(min(absent)).name}"
        )
    return InstanceDataset(
        name=str(made_of.get("dataset", INFO.name)),
        split=split,
        samples=samples,
        class_names=tuple(str(row["name"]) for row in categories),
        category_ids=ids,
        fingerprint=sha256_of_file(path)[:16],
        annotations=path,
    )


def run_lengths(segmentation: Any, size: tuple[int, int]) -> Any:
    """Polygons or run lengths of any form -> compressed run lengths of pycocotools, for an image of size (width, height)."""
    mask = pycocotools("mask")
    width, height = size
    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    return mask.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def annotation_file(folder: Path, split: str) -> Path:
    """Where `wsolbench export` writes the annotations of a split."""
    return folder / "annotations" / f"instances_{split}.json"


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split."""
    for name in (split, f"{split}2017"):
        path, images = annotation_file(folder, name), folder / name
        if path.is_file():
            if not images.is_dir():
                raise DataError(f"{path} is there, but not the folder with its images, {images}")
            return path, images
    known = sorted(path.stem.removeprefix("instances_").removesuffix("2017") for path in folder.glob("annotations/instances_*.json"))
    if not known:
        raise wrong_root(INFO, folder, "there is no annotations/instances_*.json")
    raise unknown_name("split", split, known)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds a {type(values).__name__}; expected an object with images, annotations and categories")
    return values


def _rows(path: Path, values: dict[str, Any], name: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """A list of objects that have these fields and ids that differ."""
    rows = values.get(name)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list {name!r} that is not empty")
    for number, row in enumerate(rows):
        lacking = fields if not isinstance(row, dict) else [field for field in fields if field not in row]
        if lacking:
            raise DataError(f"{path}: entry {number} of {name!r} has no {lacking[0]!r}")
    if len({row["id"] for row in rows}) < len(rows):
        raise DataError(f"{path}: two entries of {name!r} have one id; every id must be unique")
    return rows


def _samples(path: Path, values: dict[str, Any], images: Path, classes: dict[int, int]) -> list[InstanceSample]:
    rows = _rows(path, values, "images", ("id", "file_name", "width", "height"))
    objects: dict[Any, list[tuple[list[float], int, bool, Any]]] = {row["id"]: [] for row in rows}
    for row in _rows(path, values, "annotations", ("id", "image_id", "category_id", "bbox")):
        if row["image_id"] not in objects or row["category_id"] not in classes:
            raise DataError(
                f"{path}: annotation {row['id']} is of image {row['image_id']} and category {row['category_id']}; "
                "one of them is not in the file"
            )
        try:
            x, y, width, height = (float(value) for value in row["bbox"])
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: annotation {row['id']} has the bbox {row['bbox']!r}; expected x, y, width, height") from error
        label, crowd = classes[row["category_id"]], bool(row.get("iscrowd", 0))
        objects[row["image_id"]].append(([x, y, x + width, y + height], label, crowd, row.get("segmentation")))
    return [
        InstanceSample(
            id=row["id"],
            file_name=str(row["file_name"]),
            path=images / str(row["file_name"]),
            size=(int(row["width"]), int(row["height"])),
            boxes=np.array([box for box, *_ in own], dtype=np.float64).reshape(len(own), 4),
            labels=np.array([label for _, label, *_ in own], dtype=np.int64),
            crowd=np.array([crowd for _, _, crowd, _ in own], dtype=np.bool_),
            segmentations=tuple(segmentation for *_, segmentation in own),
        )
        for row, own in ((row, objects[row["id"]]) for row in rows)
    ]
