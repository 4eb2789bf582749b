"""Writing files so that a reader never sees half of one, and digests of their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsolbench.exceptions import UsageError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends, remove it when the block fails.

    The temporary name keeps the suffix, so that writers which look at it (images, `.npz`) choose the right format.
    Raises `UsageError` when the folder cannot be created or written, and where a folder has the name of the file.
    """
    make_folder(path.parent)
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Create `folder` (and its parents) and prove that a file can be written there; `UsageError` otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into the folder {folder}: {error.strerror}. Choose another folder.") from error
    return folder


def check_writable(path: Path) -> None:
    """Raise `UsageError` where the file `path` could not be written, as far as can be seen without creating anything.

    For commands that work for long before they write.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # for instance a name that is too long
        raise UsageError(f"cannot write the file {path}: {error.strerror}") from error
    if is_folder:
        raise UsageError(f"cannot write the file {path}: a folder has that name. Remove it, or choose another place.")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "it may not be written" if folder.is_dir() else "it is no folder"
        raise UsageError(f"cannot write {path}: {folder} is in the way, {reason}. Choose another place.")


def file_name(part: object) -> str:
    """A part of a path: whatever could leave the folder or trouble a file system becomes a dash."""
    return re.sub(r"[^\w.+=,-]", "-", str(part)).lstrip(".") or "-"


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, two spaces, no NaN, final newline."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `canonical_json(value)` to `path` atomically."""
    write_text(path, canonical_json(value))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of_file(path: Path) -> str:
    """Hex digest of the file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex digest of `canonical_json(value)`: names a configuration."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
