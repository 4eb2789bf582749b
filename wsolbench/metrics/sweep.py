"""From a map in the evaluation frame to boxes, and to the best IoU at every threshold of the protocol.

A map and a grid of T thresholds become one integer picture `levels` and one integer `cuts[k]` for each threshold, so that
for every protocol the foreground at threshold k is exactly `levels > cuts[k]`. Thresholds with the same foreground share
their boxes and are worked out once: an 8-bit map has at most 256 foregrounds, however fine the grid.

OpenCV is imported with this module. Equal regions (`largest_by`): the first in OpenCV's contour order, or the first that a
row-wise scan meets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num, UInt

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.boxes import check_boxes, unchecked_iou
from wsolbench.metrics.component_tree import EIGHT, FOUR, best_of_components
from wsolbench.metrics.largest_component import BOX, CONTOUR, PIXELS, holes_by_level, largest_of_components, low_corners
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Boxes, UnitMap

_ALL_LEVELS = 255.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """One image at all T thresholds of a protocol.

    Attributes:
        best_iou: best IoU of any box of `protocol.components` with any true box, in [0, 1].
        single_boxes: the one box of `protocol.single_box`, in the numbers of the protocol (box end, clipping, empty box).
        single_iou: best IoU of that box with any true box.
    """

    best_iou: Float64[np.ndarray, " t"]
    single_boxes: Float64[np.ndarray, "t 4"]
    single_iou: Float64[np.ndarray, " t"]


def sweep(score_map: UnitMap, true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol) -> Sweep:
    """Both box rules of the protocol at every threshold, sharing the work of finding regions.

    `true_boxes` (R, 4), R >= 1, are given in the frame of the map and in the numbers of the protocol (`frame_boxes`).
    Raises `DataError` for a map that is no finite (H, W) array in [0, 1], and for missing or broken boxes.
    """
    truth = _truth(true_boxes, protocol)
    levels, cuts = quantize(score_map, protocol)
    distinct, index = _distinct(levels, cuts)
    single = _single_boxes(levels, distinct, protocol.single_box, protocol)
    single_iou = unchecked_iou(single, truth, plus_one=protocol.iou_plus_one).max(axis=1)
    best = single_iou if protocol.components == protocol.single_box else _best_ious(levels, distinct, truth, protocol)
    return Sweep(best_iou=best[index], single_boxes=single[index], single_iou=single_iou[index])


def best_iou_per_tau(score_map: UnitMap, true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol) -> Float64[np.ndarray, " t"]:
    """Best IoU of any predicted box (`protocol.components`) with any true box at each threshold, in [0, 1].

    Raises as `sweep`.

    >>> unit_map = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.4], [0.0, 0.0, 0.0]])
    >>> protocol = EvalProtocol(taus=(0.2, 0.5), box_end="inclusive", gt_end="inclusive")
    >>> best_iou_per_tau(unit_map, np.array([[1, 1, 1, 1]]), protocol)
    array([0.5, 1. ])
    """
    truth = _truth(true_boxes, protocol)
    levels, cuts = quantize(score_map, protocol)
    distinct, index = _distinct(levels, cuts)
    best: Float64[np.ndarray, " t"] = _best_ious(levels, distinct, truth, protocol)[index]
    return best


def single_box_per_tau(score_map: UnitMap, protocol: EvalProtocol) -> Float64[np.ndarray, "t 4"]:
    """The one box of `protocol.single_box` at each threshold. Raises `DataError` for a map that `quantize` refuses.

    >>> unit_map = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.4], [0.0, 0.0, 0.0]])
    >>> single_box_per_tau(unit_map, EvalProtocol(taus=(0.2, 0.5), box_end="inclusive"))
    array([[1., 1., 2., 1.],
           [1., 1., 1., 1.]])
    """
    levels, cuts = quantize(score_map, protocol)
    distinct, index = _distinct(levels, cuts)
    boxes: Float64[np.ndarray, "t 4"] = _single_boxes(levels, distinct, protocol.single_box, protocol)[index]
    return boxes


def boxes_at(score_map: UnitMap, tau: float, protocol: EvalProtocol) -> Boxes:
    """Predicted boxes (M, 4), M >= 1, of `protocol.components` at one threshold, which need not be in the grid.

    Boxes are in the numbers of the protocol; where nothing is foreground there is one, `protocol.empty_box`.
    Raises `UsageError` for `tau` outside of [0, 1] and `DataError` for a map that `quantize` refuses.

    >>> boxes_at(np.eye(4), 0.5, EvalProtocol(components="union", box_end="inclusive"))
    array([[0., 0., 3., 3.]])
    """
    if not 0.0 <= tau <= 1.0:
        raise UsageError(f"threshold tau={tau}; expected a number in [0, 1]")
    levels, cuts = _quantize(_checked(score_map), np.array([tau]), protocol)
    return _boxes_at_cut(levels, int(cuts[0]), protocol.components, protocol)


def quantize(score_map: UnitMap, protocol: EvalProtocol) -> tuple[UInt[np.ndarray, "h w"], Int[np.ndarray, " t"]]:
    """Integer picture and one cut for each threshold: the foreground at threshold k is `levels > cuts[k]`.

    `quantize="uint8"`: `levels` is 255 x map, the product in float64 and truncated, and the cut is `int(tau x basis)` (basis
    `max`, `percentile`) or `round(255 x tau)` (basis `unit`), one less when the foreground is `>=`; cuts may be -1.
    `quantize="none"`: `levels` counts the thresholds that a pixel passes, in float32, and the cuts are 0 .. T - 1.
    Both are non-decreasing in the threshold. Raises `DataError` for a map that is not a non-empty, finite (H, W) array of
    floats in [0, 1] or of uint8.

    >>> quantize(np.array([[0.0, 0.5, 0.8]]), EvalProtocol(taus=(0.0, 0.5)))
    (array([[  0, 127, 204]], dtype=uint8), array([  0, 102]))
    """
    return _quantize(_checked(score_map), np.array(protocol.taus), protocol)


def _quantize(
    values: Float[np.ndarray, "h w"], taus: Float64[np.ndarray, " t"], protocol: EvalProtocol
) -> tuple[UInt[np.ndarray, "h w"], Int[np.ndarray, " t"]]:
    if protocol.quantize == "none":
        side: Literal["left", "right"] = "left" if protocol.foreground == ">" else "right"  # thresholds < value, or <= value
        passed = np.searchsorted(taus.astype(np.float32), values.astype(np.float32), side=side)
        return passed.astype(np.min_scalar_type(len(taus))), np.arange(len(taus))
    levels = (values.astype(np.float64) * _ALL_LEVELS).astype(np.uint8)
    if protocol.threshold_basis == "unit":
        cuts = np.rint(taus * _ALL_LEVELS)
    elif protocol.threshold_basis == "max":
        cuts = np.trunc(taus * float(levels.max()))
    else:
        cuts = np.trunc(taus * float(np.percentile(levels, protocol.percentile)))
    return levels, cuts.astype(np.int64) - (protocol.foreground == ">=")


def _checked(score_map: UnitMap) -> Float[np.ndarray, "h w"]:
    values = np.asarray(score_map)
    if values.ndim != 2 or values.size == 0:
        raise DataError(
            f"score map has shape {values.shape}; expected a non-empty (height, width) array, one map of one class of one image"
        )
    if values.dtype == np.uint8:
        return values / _ALL_LEVELS
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"score map has dtype {values.dtype}; expected floats in [0, 1] or uint8")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(values)).sum())
        raise DataError(f"score map holds {bad} NaN or Inf of {values.size} values; expected finite numbers in [0, 1]")
    if low < 0.0 or high > 1.0:
        raise DataError(
            f"score map ranges from {low:g} to {high:g}; expected [0, 1]. Normalise raw maps with wsolbench.maps.to_frame first."
        )
    return values


def _truth(true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol) -> Float64[np.ndarray, "g 4"]:
    boxes = check_boxes(true_boxes, plus_one=protocol.iou_plus_one, what="true boxes")
    if len(boxes) == 0:
        raise DataError("there is no true box, so IoU is undefined; leave the image out of box metrics")
    return boxes[:1] if protocol.gt_boxes == "first" else boxes


def _distinct(levels: UInt[np.ndarray, "h w"], cuts: Int[np.ndarray, " t"]) -> tuple[Int[np.ndarray, " u"], Int[np.ndarray, " t"]]:
    """One cut for each different foreground, and for each threshold the index of its foreground among them."""
    present = np.flatnonzero(np.bincount(levels.ravel()))
    background = np.searchsorted(present, cuts, side="right")  # how many of the levels present are background
    _, first, index = np.unique(background, return_index=True, return_inverse=True)
    return cuts[first], index


def _best_ious(
    levels: UInt[np.ndarray, "h w"], cuts: Int[np.ndarray, " u"], truth: Float64[np.ndarray, "g 4"], protocol: EvalProtocol
) -> Float64[np.ndarray, " u"]:
    """Best IoU of any box of `protocol.components` at each cut."""
    if protocol.components != "all":
        boxes = _single_boxes(levels, cuts, protocol.components, protocol)
        return np.asarray(unchecked_iou(boxes, truth, plus_one=protocol.iou_plus_one).max(axis=1))
    top = int(levels.max())
    best = np.zeros(top + 1)
    one, end, clip = float(protocol.iou_plus_one), int(protocol.box_end == "exclusive"), protocol.clip_boxes
    best_of_components(levels, top, FOUR if protocol.connectivity == "4" else EIGHT, False, truth, one, end, clip, best)
    if protocol.connectivity == "contour":
        best_of_components(np.subtract(top, levels, dtype=levels.dtype), top, FOUR, True, truth, one, end, clip, best)
    empty = unchecked_iou(_empty_box(levels.shape, protocol), truth, plus_one=protocol.iou_plus_one).max()
    return np.asarray(np.where(cuts < top, best[np.minimum(cuts + 1, top)], empty))


def _single_boxes(
    levels: UInt[np.ndarray, "h w"], cuts: Int[np.ndarray, " u"], rule: str, protocol: EvalProtocol
) -> Float64[np.ndarray, "u 4"]:
    """The one box of a rule ("largest", "union") at each cut, in the numbers of the protocol."""
    top = int(levels.max())
    half_open = _union_boxes(levels, cuts) if rule == "union" else _largest_boxes(levels, top, protocol)[np.minimum(cuts + 1, top)]
    return np.where((cuts < top)[:, None], _written(half_open, levels.shape, protocol), _empty_box(levels.shape, protocol))


_MEASURES = {"pixel_count": PIXELS, "box_area": BOX, "contour_area": CONTOUR}


def _largest_boxes(levels: UInt[np.ndarray, "h w"], top: int, protocol: EvalProtocol) -> Int[np.ndarray, "l 4"]:
    """Half-open box of the largest region of {levels > t}, at row t + 1 for t = -1 .. top - 1."""
    boxes, undecided = np.empty((top + 1, 4), dtype=np.int32), np.zeros(top + 1, dtype=np.bool_)
    corners = np.zeros(levels.shape, dtype=np.uint8)
    holes = _NO_HOLES
    if protocol.connectivity == "contour":
        low_corners(levels, corners)
        holes = holes_by_level(np.subtract(top, levels, dtype=levels.dtype), top, corners, FOUR)
    tables = FOUR if protocol.connectivity == "4" else EIGHT
    largest_of_components(levels, top, tables, _MEASURES[protocol.largest_by], corners, holes, boxes, undecided)
    boxes[:, 2:] += 1
    for row in np.flatnonzero(undecided).tolist():  # equal areas: OpenCV's order decides
        regions, sizes = _regions(levels.astype(np.int64) > row - 1, protocol)
        boxes[row] = regions[int(sizes.argmax())]
    return boxes


_NO_HOLES = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32))


def _boxes_at_cut(levels: UInt[np.ndarray, "h w"], cut: int, rule: str, protocol: EvalProtocol) -> Boxes:
    """The boxes (M, 4) of a rule ("all", "largest", "union") at one cut, found by OpenCV."""
    if cut >= int(levels.max()):
        return _empty_box(levels.shape, protocol)
    if rule == "union":
        return _written(_union_boxes(levels, np.array([cut])), levels.shape, protocol)
    regions, sizes = _regions(levels.astype(np.int64) > cut, protocol)
    chosen = slice(None) if rule == "all" else slice(int(sizes.argmax()), int(sizes.argmax()) + 1)
    return _written(regions[chosen], levels.shape, protocol)


def _union_boxes(levels: UInt[np.ndarray, "h w"], cuts: Int[np.ndarray, " u"]) -> Int[np.ndarray, "u 4"]:
    """Half-open box around the whole foreground of each cut; meaningless where that is empty."""
    height, width = levels.shape
    columns = levels.max(axis=0) > cuts[:, None]  # (u, w): has the column any foreground
    rows = levels.max(axis=1) > cuts[:, None]  # (u, h)
    x0, x1 = columns.argmax(axis=1), width - columns[:, ::-1].argmax(axis=1)
    y0, y1 = rows.argmax(axis=1), height - rows[:, ::-1].argmax(axis=1)
    return np.stack([x0, y0, x1, y1], axis=1)


def _regions(foreground: Bool[np.ndarray, "h w"], protocol: EvalProtocol) -> tuple[Int[np.ndarray, "m 4"], Float64[np.ndarray, " m"]]:
    """Half-open box and size of each region of a foreground that is not empty, in the order that decides between equal sizes."""
    picture = foreground.view(np.uint8)
    if protocol.connectivity == "contour":
        contours, _ = cv2.findContours(picture, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        x, y, w, h = np.array([cv2.boundingRect(contour) for contour in contours]).T
        sizes = np.array([cv2.contourArea(contour) for contour in contours])
    else:
        # Wu's algorithm numbers components in row-wise scan order of their first pixel; OpenCV's block-based default does not.
        _, _, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(picture, int(protocol.connectivity), cv2.CV_32S, cv2.CCL_WU)
        x, y, w, h, pixels = stats[1:].T  # row 0 is the background
        sizes = (pixels if protocol.largest_by == "pixel_count" else w * h).astype(np.float64)
    return np.stack([x, y, x + w, y + h], axis=1), sizes


def _written(half_open: Int[np.ndarray, "n 4"], shape: tuple[int, ...], protocol: EvalProtocol) -> Boxes:
    """Boxes as the protocol writes them: its box end, and cut at (W - 1, H - 1) where it clips."""
    boxes = half_open.astype(np.float64)
    if protocol.box_end == "inclusive":
        boxes[:, 2:] -= 1
    if protocol.clip_boxes:
        height, width = shape
        boxes = np.minimum(boxes, [width - 1, height - 1, width - 1, height - 1])
    return boxes


def _empty_box(shape: tuple[int, ...], protocol: EvalProtocol) -> Boxes:
    if protocol.empty_box == "image":
        height, width = shape
        return _written(np.array([[0, 0, width, height]]), shape, protocol)
    return np.array([[0.0, 0.0, 1.0, 1.0]]) if protocol.empty_box == "unit" else np.zeros((1, 4))
