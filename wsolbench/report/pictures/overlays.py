"""Pictures of single images: the map blended over the image, with ground-truth and predicted boxes.

Arrays are uint8 RGB in the evaluation frame. Ground-truth boxes are solid green lines on black, predicted
boxes dashed red lines on white. So they are visible on any background, can be distinguished without colour,
and are both visible where they coincide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import frame_size
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Boxes, Sample

Pixels = UInt8[np.ndarray, "h w 3"]

TRUE_COLOR = (0, 200, 83)
PREDICTED_COLOR = (230, 30, 50)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
_COLORMAP = "inferno"
_DOTS_PER_INCH = 100
_PALETTE = 256
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
_BLOCK = 0.16
"""Inches of 16 pixels, a block of a subsampled JPEG. Panels that begin with a block need fewer bytes."""


@dataclass(frozen=True, kw_only=True)
class OverlayItem:
    """One image of a sheet: the picture, the picture with map and boxes, and lines of text below."""

    image: Pixels
    overlay: Pixels
    caption: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture of a grid, with a name (bold) and further lines of text below."""

    pixels: Pixels
    name: str = ""
    caption: tuple[str, ...] = ()

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Text and font weight of each line below the picture."""
        return [(self.name, "bold")] * bool(self.name) + [(line, "normal") for line in self.caption]


def frame_image(sample: Sample, protocol: EvalProtocol) -> UInt8[np.ndarray, "fh fw 3"]:
    """Return the pixels of a sample in the evaluation frame: resized, and cropped for a centre crop."""
    import cv2

    image = sample.image()
    width, height = frame_size(sample.size, protocol)
    shrinks = image.shape[1] * image.shape[0] > width * height
    return _framed(image, sample, protocol, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def gray(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image in gray, so that all colours of an overlay on it are the map's."""
    levels = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # luma of ITU-R BT.601
    return np.asarray(np.repeat(levels[..., None], 3, axis=2))


def frame_mask(sample: Sample, protocol: EvalProtocol) -> Bool[np.ndarray, "fh fw"] | None:
    """Return the ground-truth mask of a sample in the evaluation frame, or None if it has none."""
    import cv2

    mask = sample.mask()
    return (
        None
        if mask is None
        else _framed(mask.astype(np.uint8), sample, protocol, cv2.INTER_NEAREST).astype(bool)
    )


def _framed(
    pixels: UInt8[np.ndarray, "..."], sample: Sample, protocol: EvalProtocol, interpolation: int
) -> UInt8[np.ndarray, "..."]:
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
    line_width: float = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Blend the map, in colours from black (0) to yellow (1), over the image, and draw boxes on top.

    Args:
        image: pixels in the frame.
        unit_map: map in [0, 1], of the size of the image.
        true_boxes: ground-truth boxes (R, 4), xyxy in pixels of the frame, ends exclusive.
        predicted_boxes: predicted boxes (M, 4) in the same form. Boxes are clipped; boxes without area are
            not drawn.
        true_mask: ground-truth region, outlined like boxes.
        predicted_mask: predicted region, outlined like boxes.
        strength: share of the map's colours in the blend, 0 to 1.
        line_width: width of boxes and outlines, in 112ths of the shorter side.

    Raises `DataError` if map or mask have another size than the image.
    """
    import matplotlib

    # Check the sizes.
    for what, array in (
        ("score map", unit_map),
        ("true mask", true_mask),
        ("predicted mask", predicted_mask),
    ):
        if array is not None and array.shape != image.shape[:2]:
            raise DataError(
                f"{what} has shape {array.shape}; expected that of the image, {image.shape[:2]}. Bring both "
                "into the evaluation frame first"
            )
    # Blend.
    colors = matplotlib.colormaps[_COLORMAP](np.clip(np.asarray(unit_map, dtype=np.float64), 0, 1))[
        ..., :3
    ]  # (h, w, 3)
    canvas = np.rint((1 - strength) * image + strength * 255 * colors).astype(np.uint8)
    width = _line_width(image, line_width)
    dash = max(4, 5 * width)
    # Draw masks, then boxes.
    if true_mask is not None:
        _paint(canvas, _rim(true_mask, width), TRUE_COLOR, BLACK)
    if predicted_mask is not None:
        stripes = np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])) % (2 * dash) < dash
        _paint(canvas, _rim(predicted_mask, width) & stripes, PREDICTED_COLOR, WHITE)
    for box in true_boxes:
        _paint(canvas, _outline(box, image.shape[:2], width), TRUE_COLOR, BLACK)
    for box in predicted_boxes:
        _paint(canvas, _outline(box, image.shape[:2], width, dash=dash), PREDICTED_COLOR, WHITE)
    return canvas


def _line_width(image: Pixels, relative: float = 1.0) -> int:
    return max(1, round(relative * int(min(image.shape[:2])) / 112))


def _outline(
    box: Num[np.ndarray, "4"], shape: tuple[int, int], width: int, dash: int | None = None
) -> Bool[np.ndarray, "h w"]:
    """Return the pixels of a box's outline, `width` wide and inside of the box.

    Dashes and gaps start at the box's top left corner.
    """
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


def _paint(
    canvas: Pixels, line: Bool[np.ndarray, "h w"], color: tuple[int, int, int], casing: tuple[int, int, int]
) -> None:
    """Colour the pixels of `line`, and the pixels around them with the colour of the casing."""
    import cv2

    around = cv2.dilate(line.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~line
    canvas[around] = casing
    canvas[line] = color


def mark_point(image: UInt8[np.ndarray, "h w 3"], point: tuple[float, float]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with a red cross on white, whose middle is the pixel of `point`, (x, y)."""
    canvas = np.array(image)
    column, row = int(point[0]), int(point[1])
    rows, columns = (
        np.abs(np.arange(image.shape[0]) - row)[:, None],
        np.abs(np.arange(image.shape[1]) - column)[None],
    )
    half, reach = _line_width(image) // 2, 5 * _line_width(image)
    _paint(
        canvas,
        ((rows <= half) & (columns <= reach)) | ((columns <= half) & (rows <= reach)),
        PREDICTED_COLOR,
        WHITE,
    )
    return canvas


