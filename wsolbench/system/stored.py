"""Read stored files that may have been edited or damaged. Every problem is a `DataError` naming the file."""

from __future__ import annotations

import json
import math
import stat
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from wsolbench.exceptions import DataError
from wsolbench.system.regular_files import name_content

MAX_BYTES = 64 << 20
"""Size limit of a text file. Records have some kilobytes."""
MAX_DEPTH = 64
"""Limit of the nesting of a JSON file."""
MAX_NUMBER = 2.0**63
"""Limit of the absolute value of numbers in a JSON file."""


def check_regular_file(path: Path, what: str) -> None:
    """Raise `DataError` unless `path` is a regular file or a link to one. Reading a pipe could wait for ever.

    >>> check_regular_file(Path("/dev/null"), "record")
    Traceback (most recent call last):
        ...
    wsolbench.exceptions.DataError: record /dev/null is a device; expected a file
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DataError(
            f"no {what} {path}"
            + (": it is a link to a file that does not exist" if path.is_symlink() else "")
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((name for is_kind, name in kinds if is_kind(mode)), "device")
        raise DataError(f"{what} {path} is a {kind}; expected a file")


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file.

    Raises `DataError` naming it if it is missing, not a regular file, unreadable, too large or not UTF-8.
    """
    check_regular_file(path, what)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{what} {path} has more than {MAX_BYTES:,} bytes; expected a smaller file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {path} is not UTF-8: {error}") from error


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file of plain values. `what` names the kind of file in messages, for instance `record`.

    Raises `DataError` naming the file if it is missing, not a regular file, unreadable, above `MAX_BYTES`,
    not UTF-8, not JSON, or refused by `check_plain`.
    """
    text = read_text(path, what)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise DataError(f"{what} {path} is nested too deeply; expected at most {MAX_DEPTH} levels") from error
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise DataError(f"{what} {path} is not JSON: {error}{name_content(path)}") from error
    try:
        check_plain(value)
    except ValueError as error:
        raise DataError(f"{what} {path} has {error}") from error
    return value


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file. Raises `DataError` naming the file as `read_text` does, and when it is not TOML."""
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        content: dict[str, Any] = toml.loads(read_text(path, what))
    except (toml.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{what} {path} is not TOML: {error}{name_content(path)}") from error
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice in one object"
        )
    return values


def check_plain(value: Any) -> None:
    """Raise `ValueError` naming the place of a value that JSON cannot store and restore.

    Such values are numbers that are not finite or not below `MAX_NUMBER`, texts that are not Unicode (a lone
    surrogate), nesting deeper than `MAX_DEPTH`, and objects of other types.

    >>> check_plain({"a": [0.5, float("nan")]})
    Traceback (most recent call last):
        ...
    ValueError: a[1] nan; expected a number that is finite and below 2^63
    """
    # Visit all nested values without recursion.
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    while todo:
        where, item, depth = todo.pop()
        if item is None or isinstance(item, bool):
            continue
        if depth > MAX_DEPTH:
            raise ValueError(f"{where[:80]}... nested too deeply; expected at most {MAX_DEPTH} levels")
        if isinstance(item, str):
            _check_text(where, item)
        elif isinstance(item, int | float):
            if not abs(item) < MAX_NUMBER or math.isnan(item):
                shown = item if isinstance(item, float) else "a whole number of that size"
                raise ValueError(
                    f"{where or 'as its value'} {shown}; expected a number that is finite and below 2^63"
                )
        elif isinstance(item, dict):
            for name, inner in item.items():
                if not isinstance(name, str):
                    raise ValueError(f"{where or 'its object'} with the key {name!r}; expected texts as keys")
                _check_text(where, name)
                todo.append((f"{where}.{name}" if where else name, inner, depth + 1))
        elif isinstance(item, list | tuple):
            todo += [(f"{where}[{place}]", inner, depth + 1) for place, inner in enumerate(item)]
        else:
            raise ValueError(
                f"{where} of type {type(item).__name__}; expected a number, a text, a list or an object"
            )


def _check_text(where: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where or 'as its value'} {text!r}; expected Unicode text without lone surrogates"
        ) from error
