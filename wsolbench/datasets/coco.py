"""COCO: images with objects of many classes, their boxes and masks, for detectors.

T.-Y. Lin et al., "Microsoft COCO: Common objects in context", ECCV 2014.

    root/
      annotations/instances_train2017.json, instances_val2017.json
      train2017/, val2017/                    images, by `file_name`

`wsolbench export` writes any data set with boxes in this layout, without the `2017`.

Boxes are (x, y, width, height), floats counted from 0. Category ids have gaps; classes are counted from 0
in their order. Segmentations are polygons or run-length encodings. A crowd (`iscrowd`) is a region with
many objects. Detectors do not learn from it, and detections in it are ignored.

A `Sample` has one label, and all its boxes and masks are of that class. An image of COCO has objects of many
classes, so it is an `InstanceSample`. The data set is only for `wsolbench train-detector` and
`eval-detector`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from jaxtyping import Bool, Int64, Shaped, UInt8

from wsolbench.datasets.base import DatasetInfo, Missing, convert_os_errors, resolve_root, wrong_root
from wsolbench.datasets.boxes import SLACK, find_doubts
from wsolbench.datasets.formats.coco_files import check_rows, image_size, is_box, read_coco
from wsolbench.datasets.formats.imagefiles import absent_files
from wsolbench.datasets.formats.segmentations import is_finite_number, is_segmentation, shorten
from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.system.files import file_name, sha256_of_file
from wsolbench.system.lazy import pycocotools
from wsolbench.system.listing import list_files
from wsolbench.types import Boxes, Finding, Sample

INFO = DatasetInfo(
    name="coco",
    summary="COCO 2017: 123,287 images with boxes and masks of 80 classes, for detectors",
    splits=("train", "val"),
    root_holds=(
        "annotations/instances_<split>2017.json and the images in <split>2017/, or both as `wsolbench "
        "export` names them"
    ),
    expected={"train": 118287, "val": 5000},
    classes=80,
    citation="Lin et al., ECCV 2014",
    license="annotations CC BY 4.0; the images belong to their photographers (Flickr)",
)


_RESTORE = (
    "Copy them there, or if `wsolbench export` wrote the annotations, export again: it writes what is missing"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class InstanceSample:
    """One image with its objects.

    Attributes:
        id: COCO's number of the image, or its name.
        file_name: path of the image file inside the split's folder.
        path: path of the image file.
        size: (width, height).
        boxes: (R, 4) xyxy, as annotated.
        labels: (R,) class indices.
        crowd: (R,) whether each object is a crowd.
        segmentations: R polygons or run-length encodings as in the file. None for an object without one.
    """

    id: int | str
    file_name: str
    path: Path
    size: tuple[int, int]
    boxes: Boxes
    labels: Int64[np.ndarray, " r"]
    crowd: Bool[np.ndarray, " r"]
    segmentations: tuple[Any, ...]

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the pixels (H, W, 3), RGB.

        Raises `DataError` if the file is missing, invalid, or of another size than the annotations state.
        """
        pixels = Sample(id=self.file_name, label=0, path=self.path).image()
        if pixels.shape[1::-1] != self.size:
            found = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise DataError(
                f"image {self.path} is {found}; expected {self.size[0]}x{self.size[1]} as in its annotations"
            )
        return pixels

    def masks(self) -> UInt8[np.ndarray, "r h w"]:
        """Return the objects' masks (R, H, W), 1 inside. Raises `DataError` for an invalid or absent one."""
        return self.masks_of(range(len(self.boxes)))

    def masks_of(self, objects: Sequence[int]) -> UInt8[np.ndarray, "n h w"]:
        """Return the masks (n, H, W) of some of the objects, given by their indices."""
        (width, height), decode = self.size, pycocotools("mask").decode
        found = np.zeros((len(objects), height, width), dtype=np.uint8)
        for mask, index in zip(found, objects, strict=True):
            try:
                mask[:] = decode(run_lengths(self.segmentations[index], self.size))
            except Exception as error:  # pycocotools raises many types for an invalid segmentation
                raise DataError(
                    f"an object of image {self.file_name!r} has a segmentation that cannot be read: {error!r}"
                ) from error
        return found

    def select(self, kept: Bool[np.ndarray, " r"]) -> InstanceSample:
        """Return the image with some of its objects."""
        return replace(
            self,
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            crowd=self.crowd[kept],
            segmentations=tuple(item for item, keep in zip(self.segmentations, kept, strict=True) if keep),
        )

    def learnable(self) -> InstanceSample:
        """Return the objects that a detector learns from, without crowds.

        Boxes are clipped to the image. Those less than a pixel wide or high after that are dropped.
        """
        boxes = np.clip(self.boxes, 0.0, np.array([*self.size, *self.size], dtype=np.float64))
        return replace(self, boxes=boxes).select(
            ((boxes[:, 2:] - boxes[:, :2]) >= 1.0).all(axis=1) & ~self.crowd
        )


