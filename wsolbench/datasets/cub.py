"""CUB-200-2011: 11,788 images of 200 bird species with boxes and 15 key points.

C. Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", CNS-TR-2011-001.

Splits `train` (5,994) and `test` (5,794) are the official ones. `val` is CUBV2 (1,000 images, J. Choe et
al., CVPR 2020). It exists only in the wsolevaluation metadata, and its images are among those of CUB or in
a folder `CUBV2`. Without the official text files, all splits come from the metadata, without key points.

Boxes are (x, y, width, height) counted from 0, so xyxy = (x, y, x + w, y + h). The text files have no image
sizes; they are read from the headers of the split's images. The test images are known to overlap with
ImageNet's training images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.base import DatasetInfo, Missing, assemble, wrong_root
from wsolbench.datasets.formats.class_folders import class_folder, note_contradictions
from wsolbench.datasets.formats.tables import bad_line, parse_float, parse_int, read_numbered_names, rows_of
from wsolbench.datasets.formats.wsoleval import (
    check_metadata_root,
    has_metadata,
    image_folder,
    metadata_folder,
    read_metadata,
)
from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.listing import list_folders
from wsolbench.types import Dataset, Finding, KeyPoints

INFO = DatasetInfo(
    name="cub",
    summary="CUB-200-2011: 11,788 images of 200 birds with boxes and 15 key points",
    splits=("train", "val", "test"),
    root_holds=(
        "CUB_200_2011/ with images.txt, bounding_boxes.txt and images/ (or be that folder); "
        "segmentations/ is optional"
    ),
    expected={"train": 5994, "val": 1000, "test": 5794},
    classes=200,
    citation="Wah, Branson, Welinder, Perona, Belongie, CNS-TR-2011-001",
    license="non-commercial research and education; the images belong to their photographers",
)
METADATA_CLASSES = 200
_NUMBERED = re.compile(r"(\d{3})\..+")


def load(
    root: Path,
    split: str,
    *,
    metadata_root: Path | str | None = None,
    segmentations: bool = True,
    missing: Missing = "error",
) -> Dataset:
    """Load one split, in the order of the numbers in `images.txt` (or of the metadata).

    `segmentations` uses the masks if the folder `segmentations` exists. Raises `UsageError` for a folder
    that is not CUB and for `val` without metadata, and `DataError` naming file and line.
    """
    # The metadata is used for `val` and without the official text files.
    home = _home(root)
    if split == "val" or not (home / "images.txt").is_file():
        return _load_metadata(root, home, split, metadata_root, missing)
    # Read the text files.
    check_metadata_root(metadata_root, "CUB")
    texts = _Texts(home)
    class_names = read_numbered_names(home / "classes.txt", "class_id class_name")
    in_train = texts.column("train_test_split.txt", "image_id is_training")
    for line, (value,) in in_train.values():
        if value not in {"0", "1"}:
            raise bad_line(home / "train_test_split.txt", line, "is_training to be 1 or 0", repr(value))
    labels = texts.column("image_class_labels.txt", "image_id class_id")
    boxes = texts.column("bounding_boxes.txt", "image_id x y width height")
    # Build the records of the split.
    flag = "1" if split == "train" else "0"
    chosen = {number: name for number, name in texts.images.items() if in_train[number][1] == [flag]}
    part_names, key_points = _key_points(home / "parts", texts.images, chosen)
    masks = _segmentations(home) if segmentations else None
    records = [
        Record(
            id=name,
            label=_label(home / "image_class_labels.txt", *labels[number], len(class_names)),
            path=f"{home}/images/{name}",
            boxes=[_box(home / "bounding_boxes.txt", *boxes[number])],
            mask_paths=() if masks is None else (f"{masks}/{name.rpartition('.')[0]}.png",),
            key_points=key_points.get(number),
        )
        for number, name in chosen.items()
    ]
    findings = _contradictions(records, class_names)
    return assemble(
        INFO.name,
        split,
        home,
        records,
        class_names,
        key_point_names=part_names,
        findings=findings,
        missing=missing,
    )


def available_splits(root: Path, *, metadata_root: Path | str | None = None) -> tuple[str, ...]:
    """Return the loadable splits. `val` is one of them only if the metadata has it."""
    home = _home(root)
    official = (home / "images.txt").is_file()
    metadata = {split for split in INFO.splits if has_metadata(root, metadata_root, "CUB", split)}
    return tuple(split for split in INFO.splits if split in metadata or (official and split != "val"))


def _home(root: Path) -> Path:
    home = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    if (
        not (home / "images.txt").is_file()
        and not (root / "metadata").is_dir()
        and not any(name.startswith("001.") for name in list_folders(home))
    ):
        raise wrong_root(INFO, root, f"there is no {home / 'images.txt'}")
    return home


class _Texts:
    """The official text files. Their lines start with the number of an image."""

    def __init__(self, home: Path) -> None:
        self.home = home
        found: dict[int, tuple[str, str]] = {}
        names: set[str] = set()
        for line, (text, name) in rows_of(home / "images.txt", "image_id image_name"):
            number = parse_int(text, home / "images.txt", line, "image_id")
            if number in found or name in names:
                raise bad_line(home / "images.txt", line, "every image once", f"{text} {name} again")
            found[number] = text, name
            names.add(name)
        self.images: dict[str, str] = dict(found[number] for number in sorted(found))

    def column(self, file: str, columns: str) -> dict[str, tuple[int, list[str]]]:
        """Return image number → (line number, the other fields).

        Raises `DataError` unless every image of images.txt occurs exactly once.
        """
        path = self.home / file
        found: dict[str, tuple[int, list[str]]] = {}
        for line, (number, *fields) in rows_of(path, columns):
            if number not in self.images or number in found:
                problem = "again" if number in found else "which images.txt does not have"
                raise bad_line(path, line, "every image of images.txt once", f"image {number} {problem}")
            found[number] = line, fields
        if len(found) < len(self.images):
            absent = next(number for number in self.images if number not in found)
            raise DataError(
                f"{path}: expected a line for each of {len(self.images):,} images, found none for image "
                f"{absent}"
            )
        return found


def _label(path: Path, line: int, fields: list[str], classes: int) -> int:
    number = parse_int(fields[0], path, line, "class id")
    if not 1 <= number <= classes:
        raise bad_line(path, line, f"a class id from 1 to {classes} (classes.txt)", str(number))
    return number - 1


def _box(path: Path, line: int, fields: list[str]) -> tuple[float, float, float, float]:
    x, y, width, height = (
        parse_float(text, path, line, what)
        for text, what in zip(fields, ("x", "y", "width", "height"), strict=True)
    )
    if width < 0 or height < 0:
        raise bad_line(
            path, line, "a width and a height that are not negative", f"{fields[2]} and {fields[3]}"
        )
    return x, y, x + width, y + height


def _key_points(
    folder: Path, images: Mapping[str, str], chosen: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, KeyPoints]]:
    """Return the part names, and the key points (15, 3) of every chosen image.

    Both are empty if there is no folder `parts`.
    """
    if not folder.is_dir():
        return (), {}
    names = read_numbered_names(folder / "parts.txt", "part_id part_name")  # a name may have spaces
    path = folder / "part_locs.txt"
    points = {number: np.zeros((len(names), 3), dtype=np.float64) for number in chosen}
    seen: dict[str, set[int]] = {number: set() for number in chosen}
    # Fill in the visible parts, and check that every part has one line.
    for line, (number, part, x, y, visible) in rows_of(path, "image_id part_id x y visible"):
        if number not in points:
            if number not in images:
                raise bad_line(path, line, "an image of images.txt", f"image {number}")
            continue
        index = parse_int(part, path, line, "part id") - 1
        if not 0 <= index < len(names) or visible not in {"0", "1"}:
            raise bad_line(
                path,
                line,
                f"a part id from 1 to {len(names)} and visible 0 or 1",
                f"part {part}, visible {visible}",
            )
        if index in seen[number]:
            raise bad_line(path, line, "every part of an image once", f"part {part} of image {number} again")
        seen[number].add(index)
        if visible == "1":
            points[number][index] = parse_float(x, path, line, "x"), parse_float(y, path, line, "y"), 1.0
    for number, parts in seen.items():
        if len(parts) != len(names):
            raise DataError(
                f"{path}: expected {len(names)} lines for image {number}, one for each part, found "
                f"{len(parts)}"
            )
    return names, points


def _segmentations(home: Path) -> Path | None:
    return next(
        (folder for folder in (home / "segmentations", home.parent / "segmentations") if folder.is_dir()),
        None,
    )


def _load_metadata(
    root: Path, home: Path, split: str, metadata_root: Path | str | None, missing: Missing
) -> Dataset:
    folder = metadata_folder(root, metadata_root, "CUB", split)
    if folder is None:
        raise UsageError(
            f"the split {split!r} of cub needs the wsolevaluation metadata (for `val`, CUBV2, it is the only "
            f"source); expected its folder in {root / 'metadata'}. Put it there, or use "
            "--metadata-root."
        )
    metadata = read_metadata(folder, "boxes")
    images = image_folder(
        [home / "images", home, home / "CUBV2", root / "CUBV2", root / "images", root / "CUB", root],
        metadata.ids,
    )
    names = {metadata.labels[image_id]: image_id.partition("/")[0] for image_id in metadata.ids}
    class_names = [names.get(label, f"class {label}") for label in range(METADATA_CLASSES)]
    records = metadata.records(images)
    return assemble(
        INFO.name,
        split,
        Path(images),
        records,
        class_names,
        findings=_contradictions(records, ()),
        missing=missing,
    )


def _contradictions(records: Sequence[Record], class_names: Sequence[str]) -> list[Finding]:
    """Find images in a folder such as `001.Bird` whose label contradicts the folder.

    The class of a folder is that with its name, or else that with its number.
    """
    numbers = {
        found[0]: int(found[1]) - 1
        for record in records
        if (found := _NUMBERED.fullmatch(class_folder(record.id)))
    }
    expected = numbers | {name: label for label, name in enumerate(class_names) if name in numbers}
    findings: list[Finding] = []
    note_contradictions(
        [(record.id, record.label) for record in records if class_folder(record.id) in numbers],
        findings,
        expected,
    )
    return findings
