"""Your own images with annotations in COCO's format, for localization and recognition.

    root/
      annotations*.json, annotations/*.json, or SPLIT/*annotations*.json
      images/, SPLIT/, or the root itself      the images, by `file_name`

A file is of the split that its name or its folder states: `instances_train2017.json`,
`annotations_test.json`, `valid/_annotations.coco.json`. Of the files in `annotations/`, those that start with
`instances_` count, if there are any. One file without a split in its name gets an automatic split by class
(`wsolbench.datasets.automatic_split`). `--annotations [SPLIT=]FILE` names the files instead.

The class of an image is the category of its largest object, by the area of the box. The first one in the file
wins a tie. The boxes of the image are those of all objects of this category; other objects are not read. So
an image with one category keeps all its boxes. Crowds (`iscrowd`) never count. Images without an object, or
with crowds only, have no class and are excluded. Segmentations are not read. Each of these is reported.

Boxes are (x, y, width, height), floats counted from 0, and may be absent: then only recognition is scored.
Classes are counted from 0 in the order of the category ids. `coco` is the same format for detectors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.automatic_split import SPLITS, AutomaticSplit, small_classes
from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.coco_files import check_rows, image_size, is_box, read_coco
from wsolbench.datasets.formats.segmentations import shorten
from wsolbench.datasets.formats.wsoleval import image_folder
from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.system.listing import list_files
from wsolbench.types import Dataset, Finding

INFO = DatasetInfo(
    name="coco-json",
    summary="your own images with annotations in COCO's format; one class per image",
    splits=(),
    own=True,
    root_holds="annotations*.json in COCO's format, or a folder annotations/ with such files, and the images",
)

_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])")
_WAY_OUT = "Name the files: --annotations train=FILE --annotations test=FILE"


@dataclass(frozen=True)
class _Object:
    """An object: its category, its box (xyxy) or None, and the area of the box."""

    label: int
    box: tuple[float, float, float, float] | None
    area: float


@dataclass
class _Image:
    """An image of the file, its objects without crowds, and its number of crowds."""

    row: dict[str, Any]
    size: tuple[int, int]
    objects: list[_Object]
    crowds: int = 0

    @property
    def label(self) -> int:
        """The class of the largest object; the first one wins a tie."""
        return max(self.objects, key=lambda item: item.area).label


def load(
    root: Path,
    split: str,
    *,
    missing: Missing = "error",
    annotations: Sequence[str] = (),
    split_seed: int | None = None,
    split_fractions: str | None = None,
) -> Dataset:
    """Load one split, in the layout above, in the order of the file.

    Args:
        root: the folder.
        split: train, val or test.
        missing: what to do with missing images; see `wsolbench.datasets.base.Missing`.
        annotations: `FILE` or `SPLIT=FILE`, below the root or anywhere. Empty: those in the root.
        split_seed: seed of the automatic split, default 0.
        split_fractions: shares of train, val and test, default "0.7,0.1,0.2".

    Raises `DataError` naming the file for annotations that are invalid or contradictory, and `UsageError` for
    an unknown split and for options of an automatic split that there is not.
    """
    # The file of the split.
    files = _find_files(root, annotations)
    automatic = AutomaticSplit.parse(split_seed, split_fractions) if "" in files else None
    if automatic is None and (split_seed is not None or split_fractions is not None):
        raise UsageError(
            f"--split-seed and --split-fractions have no effect: the annotation files of {root} name their "
            f"splits ({', '.join(files)}); leave them out"
        )
    known = tuple(files) if automatic is None else automatic.splits
    if split not in known:
        raise unknown_name("split", split, known)
    path = files["" if automatic else split]
    # Its categories and images, and the class of each image.
    values = read_coco(path)
    categories = sorted(
        check_rows(path, values, "categories", ("id", "name"), ids=(int,)), key=lambda row: int(row["id"])
    )
    names = tuple(str(row["name"]) for row in categories)
    notes: list[Finding] = []
    images = _read_images(path, values, {row["id"]: label for label, row in enumerate(categories)}, notes)
    records = _records(root, path, split, images, names, notes)
    # The images of the split.
    if automatic is not None:
        of_image = automatic.assign({record.id: record.label for record in records})
        few = small_classes(record.label for record in records)
        records = [record for record in records if of_image[record.id] == split]
        _note(notes, "classes with too few images for three splits", [names[label] for label in few])
        shares = ", ".join(
            f"{name} {share:g}" for name, share in zip(SPLITS, automatic.fractions, strict=True)
        )
        what = f"images in {split} by the automatic split ({shares}, by class, seed {automatic.seed})"
        _note(notes, what, [record.id for record in records], "note")
    used = {record.label for record in records}
    without = [name for label, name in enumerate(names) if label not in used]
    _note(notes, f"classes without an image in {split}", without)
    dataset = assemble(INFO.name, split, root, records, names, findings=notes, missing=missing)
    drawn = {} if automatic is None else automatic.describe()
    return replace(dataset, details={"image_class": "largest object", **drawn})


def available_splits(
    root: Path, *, annotations: Sequence[str] = (), split_fractions: str | None = None
) -> tuple[str, ...]:
    """Return the splits that the annotation files name, or those of the automatic split."""
    files = _find_files(root, annotations)
    if "" in files:
        return AutomaticSplit.parse(None, split_fractions).splits
    return tuple(split for split in SPLITS if split in files)


def _find_files(root: Path, named: Sequence[str]) -> dict[str, Path]:
    """Return the annotation file of each split, or one file of the split "", which is split automatically.

    Raises `DataError` if the split of a file is not clear.
    """
    found: dict[str, Path] = {}
    for split, path in _named_files(root, named) if named else _files_in(root):
        if split in found:
            what = f"of the split {split!r}" if split else "without a split in their names"
            raise DataError(
                f"{root} has two annotation files {what}: {found[split]} and {path}; expected one. {_WAY_OUT}"
            )
        found[split] = path
    if not found:
        raise wrong_root(INFO, root, "there is neither annotations*.json nor annotations/*.json")
    if "" in found and len(found) > 1:
        raise DataError(
            f"{found['']} states no split, but {next(path for split, path in found.items() if split)} does; "
            f"expected train, val or test in each name, or one file. {_WAY_OUT}"
        )
    return found


def _files_in(root: Path) -> list[tuple[str, Path]]:
    """Return (split, file) of the annotation files in the places where they are looked for."""
    loose = [root / name for name in list_files(root, (".json",)) if name.startswith("annotations")]
    together = [root / "annotations" / name for name in list_files(root / "annotations", (".json",))]
    instances = [path for path in together if path.name.startswith("instances_")]
    beside = [
        root / word / name
        for word in _SPLIT_WORDS
        for name in list_files(root / word, (".json",))
        if "annotations" in name
    ]
    files = [(_split_of(path.stem), path) for path in (*loose, *(instances or together))]
    return [*files, *((_SPLIT_WORDS[path.parent.name], path) for path in beside)]


def _named_files(root: Path, named: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (split, file) of `[SPLIT=]FILE`. Raises `UsageError` for an unknown split or a missing file."""
    files = []
    for text in named:
        split, equals, name = text.partition("=")
        if not equals:
            split, name = "", text
        elif split not in SPLITS:
            raise unknown_name("split of --annotations", split, SPLITS)
        path = next((place for place in (root / name, Path(name).expanduser()) if place.is_file()), None)
        if path is None:
            raise UsageError(f"--annotations {text}: no file {name}, neither in {root} nor here")
        files.append((split or _split_of(path.stem), path.resolve()))
    return files


