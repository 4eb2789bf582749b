"""Pictures of single images: the map blended over the image, with ground-truth and predicted boxes.

Arrays are uint8 RGB. Ground-truth boxes are solid green lines on black, predicted boxes dashed red lines on
white. So they are visible on any background, can be distinguished without colour, and are both visible where
they coincide. `scene` brings map and boxes of the evaluation frame to an image in its own shape.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from wsolbench.exceptions import DataError
from wsolbench.types import Boxes

Pixels = UInt8[np.ndarray, "h w 3"]

TRUE_COLOR = (0, 200, 83)
PREDICTED_COLOR = (230, 30, 50)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
COLORMAP = "inferno"
"""Colours of maps: perceptually even, from black to yellow, and also readable in grey."""
STRENGTH = 0.5
"""Share (alpha) of the map's colours in an overlay. The rest is the image's own colour."""


def gray(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image in gray, so that coloured lines on it stand out."""
    levels = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # luma of ITU-R BT.601
    return np.asarray(np.repeat(levels[..., None], 3, axis=2))


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    unit_map: Float[np.ndarray, "map_h map_w"],
    true_boxes: Boxes,
    predicted_boxes: Float[np.ndarray, "m 4"],
    *,
    true_mask: Bool[np.ndarray, "true_mask_h true_mask_w"] | None = None,
    predicted_mask: Bool[np.ndarray, "predicted_mask_h predicted_mask_w"] | None = None,
    strength: float = STRENGTH,
    line_width: float = 1.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Blend the map, in colours from black (0) to yellow (1), over the image, and draw boxes on top.

    Args:
        image: the pixels.
        unit_map: map in [0, 1], of the size of the image. Pixels with NaN keep the image's colour.
        true_boxes: ground-truth boxes (R, 4), xyxy in pixels of `image`, ends exclusive.
        predicted_boxes: predicted boxes (M, 4) in the same form. Boxes are clipped; boxes without area are
            not drawn.
        true_mask: ground-truth region, outlined like boxes.
        predicted_mask: predicted region, outlined like boxes.
        strength: share of the map's colours in the blend, 0 to 1.
        line_width: width of boxes and outlines, in 112ths of the shorter side.

    Raises `DataError` if map or mask have another size than the image.
    """
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
    canvas = blend(image, unit_map, strength)
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


def blend(
    image: UInt8[np.ndarray, "h w 3"], unit_map: Float[np.ndarray, "h w"], strength: float = STRENGTH
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image under the colours of a map in [0, 1]. Pixels with NaN keep the image's colour."""
    covered = ~np.isnan(unit_map)
    values = np.clip(np.asarray(unit_map, dtype=np.float64)[covered], 0, 1)
    canvas = np.array(image)
    colors = map_color(values)[:, :3]  # (n, 3)
    canvas[covered] = np.rint((1 - strength) * image[covered] + strength * 255 * colors)
    return canvas


def map_color(value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 4"]:
    """Return the colours (RGBA in [0, 1]) of values of a map in [0, 1]."""
    import matplotlib

    return np.asarray(matplotlib.colormaps[COLORMAP](value))


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


def drawable(boxes: Boxes, end: Literal["exclusive", "inclusive"]) -> Float[np.ndarray, "s 4"]:
    """Convert a protocol's boxes to exclusive ends, for drawing. Boxes without area are dropped."""
    shown = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    has_area = (shown[:, 2:] > shown[:, :2]).all(axis=1)
    if end == "inclusive":
        shown[:, 2:] += 1
    return np.asarray(shown[has_area])
