"""Write files so that a reader never sees half of one, and compute digests of their content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.exceptions import UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_UNIQUE = 4
"""Number of random bytes in the name of a temporary file."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None}
"""Error numbers of a full disk. None is for numpy, which gives no number."""
_NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Error numbers of a file system without locks."""
_RENAMES_OPEN_FILES = os.name != "nt"
"""Whether the system can rename a file that is open."""
_SAFE_TO_OPEN = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
"""Flags that neither wait for a named pipe nor follow a link, if the system has them."""


def cache_folder() -> Path:
    """Return `$WSOLBENCH_CACHE`, else `$XDG_CACHE_HOME/wsolbench`, else `~/.cache/wsolbench`."""
    if own := os.environ.get("WSOLBENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsolbench"


@contextlib.contextmanager
def atomic_path(path: Path, *, tidy: bool = True) -> Iterator[Path]:
    """Yield a temporary name next to `path`. It is renamed to `path` after the block, and removed if the
    block fails.

    The temporary name keeps the suffix, so that writers that look at it (images, `.npz`) choose the right
    format. Permissions are those of a new file. With `tidy`, temporary files of `path` from killed processes
    are removed. This reads the whole folder. To write very many files into one folder, call
    `remove_leftovers` once instead.

    A link is followed: its target is written, and the link stays. Raises `UsageError` if the folder cannot be
    created or written, if `path` is a folder, a device, a pipe or a socket, and on a full disk.
    """
    # Check that the file can be written, and remove leftovers.
    path = _target(path)
    check_writable(path)
    make_folder(path.parent)
    if tidy:
        remove_leftovers(path.parent, of=path)
    # Write, flush and rename.
    temporary, handle = None, None
    try:
        temporary, handle = _new_temporary(path)
        try:
            yield temporary
            os.fsync(handle)
            if not _RENAMES_OPEN_FILES:
                os.close(handle)
                handle = None
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            if handle is not None:
                os.close(handle)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename) not in (path, temporary):
            raise  # the error is about another file
        # Explain what failed.
        way_out = (
            "Free some space, or choose another place" if error.errno in _FULL else "Choose another place"
        )
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}. {way_out}; what was there before is left as "
            "it was."
        ) from error


def _target(path: Path) -> Path:
    """Return the target of a link, whether it exists or not. Any other path is returned unchanged."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114 - also for a name that is too long


def _new_temporary(path: Path) -> tuple[Path, int]:
    """Create an empty temporary file for `path`, and return it with its descriptor.

    The descriptor holds a lock, so that other processes do not take the file for a leftover.
    """
    while True:
        temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(_UNIQUE)}{path.suffix}")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _lock(handle) is not False and temporary.exists():
            return temporary, handle
        os.close(handle)  # another process took it for a leftover and removed it


def _temporary_prefix(path: Path) -> str:
    return f".{path.stem[:40]}-"


def remove_leftovers(folder: Path, *, of: Path | None = None) -> None:
    """Remove temporary files of `atomic_path` from killed processes: those of one file, or all below."""
    own = (
        ""
        if of is None
        else rf"{re.escape(_temporary_prefix(of))}[0-9a-f]{{{2 * _UNIQUE}}}{re.escape(of.suffix)}"
    )
    pattern = re.compile(own or r"\..*-[a-z0-9_]{8}(\.\w+)?")
    for place, below, names in os.walk(folder):
        if of is not None:
            below.clear()
        for name in filter(pattern.fullmatch, names):
            with contextlib.suppress(OSError):
                handle = os.open(Path(place, name), os.O_RDWR | _SAFE_TO_OPEN)
                try:
                    if _lock(handle):
                        Path(place, name).unlink(missing_ok=True)
                finally:
                    os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock an open file until it is closed; False while another process holds it, None where the system or
    the file system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    The system frees the lock of a process that was killed. Raises `UsageError` with the text `busy` while
    another process holds it, and where no lock can be had.
    """
    make_folder(path.parent)
    lock = hold_lock(path)
    if lock is None:
        raise UsageError(busy)
    try:
        yield
    finally:
        lock.release()


def hold_lock(path: Path, *, patience: float = 0.0) -> BaseFileLock | None:
    """Lock the file `path` for this process until `release` is called; None while another process holds it.

    Waits `patience` seconds for the other process. Raises `UsageError` when the file cannot be written, and
    where the file system has no locks.
    """
    from filelock import FileLock, Timeout

    check_writable(path)
    lock = FileLock(path, timeout=patience, thread_local=False)
    try:
        lock.acquire(poll_interval=0.02)
    except Timeout:
        return None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise UsageError(f"cannot write {path}: {error.strerror}. Choose another folder.") from error
        raise UsageError(
            f"the file system of {path.parent} has no locks, so two processes could work there at once. "
            "Choose another folder."
        ) from error
    return lock


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents, and check that a file can be written there.

    Raises `UsageError` otherwise.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write into the folder {folder}: {error.strerror}. Choose another folder."
        ) from error
    return folder


def check_writable(path: Path) -> None:
    """Raise `UsageError` if the file `path` cannot be written, as far as can be checked without creating
    anything.

    For commands that work for a long time before they write.
    """
    # Is the name taken by something else?
    path = _target(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except OSError as error:  # for instance a name that is too long
        raise UsageError(f"cannot write the file {path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(
            f"cannot write the file {path}: a folder has that name. Remove it, or choose another place."
        )
    if not stat.S_ISREG(mode):
        kind = "named pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise UsageError(
            f"cannot write the file {path}: it is a {kind}, which a file would replace. Choose another place."
        )
    # Can the folder be written?
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "cannot be written" if folder.is_dir() else "is not a folder"
        raise UsageError(f"cannot write {path}: {folder} {reason}. Choose another place.")


def file_name(part: object) -> str:
    """Return a safe part of a path: other characters, which could leave the folder, become dashes."""
    return re.sub(r"[^\w.+=,-]", "-", str(part)).lstrip(".") or "-"


def canonical_json(value: Any) -> str:
    """Return JSON text that is equal for equal values: sorted keys, two spaces, no NaN, final newline."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `canonical_json(value)` to `path` atomically."""
    write_text(path, canonical_json(value))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of_file(path: Path) -> str:
    """Return the hex SHA-256 of the file's bytes."""
    return _sha256_of_start(path, sys.maxsize)


_SEAL = b"\nwsolbench sha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically, followed by a line with its SHA-256.

    Zip archives may have bytes after their end.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.write(_SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n")


def is_sealed(path: Path) -> bool:
    """Whether a file ends with the line of `write_sealed`. Raises `ValueError` if its SHA-256 differs."""
    size = path.stat().st_size - _SEAL_BYTES
    with path.open("rb") as stream:
        stream.seek(max(0, size))
        line = stream.read()
    if not line.startswith(_SEAL):
        return False
    if line[len(_SEAL) :] != _sha256_of_start(path, size).encode() + b"\n":
        raise ValueError("it was changed or damaged: its SHA-256 differs")
    return True


def _sha256_of_start(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(min(1 << 20, size)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the hex SHA-256 of `canonical_json(value)`, which identifies a configuration."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