@dataclass(frozen=True, kw_only=True)
class InstanceDataset:
    """One split with objects, in the order of the file.

    Attributes:
        name: name of the exported data set, or `coco` for the official files, or that of the folder. It is
            safe as a file name.
        class_names: names by class index.
        category_ids: COCO's number of each class.
        fingerprint: 16 hex digits of the SHA-256 of the annotation file.
        annotations: the annotation file, for pycocotools.
        findings: doubtful annotations.
        missing: image files that the annotations name but that do not exist.
        root: the folder.
    """

    name: str
    split: str
    samples: Sequence[InstanceSample]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    fingerprint: str
    annotations: Path
    findings: tuple[Finding, ...] = ()
    missing: tuple[Path, ...] = ()
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.samples)


def load(root: Path, split: str, *, missing: Missing = "error") -> NoReturn:  # noqa: ARG001 - the signature of all data sets
    """Always raises `UsageError`, because an image of COCO has more than one label."""
    raise UsageError(
        "the images of 'coco' have objects of many classes, so the data set is for detectors; "
        "use `wsolbench train-detector` and `wsolbench eval-detector`"
    )


def available_splits(root: Path) -> tuple[str, ...]:
    """Return the splits with an annotation file, sorted by name."""
    names = [
        name.removesuffix(".json")
        for name in list_files(root / "annotations", (".json",))
        if name.startswith("instances_")
    ]
    return tuple(sorted(name.removeprefix("instances_").removesuffix("2017") for name in names))


def load_instances(
    root: Path | str | None, split: str, *, missing: Literal["error", "skip"] = "error"
) -> InstanceDataset:
    """Load one split of a folder in COCO's layout.

    Args:
        root: the folder. If None, `WSOLBENCH_COCO_ROOT`, or `coco` in `WSOLBENCH_DATA`.
        split: `train` or `val` of COCO 2017, or the name in the file, as in `instances_test.json`.
        missing: "error", or "skip" to exclude images without a file.

    Raises `UsageError` for a folder without annotations and for an unknown split, and `DataError` for
    annotations that are invalid or contradictory and for missing images.
    """
    with convert_os_errors(f"{INFO.name} {split}"):
        return _load_instances(resolve_root(INFO, root), split, missing)


def _load_instances(folder: Path, split: str, missing: Literal["error", "skip"]) -> InstanceDataset:
    # Read the annotation file: categories, then images with their objects.
    path, images = _files(folder, split)
    values = read_coco(path)
    categories = sorted(
        check_rows(path, values, "categories", ("id", "name"), ids=(int,)), key=lambda row: int(row["id"])
    )
    ids = tuple(int(row["id"]) for row in categories)
    samples = _samples(path, values, images, {number: index for index, number in enumerate(ids)})
    # Find missing image files.
    absent = absent_files(str(sample.path) for sample in samples)
    if absent and missing == "error":
        example = Path(min(absent)).name
        raise DataError(
            f"{len(absent):,} of {len(samples):,} images of {path} are missing, for instance {example}; "
            f"expected them in {images}. {_RESTORE}"
        )
    return InstanceDataset(
        name=_name(values, INFO.name if path.stem.endswith("2017") else folder.name),
        split=split,
        samples=[sample for sample in samples if str(sample.path) not in absent],
        findings=_findings(samples),
        missing=tuple(sample.path for sample in samples if str(sample.path) in absent),
        root=folder,
        class_names=tuple(str(row["name"]) for row in categories),
        category_ids=ids,
        fingerprint=sha256_of_file(path)[:16],
        annotations=path,
    )


