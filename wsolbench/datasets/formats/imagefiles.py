"""Existence, size and orientation of image files, without decoding them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from wsolbench.exceptions import DataError
from wsolbench.system.decoding import Header, read_header


def absent_files(paths: Iterable[str]) -> set[str]:
    """Return those of `paths` that are not files: missing, folders, pipes, or dangling links.

    Lists each folder once, which is much faster than checking each file.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder[folder].append(name)
    absent: set[str] = set()
    for folder, names in by_folder.items():
        present = _files_in(folder or "/")
        absent.update(f"{folder}/{name}" for name in names if name not in present)
    return absent


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return set()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link in a loop
        return False


def read_headers(paths: Iterable[str]) -> list[Header | DataError]:
    """Return size and orientation from the header of each image file, or the error that it raised.

    Takes about 60 µs per file. Files are read one after another: parsing a header holds the interpreter's
    lock, so threads are slower.
    """
    return [_header_or_error(path) for path in paths]


def _header_or_error(path: str) -> Header | DataError:
    try:
        return read_header(Path(path))
    except DataError as error:
        return error
