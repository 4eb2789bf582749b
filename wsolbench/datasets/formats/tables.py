"""Readers of annotation text files. Every error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError
from wsolbench.system.regular_files import name_content, read_bytes

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def bad_line(path: Path, line: int, expected: str, found: str, way_out: str = "") -> DataError:
    """Return the error for one line of a file. `line` counts from 1."""
    if len(found) > 200:
        found = f"{found[:200]}..."
    return DataError(
        f"{path}:{line}: expected {expected}, found {found}." + (f" {way_out}" if way_out else "")
    )


def read_text(path: Path) -> str:
    """Return the file as UTF-8 text, without a byte order mark.

    Raises `DataError` if it is missing, not a regular file, or not text.
    """
    if not os.path.lexists(path):
        raise DataError(
            f"no file {path}; is this the right data root, and was the archive unpacked completely?"
        )
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if text and (what := name_content(path)):
        raise DataError(f"{path} cannot be read{what}")
    return text


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises `DataError` if it is missing, not UTF-8, not JSON, or nested too deeply.
    """
    content = read_text(path)
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError(f"{path} is no JSON that can be read: it is nested too deeply") from error
    except ValueError as error:  # also for numbers of thousands of digits
        raise DataError(f"{path} is no JSON: {error}{name_content(path)}") from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of every line that is not blank. Lines end with LF, CR LF or CR.

    A final newline makes no difference.
    """
    text = read_text(path)
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        stripped = line.strip("\r")
        if stripped and not stripped.isspace():
            yield number, stripped


def rows_of(path: Path, columns: str, *, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of a file without header.

    `columns` names the fields, such as "image_id x y". The last field takes the rest of the line. With
    `separator` None, lines are split at white space. White space around a line is ignored. Raises
    `DataError` for a line with fewer fields.
    """
    count = len(columns.split())
    for number, line in lines_of(path):
        fields = line.strip().split(separator, count - 1)
        if len(fields) != count:
            raise bad_line(path, number, f"{count} fields ({columns})", _short(line))
        yield number, fields


def csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield (line number, column → stripped field) of a CSV with a header line.

    Raises `DataError` for a missing or repeated column and for a line with another number of fields.
    """
    # Read the header.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        absent = [name for name in required if name not in header]
        if absent:
            raise bad_line(
                path,
                1,
                f"a header line with the column(s) {', '.join(absent)}",
                _short(",".join(header)).strip("'") or "nothing",
                "Columns are separated by commas.",
            )
        if len(set(header)) != len(header):
            raise bad_line(path, 1, "every column once", ",".join(header))
        # Read the lines; blank ones are skipped.
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise bad_line(
                    path,
                    reader.line_num,
                    f"{len(header)} fields as in the header",
                    f"{len(fields)}: {_short(','.join(fields))}",
                )
            yield reader.line_num, dict(zip(header, (field.strip() for field in fields), strict=True))
    except csv.Error as error:
        raise bad_line(path, reader.line_num, "comma-separated values", str(error)) from error


def parse_int(text: str, path: Path, line: int, what: str) -> int:
    """Return a whole number, or raise `DataError`."""
    try:
        if "_" not in text:  # Python reads 1_0 as 10
            return int(text)
    except ValueError:
        pass
    raise bad_line(path, line, f"a whole number as {what}", _short(text))


def parse_float(text: str, path: Path, line: int, what: str) -> float:
    """Return a finite number, or raise `DataError`."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad_line(path, line, f"a finite number as {what}", _short(text))
    return value


BOX_COLUMNS = ("x0", "y0", "x1", "y1")


def parse_box(
    row: Mapping[str, str], path: Path, line: int, end: float = 0.0
) -> tuple[float, float, float, float] | None:
    """Return the box in the columns x0,y0,x1,y1, or None if all are absent or empty.

    `end` is added to x1 and y1: 1 if they are the last pixel inside. Raises `DataError` for reversed corners.
    """
    given = [row.get(column, "") for column in BOX_COLUMNS]
    if not any(given):
        return None
    x0, y0, x1, y1 = (
        parse_float(text, path, line, column) for text, column in zip(given, BOX_COLUMNS, strict=True)
    )
    if x1 < x0 or y1 < y0:
        pixels = (
            " All are at most 1: a box is in pixels, not in fractions." if max(x0, y0, x1, y1) <= 1 else ""
        )
        raise bad_line(
            path,
            line,
            "a box with x0 <= x1 and y0 <= y1",
            ",".join(given),
            f"Columns are x0,y0,x1,y1, not x,y,width,height.{pixels}",
        )
    return x0, y0, x1 + end, y1 + end


def read_numbered_names(path: Path, columns: str) -> tuple[str, ...]:
    """Return names sorted by their numbers, from a file of lines "number name" in any order.

    Numbers are 1 to the number of lines. Raises `DataError` for a number that is repeated or missing, and
    for a repeated name.
    """
    what = columns.partition(" ")[0]
    names: dict[int, str] = {}
    lines: dict[str, int] = {}
    for line, (text, name) in rows_of(path, columns):
        number = parse_int(text, path, line, what)
        if number in names or name in lines:
            raise bad_line(path, line, "every number and every name once", f"{number} {name}")
        names[number], lines[name] = name, line
    if names.keys() != set(range(1, len(names) + 1)):
        absent = min(set(range(1, len(names) + 1)) - names.keys())
        raise DataError(f"{path}: expected the numbers 1 to {len(names)}, each once; found no {absent}")
    return tuple(names[number] for number in range(1, len(names) + 1))


def check_inner_path(text: str, path: Path, line: int, what: str) -> str:
    """Return a relative path that stays in its folder, or raise `DataError`."""
    if not is_inner_path(text):
        raise bad_line(
            path, line, f"a path inside the data root as {what}, with '/' and without '..'", _short(text)
        )
    return text


def is_inner_path(text: str) -> bool:
    """Whether a path is relative and plain.

    It must not have "..", ".", a backslash, a control character, or a name above 255 bytes.
    """
    parts = text.split("/")
    return (
        not {"", ".", ".."} & set(parts)
        and "\\" not in text
        and not _CONTROL.search(text)
        and all(len(os.fsencode(part)) <= 255 for part in parts)
    )


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."