def draw_box(
    canvas: Pixels, box: Num[np.ndarray, "4"], color: tuple[int, int, int], line_width: float = 1.0
) -> None:
    """Draw a box (xyxy, pixels of the canvas) in place, on white. `line_width` is as in `overlay`."""
    _paint(canvas, _outline(box, canvas.shape[:2], _line_width(canvas, line_width)), color, WHITE)


def draw_line(
    canvas: Pixels,
    start: Num[np.ndarray, "2"],
    end: Num[np.ndarray, "2"],
    color: tuple[int, int, int],
    line_width: float = 1.0,
) -> None:
    """Draw a line between two points (x, y) in place, on white."""
    import cv2

    ends = [tuple(int(value) for value in point) for point in (start, end)]
    drawn = cv2.line(
        np.zeros(canvas.shape[:2], np.uint8), ends[0], ends[1], 1, _line_width(canvas, line_width)
    )
    _paint(canvas, drawn.astype(bool), color, WHITE)


def draw_disc(
    canvas: Pixels, centre: Num[np.ndarray, "2"], color: tuple[int, int, int], line_width: float = 1.0
) -> None:
    """Draw a disc with a diameter of 3.5 line widths around a point (x, y) in place, on black."""
    rows, columns = np.arange(canvas.shape[0])[:, None] + 0.5, np.arange(canvas.shape[1])[None] + 0.5
    near = np.hypot(columns - centre[0], rows - centre[1]) <= 1.75 * _line_width(canvas, line_width)
    _paint(canvas, near, color, BLACK)


def overlay_sheet(items: Sequence[OverlayItem], path: Path, title: str, *, columns: int = 3) -> None:
    """Write pairs of image and overlay, `columns` per row, with captions, a legend and at most 256 colours.

    Panels have 200 pixels, so nine images make about 1310 x 950. Raises as `panel_grid`.
    """
    columns = min(columns, max(len(items), 1))
    pairs = [
        (Panel(pixels=item.image, name=item.caption[0], caption=item.caption[1:]), Panel(pixels=item.overlay))
        for item in items
    ]
    rows = [
        [panel for pair in pairs[start : start + columns] for panel in pair]
        for start in range(0, len(pairs), columns)
    ]
    panel_grid(rows, path, title, colors=_PALETTE)


