"""Reading one stored map (`.npy`, `.npz`, gray-scale `.png`) from bytes that may be damaged.

The sizes in a header are checked before memory is allocated, so a file of a few bytes cannot take gigabytes.
"""

from __future__ import annotations

import io
import math
import os
import stat
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsolbench.exceptions import DataError

MAX_VALUES = 1 << 26
"""Largest number of values of a map: 8192 x 8192."""
_HEADER = 1 << 14
"""Number of bytes that contain an array's header: NumPy reads no header above 10,000 bytes."""
_MAX_BYTES = MAX_VALUES * 16 + (1 << 20)
"""Size in bytes of the largest file that can hold such a map, with its header."""

_BROKEN = (  # exceptions of numpy, zipfile and the decompressors for damaged bytes
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

_NPY, _ZIP, _PNG = b"\x93NUMPY", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n"
_KNOWN = (
    (_NPY, "a NumPy array"),
    (_ZIP, "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (_PNG, "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"),
)


def describe_content(head: bytes) -> str:
    """Describe the content of a file from its first bytes. Some hundred bytes are enough.

    >>> describe_content(b"version https://git-lfs.github.com/spec/v1")
    'a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`'
    """
    if not head:
        return "an empty file"
    for magic, name in _KNOWN:
        if head.startswith(magic):
            return name
    if not head.strip(b"\x00"):
        return "zero bytes only, as an interrupted copy leaves them"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "Python objects (a pickle), which are never loaded"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page, as a failed download leaves it"
    if _is_text(head):
        line = head.decode("utf-8", "replace").strip().splitlines() or [""]
        return f"text, beginning with {line[0][:40]!r}"
    return "bytes of an unknown kind"


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)


def read_bytes(path: Path, what: str, limit: int = _MAX_BYTES) -> bytes:
    """Return the content of a regular file. `what` names it in errors. Never waits for another program.

    Raises `DataError` for a file that is missing, unreadable, a folder, a named pipe or a loop of links, or
    that has more than `limit` bytes.
    """
    try:
        # O_NONBLOCK: otherwise opening a named pipe waits for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise DataError(f"{what} {path} is {describe_kind(found.st_mode)}; expected a file")
            if found.st_size > limit:
                raise DataError(f"{what} {path} has {found.st_size:,} bytes; expected at most {limit:,}")
            with open(handle, "rb", closefd=False) as stream:
                return stream.read()
        finally:
            os.close(handle)
    except (
        OSError,
        ValueError,
    ) as error:  # a loop of links, a file in place of a folder, a zero byte in a name
        raise DataError(
            f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def describe_kind(mode: int) -> str:
    """Describe a mode of `os.stat` that is not a regular file's: a folder, a pipe, a socket or a device."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def read_map(content: bytes, path: Path) -> np.ndarray:
    """Return the array in the bytes of a map file.

    It has its own dtype, or for a PNG, float32 fractions of full scale. `path` names the file in errors,
    and its suffix says whether it is a PNG. Raises `DataError` for bytes that are damaged, truncated or of
    another kind, and for a map above `MAX_VALUES`.
    """
    if path.suffix == ".png":
        return _read_png(content, path)
    if content.startswith(_NPY):
        return _read_npy(content, path)
    if content.startswith(_ZIP):
        return _read_npz(content, path)
    found = describe_content(content[:512])
    raise DataError(
        f"map {path} cannot be read: it is {found}; expected an array. Store one with numpy.save(path, map)."
    )


class _Layout(NamedTuple):
    """Shape, order and dtype from the header of an array, and the offset of its values."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)


def _read_layout(head: bytes, size: int, path: Path) -> _Layout:
    """Read the header of an array whose file has `size` bytes, from its first bytes."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        layout = _Layout(*read_header(stream), stream.tell())
    except _BROKEN as error:
        raise DataError(
            f"map {path} cannot be read: its header is damaged ({_line(error)}). Write it again."
        ) from error
    _check_kind(layout.dtype, path)
    _check_shape(layout.shape, path)
    expected, found = layout.values * layout.dtype.itemsize, size - layout.start
    if found != expected:
        raise DataError(
            f"map {path} cannot be read: its header says {layout.shape} {layout.dtype}, which is "
            f"{expected:,} bytes, but {found:,} follow; "
            f"it is {'truncated' if found < expected else 'damaged'}. Write it again."
        )
    return layout


def _read_npy(content: bytes, path: Path) -> np.ndarray:
    """Return the array in the bytes of a `.npy` file."""
    layout = _read_layout(content[:_HEADER], len(content), path)
    if not layout.values:
        return np.empty(layout.shape, layout.dtype)
    values = np.frombuffer(content, layout.dtype, layout.values, layout.start)
    return values.reshape(layout.shape, order="F" if layout.fortran_order else "C")


def _check_kind(dtype: np.dtype, path: Path) -> None:
    if dtype.hasobject:
        raise DataError(
            f"map {path} holds Python objects (a pickle), which are never loaded. Store a float array with "
            "numpy.save(path, map)."
        )
    if dtype.kind not in "fiu":
        raise DataError(
            f"map {path} has dtype {dtype}; expected real numbers. Store a float array with "
            "numpy.save(path, map)."
        )


def _check_shape(shape: tuple[int, ...], path: Path) -> None:
    if any(side < 0 for side in shape):
        raise DataError(f"map {path} has shape {shape}; expected a (height, width) array")
    count = math.prod(shape)
    if count > MAX_VALUES:
        raise DataError(
            f"map {path} has shape {shape}, which is {count:,} values; expected at most {MAX_VALUES:,}. "
            "Store a smaller map."
        )


def _read_npz(content: bytes, path: Path) -> np.ndarray:
    """Return the only array of an archive, or the one named `map`."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            name = "map" if "map" in members else next(iter(members)) if len(members) == 1 else None
            if name is None:
                held = ", ".join(list(members)[:10]) or "(none)"
                raise DataError(
                    f"map {path} holds the arrays {held}; expected one array, or one called 'map'"
                )
            if members[name].flag_bits & 1:
                raise DataError(f"map {path} is encrypted; expected an archive without a password")
            # The header is checked first, because a few bytes can expand to gigabytes.
            with archive.open(members[name]) as stream:
                array = stream.read(_HEADER)
                if array.startswith(_NPY):
                    _read_layout(array, members[name].file_size, path)
                    array += stream.read(
                        members[name].file_size
                    )  # to the end, where the checksum is compared
    except _BROKEN as error:
        raise DataError(
            f"map {path} cannot be read: the archive is damaged ({_line(error)}). Write it again."
        ) from error
    if not array.startswith(_NPY):
        raise DataError(
            f"map {path} has no array named {name!r}; expected a NumPy array, found "
            f"{describe_content(array[:512])}"
        )
    return _read_npy(array, path)


def _read_png(content: bytes, path: Path) -> np.ndarray:
    import cv2

    # Check signature and header before any pixel is decoded.
    if not content.startswith(_PNG):
        raise DataError(
            f"map {path} is not a PNG image that can be read: it is {describe_content(content[:512])}"
        )
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise DataError(f"map {path} is not a PNG image that can be read: it is truncated or damaged")
    width, height, _, color = struct.unpack(">IIBB", content[16:26])
    if color != 0:
        kinds = {
            2: "3 channels",
            3: "a palette of colours",
            4: "2 channels (gray and alpha)",
            6: "4 channels",
        }
        raise DataError(
            f"map {path} has {kinds.get(color, 'an unknown kind of pixels')}; expected a gray-scale PNG "
            "with one channel"
        )
    _check_shape((height, width), path)
    # Decode, and scale to fractions of full scale.
    try:
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(f"map {path} is not a PNG image that can be read: {_line(error)}") from error
    if pixels is None:
        raise DataError(f"map {path} is not a PNG image that can be read: it is truncated or damaged")
    if pixels.shape != (height, width):
        raise DataError(
            f"map {path} has pixels of shape {pixels.shape}; expected a gray-scale PNG with one channel"
        )
    full_scale = np.float32(255 if pixels.dtype == np.uint8 else 65535)
    return np.asarray(pixels / full_scale, dtype=np.float32)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