def _split_of(stem: str) -> str:
    """Return the split that a file's name states, or "".

    >>> [_split_of(stem) for stem in ("instances_train2017", "annotations_valid", "annotations", "latest")]
    ['train', 'val', '', '']
    """
    word = _SPLIT_IN_NAME.search(stem.lower())
    return _SPLIT_WORDS[word[1]] if word else ""


def _read_images(
    path: Path, values: dict[str, Any], classes: dict[int, int], notes: list[Finding]
) -> list[_Image]:
    """Return the images of a file with their objects, and note what is not read."""
    rows = check_rows(path, values, "images", ("id", "file_name", "width", "height"))
    images = {row["id"]: _Image(row, image_size(path, row), []) for row in rows}
    crowds, unboxed, segmented = [], [], []
    for row in check_rows(path, values, "annotations", ("id", "image_id", "category_id")):
        image, category, crowd = row["image_id"], row["category_id"], row.get("iscrowd")
        if (
            type(image) not in {int, str}
            or image not in images
            or type(category) is not int
            or category not in classes
        ):
            raise DataError(
                f"{path}: annotation {row['id']!r} is of image {image!r} and category {category!r}; expected "
                "both to be in the file"
            )
        if crowd not in (None, 0, 1):
            raise DataError(f"{path}: annotation {row['id']!r} has the iscrowd {crowd!r}; expected 0 or 1")
        of = str(images[image].row["file_name"])
        if row.get("segmentation"):
            segmented.append(of)
        if crowd:
            images[image].crowds += 1
            crowds.append(of)
            continue
        item = _object(path, row, classes[category])
        images[image].objects.append(item)
        if item.box is None:
            unboxed.append(of)
    _note(notes, "crowds (iscrowd): not read", crowds, "note")
    _note(notes, "objects without a box: they count for the class only", unboxed, "note")
    _note(notes, "segmentations: not read (masks: see csvfolder)", segmented, "note")
    return list(images.values())


