"""Decode image files to 8-bit pixels. Every error of a decoder becomes a `DataError`.

Colours are read as RGB, whatever the mode of the file. Transparency is dropped, so a transparent pixel has
the colour that is stored for it. Gray values of 16 bits are scaled (65,535 is white), and so are floats (1.0
is white). Pixels are read as stored: the EXIF orientation is not applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import UInt8

from wsolbench.exceptions import DataError
from wsolbench.system.regular_files import check_regular, name_content

if TYPE_CHECKING:
    import PIL.Image

T = TypeVar("T")

MAX_PIXELS = 89_478_485
"""Most pixels of an image. A file of a few kilobytes can claim more. Pillow warns above this number."""

_ORIENTATION = 0x0112


class _UnknownRangeError(Exception):
    """Pixel values whose white is unknown."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """The content of an image file's header.

    Attributes:
        size: (width, height) of the stored pixels.
        mode: Pillow's name of the pixel format, such as "RGB" or "I;16".
        orientation: EXIF orientation, 1 to 8; 1 if the file does not state one. From 5 on width and height
            are exchanged when shown.
    """

    size: tuple[int, int]
    mode: str
    orientation: int

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) as viewers show the image."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])


def read_header(path: Path, what: str | None = None) -> Header:
    """Return size, mode and orientation without decoding.

    Raises `DataError` for a missing file or no image.
    """
    return _opened(path, what or f"image {path.name!r}", _header)


def read_size(path: Path) -> tuple[int, int]:
    """Return (width, height) from the header. Raises `DataError` for a missing file or no image."""
    return _opened(path, f"image {path.name!r}", lambda image: image.size)


def read_rgb(path: Path, what: str) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels in colour. Errors are as for `read_picture`."""
    return np.array(read_picture(path, what))  # np.asarray would be read-only


def read_picture(path: Path, what: str) -> PIL.Image.Image:
    """Return the picture in colour, as Pillow holds it. It needs no open file.

    To resize it as it is saves two copies of all pixels. `what` begins the message of the `DataError` for a
    file that is missing, broken or too large.
    """
    return _opened(path, what, _in_colour)


def read_gray(path: Path, what: str) -> UInt8[np.ndarray, "h w"]:
    """Return the pixels in gray. Errors are as for `read_picture`."""
    return _opened(path, what, lambda image: np.array(_in_8_bits(image).convert("L")))


def is_transparent(path: Path) -> bool:
    """Whether a pixel of the image is not opaque. Raises `DataError` as `read_picture` does."""

    def check(image: PIL.Image.Image) -> bool:
        if image.mode not in {"LA", "La", "PA", "RGBA", "RGBa"} and "transparency" not in image.info:
            return False
        least = image.convert("RGBA").getchannel("A").getextrema()[0]
        return bool(np.less(least, 255))

    return _opened(path, f"image {path.name!r}", check)


def _opened(path: Path, what: str, use: Callable[[PIL.Image.Image], T]) -> T:
    from PIL import Image, UnidentifiedImageError

    check_regular(path, what)
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                claim = f"{width}x{height}; at most {MAX_PIXELS:,} pixels are read"
                raise DataError(f"{what}: {path} claims to be too large to be safe ({claim})")
            return use(image)
    except _UnknownRangeError as error:
        raise DataError(f"{what}: {path} has {error}") from error
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{what}: {path} is not an image that can be read{name_content(path)}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{what}: {path} claims to be too large to be safe ({error})") from error
    except Exception as error:  # decoders raise many types for broken bytes
        raise DataError(f"{what}: {path} is truncated or broken ({error or type(error).__name__})") from error


def _header(image: PIL.Image.Image) -> Header:
    # Pillow decodes a whole PNG to look for EXIF data after its pixels, so only EXIF data before them is
    # used. It applies the orientation of a TIFF file itself.
    known = "exif" in image.info and image.format != "TIFF"
    orientation = image.getexif().get(_ORIENTATION, 1) if known else 1
    return Header(
        size=image.size, mode=image.mode, orientation=orientation if orientation in range(1, 9) else 1
    )


def _in_colour(image: PIL.Image.Image) -> PIL.Image.Image:
    image = _in_8_bits(image)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()
    return image


def _in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image with 8 bits per channel.

    Pillow's own conversion clips larger values instead of scaling.
    """
    from PIL import Image

    image.info.pop("transparency", None)  # otherwise Pillow warns that it is dropped
    mode = image.mode
    # Floats: 1.0 is white.
    if mode == "F":
        levels = np.asarray(image)
        if not (levels >= 0).all() or not (levels <= 1).all():  # NaN fails both
            raise _UnknownRangeError(
                f"float pixels from {levels.min():g} to {levels.max():g}; expected 0 to 1, convert the "
                "file to 8 bits"
            )
        return Image.fromarray(np.rint(levels * 255).astype(np.uint8))
    # 16 bits: the largest value is white.
    if mode.startswith("I;16") or (mode == "I" and image.format in {"PNG", "PPM"}):
        white = 2 ** _bits(image) - 1
        levels = np.asarray(image).astype(np.int64)
        return Image.fromarray(((levels * 255 + white // 2) // white).clip(0, 255).astype(np.uint8))
    if mode == "I":
        raise _UnknownRangeError(
            "32-bit gray pixels, whose white is unknown; expected 8 or 16 bits. Convert the file"
        )
    return image


def _bits(image: PIL.Image.Image) -> int:
    """Return the bits of a gray value: those that a TIFF file states, else 16."""
    stored = getattr(image, "tag_v2", {}).get(258, (16,))
    return int(stored[0]) if 8 < int(stored[0]) <= 16 else 16
