"""Reading input files: anything that is not a file with bytes is refused before a read can wait for it."""

from __future__ import annotations

import stat
from pathlib import Path

from wsolbench.exceptions import DataError


def check_regular(path: Path | str, what: str = "") -> None:
    """Raise `DataError` unless `path` is a file whose bytes can be read; a pipe would be waited for without
    end.

    `what` names the content, such as "image 'a.jpg'", and begins the message.
    """
    name, path = f"{what}: " if what else "", Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DataError(f"{name}{path} is a link to {path.readlink()}, which does not exist") from error
        raise DataError(f"{name}no file {path}") from error
    except (
        OSError,
        ValueError,
    ) as error:  # a link in a loop, a name that is too long or holds a zero byte, no permission
        raise DataError(f"{name}cannot read {path}: {_reason(error)}") from error
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{name}{path} is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}; expected a file"
        )


def read_bytes(path: Path, what: str = "") -> bytes:
    """The content of a file. Raises `DataError` as `check_regular` does, and when reading fails."""
    check_regular(path, what)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{f'{what}: ' if what else ''}cannot read {path}: {_reason(error)}") from error


def name_content(path: Path) -> str:
    """What often lies in place of a data file, as the end of a message: "; it is empty" for instance; else
    "".
    """
    try:
        if not path.is_file():  # a pipe would be waited for without end
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
