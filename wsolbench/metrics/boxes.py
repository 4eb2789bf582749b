"""Overlap of boxes: IoU, IoG (share of the ground-truth box) and IoB (share of the predicted box).

Boxes are float64 rows (x0, y0, x1, y1). With `plus_one`, widths are x1 - x0 + 1, because both ends are
pixels of the box. Without it, widths are x1 - x0. Integer boxes give exact areas and one division, so
results do not depend on the order of operations.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Num

from wsolbench.checks import check_boxes


def iou_matrix(
    a: Num[np.ndarray, "m 4"], b: Num[np.ndarray, "r 4"], *, plus_one: bool
) -> Float64[np.ndarray, "m r"]:
    """Intersection over union of each row of `a` (M, 4) with each row of `b` (R, 4): (M, R) in [0, 1].

    The IoU is 0 if neither box has an area. Raises `DataError` for boxes that are not (n, 4), not finite,
    or end before they start.

    >>> iou_matrix(np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 5], [20, 20, 30, 30]]), plus_one=False)
    array([[0.5, 0. ]])
    """
    return unchecked_iou(
        check_boxes(a, plus_one=plus_one), check_boxes(b, plus_one=plus_one), plus_one=plus_one
    )


def iog_matrix(
    predicted: Num[np.ndarray, "m 4"], truth: Num[np.ndarray, "r 4"], *, plus_one: bool
) -> Float64[np.ndarray, "m r"]:
    """Intersection over the area of the ground-truth box (IoG): (M, R) in [0, 1], 0 for a box without area.

    Raises `DataError` as `iou_matrix` does.

    >>> iog_matrix(np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 5], [5, 0, 15, 10]]), plus_one=False)
    array([[1. , 0.5]])
    """
    one = float(plus_one)
    a, b = check_boxes(predicted, plus_one=plus_one), check_boxes(truth, plus_one=plus_one)
    return _ratio(_intersections(a, b, one), _areas(b, one)[None, :])


def iob_matrix(
    predicted: Num[np.ndarray, "m 4"], truth: Num[np.ndarray, "r 4"], *, plus_one: bool
) -> Float64[np.ndarray, "m r"]:
    """Intersection over the area of the predicted box (IoB): (M, R) in [0, 1], 0 for a box without area.

    Raises `DataError` as `iou_matrix` does.

    >>> iob_matrix(np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 5], [5, 0, 15, 20]]), plus_one=False)
    array([[0.5, 0.5]])
    """
    one = float(plus_one)
    a, b = check_boxes(predicted, plus_one=plus_one), check_boxes(truth, plus_one=plus_one)
    return _ratio(_intersections(a, b, one), _areas(a, one)[:, None])


def unchecked_iou(
    a: Float64[np.ndarray, "m 4"], b: Float64[np.ndarray, "r 4"], *, plus_one: bool
) -> Float64[np.ndarray, "m r"]:
    """IoU as `iou_matrix`, without validation. Boxes must be valid float64; the sweep calls it in a loop."""
    one = float(plus_one)
    inter = _intersections(a, b, one)
    return _ratio(inter, _areas(a, one)[:, None] + _areas(b, one)[None, :] - inter)


def unchecked_overlaps(
    a: Float64[np.ndarray, "m 4"], b: Float64[np.ndarray, "r 4"], *, plus_one: bool
) -> tuple[Float64[np.ndarray, "m r"], Float64[np.ndarray, "m r"], Float64[np.ndarray, "m r"]]:
    """IoU, share of `b` (IoG) and share of `a` (IoB), without validation. Boxes must be valid float64."""
    one = float(plus_one)
    inter, area_a, area_b = _intersections(a, b, one), _areas(a, one)[:, None], _areas(b, one)[None, :]
    return _ratio(inter, area_a + area_b - inter), _ratio(inter, area_b), _ratio(inter, area_a)


def _intersections(
    a: Float64[np.ndarray, "m 4"], b: Float64[np.ndarray, "r 4"], one: float
) -> Float64[np.ndarray, "m r"]:
    start = np.maximum(a[:, None, :2], b[None, :, :2])  # (m, r, 2)
    end = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(end - start + one, 0.0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def _areas(boxes: Float64[np.ndarray, "n 4"], one: float) -> Float64[np.ndarray, " n"]:
    return np.asarray((boxes[:, 2] - boxes[:, 0] + one) * (boxes[:, 3] - boxes[:, 1] + one))


def _ratio(
    part: Float64[np.ndarray, "m r"], whole: Float64[np.ndarray, "#m #r"]
) -> Float64[np.ndarray, "m r"]:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
