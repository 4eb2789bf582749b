"""From a map in the evaluation frame to boxes, and to the best IoU at every threshold of the protocol.

A map and a grid of T thresholds become one integer picture `levels` and one integer `cuts[k]` per
threshold. For every protocol, the foreground at threshold k is exactly `levels > cuts[k]`. Boxes are
computed once per level: an 8-bit map has at most 256 foregrounds, however fine the grid.

All thresholds are computed in one pass over the levels (`component_tree`, `largest_component`). OpenCV
finds the boxes of a single threshold (`boxes_at`). Among equal regions (`largest_by`), the first in
OpenCV's contour order or in a row-wise scan is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Num, UInt, UInt8

from wsolbench.checks import check_boxes
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.boxes import unchecked_iou
from wsolbench.metrics.component_tree import (
    EIGHT,
    FOUR,
    HOLES,
    best_of_components,
    best_of_holes,
    count_passed,
    framed,
    higher_neighbours,
)
from wsolbench.metrics.largest_component import BOX, CONTOUR, PIXELS, largest_of_components
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Boxes, UnitMap

_ALL_LEVELS = 255.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """Boxes and IoUs of one image at all T thresholds of a protocol.

    Attributes:
        best_iou: best IoU of any box of `protocol.components` with any ground-truth box, in [0, 1].
        single_boxes: the one box of `protocol.single_box`, in the protocol's convention (box end, clipping,
            empty box).
        single_iou: best IoU of that box with any ground-truth box.
    """

    best_iou: Float64[np.ndarray, " t"]
    single_boxes: Float64[np.ndarray, "t 4"]
    single_iou: Float64[np.ndarray, " t"]


def sweep(score_map: UnitMap, true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol) -> Sweep:
    """Apply both box rules of the protocol at every threshold; the regions are found only once.

    `true_boxes` (R, 4), R >= 1, are in the frame of the map and in the protocol's convention (`frame_boxes`).
    Raises `DataError` for a map that is not a finite (H, W) array in [0, 1], and for missing or invalid
    boxes.
    """
    truth = _truth(true_boxes, protocol)
    levels, cuts = quantize(score_map, protocol)
    regions = _Regions(levels, truth, protocol)
    single = regions.boxes(protocol.single_box)
    single_iou = regions.iou(single)
    best = single_iou if protocol.components == protocol.single_box else regions.best_iou(protocol.components)
    rows = regions.rows(cuts)
    return Sweep(best_iou=best[rows], single_boxes=single[rows], single_iou=single_iou[rows])


def best_iou_per_tau(
    score_map: UnitMap, true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol
) -> Float64[np.ndarray, " t"]:
    """Best IoU of any predicted box with any ground-truth box at each threshold, (T,) in [0, 1].

    Predicted boxes are those of `protocol.components`. Arguments and errors are those of `sweep`.

    >>> unit_map = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.4], [0.0, 0.0, 0.0]])
    >>> protocol = EvalProtocol(taus=(0.2, 0.5), box_end="inclusive", gt_end="inclusive")
    >>> best_iou_per_tau(unit_map, np.array([[1, 1, 1, 1]]), protocol)
    array([0.5, 1. ])
    """
    truth = _truth(true_boxes, protocol)
    levels, cuts = quantize(score_map, protocol)
    regions = _Regions(levels, truth, protocol)
    best: Float64[np.ndarray, " t"] = regions.best_iou(protocol.components)[regions.rows(cuts)]
    return best


def single_box_per_tau(score_map: UnitMap, protocol: EvalProtocol) -> Float64[np.ndarray, "t 4"]:
    """The one box of `protocol.single_box` at each threshold, (T, 4).

    Raises `DataError` for a map that `quantize` rejects.

    >>> unit_map = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.4], [0.0, 0.0, 0.0]])
    >>> single_box_per_tau(unit_map, EvalProtocol(taus=(0.2, 0.5), box_end="inclusive"))
    array([[1., 1., 2., 1.],
           [1., 1., 1., 1.]])
    """
    levels, cuts = quantize(score_map, protocol)
    regions = _Regions(levels, np.zeros((0, 4)), protocol)
    boxes: Float64[np.ndarray, "t 4"] = regions.boxes(protocol.single_box)[regions.rows(cuts)]
    return boxes


def boxes_at(score_map: UnitMap, tau: float, protocol: EvalProtocol) -> Boxes:
    """Predicted boxes (M, 4), M >= 1, of `protocol.components` at one threshold, on or off the grid.

    Boxes are in the protocol's convention. An empty foreground gives one box, `protocol.empty_box`. Raises
    `UsageError` for `tau` outside [0, 1] and `DataError` for a map that `quantize` rejects.

    >>> boxes_at(np.eye(4), 0.5, EvalProtocol(components="union", box_end="inclusive"))
    array([[0., 0., 3., 3.]])
    """
    if not 0.0 <= tau <= 1.0:
        raise UsageError(f"threshold tau={tau}; expected a number in [0, 1]")
    levels, cuts = _quantize(_checked(score_map), np.array([tau]), protocol)
    return _boxes_at_cut(levels, int(cuts[0]), protocol.components, protocol)


def quantize(
    score_map: UnitMap, protocol: EvalProtocol
) -> tuple[UInt[np.ndarray, "h w"], Int[np.ndarray, " t"]]:
    """Integer picture and one cut per threshold: the foreground at threshold k is `levels > cuts[k]`.

    With `quantize="uint8"`, `levels` is 255 x map, computed in float64 and truncated. The cut is
    `int(tau x basis)` (basis `max`, `percentile`) or `round(255 x tau)` (basis `unit`). It is one less if the
    foreground is `>=`, so it can be -1.

    With `quantize="none"`, `levels` counts the thresholds that a pixel passes, in float32. The cuts are
    0 .. T - 1.

    Levels and cuts are non-decreasing in the threshold. Raises `DataError` for a map that is not a non-empty,
    finite (H, W) array of floats in [0, 1] or of uint8.

    >>> quantize(np.array([[0.0, 0.5, 0.8]]), EvalProtocol(taus=(0.0, 0.5)))
    (array([[  0, 127, 204]], dtype=uint8), array([  0, 102]))
    """
    return _quantize(_checked(score_map), np.array(protocol.taus), protocol)


def _quantize(
    values: Float[np.ndarray, "h w"], taus: Float64[np.ndarray, " t"], protocol: EvalProtocol
) -> tuple[UInt[np.ndarray, "h w"], Int[np.ndarray, " t"]]:
    if protocol.quantize == "none":
        passed = np.empty(values.shape, np.min_scalar_type(len(taus)))
        count_passed(
            np.array(values, np.float32, order="C"),
            taus.astype(np.float32),
            protocol.foreground == ">=",
            passed,
        )
        return passed, np.arange(len(taus))
    levels = np.multiply(values, _ALL_LEVELS, dtype=np.float64).astype(np.uint8)
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
            f"score map has shape {values.shape}; expected a non-empty (height, width) array, one map of one "
            "class of one image"
        )
    if values.dtype == np.uint8:
        return values / _ALL_LEVELS
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"score map has dtype {values.dtype}; expected floats in [0, 1] or uint8")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(values)).sum())
        raise DataError(
            f"score map holds {bad} NaN or Inf of {values.size} values; expected finite numbers in [0, 1]"
        )
    if low < 0.0 or high > 1.0:
        raise DataError(
            f"score map ranges from {low:g} to {high:g}; expected [0, 1]. Normalise raw maps with "
            "wsolbench.maps.to_frame first."
        )
    return values


def _truth(true_boxes: Num[np.ndarray, "r 4"], protocol: EvalProtocol) -> Float64[np.ndarray, "g 4"]:
    boxes = check_boxes(true_boxes, plus_one=protocol.iou_plus_one, what="ground-truth boxes")
    if len(boxes) == 0:
        raise DataError(
            "there is no ground-truth box, so IoU is undefined; expected at least one. Leave the image "
            "out of box metrics"
        )
    return np.array(boxes[:1] if protocol.gt_boxes == "first" else boxes, order="C")


_MEASURES = {"pixel_count": PIXELS, "box_area": BOX, "contour_area": CONTOUR}


class _Regions:
    """Regions of a picture at every cut t = -1 .. top, where top is the highest level.

    Results have row t + 1 for cut t. At cut top the foreground is empty, and the protocol's empty box is
    the only one.
    """

    def __init__(
        self, levels: UInt[np.ndarray, "h w"], truth: Float64[np.ndarray, "g 4"], protocol: EvalProtocol
    ) -> None:
        self._levels, self._truth, self._protocol = levels, truth, protocol
        self._top = int(levels.max())
        self._one, self._end = float(protocol.iou_plus_one), int(protocol.box_end == "exclusive")
        self._rules = FOUR if protocol.connectivity == "4" else EIGHT

    def rows(self, cuts: Int[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """Return the row of each cut. A cut above top has the row of top."""
        return np.asarray(np.minimum(cuts, self._top) + 1)

    def iou(self, boxes: Float64[np.ndarray, "u 4"]) -> Float64[np.ndarray, " u"]:
        """Return the best IoU of each box with any ground-truth box."""
        return np.asarray(unchecked_iou(boxes, self._truth, plus_one=self._protocol.iou_plus_one).max(axis=1))

    def best_iou(self, rule: str) -> Float64[np.ndarray, " u"]:
        """Return the best IoU of any box of a rule ("all", "largest", "union") with any ground-truth box."""
        if rule != "all":
            return self.iou(self.boxes(rule))
        picture, masks = self._framed
        clip = self._protocol.clip_boxes
        best = best_of_components(
            picture, masks, self._top, self._rules, self._truth, self._one, self._end, clip
        )
        if self._protocol.connectivity == "contour":
            best = np.maximum(best, self._holes[0])
        return np.append(best, self.iou(_empty_box(self._levels.shape, self._protocol)))

    def boxes(self, rule: str) -> Float64[np.ndarray, "u 4"]:
        """Return the one box of a rule ("largest", "union") at each cut, in the protocol's convention."""
        half_open = (
            _union_boxes(self._levels, np.arange(-1, self._top)) if rule == "union" else self._largest()
        )
        shape = self._levels.shape
        return np.concatenate([_written(half_open, shape, self._protocol), _empty_box(shape, self._protocol)])

    @cached_property
    def _framed(self) -> tuple[UInt[np.ndarray, "fh fw"], UInt8[np.ndarray, "fh fw"]]:
        return framed(np.ascontiguousarray(self._levels))

    @cached_property
    def _holes(self) -> tuple[Float64[np.ndarray, " u"], UInt[np.ndarray, "fh fw"]]:
        picture, masks = self._framed
        clip = self._protocol.clip_boxes
        return best_of_holes(picture, masks, self._top, HOLES, self._truth, self._one, self._end, clip)

    def _largest(self) -> Int[np.ndarray, "u 4"]:
        picture, masks = self._framed
        if self._protocol.connectivity == "contour":
            picture = self._holes[1]
            masks = higher_neighbours(picture)
        return largest_of_components(
            picture, masks, self._top, self._rules, _MEASURES[self._protocol.largest_by]
        )


