"""Files of predicted labels: a CSV with the columns image, rank1, rank2, ..., as programs and spreadsheets
write them.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from wsolbench.exceptions import DataError
from wsolbench.maps.formats import describe_content, read_bytes
from wsolbench.system.files import atomic_path

PREDICTIONS = "predictions.csv"
"""Name of the file in a folder of maps."""

_MAX_BYTES = 1 << 30
_SEPARATOR = re.compile(r'"?sep=([,;\t])"?[\r\n]', re.IGNORECASE)
"""A first line that names the separator, as Excel writes it."""
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""First bytes that name an encoding; the longer ones first."""


def write_predictions(path: Path, ranked: Mapping[str, Iterable[int]]) -> None:
    """Store predicted labels, best first, one row per image, atomically."""
    rows = {image_id: list(labels) for image_id, labels in ranked.items()}
    depth = max((len(labels) for labels in rows.values()), default=0)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", *(f"rank{rank}" for rank in range(1, depth + 1))])
        writer.writerows([image_id, *labels] for image_id, labels in rows.items())


def read_predictions(path: Path, num_classes: int, known: Collection[str] = ()) -> dict[str, list[int]]:
    """Image id -> predicted labels, best first, from a CSV with the columns image, rank1, rank2, ...

    Columns are separated by commas, semicolons or tabs. The text is UTF-8, or UTF-16 or UTF-32 with a byte
    order mark. In another encoding it is read as Windows-1252, which spreadsheets write, if every id with a
    letter outside ASCII is one of `known`; another reading of the bytes would not be an id. Empty rows, a
    first line `sep=;` as spreadsheets write it, and last columns that are empty in every row are left out. An
    image may be named without its suffix or with `./` in front where only one of `known` is meant.

    Raises `DataError` naming file and line for other columns, a repeated image, a label outside
    0..num_classes-1, or text that cannot be decoded, and naming the file when it is missing or no file.
    """
    if not path.exists():
        raise DataError(f"no file of predictions {path}")
    content = read_bytes(path, "file of predictions", _MAX_BYTES)
    text, doubt = _decode(content, path)
    named = _SEPARATOR.match(text)
    delimiter = named[1] if named else next((mark for mark in ";\t" if _header_begins(text, mark)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    ranked: dict[str, list[int]] = {}
    full_name = _full_names(known)
    try:
        if named:
            next(reader)
        columns = [name.strip() for name in next(reader, [])]
        width = len(columns)
        while columns and not columns[-1]:
            columns.pop()
        if len(columns) < 2 or [name.lower() for name in columns] != [
            "image",
            *(f"rank{rank}" for rank in range(1, len(columns))),
        ]:
            found = ",".join(columns)[:200] or "(none)"
            line = max(1, reader.line_num)
            raise DataError(
                f"{path}:{line} has the columns {found}; expected image,rank1,rank2,...{_unlike_csv(content)}"
            )
        for row in reader:
            line = reader.line_num
            if not any(row):
                continue
            if len(row) != width:
                raise DataError(f"{path}:{line} has {len(row)} fields; expected {width}")
            if extra := "".join(row[len(columns) :]).strip():
                raise DataError(
                    f"{path}:{line} has {extra[:40]!r} in a column without a name; expected it to be empty"
                )
            labels = [_label(value) for value in row[1 : len(columns)]]
            if None in labels:
                raise DataError(f"{path}:{line} holds a label that is no integer: {','.join(row[1:])[:200]}")
            known_labels = [label for label in labels if label is not None]
            if not all(0 <= label < num_classes for label in known_labels) or len(set(labels)) != len(labels):
                raise DataError(
                    f"{path}:{line} has labels {known_labels}; expected different classes in "
                    f"0..{num_classes - 1}"
                )
            image_id = full_name(row[0])
            if image_id in ranked:
                raise DataError(f"{path}:{line} repeats the image {image_id!r}")
            if doubt and not row[0].isascii() and image_id not in known:
                raise DataError(
                    f"{path}:{line} names the image {row[0]!r} if read as Windows-1252, and {doubt}. Save "
                    "the file as UTF-8."
                )
            ranked[image_id] = known_labels
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num} cannot be read: {error}. Is a quotation mark left open?"
        ) from error
    return ranked


def _header_begins(text: str, delimiter: str) -> bool:
    """Whether the first column of the header, in quotation marks or not, ends with this separator."""
    return text[:40].replace('"', "").lower().startswith(f"image{delimiter}")


def _full_names(known: Collection[str]) -> Callable[[str], str]:
    """What gives the one known id that a name without suffix, or with `./` in front, stands for; other names
    stay as they are.
    """
    stems: dict[str, str | None] = {}
    for image_id in known:
        stem = os.path.splitext(image_id)[0]  # noqa: PTH122 - a string, often
        stems[stem] = None if stem in stems else image_id
    ids = frozenset(known)

    def full_name(name: str) -> str:
        bare = name
        while name not in ids and bare.startswith("./"):
            bare = bare[2:].lstrip("/")
        return name if name in ids else bare if bare in ids else stems.get(bare) or name

    return full_name


def _decode(content: bytes, path: Path) -> tuple[str, str]:
    """The text, and why its encoding is in doubt (empty if it is not)."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if (
        encoding is None and b"\x00" in content[:64]
    ):  # the letters of `image` with zero bytes before or after them
        start, words = content[:10].lower(), ("image", "sep=")
        encoding = next(
            (
                name
                for name in ("utf-16-le", "utf-16-be")
                if start.startswith(tuple(word.encode(name) for word in words))
            ),
            None,
        )
    try:
        return content.decode(encoding or "utf-8-sig"), ""
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        doubt = f"the file is not {encoding or 'UTF-8'} (line {line}: {error.reason})"
        if encoding is not None or b"\x00" in content:
            raise DataError(
                f"{path}:{line}: {doubt}{_unlike_csv(content)}. Save the file as UTF-8."
            ) from error
    try:
        return content.decode("cp1252"), doubt
    except UnicodeDecodeError:
        return content.decode("latin-1"), doubt


def _unlike_csv(content: bytes) -> str:
    """Say what the file is, when it is no text with columns."""
    found = describe_content(content[:512])
    return "" if found.startswith("text") or found.startswith("bytes") else f"; the file is {found}"


def _label(text: str) -> int | None:
    """The class index; None for anything but digits of ASCII, which `int` also reads ("1_0", full-width
    ones).
    """
    number = text.strip()
    digits = number.removeprefix("-")
    return int(number) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else None