def xywh(boxes: Boxes) -> list[list[float]]:
    """Convert boxes (R, 4) xyxy to COCO's form: R lists of x, y, width, height.

    >>> xywh(np.array([[1.0, 2.0, 11.0, 6.0]]))
    [[1.0, 2.0, 10.0, 4.0]]
    """
    found: list[list[float]] = (
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64).tolist()
    )
    return found


def run_lengths(segmentation: Any, size: tuple[int, int]) -> Any:
    """Convert a segmentation to pycocotools' compressed run-length encoding, for an image of (width, height).

    The segmentation is polygons or run lengths in any form. Raises `DataError` for run lengths that do not
    cover the image, because pycocotools would fill the rest with uninitialised memory.
    """
    mask = pycocotools("mask")
    width, height = size
    if isinstance(segmentation, dict) and not is_segmentation(segmentation, size):
        raise DataError(f"expected run lengths of {width}x{height} pixels, found {shorten(segmentation)}")
    if isinstance(segmentation, list):
        return mask.merge(mask.frPyObjects(segmentation, height, width))
    return (
        mask.frPyObjects(segmentation, height, width)
        if isinstance(segmentation["counts"], list)
        else segmentation
    )


def mask_run_lengths(mask: Shaped[np.ndarray, "h w"]) -> dict[str, Any]:
    """Encode a mask (H, W), True or 1 inside, as compressed run lengths in the form of COCO's files."""
    found = pycocotools("mask").encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode("ascii")}


