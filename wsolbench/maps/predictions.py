"""Predicted labels in CSV files with the columns image, rank1, rank2, ..., as written by common programs."""

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
"""A first line that declares the separator, as Excel writes it."""
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks and their encodings, longer marks first."""


def write_predictions(path: Path, ranked: Mapping[str, Iterable[int]]) -> None:
    """Store predicted labels, best first, one row per image, atomically."""
    rows = {image_id: list(labels) for image_id, labels in ranked.items()}
    depth = max((len(labels) for labels in rows.values()), default=0)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["image", *(f"rank{rank}" for rank in range(1, depth + 1))])
        writer.writerows([image_id, *labels] for image_id, labels in rows.items())


def read_predictions(path: Path, num_classes: int, known: Collection[str] = ()) -> dict[str, list[int]]:
    """Read the predicted labels of each image id, best first, from a CSV (image, rank1, rank2, ...).

    Columns are separated by commas, semicolons or tabs. The text is UTF-8, or UTF-16 or UTF-32 with a byte
    order mark. Another encoding is read as Windows-1252, which spreadsheets write, but only if every id
    with a non-ASCII letter is in `known`; under another reading it would not be an id.

    Skipped are empty rows, a first line `sep=;` and last columns that are empty in every row. An image may be
    named without its suffix or with `./` in front, if this matches exactly one id of `known`.

    Raises `DataError` naming file and line for other columns, a repeated image, a label outside
    0..num_classes-1, or text that cannot be decoded. Raises it naming the file if it is missing or not a
    file.
    """
    if not path.exists():
        raise DataError(f"no file of predictions {path}; expected a CSV file")
    # Decode the text, and find the separator.
    content = read_bytes(path, "file of predictions", _MAX_BYTES)
    text, doubt = _decode(content, path)
    named = _SEPARATOR.match(text)
    delimiter = named[1] if named else next((mark for mark in ";\t" if _has_header(text, mark)), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    # Check the header, then read one image per row.
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
                f"{path}:{line} has the columns {found}; expected image,rank1,rank2,..."
                f"{_describe_other(content)}"
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
                raise DataError(
                    f"{path}:{line} has the labels {','.join(row[1:])[:200]}; expected whole numbers"
                )
            known_labels = [label for label in labels if label is not None]
            if not all(0 <= label < num_classes for label in known_labels) or len(set(labels)) != len(labels):
                raise DataError(
                    f"{path}:{line} has labels {known_labels}; expected different classes in "
                    f"0..{num_classes - 1}"
                )
            image_id = full_name(row[0])
            if image_id in ranked:
                raise DataError(f"{path}:{line} repeats the image {image_id!r}; expected every image once")
            if doubt and not row[0].isascii() and image_id not in known:
                raise DataError(
                    f"{path}:{line} names the image {row[0]!r} if read as Windows-1252, and {doubt}. Save "
                    "the file as UTF-8."
                )
            ranked[image_id] = known_labels
    except csv.Error as error:
        hint = _describe_other(content) or ". Is a quotation mark left open?"
        raise DataError(f"{path}:{reader.line_num} cannot be read: {error}{hint}") from error
    return ranked


def _has_header(text: str, delimiter: str) -> bool:
    """Whether the first column of the header, quoted or not, ends with this separator."""
    return text[:40].replace('"', "").lower().startswith(f"image{delimiter}")


def _full_names(known: Collection[str]) -> Callable[[str], str]:
    """Return a function from a name to the one known id that it matches without suffix or with `./` in front.

    Other names are returned unchanged.
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
    """Return the text, and why its encoding is in doubt, or an empty text if it is not."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    # Without a byte order mark, UTF-16 shows as zero bytes next to the letters of `image` or `sep=`.
    if encoding is None and b"\x00" in content[:64]:
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
                f"{path}:{line}: {doubt}{_describe_other(content)}. Save the file as UTF-8."
            ) from error
    try:
        return content.decode("cp1252"), doubt
    except UnicodeDecodeError:
        return content.decode("latin-1"), doubt


def _describe_other(content: bytes) -> str:
    """Describe the file if it is not a text with columns, else return an empty text."""
    found = describe_content(content[:512])
    return "" if found.startswith("text") or found.startswith("bytes") else f"; the file is {found}"


def _label(text: str) -> int | None:
    """Return the class index, or None unless the text is ASCII digits. `int` alone accepts "1_0" too."""
    number = text.strip()
    digits = number.removeprefix("-")
    return int(number) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else None
