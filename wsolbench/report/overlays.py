"""Pictures of single images: the map blended over the image, with true and predicted boxes.

Arrays are uint8 RGB in the evaluation frame. True boxes are solid green lines on black, predicted ones dashed red lines on
white, so that they are seen on any background, told apart without colour, and both seen where they coincide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from wsolbench.exceptions import DataError
from wsolbench.maps import frame_size
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Boxes, Sample

Pixels = UInt8[np.ndarray, "h w 3"]

TRUE_COLOR = (0, 200, 83)
PREDICTED_COLOR = (230, 30, 50)
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_COLORMAP = "inferno"
_DOTS_PER_INCH = 100
_PALETTE = 256


@dataclass(frozen=True, kw_only=True)
class OverlayItem:
    """One image of a sheet: the picture, the picture with map and boxes, and lines of text below."""

    image: Pixels
    overlay: Pixels
    caption: tuple[str, ...]


def frame_image(sample: Sample, protocol: EvalProtocol) -> UInt8[np.ndarray, "fh fw 3"]:
    """The pixels of a sample in the evaluation frame: resized, and for the centre crop cropped."""
    import cv2

    image = sample.image()
    width, height = frame_size(sample.size, protocol)
    shrinks = image.shape[1] * image.shape[0] > width * height
    return _framed(image, sample, protocol, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def frame_mask(sample: Sample, protocol: EvalProtocol) -> Bool[np.ndarray, "fh fw"] | None:
    """The true mask of a sample in the evaluation frame; None where it has none."""
    import cv2

    mask = sample.mask()
    return None if mask is None else _framed(mask.astype(np.uint8), sample, protocol, cv2.INTER_NEAREST).astype(bool)


def _framed(pixels: UInt8[np.ndarray, ...], sample: Sample, protocol: EvalProtocol, interpolation: int) -> UInt8[np.ndarray, ...]:
    import cv2

    width, height = frame_size(sample.size, protocol)
    is_crop = protocol.frame == "center_crop"
    target = (protocol.resize_size, protocol.resize_size) if is_crop else (width, height)
    if (pixels.shape[1], pixels.shape[0]) != target:
        pixels = cv2.resize(pixels, target, interpolation=interpolation)
    edge = (protocol.resize_size - protocol.frame_size) // 2 if is_crop else 0
    return np.ascontiguousarray(pixels[edge : edge + height, edge : edge + width])


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    unit_map: Float[np.ndarray, "map_h map_w"],
    true_boxes: Boxes,
    predicted_boxes: Float[np.ndarray, "m 4"],
    *,
    true_mask: Bool[np.ndarray, "true_mask_h true_mask_w"] | None = None,
    predicted_mask: Bool[np.ndarray, "predicted_mask_h predicted_mask_w"] | None = None,
    strength: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """The map, in colours from black (0) to yellow (1), blended over the image, with boxes drawn on top.

    Args:
        image: pixels in the frame.
        unit_map: map in [0, 1], of the size of the image.
        true_boxes, predicted_boxes: (R, 4), (M, 4) xyxy in pixels of the frame, ends exclusive; parts outside are cut off,
            boxes without area are not drawn.
        true_mask, predicted_mask: regions, outlined like boxes.
        strength: share of the map's colours in the blend, 0 to 1.

    Raises `DataError` when map or mask have another size than the image.
    """
    import matplotlib

    for what, array in (("score map", unit_map), ("true mask", true_mask), ("predicted mask", predicted_mask)):
        if array is not None and array.shape != image.shape[:2]:
            raise DataError(f"{what} has shape {array.shape}, the image {image.shape[:2]}; bring both into the evaluation frame first")
    colors = matplotlib.colormaps[_COLORMAP](np.clip(np.asarray(unit_map, dtype=np.float64), 0, 1))[..., :3]  # (h, w, 3)
    canvas = np.rint((1 - strength) * image + strength * 255 * colors).astype(np.uint8)
    width = max(1, round(min(image.shape[:2]) / 112))
    dash = max(4, 5 * width)
    if true_mask is not None:
        _paint(canvas, _rim(true_mask, width), TRUE_COLOR, _BLACK)
    if predicted_mask is not None:
        stripes = np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])) % (2 * dash) < dash
        _paint(canvas, _rim(predicted_mask, width) & stripes, PREDICTED_COLOR, _WHITE)
    for box in true_boxes:
        _paint(canvas, _outline(box, image.shape[:2], width), TRUE_COLOR, _BLACK)
    for box in predicted_boxes:
        _paint(canvas, _outline(box, image.shape[:2], width, dash=dash), PREDICTED_COLOR, _WHITE)
    return canvas


def _outline(box: Num[np.ndarray, 4], shape: tuple[int, int], width: int, dash: int | None = None) -> Bool[np.ndarray, "h w"]:
    """Pixels of a box's outline, `width` wide and inside of the box; dashes and gaps start at the box's top left corner."""
    height, breadth = shape
    left, top, right, bottom = (round(float(value)) for value in box)
    rows, columns = np.arange(height)[:, None], np.arange(breadth)[None]
    left, right, top, bottom = max(left, 0), min(right, breadth), max(top, 0), min(bottom, height)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    at_side = (columns < left + width) | (columns >= right - width)
    at_end = (rows < top + width) | (rows >= bottom - width)
    if dash is None:
        return np.asarray(inside & (at_side | at_end))
    along_row = (columns - left) % (2 * dash) < dash
    along_column = (rows - top) % (2 * dash) < dash
    return np.asarray(inside & ((at_end & along_row) | (at_side & along_column)))


def _rim(mask: Bool[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    import cv2

    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    eroded = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(mask & (eroded == 0))


def _paint(canvas: Pixels, line: Bool[np.ndarray, "h w"], color: tuple[int, int, int], casing: tuple[int, int, int]) -> None:
    """Colour the pixels of `line`, and those next to them with the colour of the casing."""
    import cv2

    around = cv2.dilate(line.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~line
    canvas[around] = casing
    canvas[line] = color


def overlay_sheet(items: Sequence[OverlayItem], path: Path, title: str, *, columns: int = 3) -> None:
    """Write a PNG with a grid of image and overlay pairs, captions below them and a legend; at most 256 colours.

    The first line of `title` is the heading. Panels have 200 pixels, so nine images make about 1270 x 920.
    Raises `DataError` without items and `UsageError` when the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not items:
        raise DataError(f"no image to show in {path}")
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    lines = max(len(item.caption) for item in items)
    panel, gap, edge, text = 2.0, 0.08, 0.12, 0.155 * lines + 0.12  # inches
    head, foot = 0.24 + 0.2 * title.count("\n") + 0.08, 0.42
    width, height = max(columns * (2 * panel + gap + edge) + edge, 6.0), head + rows * (panel + text) + foot
    figure: Any = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    left = (width - columns * (2 * panel + gap + edge) + edge) / 2
    for index, item in enumerate(items):
        x = left + (index % columns) * (2 * panel + gap + edge)
        y = height - head - (index // columns) * (panel + text) - panel
        for offset, pixels in ((0.0, item.image), (panel + gap, item.overlay)):
            axes = figure.add_axes((float((x + offset) / width), float(y / height), panel / width, panel / height))
            axes.imshow(pixels, interpolation="lanczos" if min(pixels.shape[:2]) > 1 else "nearest")
            axes.set_axis_off()
        for number, caption in enumerate(item.caption):
            place = (x / width, (y - 0.05 - 0.155 * number) / height)
            _text(figure, place, caption, (2 * panel + gap) / width, size=8, weight="bold" if number == 0 else "normal")
    for number, line in enumerate(title.splitlines()):
        place = (left / width, 1 - (0.08 + 0.2 * number) / height)
        _text(figure, place, line, 1 - 2 * left / width, size=9 if number else 11, weight="normal" if number else "bold")
    figure.legend(
        handles=[
            Line2D([], [], color=_unit(TRUE_COLOR), linewidth=2.5, label="true"),
            Line2D([], [], color=_unit(PREDICTED_COLOR), linewidth=2.5, linestyle=(0, (2, 1)), label="predicted"),
            *(Patch(facecolor=_map_color(value), edgecolor="black", linewidth=0.5, label=f"map {value:g}") for value in (0.0, 0.5, 1.0)),
        ],
        loc="lower center",
        ncols=5,
        fontsize=9,
        frameon=False,
        borderaxespad=0.2,
    )
    save_figure(figure, path, colors=_PALETTE)


def _text(figure: Any, place: tuple[float, float], text: str, room: float, **style: Any) -> None:
    """Text from `place` to the right, shortened to fit into `room`; both in fractions of the figure."""
    drawn = figure.text(*place, text, va="top", parse_math=False, **style)  # an id may hold a dollar sign
    length = len(text)
    while length > 1 and drawn.get_window_extent().width > room * figure.bbox.width:
        length -= 1
        drawn.set_text(shorten(text, length))


def shorten(text: str, length: int) -> str:
    """`text` in one line of at most `length` characters; what is left out of the middle becomes one character.

    >>> shorten("001.Black_footed_Albatross/0001_796111.jpg", 20)
    '001.Black_…96111.jpg'
    """
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[len(text) - half :]}"


def _map_color(value: float) -> Any:
    import matplotlib

    return matplotlib.colormaps[_COLORMAP](value)


def _unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255


def save_figure(figure: Any, path: Path, *, colors: int | None = None) -> None:
    """Write a matplotlib figure as PNG, atomically and without date or version; with a palette of that many colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from wsolbench.files import atomic_path

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    with atomic_path(path) as temporary:
        if colors is not None:
            picture = picture.quantize(palette=picture.quantize(colors), dither=Image.Dither.FLOYDSTEINBERG)
        picture.save(temporary, format="PNG", optimize=True)


def drawable(boxes: Boxes, end: Literal["exclusive", "inclusive"]) -> Float[np.ndarray, "s 4"]:
    """Boxes in the numbers of a protocol -> ends exclusive, for drawing; those without area are left out."""
    shown = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    has_area = (shown[:, 2:] > shown[:, :2]).all(axis=1)
    if end == "inclusive":
        shown[:, 2:] += 1
    return np.asarray(shown[has_area])
