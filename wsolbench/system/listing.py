"""List folders without junk of other programs: previews, checkpoints, resource forks, editor backups."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_NAMES = frozenset(
    {
        "__macosx",
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "cvs",
        "__pycache__",
    }
)
_SUFFIXES = (
    "~",
    ".bak",
    ".orig",
    ".rej",
    ".swp",
    ".swo",
    ".tmp",
    ".temp",
    ".part",
    ".partial",
    ".crdownload",
)
_FIRST = frozenset(".#~")


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name is junk of another program and not part of a data set.

    >>> [is_junk(name) for name in (".ipynb_checkpoints", "._a.JPEG", "@eaDir", "a.xml~")]
    [True, True, True, True]
    >>> [is_junk(name) for name in ("n01440764", "a.JPEG")]
    [False, False]
    """
    lower = name.lower()
    return name[:1] in _FIRST or lower in _NAMES or lower.endswith(_SUFFIXES)


def list_folders(folder: Path) -> list[str]:
    """Return the names of the folders in `folder`, sorted, or an empty list if it is not a folder."""
    return _names(folder, folders=True)


def list_files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Return the names of the files in `folder` with one of these suffixes (in lower case), sorted.

    Empty if it is not a folder. Links are listed whatever their target, except links to a folder.
    """
    return [name for name in _names(folder, folders=False) if name.lower().endswith(suffixes)]


def find_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files with this suffix in `folder` and all folders below it, sorted by path."""
    found = []
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_junk(name)]
        found += [Path(top, name) for name in names if name.endswith(suffix) and not is_junk(name)]
    return sorted(found)


def is_empty(folder: Path) -> bool:
    """Whether the folder has no content except junk of other programs."""
    return all(is_junk(name) for name in os.listdir(folder))  # noqa: PTH208 - names are enough


def _names(folder: Path, *, folders: bool) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(_wanted(entries, folders=folders))


def _wanted(entries: Iterable[os.DirEntry[str]], *, folders: bool) -> Iterable[str]:
    for entry in entries:
        if _is_folder(entry) == folders and not is_junk(entry.name):
            yield entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop
        return False
