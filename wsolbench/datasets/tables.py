"""Reading annotation text files so that every complaint names the file and the line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from wsolbench.exceptions import DataError


def bad_line(path: Path, line: int, expected: str, found: str, way_out: str = "") -> DataError:
    """The error for one line of one file (`line` counts from 1)."""
    return DataError(f"{path}:{line}: expected {expected}, found {found}." + (f" {way_out}" if way_out else ""))


def read_text(path: Path) -> str:
    """The file as UTF-8 text, without a byte order mark. `DataError` when it is missing, empty or no text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"no file {path}; is this the right data root, and was the archive unpacked completely?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return text


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank; a final newline makes no difference."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        stripped = line.strip("\r")
        if stripped and not stripped.isspace():
            yield number, stripped


def rows_of(path: Path, columns: str, *, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a file without header. `columns` names the fields, such as "image_id x y"; the last takes the rest.

    `separator` None splits at white space. `DataError` on a line with fewer fields.
    """
    count = len(columns.split())
    for number, line in lines_of(path):
        fields = line.split(separator, count - 1)
        if len(fields) != count:
            raise bad_line(path, number, f"{count} fields ({columns})", repr(line))
        yield number, fields


def csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, column → stripped field) of a CSV with a header line. `DataError` on a missing or repeated column or a ragged line."""
    reader = csv.reader(read_text(path).splitlines(keepends=True), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        absent = [name for name in required if name not in header]
        if absent:
            raise bad_line(
                path,
                1,
                f"a header line with the column(s) {', '.join(absent)}",
                ",".join(header) or "nothing",
                "Columns are separated by commas.",
            )
        if len(set(header)) != len(header):
            raise bad_line(path, 1, "every column once", ",".join(header))
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise bad_line(path, reader.line_num, f"{len(header)} fields as in the header", f"{len(fields)}: {','.join(fields)!r}")
            yield reader.line_num, dict(zip(header, (field.strip() for field in fields), strict=True))
    except csv.Error as error:
        raise bad_line(path, reader.line_num, "comma-separated values", str(error)) from error


def parse_int(text: str, path: Path, line: int, what: str) -> int:
    """A whole number, or `DataError`."""
    try:
        return int(text)
    except ValueError:
        raise bad_line(path, line, f"a whole number as {what}", repr(text)) from None


def parse_float(text: str, path: Path, line: int, what: str) -> float:
    """A finite number, or `DataError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad_line(path, line, f"a finite number as {what}", repr(text))
    return value
