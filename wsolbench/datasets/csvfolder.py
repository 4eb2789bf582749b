"""Your own data set: a folder with CSV files.

    root/
      annotations.csv      image,label,split[,width,height][,x0,y0,x1,y1][,mask][,ignore]
      classes.csv          optional: label,name
      keypoints.csv        optional: image,part,x,y,visible
      images/              image files; without this folder, the paths in the CSV are relative to root
      masks/               mask files, likewise

`annotations.csv` has a header line and one line for each object. Several lines of one image are several
boxes and masks.

- `image`: relative path with `/`, the image's id. `label`: class index, from 0. `split`: train, val, test or
  any other name, which only `--split` finds.
- `width`, `height`: size of the frame in which boxes are given. If empty, the image file's own size.
- `x0`, `y0`, `x1`, `y1`: box in pixels, or empty for none. Continuous with exclusive end: the whole image is
  0,0,width,height.
- `mask`: a gray image of the frame's size. Object where its value is above 127 of 255; 16-bit values and
  floats are scaled to that. `ignore`: mask of pixels to exclude. Both are relative paths inside their folder.
- Lines of one image must have the same label, split, size and ignore.

`classes.csv` names the classes 0 to C-1, each once. Without it, the largest label gives their number.
`keypoints.csv`: `part` is the part's name, `visible` 1 or 0. A part without a line is invisible.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from wsolbench.datasets.annotations import Record
from wsolbench.datasets.base import DatasetInfo, Missing, assemble
from wsolbench.datasets.formats.tables import (
    BOX_COLUMNS,
    bad_line,
    check_inner_path,
    csv_rows,
    parse_box,
    parse_float,
    parse_int,
)
from wsolbench.exceptions import DataError, unknown_name
from wsolbench.types import Dataset, Finding

INFO = DatasetInfo(
    name="csvfolder",
    summary="your own images, boxes, masks and key points, described by CSV files",
    splits=(),
    own=True,
    root_holds=(
        "annotations.csv (image,label,split and optional columns; see `wsolbench.datasets.csvfolder`), "
        "images/ and masks/"
    ),
)

MAX_CLASSES = 100_000
"""Smallest invalid label. Without classes.csv, the largest label gives the number of classes."""
USUAL_SPLITS = ("train", "val", "test")
COLUMNS = ("image", "label", "split", "width", "height", *BOX_COLUMNS, "mask", "ignore")
BoxEnd = Literal["exclusive", "inclusive"]


def load(root: Path, split: str, *, missing: Missing = "error") -> Dataset:
    """Load one split of the folder, in the format above.

    Raises `DataError` naming file and line, and `UsageError` for an unknown split.
    """
    return load_csv_folder(root, split, missing=missing)


def available_splits(root: Path) -> tuple[str, ...]:
    """Return the splits that `annotations.csv` names, in order of first appearance."""
    return tuple(
        dict.fromkeys(
            row["split"] for _, row in csv_rows(root / "annotations.csv", ("image", "label", "split"))
        )
    )


def load_csv_folder(
    root: Path,
    split: str,
    *,
    name: str = "csvfolder",
    box_end: BoxEnd = "exclusive",
    missing: Missing = "error",
) -> Dataset:
    """Load a folder in the layout of this module, under another name or with another box convention.

    With `box_end="inclusive"`, `x1`, `y1` are the last pixel inside.
    """
    # Read all lines.
    table = root / "annotations.csv"
    class_names = _class_names(root / "classes.csv")
    reader = _Annotations(root, table, None if class_names is None else len(class_names), box_end)
    header: tuple[str, ...] = ()
    for line, row in csv_rows(table, ("image", "label", "split")):
        header = header or tuple(row)
        reader.add(line, row)
    if split not in reader.splits():
        raise unknown_name("split", split, reader.splits())
    # Note columns that are not read, and labels without images.
    findings = []
    unread = [column for column in header if column not in COLUMNS]
    if unread:
        boxes = (
            ""
            if set(header) & set(BOX_COLUMNS)
            else f"; no box was read, its columns are {','.join(BOX_COLUMNS)}"
        )
        what = f"columns of {table.name} that are not read{boxes}"
        findings.append(
            Finding(what=what, count=len(unread), example=", ".join(map(repr, unread)), severity="warning")
        )
    if class_names is None:
        used = {record.label for record in reader.records.values()}
        class_names = tuple(str(label) for label in range(max(used) + 1))
        unused = len(class_names) - len(used)
        if unused:
            example = f"label {min(set(range(len(class_names))) - used)}"
            findings.append(
                Finding(
                    what="labels below the largest that no image has",
                    count=unused,
                    example=example,
                    severity="warning",
                )
            )
    # Key points, then the records of the split.
    parts = _add_key_points(root / "keypoints.csv", reader)
    chosen = [
        record for image, record in reader.records.items() if reader.first_rows[image]["split"] == split
    ]
    if split not in USUAL_SPLITS:
        what = (
            f"images in the split {split!r}, which only --split finds: commands use {', '.join(USUAL_SPLITS)}"
        )
        findings.append(Finding(what=what, count=len(chosen), example=chosen[0].id, severity="warning"))
    return assemble(
        name, split, root, chosen, class_names, key_point_names=parts, findings=findings, missing=missing
    )


class _Annotations:
    """Collects the rows of `annotations.csv` into one record per image."""

    def __init__(self, root: Path, table: Path, classes: int | None, box_end: BoxEnd) -> None:
        self.table = table
        self.classes = classes
        self.end = 1.0 if box_end == "inclusive" else 0.0
        self.images = _folder(root, "images")
        self.masks = _folder(root, "masks")
        self.records: dict[str, Record] = {}
        self.first_rows: dict[str, Mapping[str, str]] = {}
        self.first_lines: dict[str, int] = {}
        self.seen: dict[tuple[str, ...], int] = {}

    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row["split"] for row in self.first_rows.values()))

    def add(self, line: int, row: Mapping[str, str]) -> None:
        image = row["image"]
        if not image or not row["split"]:
            raise bad_line(self.table, line, "an image and a split", f"{image!r} and {row['split']!r}")
        # Validate the box, the files and the agreement with other lines of the image.
        box = parse_box(row, self.table, line, self.end)
        mask, ignore = (
            check_inner_path(row[name], self.table, line, name) if row.get(name) else ""
            for name in ("mask", "ignore")
        )
        self._check_repetition(
            line,
            row,
            (image, *(row.get(column, "") for column in BOX_COLUMNS), mask) if box or mask else (image,),
        )
        # Start the record of a new image, then add the object.
        if image not in self.records:
            self.first_rows[image], self.first_lines[image] = row, line
            self.records[image] = Record(
                id=image,
                label=self._label(line, row["label"]),
                path=f"{self.images}/{image}",
                size=self._size(line, row),
                ignore_path=f"{self.masks}/{ignore}" if ignore else None,
            )
        record = self.records[image]
        if box is not None:
            record.boxes.append(box)
        if mask and f"{self.masks}/{mask}" not in record.mask_paths:
            record.mask_paths = (*record.mask_paths, f"{self.masks}/{mask}")

    def _check_repetition(self, line: int, row: Mapping[str, str], key: tuple[str, ...]) -> None:
        """Raise `DataError` for a repeated line and for lines of one image that contradict each other.

        `key` is the image with its box and mask, or the image alone if the line has neither.
        """
        image = row["image"]
        first = self.first_rows.get(image)
        if first is None:
            self.seen[key] = line
            return
        if key in self.seen or len(key) == 1 or (image,) in self.seen:
            found = f"{image!r} again (line {self.seen.get(key, self.first_lines[image])})"
            raise bad_line(
                self.table,
                line,
                "another image, or another object of it",
                found,
                "Remove the duplicate line.",
            )
        self.seen[key] = line
        for column in ("label", "split", "width", "height", "ignore"):
            if row.get(column, "") != first.get(column, ""):
                before = f"{first.get(column, '')!r} as in line {self.first_lines[image]}"
                raise bad_line(
                    self.table, line, f"the {column} of {image!r} to be {before}", repr(row.get(column, ""))
                )

    def _label(self, line: int, text: str) -> int:
        label = parse_int(text, self.table, line, "label (a class index, counted from 0)")
        if label < 0 or (self.classes is not None and label >= self.classes):
            expected = (
                "a label from 0"
                if self.classes is None
                else f"a label from 0 to {self.classes - 1} (classes.csv has {self.classes} classes)"
            )
            raise bad_line(self.table, line, expected, str(label))
        if label >= MAX_CLASSES:
            way_out = "A label is the index of the class among all classes, counted from 0."
            raise bad_line(self.table, line, f"a label below {MAX_CLASSES:,}", str(label), way_out)
        return label

    def _size(self, line: int, row: Mapping[str, str]) -> tuple[int, int] | None:
        width, height = row.get("width", ""), row.get("height", "")
        if not width and not height:
            return None
        size = parse_int(width, self.table, line, "width"), parse_int(height, self.table, line, "height")
        if min(size) < 1:
            raise bad_line(self.table, line, "a width and a height of at least 1", f"{width} and {height}")
        return size


def _folder(root: Path, name: str) -> str:
    folder = root / name
    return str(folder if folder.is_dir() else root)


def _class_names(path: Path) -> tuple[str, ...] | None:
    if not path.exists():
        return None
    names: dict[int, str] = {}
    for line, row in csv_rows(path, ("label", "name")):
        label = parse_int(row["label"], path, line, "label")
        if label in names:
            raise bad_line(path, line, "every label once", f"the label {label} again")
        names[label] = row["name"]
    if sorted(names) != list(range(len(names))) or not names:
        found = f"{sorted(names)[:20]}{' and more' if len(names) > 20 else ''}"
        raise DataError(
            f"{path}: expected the labels 0 to {max(len(names) - 1, 0)}, each once, found {found}"
        )
    return tuple(names[label] for label in range(len(names)))


def _add_key_points(path: Path, reader: _Annotations) -> tuple[str, ...]:
    """Give every record its key points (P, 3). Returns the part names in order of first appearance."""
    if not path.exists():
        return ()
    # Read and validate the lines.
    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    parts: dict[str, int] = {}
    for line, row in csv_rows(path, ("image", "part", "x", "y", "visible")):
        key = (row["image"], row["part"])
        if row["image"] not in reader.records:
            raise bad_line(path, line, f"an image of {reader.table.name}", repr(row["image"]))
        if key in found:
            raise bad_line(
                path, line, "every part of an image once", f"{row['part']!r} of {row['image']!r} again"
            )
        if row["visible"] not in {"0", "1"}:
            raise bad_line(path, line, "visible to be 1 or 0", repr(row["visible"]))
        parts.setdefault(row["part"], len(parts))
        seen = row["visible"] == "1"
        found[key] = (
            (parse_float(row["x"], path, line, "x"), parse_float(row["y"], path, line, "y"), 1.0)
            if seen
            else (0.0, 0.0, 0.0)
        )
    # Fill one array per image.
    points = {image: np.zeros((len(parts), 3), dtype=np.float64) for image in reader.records}
    for (image, part), point in found.items():
        points[image][parts[part]] = point
    for image, record in reader.records.items():
        record.key_points = points[image]
    return tuple(parts)
