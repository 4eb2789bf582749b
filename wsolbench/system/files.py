"""Writing files so that a reader never sees half of one, and digests of their content."""

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
"""Random bytes in the name of a temporary file."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None}
"""What systems say when there is no room; numpy says it without a number."""
_NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What systems say when a file system has no locks."""
_RENAMES_OPEN_FILES = os.name != "nt"
"""Whether the system can rename a file that is open."""
_SAFE_TO_OPEN = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
"""Opening neither waits for a named pipe nor follows a link, where the system knows these flags."""


@contextlib.contextmanager
def atomic_path(path: Path, *, tidy: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends, remove it when the block
    fails.

    The temporary name keeps the suffix, so that writers which look at it (images, `.npz`) choose the right
    format. Permissions are those of a new file. With `tidy`, temporary files of `path` that killed processes
    have left are removed; it reads the whole folder, so whoever writes very many files into one calls
    `remove_leftovers` once instead.

    A link is followed: the file that it leads to is written, and the link stays. Raises `UsageError` when the
    folder cannot be created or written, where a folder, a device, a pipe or a socket has the name of the
    file, and on a full disk.
    """
    path = _target(path)
    check_writable(path)
    make_folder(path.parent)
    if tidy:
        remove_leftovers(path.parent, of=path)
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
            raise  # the block stumbled on another file
        way_out = (
            "Free some space, or choose another place" if error.errno in _FULL else "Choose another place"
        )
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}. {way_out}; what was there before is left as "
            "it was."
        ) from error


def _target(path: Path) -> Path:
    """The file that a link leads to, whether it exists or not; any other path as it is."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else path  # noqa: PTH114 - also for a name that is too long


def _new_temporary(path: Path) -> tuple[Path, int]:
    """An empty temporary file for `path`, and its descriptor, which holds a lock: the file of a live process
    is no leftover.
    """
    while True:
        temporary = path.with_name(f"{_temporary_prefix(path)}{secrets.token_hex(_UNIQUE)}{path.suffix}")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _lock(handle) is not False and temporary.exists():
            return temporary, handle
        os.close(handle)  # another process took it for a leftover in between


def _temporary_prefix(path: Path) -> str:
    return f".{path.stem[:40]}-"


def remove_leftovers(folder: Path, *, of: Path | None = None) -> None:
    """Remove temporary files of `atomic_path` that killed processes have left: those of one file, or all in
    the folder and below.
    """
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
    """Create `folder` (and its parents) and prove that a file can be written there; `UsageError`
    otherwise.
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
    """Raise `UsageError` where the file `path` could not be written, as far as can be seen without creating
    anything.

    For commands that work for long before they write.
    """
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
    return _sha256_of_start(path, sys.maxsize)


_SEAL = b"\nwsolbench sha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically, with a line behind it that names its SHA-256. Zip archives may
    have bytes behind their end.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(content)
        stream.write(_SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n")


def is_sealed(path: Path) -> bool:
    """Whether a file has the line that `write_sealed` puts at its end. Raises `ValueError` when the line
    names other bytes.
    """
    size = path.stat().st_size - _SEAL_BYTES
    with path.open("rb") as stream:
        stream.seek(max(0, size))
        line = stream.read()
    if not line.startswith(_SEAL):
        return False
    if line[len(_SEAL) :] != _sha256_of_start(path, size).encode() + b"\n":
        raise ValueError("its bytes are not those that were written: the SHA-256 differs")
    return True


def _sha256_of_start(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(min(1 << 20, size)):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def sha256_of_json(value: Any) -> str:
    """Hex digest of `canonical_json(value)`: names a configuration."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
