"""Reader of annotation files in COCO's format: lists of objects with ids. Every error names the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsolbench.datasets.formats.segmentations import is_finite_number, shorten
from wsolbench.datasets.formats.tables import is_inner_path, read_json
from wsolbench.exceptions import DataError
from wsolbench.system.decoding import MAX_PIXELS


def read_coco(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file. Raises `DataError` unless it is a JSON object."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(
            f"{path} holds a {type(values).__name__}; expected an object with images, annotations and "
            "categories"
        )
    return values


def check_rows(
    path: Path,
    values: dict[str, Any],
    name: str,
    fields: Sequence[str],
    *,
    ids: tuple[type, ...] = (int, str),
) -> list[dict[str, Any]]:
    """Return a list of objects that have these fields and unique ids of these types (never bool)."""
    rows = values.get(name)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: no list {name!r}; expected one that is not empty")
    for number, row in enumerate(rows):
        lacking = fields if not isinstance(row, dict) else [field for field in fields if field not in row]
        if lacking:
            raise DataError(
                f"{path}: entry {number} of {name!r} has no {lacking[0]!r}; expected {', '.join(fields)}"
            )
        if type(row["id"]) not in ids:
            expected = "a whole number or text" if str in ids else "a whole number"
            raise DataError(
                f"{path}: entry {number} of {name!r} has the id {row['id']!r}; expected {expected}"
            )
    if len({row["id"] for row in rows}) < len(rows):
        raise DataError(f"{path}: two entries of {name!r} have the same id; expected unique ids")
    return rows


def image_size(path: Path, row: dict[str, Any]) -> tuple[int, int]:
    """Return (width, height) of an entry of `images`. Its file name is checked too."""
    name, width, height = row["file_name"], row["width"], row["height"]
    if not isinstance(name, str) or not is_inner_path(name):
        raise DataError(
            f"{path}: image {row['id']!r} has the file_name {shorten(name)}; expected text, a relative "
            "path without '..'"
        )
    if type(width) is not int or type(height) is not int or min(width, height) < 1:
        raise DataError(
            f"{path}: image {row['id']!r} has the width {width!r} and the height {height!r}; expected "
            "whole numbers from 1"
        )
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: image {row['id']!r} has {width}x{height} pixels; expected at most {MAX_PIXELS:,}"
        )
    return width, height


def is_box(box: Any) -> bool:
    """Whether a value is x, y, width, height: finite numbers, width and height not negative."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box)) and min(box[2:]) >= 0
