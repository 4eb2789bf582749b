"""Validation of boxes and sizes from outside, with the same rules and messages everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64, Num

from wsolbench.exceptions import DataError

FRACTIONS_FROM = 8
"""Smallest image side, in pixels, for which boxes inside the first pixel are taken for fractions."""


def check_boxes(
    boxes: Num[np.ndarray, "n 4"], *, plus_one: bool, what: str = "boxes"
) -> Float64[np.ndarray, "n 4"]:
    """Return `boxes` as a float64 (n, 4) array. `what` names them in errors.

    Raises `DataError` for another shape, for values that are not real numbers, for NaN or Inf, and for a box
    that ends before it starts (negative width or height). With `plus_one` the end is the last pixel of the
    box, so it may be one less than the start.
    """
    # Dtype and shape.
    try:
        values = np.asarray(boxes)
        real = values.dtype.kind in "iufb"
        result = values.astype(np.float64) if real else values
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise DataError(
            f"{what} are not an array ({error}); expected (n, 4), one row (x0, y0, x1, y1) for each box"
        ) from error
    if not real:
        raise DataError(
            f"{what} have dtype {values.dtype}; expected real numbers, one row (x0, y0, x1, y1) for each box"
        )
    if result.ndim != 2 or result.shape[1] != 4:
        raise DataError(
            f"{what} have shape {result.shape}; expected (n, 4), one row (x0, y0, x1, y1) for each box"
        )
    # Values: finite, and no end before its start.
    broken = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if len(broken):
        raise DataError(f"{what}: row {broken[0]} holds NaN or Inf; expected finite x0, y0, x1, y1")
    inverted = np.flatnonzero((result[:, 2:] - result[:, :2] + float(plus_one) < 0).any(axis=1))
    if len(inverted):
        row = inverted[0]
        raise DataError(
            f"{what}: row {row} is {result[row].tolist()}; expected x1 >= x0 and y1 >= y0 (is it x, y, "
            "width, height?)"
        )
    return result


def check_boxes_of_image(
    boxes: Num[np.ndarray, "n 4"], size: tuple[int, int], what: str = "boxes", *, unit: bool = True
) -> Float64[np.ndarray, "n 4"]:
    """Return `boxes` as a float64 (n, 4) array, checked against an image of `size` = (width, height).

    Boxes are continuous, in pixels of the image. No box at all is allowed. Raises `DataError` as
    `check_boxes` does, for a box outside the image and, with `unit`, for boxes that look like fractions of
    the image.
    """
    width, height = check_size(size)
    result = check_boxes(np.zeros((0, 4)) if np.size(boxes) == 0 else boxes, plus_one=False, what=what)
    if not len(result):
        return result
    outside = (result[:, 2:] < 0).any(axis=1) | (result[:, :2] > [width, height]).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(
            f"{what}: row {row} is {result[row].tolist()}, outside the image of {width} x {height}; "
            "expected x0, y0, x1, y1 in pixels of the image, and its size as (width, height)"
        )
    if unit and are_fractions(result, size):
        raise _fractions_error(what, result, size)
    return result


def are_fractions(boxes: Num[np.ndarray, "n 4"], size: tuple[int, int]) -> bool:
    """Whether boxes look like fractions of their image.

    True if all boxes lie inside the first pixel and some coordinate is not a whole number.
    """
    values = np.asarray(boxes, dtype=np.float64)
    return (
        values.size > 0
        and min(size) >= FRACTIONS_FROM
        and bool(values.max() <= 1)
        and bool((values != np.trunc(values)).any())
    )


def check_unit(boxes: Iterable[tuple[str, Num[np.ndarray, "n 4"], tuple[int, int]]]) -> None:
    """Raise `DataError` if the boxes of all images look like fractions.

    Items are (image id, boxes, size). Images without a box are skipped.
    """
    first = None
    for image_id, own, size in boxes:
        if len(own):
            if not are_fractions(own, size):
                return
            first = first or (image_id, own, size)
    if first is not None:
        raise _fractions_error(
            f"the ground-truth boxes of all images, {first[0]!r} for instance,", first[1], first[2]
        )


def _fractions_error(what: str, boxes: Num[np.ndarray, "n 4"], size: tuple[int, int]) -> DataError:
    return DataError(
        f"{what} look like fractions of the image: {np.asarray(boxes)[0].tolist()} in an image of "
        f"{size[0]} x {size[1]}; expected pixels. Multiply x by the width and y by the height."
    )


def check_size(size: Sequence[int], what: str = "image size") -> tuple[int, int]:
    """Return `size` as two ints (width, height). Raises `DataError` unless both are whole numbers >= 1."""
    try:
        width, height = (int(side) for side in size)
        whole = all(int(side) == side and side >= 1 for side in size)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what} {size!r}; expected (width, height), two whole numbers") from error
    if not whole:
        raise DataError(f"{what} {size!r}; expected (width, height), two whole numbers of at least 1")
    return width, height