def panel_grid(
    rows: Sequence[Sequence[Panel]],
    path: Path,
    title: str,
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    side: float = 2.0,
    boxes: bool = True,
    map_labels: tuple[str, str, str] | None = ("map 0", "map 0.5", "map 1"),
    colors: int | None = None,
    max_bytes: int | None = None,
) -> None:
    """Write a grid of square panels with a legend.

    Args:
        rows: panels of each row. A caption extends below the panels to its right that have none.
        path: output file, see `save_figure`, as for `colors` and `max_bytes`.
        title: text above the grid. Its first line is the heading.
        row_names: names left of each row, written upwards.
        column_names: names above the first row.
        side: side of a panel in inches of 100 pixels.
        boxes: whether the legend explains ground-truth and predicted boxes.
        map_labels: labels of the lowest, the middle and the highest colour in the legend. None: the panels
            have no maps and no predictions, and the legend explains ground truth only.

    Raises `DataError` without panels, and `UsageError` if the file cannot be written.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise DataError(f"no image to show in {path}; expected at least one")
    # Lengths of the layout.
    gap, foot, line = _BLOCK, 0.45, 0.155  # inches, as all lengths here
    names = _in_blocks(line * max(name.count("\n") + 1 for name in row_names)) if row_names else 0.0
    head = _in_blocks(0.32 + 0.2 * title.count("\n") + (0.22 if column_names else 0.0))
    below = [_in_blocks(line * max(len(panel.lines) for panel in row) + 0.08) for row in rows]
    inner = max(map(len, rows)) * (side + gap) - gap
    width, height = max(names + inner + 2 * gap, 6.0), head + len(rows) * side + sum(below) + foot
    figure: Any = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    left = _in_blocks((width - names - inner) / 2 - 0.01) + names
    # Panels with their names and captions.
    for number, row in enumerate(rows):
        top = height - head - number * side - sum(below[:number])
        if row_names:
            x = left - names + 0.02
            _text(
                figure,
                x,
                top - side / 2,
                row_names[number],
                side,
                size=8,
                rotation=90,
                va="center",
                ma="center",
                linespacing=1.3,
            )
        for column, panel in enumerate(row):
            x = left + column * (side + gap)
            axes = figure.add_axes((x / width, (top - side) / height, side / width, side / height))
            axes.imshow(
                panel.pixels, interpolation="lanczos" if min(panel.pixels.shape[:2]) > 1 else "nearest"
            )
            axes.set_axis_off()
            if number == 0 and column_names:
                _text(figure, x, top + 0.06, column_names[column], side, size=9, va="baseline")
            free = (
                next((after for after in range(column + 1, len(row)) if row[after].lines), len(row)) - column
            )
            for place, (text, weight) in enumerate(panel.lines):
                _text(
                    figure,
                    x,
                    top - side - 0.05 - line * place,
                    text,
                    free * (side + gap) - gap,
                    size=8,
                    weight=weight,
                )
    # Title and legend.
    for number, text in enumerate(title.splitlines()):
        style = {"size": 9} if number else {"size": 11, "weight": "bold"}
        _text(figure, left - names, height - 0.08 - 0.2 * number, text, names + inner, **style)
    _legend(figure, map_labels, boxes=boxes)
    save_figure(figure, path, colors=colors, max_bytes=max_bytes)


def _in_blocks(inches: float) -> float:
    return math.ceil(round(inches / _BLOCK, 6)) * _BLOCK


def _text(figure: Any, x: float, y: float, text: str, room: float, *, va: str = "top", **style: Any) -> None:
    """Draw text from (x, y) to the right (rotated: upwards).

    Lines are shortened to fit into `room`, in inches.
    """
    width, height = figure.get_size_inches()
    lines = text.split("\n")
    # parse_math is off, because an id may contain a dollar sign.
    drawn = figure.text(x / width, y / height, text, va=va, parse_math=False, **style)
    while max(map(len, lines)) > 1:
        extent = drawn.get_window_extent()
        if (extent.height if "rotation" in style else extent.width) <= room * figure.dpi:
            break
        longest = max(map(len, lines))
        lines = [shorten(each, min(len(each), longest - 1)) for each in lines]
        drawn.set_text("\n".join(lines))


def _legend(figure: Any, map_labels: tuple[str, str, str] | None, *, boxes: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [
        Line2D([], [], color=_unit(TRUE_COLOR), linewidth=2.5, label="true"),
        Line2D([], [], color=_unit(PREDICTED_COLOR), linewidth=2.5, linestyle=(0, (2, 1)), label="predicted"),
    ]
    colors = [
        Patch(facecolor=_map_color(value), edgecolor="black", linewidth=0.5, label=label)
        for value, label in zip((0.0, 0.5, 1.0), map_labels or (), strict=map_labels is not None)
    ]
    handles = [*(lines[: 1 if map_labels is None else 2] if boxes else []), *colors]
    if not handles:
        return
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=9, frameon=False, borderaxespad=0.2
    )


def shorten(text: str, length: int) -> str:
    """Return `text` in one line of at most `length` characters. One character replaces the middle.

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


def save_figure(figure: Any, path: Path, *, colors: int | None = None, max_bytes: int | None = None) -> None:
    """Write a matplotlib figure atomically, without date or version, as `.png` or `.jpg`.

    A PNG has a palette of `colors` colours, if given. A JPEG gets the best of several qualities with at most
    `max_bytes`, or the lowest quality if none is small enough. Raises `UsageError` for another suffix, and if
    the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from wsolbench.system.files import atomic_path

    check_picture_path(path)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    with atomic_path(path) as temporary:
        if path.suffix.lower() != ".png":
            temporary.write_bytes(_jpeg(pixels, max_bytes))
            return
        picture = Image.fromarray(pixels)
        if colors is not None:
            picture = picture.quantize(palette=picture.quantize(colors), dither=Image.Dither.FLOYDSTEINBERG)
        picture.save(temporary, format="PNG", optimize=True)


def _jpeg(pixels: Pixels, max_bytes: int | None) -> bytes:
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
    """Raise `UsageError` unless the name has the suffix of a PNG or JPEG file."""
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise UsageError(f"picture {path} has another suffix; expected .png, .jpg or .jpeg")


def drawable(boxes: Boxes, end: Literal["exclusive", "inclusive"]) -> Float[np.ndarray, "s 4"]:
    """Convert a protocol's boxes to exclusive ends, for drawing. Boxes without area are dropped."""
    shown = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    has_area = (shown[:, 2:] > shown[:, :2]).all(axis=1)
    if end == "inclusive":
        shown[:, 2:] += 1
    return np.asarray(shown[has_area])