def annotation_file(folder: Path, split: str) -> Path:
    """Return the path at which `wsolbench export` writes the annotations of a split."""
    return folder / "annotations" / f"instances_{split}.json"


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a split."""
    for name in (split, f"{split}2017"):
        path, images = annotation_file(folder, name), folder / name
        if path.is_file():
            if not images.is_dir():
                raise DataError(
                    f"{path} exists, but not the folder with its images; expected {images}. {_RESTORE}"
                )
            return path, images
    known = available_splits(folder)
    if not known:
        raise wrong_root(INFO, folder, "there is no annotations/instances_*.json")
    raise unknown_name("split", split, known)


def _name(values: dict[str, Any], otherwise: str) -> str:
    """Return the name that `wsolbench export` has stored, or `otherwise`. It is safe as a file name."""
    info = values.get("info")
    made_of = info.get("wsolbench") if isinstance(info, dict) else None
    name = made_of.get("dataset") if isinstance(made_of, dict) else None
    return file_name(name if isinstance(name, str) and name else otherwise)


def _samples(
    path: Path, values: dict[str, Any], images: Path, classes: dict[int, int]
) -> list[InstanceSample]:
    rows = check_rows(path, values, "images", ("id", "file_name", "width", "height"))
    # Mixed ids: pycocotools converts all to text, and then does not find the numbers.
    if len({type(row["id"]) for row in rows}) > 1:
        raise DataError(
            f"{path}: some ids of 'images' are numbers and some are text; expected ids of one kind"
        )
    # Group the objects by image.
    sizes = {row["id"]: image_size(path, row) for row in rows}
    objects: dict[Any, list[tuple[list[float], int, bool, Any]]] = {row["id"]: [] for row in rows}
    for row in check_rows(path, values, "annotations", ("id", "image_id", "category_id", "bbox")):
        image, category = row["image_id"], row["category_id"]
        if (
            type(image) not in {int, str}
            or image not in objects
            or type(category) is not int
            or category not in classes
        ):
            raise DataError(
                f"{path}: annotation {row['id']!r} is of image {image!r} and category {category!r}; expected "
                "both to be in the file"
            )
        objects[image].append(_object(path, row, classes[category], sizes[image]))
    return [
        InstanceSample(
            id=row["id"],
            file_name=row["file_name"],
            path=images / row["file_name"],
            size=sizes[row["id"]],
            boxes=np.array([box for box, *_ in own], dtype=np.float64).reshape(len(own), 4),
            labels=np.array([label for _, label, *_ in own], dtype=np.int64),
            crowd=np.array([crowd for _, _, crowd, _ in own], dtype=np.bool_),
            segmentations=tuple(segmentation for *_, segmentation in own),
        )
        for row, own in ((row, objects[row["id"]]) for row in rows)
    ]


def _findings(samples: Sequence[InstanceSample]) -> tuple[Finding, ...]:
    """Find doubtful boxes, by the same signs as in other data sets, and files that two images share."""
    notes = []
    # All boxes (N, 4), with the frame (N, 2) and the image of each.
    counts = [len(sample.boxes) for sample in samples]
    given = np.concatenate([sample.boxes for sample in samples])
    frames = np.repeat(np.array([sample.size for sample in samples], dtype=np.float64), counts, axis=0)
    owner = np.repeat(np.arange(len(samples)), counts)
    beyond = np.any(given[:, :2] < -SLACK, axis=1) | np.any(given[:, 2:] > frames + SLACK, axis=1)
    without_area = (given[:, 2:] <= given[:, :2]).any(axis=1)
    # One finding per doubt, with the first box as example.
    doubtful = [
        (beyond, "boxes that exceed the image", "warning"),
        (without_area, "boxes without area", "warning"),
    ]
    for which, what, severity in (*doubtful, *find_doubts(given, frames)):
        if which.any():
            first = samples[owner[int(np.argmax(which))]]
            example = (
                f"{first.file_name}: box {given[int(np.argmax(which))].tolist()} in an image of {first.size}"
            )
            notes.append(Finding(what=what, count=int(which.sum()), example=example, severity=severity))
    # Files that several images name.
    files = Counter(sample.file_name for sample in samples)
    if shared := [name for name, count in files.items() if count > 1]:
        notes.append(
            Finding(
                what="files that several images name",
                count=len(shared),
                example=shared[0],
                severity="warning",
            )
        )
    return tuple(notes)


def _object(
    path: Path, row: dict[str, Any], label: int, size: tuple[int, int]
) -> tuple[list[float], int, bool, Any]:
    """Return box (xyxy), class, whether it is a crowd, and segmentation of an entry of `annotations`.

    `size` is that of its image.
    """

    def broken(name: str, expected: str) -> DataError:
        return DataError(
            f"{path}: annotation {row['id']!r} has the {name} {shorten(row[name])}; expected {expected}"
        )

    # Validate the fields, then convert the box.
    box, area, crowd, segmentation = (
        row["bbox"],
        row.get("area"),
        row.get("iscrowd"),
        row.get("segmentation") or None,
    )
    if not is_box(box):
        raise broken("bbox", "x, y, width, height: finite numbers, width and height not negative")
    if area is not None and not (is_finite_number(area) and area >= 0):
        raise broken("area", "a finite number that is not negative, or no area (then it is that of the box)")
    if crowd not in (None, 0, 1):
        raise broken("iscrowd", "0 or 1")
    if segmentation is not None and not is_segmentation(segmentation, size):
        form = (
            f"polygons of three points or more, x, y, x, y, ..., or run lengths of {size[0]}x{size[1]} pixels"
        )
        raise broken("segmentation", f"{form}; [] stands for an object without a mask")
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height], label, bool(crowd), segmentation
