"""Read input files. Anything but a regular file is refused, because reading a pipe could wait for ever."""

from __future__ import annotations

import stat
from pathlib import Path

from wsolbench.exceptions import DataError


def check_regular(path: Path | str, what: str = "") -> None:
    """Raise `DataError` unless `path` is a regular file. Reading a pipe could wait for ever.

    `what` names the content, such as "image 'a.jpg'", and begins the message.
    """
    name, path = f"{what}: " if what else "", Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DataError(f"{name}{path} is a link to {path.readlink()}, which does not exist") from error
        raise DataError(f"{name}no file {path}") from error
    # A link in a loop, a name that is too long or contains a zero byte, no permission.
    except (OSError, ValueError) as error:
        raise DataError(f"{name}cannot read {path}: {_reason(error)}") from error
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{name}{path} is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}; expected a file"
        )


def read_bytes(path: Path, what: str = "") -> bytes:
    """Return the content of a file. Raises `DataError` as `check_regular`, and if reading fails."""
    check_regular(path, what)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{f'{what}: ' if what else ''}cannot read {path}: {_reason(error)}") from error


def name_content(path: Path) -> str:
    """Return the end of a message that names what a data file often is instead, or an empty string.

    For instance "; it is empty".
    """
    try:
        if not path.is_file():  # reading a pipe could wait for ever
            return ""
        with path.open("rb") as stream:
            head = stream.read(256)
    except OSError:
        return ""
    if not head:
        return "; it is empty"
    if head.startswith(b"version https://git-lfs.github.com"):
        return "; it is a Git LFS pointer, fetch the content with `git lfs pull`"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "; it is a web page, download the file again"
    return ""


def _reason(error: OSError | ValueError) -> str:
    return str(getattr(error, "strerror", None) or error)