def _boxes_at_cut(levels: UInt[np.ndarray, "h w"], cut: int, rule: str, protocol: EvalProtocol) -> Boxes:
    """Return the boxes (M, 4) of a rule ("all", "largest", "union") at one cut, found by OpenCV."""
    if cut >= int(levels.max()):
        return _empty_box(levels.shape, protocol)
    if rule == "union":
        return _written(_union_boxes(levels, np.array([cut])), levels.shape, protocol)
    regions, sizes = _regions(levels.astype(np.int64) > cut, protocol)
    chosen = slice(None) if rule == "all" else slice(int(sizes.argmax()), int(sizes.argmax()) + 1)
    return _written(regions[chosen], levels.shape, protocol)


def _union_boxes(levels: UInt[np.ndarray, "h w"], cuts: Int[np.ndarray, " u"]) -> Int[np.ndarray, "u 4"]:
    """Return the half-open box around the whole foreground of each cut. It is undefined if that is empty."""
    height, width = levels.shape
    columns, lines = levels.max(axis=0), levels.max(axis=1)
    x0, x1 = _first_above(columns, cuts), width - _first_above(columns[::-1], cuts)
    y0, y1 = _first_above(lines, cuts), height - _first_above(lines[::-1], cuts)
    return np.stack([x0, y0, x1, y1], axis=1)