def _object(path: Path, row: dict[str, Any], label: int) -> _Object:
    given = row.get("bbox") or None
    if given is None:
        return _Object(label, None, 0.0)
    if not is_box(given):
        raise DataError(
            f"{path}: annotation {row['id']!r} has the bbox {shorten(given)}; expected x, y, width, height: "
            "finite numbers, width and height not negative, or no bbox"
        )
    x, y, width, height = map(float, given)
    return _Object(label, (x, y, x + width, y + height), width * height)


def _records(
    root: Path, path: Path, split: str, images: list[_Image], names: Sequence[str], notes: list[Finding]
) -> list[Record]:
    """Return a record for each image with a class, and note the others."""
    home = _home(root, path, split, str(images[0].row["file_name"]))
    records: list[Record] = []
    several: list[str] = []
    bare: list[str] = []
    crowded: list[str] = []
    for image in images:
        name = image.row["file_name"]
        if not image.objects:
            (crowded if image.crowds else bare).append(name)
            continue
        label = image.label
        labels = dict.fromkeys(item.label for item in image.objects)
        if len(labels) > 1:
            several.append(f"{name}: {names[label]}, of {', '.join(names[each] for each in labels)}")
        records.append(
            Record(
                id=_id(root, home / name, name),
                label=label,
                path=f"{home}/{name}",
                size=image.size,
                boxes=[item.box for item in image.objects if item.label == label and item.box is not None],
            )
        )
    what = "images of several categories: the class is that of the largest object, others are not read"
    _note(notes, what, several)
    _note(notes, "images without an object: excluded, as they have no class", bare)
    _note(notes, "images with crowds only: excluded, as they have no class", crowded)
    return records


def _home(root: Path, path: Path, split: str, first: str) -> Path:
    """Return the folder that the file names are relative to."""
    stem = path.stem.removeprefix("instances_").removeprefix("annotations_")
    images = root / "images"
    places = [root / split, root / stem, images / split, images / stem, images, root, path.parent]
    return Path(image_folder([place for place in places if place.is_dir()], [first]))


def _id(root: Path, path: Path, name: str) -> str:
    """Return the path relative to root/images or root, or the file name for an image outside."""
    for base in (root / "images", root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return name


def _note(notes: list[Finding], what: str, items: list[str], severity: str = "warning") -> None:
    if items:
        notes.append(Finding(what=what, count=len(items), example=items[0], severity=severity))
