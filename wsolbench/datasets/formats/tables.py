"""Reading annotation text files so that every complaint names the file and the line."""

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
    """The error for one line of one file (`line` counts from 1)."""
    if len(found) > 200:
        found = f"{found[:200]}..."
    return DataError(
        f"{path}:{line}: expected {expected}, found {found}." + (f" {way_out}" if way_out else "")
    )


def read_text(path: Path) -> str:
    """The file as UTF-8 text, without a byte order mark. `DataError` when it is missing, no file with bytes,
    or no text.
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
    """The content of a JSON file. `DataError` when it is missing, not UTF-8, no JSON, or nested too deeply to
    be read.
    """
    content = read_text(path)
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError(f"{path} is no JSON that can be read: it is nested too deeply") from error
    except ValueError as error:  # numbers of thousands of digits as well
        raise DataError(f"{path} is no JSON: {error}{name_content(path)}") from error


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of every line that is not blank; a final newline makes no difference. Lines end
    with LF, CR LF or CR.
    """
    text = read_text(path)
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        stripped = line.strip("\r")
        if stripped and not stripped.isspace():
            yield number, stripped


def rows_of(path: Path, columns: str, *, separator: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a file without header. `columns` names the fields, such as "image_id x y"; the
    last takes the rest.

    `separator` None splits at white space. White space around a line does not count. `DataError` on a line
    with fewer fields.
    """
    count = len(columns.split())
    for number, line in lines_of(path):
        fields = line.strip().split(separator, count - 1)
        if len(fields) != count:
            raise bad_line(path, number, f"{count} fields ({columns})", _short(line))
        yield number, fields


def csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """(line number, column → stripped field) of a CSV with a header line. `DataError` on a missing or
    repeated column or a ragged line.
    """
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
    """A whole number, or `DataError`."""
    try:
        if "_" not in text:  # Python reads 1_0 as 10
            return int(text)
    except ValueError:
        pass
    raise bad_line(path, line, f"a whole number as {what}", _short(text))


def parse_float(text: str, path: Path, line: int, what: str) -> float:
    """A finite number, or `DataError`."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise bad_line(path, line, f"a finite number as {what}", _short(text))
    return value


def numbered_names(path: Path, columns: str) -> tuple[str, ...]:
    """Names by their numbers, 1 to the number of lines, in a file of lines "number name". The order of the
    lines does not count.

    `DataError` on a number that occurs twice or leaves a gap, and on a name that occurs twice.
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


def inner_path(text: str, path: Path, line: int, what: str) -> str:
    """A relative path that stays in its folder, or `DataError`."""
    if not is_inner_path(text):
        raise bad_line(
            path, line, f"a path inside the data root as {what}, with '/' and without '..'", _short(text)
        )
    return text


def is_inner_path(text: str) -> bool:
    """Whether a path is relative and plain: no "..", no ".", no backslash, no control character, no name
    above 255 bytes.
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