def _first_above(levels: UInt[np.ndarray, " n"], cuts: Int[np.ndarray, " u"]) -> Int[np.ndarray, " u"]:
    """Return the first index at which a row of levels exceeds each cut."""
    return np.searchsorted(np.maximum.accumulate(levels).astype(np.int64), cuts, side="right")


def _regions(
    foreground: Bool[np.ndarray, "h w"], protocol: EvalProtocol
) -> tuple[Int[np.ndarray, "m 4"], Float64[np.ndarray, " m"]]:
    """Return the half-open box (M, 4) and the size (M,) of each region of a non-empty foreground.

    Their order decides between equal sizes.
    """
    picture = foreground.view(np.uint8)
    if protocol.connectivity == "contour":
        contours, _ = cv2.findContours(picture, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        x, y, w, h = np.array([cv2.boundingRect(contour) for contour in contours]).T
        sizes = np.array([cv2.contourArea(contour) for contour in contours])
    else:
        # Wu's algorithm numbers components in row-wise scan order of their first pixel; OpenCV's block-based
        # default does not.
        _, _, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
            picture, int(protocol.connectivity), cv2.CV_32S, cv2.CCL_WU
        )
        x, y, w, h, pixels = stats[1:].T  # row 0 is the background
        sizes = (pixels if protocol.largest_by == "pixel_count" else w * h).astype(np.float64)
    return np.stack([x, y, x + w, y + h], axis=1), sizes


def _written(half_open: Int[np.ndarray, "n 4"], shape: tuple[int, ...], protocol: EvalProtocol) -> Boxes:
    """Convert boxes to the protocol's convention: its box end, and clipped at (W - 1, H - 1) if it clips."""
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
