"""Map files that are damaged, of another kind, or too large are rejected by name, or read correctly."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.exceptions import DataError
from wsolbench.maps import MapFolder
from wsolbench.maps.formats import MAX_VALUES, describe_content

VALUES = np.arange(30, dtype=np.float32).reshape(5, 6)


def npy(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(compressed: bool = True, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def png(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    """Return an `.npy` file with this header."""
    padded = text.ljust(118 - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin-1") + data


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    sizes = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + sizes + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def zeros_npz(shape: tuple[int, int], written: int) -> bytes:
    """Return a compressed archive of zero bytes whose header claims a shape."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("map.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": shape})
        for _ in range(written):
            member.write(bytes(1_000_000))
    return stream.getvalue()


def encrypted() -> bytes:
    content = bytearray(npz(map=VALUES))
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + place] |= 1
    return bytes(content)


def twice(content: bytes) -> bytes:
    return content + content


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str, bytes], np.ndarray]:
    """Read the map from a file of this name and content. Errors must name the file."""

    def attempt(name: str, content: bytes) -> np.ndarray:
        path = tmp_path / name
        path.write_bytes(content)
        try:
            return MapFolder(tmp_path).read("x.jpg")
        except DataError as error:
            if str(path) not in str(error):
                pytest.fail(f"the file is not named: {error}")
            raise

    return attempt


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npy", b"", "an empty file"),
        (
            "x.npy",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "pointer of Git LFS.*git lfs pull",
        ),
        ("x.npz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of Git LFS"),
        ("x.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "pointer of Git LFS"),
        ("x.npy", b"\n  <!DOCTYPE html><html><title>404</title>", "a web page"),
        ("x.png", b"<html>not found", "a web page"),
        ("x.npy", b"1.0 2.0\n3.0 4.0\n", r"text, beginning with '1.0 2.0'"),
        ("x.npy", json.dumps([[1, 2]]).encode(), "text, beginning with"),
        ("x.npy", pickle.dumps(VALUES), r"a pickle\), which are never loaded"),
        ("x.npy", npy(np.array([{"a": 1}]), allow_pickle=True), "a pickle"),
        ("x.npy", bytes(200), "zero bytes only"),
        ("x.npy", gzip.compress(npy(VALUES)), "a gzip archive"),
        ("x.npy", png(VALUES.astype(np.uint8)), "a PNG image"),
        ("x.png", npy(VALUES), "a NumPy array"),
        ("x.npy", os.urandom(0) + b"\x01\x02\x03\xfe" * 9, "bytes of an unknown kind"),
        ("x.npy", npy(VALUES)[:-1], "truncated"),
        ("x.npy", npy(VALUES)[:40], "header is damaged"),
        ("x.npy", npy(VALUES)[:7], "header is damaged"),
        ("x.npy", twice(npy(VALUES)), "damaged"),
        (
            "x.npy",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"),
            "1,000,000,000,000 values",
        ),
        (
            "x.npy",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (-5, -6), }", bytes(120)),
            r"shape \(-5, -6\)",
        ),
        ("x.npy", header("{'descr': '<f4', 'fortran_order': False, 'shape': (5, 6), m"), "header is damaged"),
        (
            "x.npy",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 90 + ", 6)}"),
            "values; expected at most",
        ),
        ("x.npy", header("(" * 110), "header is damaged"),
        (
            "x.npy",
            header("{'descr': 'f4junk', 'fortran_order': False, 'shape': (5, 6)}"),
            "header is damaged",
        ),
        ("x.npy", b"\x93NUMPY\x09\x00" + npy(VALUES)[8:], "header is damaged"),
        ("x.npy", npy(VALUES.astype(complex)), "dtype complex128; expected real numbers"),
        ("x.npy", npy(VALUES > 3), "dtype bool; expected real numbers"),
        ("x.npy", npy(VALUES.astype("U9")), "expected real numbers"),
        ("x.npy", npy(np.zeros((5, 6), dtype=[("a", "f4"), ("b", "f4")])), "expected real numbers"),
        ("x.npy", npy(VALUES.astype("datetime64[s]")), "expected real numbers"),
        ("x.npy", npy(np.zeros((0, 5))), r"shape \(0, 5\)"),
        ("x.npy", npy(np.float32(3)), r"shape \(\)"),
        ("x.npy", npy(np.zeros((1, 5, 6))), r"shape \(1, 5, 6\)"),
        ("x.npy", npy(np.full((5, 6), np.nan)), "NaN"),
        ("x.npy", npy(np.full((5, 6), np.inf, dtype=np.float16)), "Inf"),
        ("x.npy", npy(np.full((5, 6), np.longdouble("1e4000"))), "NaN or Inf"),
        ("x.npz", npz(a=VALUES, b=VALUES), "holds the arrays a, b; expected one array"),
        ("x.npz", npz(), "cannot be read"),
        ("x.npz", encrypted(), "is encrypted"),
        ("x.npz", npz(map=VALUES)[:-30], "archive is damaged"),
        ("x.npz", zeros_npz((10_000, 10_000), 60), "100,000,000 values; expected at most 67,108,864"),
        ("x.npz", zeros_npz((5, 6), 60), "240 bytes, but 60,000,000 follow"),
        ("x.png", png_of_size(30_000, 30_000), "900,000,000 values"),
        ("x.png", png_of_size(65_535, 65_535), "4,294,836,225 values"),
        ("x.png", png_of_size(0, 5), "not a PNG image that can be read"),
        ("x.png", png_of_size(50, 50), "truncated or damaged"),
        ("x.png", png(VALUES.astype(np.uint8))[:20], "truncated or damaged"),
        ("x.png", png(VALUES.astype(np.uint8))[:60], "truncated or damaged"),
        ("x.png", png(np.zeros((4, 4, 3), dtype=np.uint8)), "3 channels"),
        ("x.png", png(np.zeros((4, 4, 4), dtype=np.uint8)), "4 channels"),
        ("x.png", png(np.zeros((4, 4, 2), dtype=np.uint8)), "2 channels"),
    ],
)
def test_a_file_that_is_no_map_is_named_with_what_it_is(
    read, name: str, content: bytes, message: str
) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        read(name, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 + 2 * len(content), f"{peak} bytes for a file of {len(content)}"


@pytest.mark.parametrize(
    "stored",
    [
        VALUES,
        np.asfortranarray(VALUES),
        VALUES.astype(">f4"),
        VALUES.astype("<f8"),
        VALUES.astype(">f8"),
        VALUES.astype(np.float16),
        VALUES.astype(np.int64),
        VALUES.astype(">u2"),
        VALUES.astype(np.longdouble),
        VALUES[::2, ::-1],
    ],
    ids=lambda stored: f"{stored.dtype.str}-{stored.shape}-{'F' if stored.flags.f_contiguous else 'C'}",
)
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.jpg.npz"])
def test_numbers_of_every_kind_and_order_are_read_right(read, name: str, stored: np.ndarray) -> None:
    found = read(name, npy(stored) if name.endswith("npy") else npz(only=stored))
    np.testing.assert_array_equal(found, stored)
    assert found.dtype == (
        np.float64 if stored.dtype.kind == "f" and stored.dtype.itemsize >= 8 else np.float32
    )
    assert found.dtype.isnative
    assert found.flags.c_contiguous


def test_an_archive_under_the_name_of_an_array_is_read(read) -> None:
    np.testing.assert_array_equal(read("x.npy", npz(compressed=False, map=VALUES)), VALUES)


def test_the_largest_map_that_is_read_has_67_million_values() -> None:
    assert MAX_VALUES == 8192**2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npy", npy(VALUES[:2, :3])),
        ("x.npz", npz(map=VALUES[:2, :3])),
        ("x.npz", npz(compressed=False, map=VALUES[:2, :3])),
        ("x.png", png(np.arange(6, dtype=np.uint8).reshape(2, 3))),
    ],
)
def test_whatever_bit_is_flipped_the_map_is_read_or_refused(read, name: str, content: bytes) -> None:
    """In compressed and checksummed formats, every bit flip in a map's values is detected."""
    original = read(name, content)
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            try:
                found = read(name, bytes(damaged))
            except DataError:
                continue
            assert found.shape in (original.shape, original.shape[::-1])
            if name != "x.npy":
                np.testing.assert_array_equal(found, original)


@pytest.mark.parametrize("content", [npy(VALUES), npz(map=VALUES), png(VALUES.astype(np.uint8))])
def test_whatever_is_cut_off_the_rest_is_refused(read, content: bytes) -> None:
    name = {b"\x93": "x.npy", b"P": "x.npz", b"\x89": "x.png"}[content[:1]]
    for length in range(len(content) - (13 if name == "x.png" else 1)):  # the last chunk of a PNG is empty
        with pytest.raises(DataError):
            read(name, content[:length])


def test_text_is_told_by_its_first_line() -> None:
    assert describe_content(b"one\ntwo") == "text, beginning with 'one'"
