"""Pixels of every kind of file as 8 bits; whatever is no such file is an error with its cause, at once."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.exceptions import DataError
from wsolbench.system.decoding import MAX_PIXELS, is_transparent, read_header, read_rgb, read_size
from wsolbench.types import Sample

GRAY = np.linspace(0, 255, 200).reshape(10, 20).round().astype(np.uint8)
SAME = {
    "16.png": GRAY.astype(np.uint16) * 257,
    "16.tif": GRAY.astype(np.uint16) * 257,
    "big_endian.tif": (GRAY.astype(np.uint16) * 257).astype(">u2"),
    "16.pgm": GRAY.astype(np.uint16) * 257,
    "float.tif": (GRAY / 255).astype(np.float32),
}
MODES = [
    ("la.png", "LA"),
    ("rgba.png", "RGBA"),
    ("palette.png", "P"),
    ("palette.gif", "P"),
    ("cmyk.tif", "CMYK"),
    ("rgb.png", "RGB"),
]


def pixels(path: Path) -> np.ndarray:
    return Sample(id="a", label=0, path=path).image()


def mask(path: Path) -> np.ndarray | None:
    return Sample(id="a", label=0, size=(20, 10), mask_paths=(path,)).mask()


@pytest.mark.parametrize("name", SAME)
def test_16_bit_and_float_pixels_are_those_of_the_8_bit_picture(name: str, tmp_path: Path) -> None:
    Image.fromarray(SAME[name]).save(tmp_path / name)
    np.testing.assert_array_equal(pixels(tmp_path / name), np.repeat(GRAY[..., None], 3, axis=2))
    np.testing.assert_array_equal(mask(tmp_path / name), GRAY > 127)


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_other_modes_keep_the_stored_colours_whatever_the_transparency(
    name: str, mode: str, tmp_path: Path
) -> None:
    image = Image.fromarray(GRAY).convert(mode)
    if mode in {"LA", "RGBA"}:
        image.putalpha(100)
    image.save(tmp_path / name)
    np.testing.assert_array_equal(pixels(tmp_path / name)[..., 0], GRAY)
    np.testing.assert_array_equal(mask(tmp_path / name), GRAY > 127)
    assert is_transparent(tmp_path / name) == (mode in {"LA", "RGBA"})


def test_a_12_bit_tiff_is_scaled_by_its_own_white(tmp_path: Path) -> None:
    size_to_strips = [
        (256, 3, 2),
        (257, 3, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 122),
        (277, 3, 1),
        (278, 3, 1),
        (279, 4, 3),
    ]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in size_to_strips
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(size_to_strips))
    (tmp_path / "a.tif").write_bytes(
        head + entries + b"\0" * 4 + bytes([0xFF, 0xF8, 0x00])
    )  # two pixels: 4095, 2048
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[..., 0], [[255, 128]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((10, 20), 200.0, np.float32), "has float pixels from 200 to 200; expected 0 to 1"),
        (np.full((10, 20), np.nan, np.float32), "has float pixels from nan"),
        (np.full((10, 20), -1.0, np.float32), "has float pixels from -1"),
        (np.full((10, 20), 7, np.int32), "has 32-bit gray pixels, whose white is unknown"),
    ],
)
def test_pixels_whose_range_nobody_says_are_refused(values: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (pixels, mask):
        with pytest.raises(DataError, match=message):
            read(tmp_path / "a.tif")


def claim(path: Path, width: int, height: int) -> None:
    """A PNG of a few bytes that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("side", [9_500, 13_000, 30_000, 65_535])
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_size_above_the_limit_is_refused_by_every_reader(side: int, tmp_path: Path) -> None:
    assert side**2 > MAX_PIXELS
    claim(tmp_path / "a.png", side, side)
    for read in (pixels, mask, read_size):
        with pytest.raises(DataError, match="too large to be safe"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
    ],
)
def test_what_lies_in_place_of_an_image_is_named(content: bytes, cause: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"is not an image that can be read; {cause}"):
        pixels(tmp_path / "a.jpg")


def test_pipes_loops_and_impossible_names_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dead.png").symlink_to("/no/such/store/a.png")
    (tmp_path / "folder.png").mkdir()
    expected = {
        "pipe.png": "is a pipe or device; expected a file",
        "loop.png": "cannot read .*symbolic links",
        "dead.png": "is a link to /no/such/store/a.png, which does not exist",
        "folder.png": "is a folder; expected a file",
        "a" * 300: "cannot read .*File name too long",
        "a\0b": "cannot read .*null",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_rgb(tmp_path / name, "image 'a'")


@pytest.mark.parametrize(("name", "orientation"), [("a.jpg", 6), ("a.png", 8), ("a.webp", 3)])
def test_the_orientation_is_read_and_not_applied(name: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (8, 4)).save(tmp_path / name, exif=exif)
    header = read_header(tmp_path / name)
    assert (header.size, header.orientation) == ((8, 4), orientation)
    assert header.shown_size == ((4, 8) if orientation >= 5 else (8, 4))
    assert pixels(tmp_path / name).shape == (4, 8, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_flipped_byte_of_an_image_gives_pixels_or_an_error_of_the_data(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif", "gif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(GRAY).save(path)
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                assert pixels(path).dtype == np.uint8
            except DataError as error:
                assert path.name in str(error)  # noqa: PT017 - either outcome is right
