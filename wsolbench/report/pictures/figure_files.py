"""Write figures as PNG, JPEG or PDF. The same figure always gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from wsolbench.exceptions import UsageError

FORMATS = ("png", "pdf")
"""Formats of the pictures of a run. A PNG has pixels; a PDF has lines and text that can be scaled."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf")
_QUALITIES = (
    (90, 444),
    (82, 444),
    (74, 444),
    (74, 420),
    (68, 420),
    (62, 420),
    (56, 420),
    (50, 420),
    (44, 420),
)
"""Quality and chroma subsampling (444: none, 420: by 2 x 2 pixels) of a JPEG, the best first."""


def read_formats(text: str) -> tuple[str, ...]:
    """Return the formats of a list such as "png,pdf". Raises `UsageError` for an unknown or empty list.

    >>> read_formats("pdf, png")
    ('pdf', 'png')
    """
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    if not names or not set(names) <= set(FORMATS):
        raise UsageError(f"picture format {text!r}; expected {' or '.join(FORMATS)}, or both: png,pdf")
    return names


def save_figure(figure: Any, path: Path, *, colors: int | None = None, max_bytes: int | None = None) -> None:
    """Write a matplotlib figure atomically, without date or version, as `.png`, `.jpg` or `.pdf`.

    A PNG has true colours, or a palette of `colors` colours if given. A JPEG gets the best of several
    qualities with at most `max_bytes`, or the lowest quality if none is small enough. A PDF has its fonts
    embedded, lines and text as vectors, and images with their own pixels. Raises `UsageError` for another
    suffix, and if the file cannot be written.
    """
    from wsolbench.system.files import atomic_path

    check_picture_path(path)
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        with atomic_path(path) as temporary:
            _write_pdf(figure, temporary)
        return
    pixels = _draw(figure)
    with atomic_path(path) as temporary:
        if suffix == ".png":
            _write_png(pixels, temporary, float(figure.dpi), colors)
        else:
            temporary.write_bytes(_jpeg(pixels, max_bytes))


def png_bytes(figure: Any, *, colors: int | None = None) -> bytes:
    """Return a matplotlib figure as the content of a PNG file; see `save_figure`."""
    stream = io.BytesIO()
    _write_png(_draw(figure), stream, float(figure.dpi), colors)
    return stream.getvalue()


def save_figures(figure: Any, paths: Path | Sequence[Path], **options: Any) -> None:
    """Write a figure to one file or to several, for instance one of each format. See `save_figure`."""
    for path in as_paths(paths):
        save_figure(figure, path, **options)


def as_paths(paths: Path | Sequence[Path]) -> list[Path]:
    """Return the paths as a list. Raises `UsageError` for one with an unknown suffix."""
    found = [paths] if isinstance(paths, Path) else list(paths)
    for path in found:
        check_picture_path(path)
    return found


def _draw(figure: Any) -> UInt8[np.ndarray, "h w 3"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def _write_png(
    pixels: UInt8[np.ndarray, "h w 3"], path: Path | io.BytesIO, dpi: float, colors: int | None
) -> None:
    from PIL import Image

    picture = Image.fromarray(pixels)
    if colors is not None:
        picture = picture.quantize(palette=picture.quantize(colors), dither=Image.Dither.FLOYDSTEINBERG)
        # The mean of near-white pixels is not white. The background gets its own colour back.
        values, place = list(picture.getpalette() or ()), 3 * int(np.asarray(picture)[0, 0])
        values[place : place + 3] = pixels[0, 0].tolist()
        picture.putpalette(values)
    picture.save(path, format="PNG", optimize=colors is not None, dpi=(dpi, dpi))


def _write_pdf(figure: Any, path: Path) -> None:
    import matplotlib
    from matplotlib.image import AxesImage

    images: list[Any] = figure.findobj(AxesImage)
    interpolations = [image.get_interpolation() for image in images]
    try:
        for image in images:  # keep the pixels of an image, instead of those of a screen
            image.set_interpolation("none")
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType, which journals ask for
            nothing = dict.fromkeys(("CreationDate", "Creator", "Producer"))
            figure.savefig(path, format="pdf", metadata=nothing)
    finally:
        for image, interpolation in zip(images, interpolations, strict=True):
            image.set_interpolation(interpolation)


def _jpeg(pixels: UInt8[np.ndarray, "h w 3"], max_bytes: int | None) -> bytes:
    import cv2

    for quality, subsampling in _QUALITIES:
        factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{subsampling}")
        options = {"QUALITY": quality, "SAMPLING_FACTOR": factor, "OPTIMIZE": 1, "PROGRESSIVE": 1}
        flags = [
            number
            for name, value in options.items()
            for number in (getattr(cv2, f"IMWRITE_JPEG_{name}"), value)
        ]
        encoded: bytes = cv2.imencode(".jpg", pixels[..., ::-1], flags)[1].tobytes()
        if max_bytes is None or len(encoded) <= max_bytes:
            break
    return encoded


def check_picture_path(path: Path) -> None:
    """Raise `UsageError` unless the name has the suffix of a PNG, JPEG or PDF file."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"picture {path} has another suffix; expected {', '.join(_SUFFIXES[:-1])} or .pdf")
