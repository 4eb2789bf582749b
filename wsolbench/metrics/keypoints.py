"""Key-point distance: how far part proposals are from the nearest annotated part.

Source of the idea: SSANET. Its Figure 4 plots the distance of the four best proposals to the nearest of the
15 key points of CUB, without units or rules. Everything else here is a decision of this project.
Coordinates are continuous pixels of the square network input of side S. Boxes are xyxy. Key points and the
ground-truth box are mapped there by the geometry of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from wsolbench.checks import check_boxes
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Boxes, KeyPoints

REFERENCE_SIDE = 448
"""Side of the input in whose pixels distances are reported."""

NEAR = 0.1
"""Largest distance at which a box covers a key point, in diagonals of the ground-truth box."""


@dataclass(frozen=True, kw_only=True)
class ImageDistances:
    """Distances of one image. Row j is its j-th box in score order. Rows with `real` False are padding.

    Padded rows are never counted.
    """

    px: Float64[np.ndarray, " k"]
    """Distance from the box centre to the nearest visible point, in pixels of an input of side 448."""
    norm: Float64[np.ndarray, " k"]
    """The same distance as a fraction of the ground-truth box's diagonal."""
    hit: Bool[np.ndarray, " k"]
    """Whether the box contains a visible point (x0 <= x < x1, y0 <= y < y1)."""
    nearest: Int[np.ndarray, " k"]
    """Index of the nearest point. Of equally near points, the lower index."""
    real: Bool[np.ndarray, " k"]


@dataclass(frozen=True, kw_only=True)
class KeypointDistanceResult:
    """Result of `KeypointDistance.compute`. Slots are ranks j of the score order.

    The value of a slot is None if no image has a real j-th box.
    """

    px: float
    """Mean over the slots of `slot_px`, in pixels of an input of side 448."""
    norm: float
    """Mean over the slots of `slot_norm`, as a fraction of the ground-truth box's diagonal."""
    slot_px: tuple[float | None, ...]
    """Mean over images."""
    slot_norm: tuple[float | None, ...]
    slot_median_px: tuple[float | None, ...]
    slot_median_norm: tuple[float | None, ...]
    hit: float
    """Share of boxes that contain at least one visible point, in [0, 1]."""
    distinct: float
    """Mean number of different nearest points among the boxes of an image. 1 means all boxes at one point.

    Distance does not matter, so boxes that are scattered anywhere have many.
    """
    covered: float
    """Mean number of different points that are nearest to a box and within `NEAR` of its centre.

    Only boxes at several points have many.
    """
    n: int
    """Number of images that counted."""
    n_skipped: int
    """Number of images without a visible key point."""
    n_padded: int
    """Number of box slots that were skipped because they are padding."""


def keypoint_distance(
    boxes: Boxes,
    key_points: KeyPoints,
    true_box: Float64[np.ndarray, " 4"],
    *,
    side: int,
    padded: Bool[np.ndarray, " k"] | None = None,
    frame: Literal["inside", "all"] = "inside",
) -> ImageDistances | None:
    """Distances of the box centres (unclipped) to the nearest visible key point, or None if none is visible.

    `boxes` (K, 4) are in score order. `key_points` (P, 3) has rows (x, y, visible). `true_box` (4,) is
    unclipped. All are in pixels of the input of `side` squared. `frame="inside"` drops points outside [0,
    side) squared; "all" keeps them.

    Raises `DataError` for coordinates that are not finite, boxes that end before they start, a ground-truth
    box without a diagonal, and arrays of other shapes.

    >>> square = np.array([[90.0, 90.0, 110.0, 110.0]])
    >>> point, true_box = np.array([[103.0, 104.0, 1.0]]), np.array([0.0, 0.0, 60.0, 80.0])
    >>> float(keypoint_distance(square, point, true_box, side=448).norm[0])
    0.05
    """
    # Validate the arrays, and keep the visible points, (V, 2).
    boxes = check_boxes(boxes, plus_one=False, what="proposed boxes")
    true_box = check_boxes(np.asarray(true_box)[None], plus_one=False, what="the ground-truth box")[0]
    key_points = np.asarray(key_points, dtype=np.float64)
    real = np.ones(len(boxes), dtype=bool) if padded is None else ~np.asarray(padded, dtype=bool)
    if len(boxes) != len(real) or key_points.ndim != 2 or key_points.shape[1] != 3:
        raise DataError(
            f"boxes {boxes.shape}, padded {real.shape}, key points {key_points.shape}; expected (K, 4), "
            "(K,) and (P, 3)"
        )
    visible = np.flatnonzero(key_points[:, 2])
    points = key_points[visible, :2]
    diagonal = math.hypot(true_box[2] - true_box[0], true_box[3] - true_box[1])
    if not (np.isfinite(points).all() and math.isfinite(diagonal) and diagonal > 0):
        raise DataError(
            f"the ground-truth box is {true_box.tolist()}, or a key point is not finite; expected finite "
            "points and a box with a diagonal"
        )
    if frame == "inside":
        inside = ((points >= 0) & (points < side)).all(axis=1)
        visible, points = visible[inside], points[inside]
    if len(points) == 0:
        return None
    # Distance of every box centre to every point.
    offset = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - points  # (K, V, 2)
    distances = np.hypot(offset[..., 0], offset[..., 1])
    distance = distances.min(axis=1)
    holds = (points >= boxes[:, None, :2]) & (points < boxes[:, None, 2:])  # (K, V, 2)
    hit, nearest = np.asarray(np.any(np.all(holds, axis=-1), axis=1)), visible[distances.argmin(axis=1)]
    return ImageDistances(
        px=distance * (REFERENCE_SIDE / side), norm=distance / diagonal, hit=hit, nearest=nearest, real=real
    )


class KeypointDistance:
    """Accumulator of `keypoint_distance` over images.

    It keeps per-image arrays and adds them without rounding, so the order cannot matter. `side` is that of
    the network input. `top` is the number of boxes that count.
    """

    def __init__(self, *, side: int, top: int = 4, frame: Literal["inside", "all"] = "inside") -> None:
        if side < 1 or top < 1:
            raise UsageError(f"key-point distance with side {side} and top {top}; expected both at least 1")
        self.side, self.top, self.frame = side, top, frame
        self.images: list[ImageDistances] = []
        self.n_skipped = 0

    def update(
        self,
        boxes: Boxes,
        key_points: KeyPoints,
        true_box: Float64[np.ndarray, " 4"],
        padded: Bool[np.ndarray, " k"] | None = None,
    ) -> None:
        """Count the first `top` boxes of one image; see `keypoint_distance` for shapes and errors."""
        head = None if padded is None else padded[: self.top]
        image = keypoint_distance(
            boxes[: self.top], key_points, true_box, side=self.side, padded=head, frame=self.frame
        )
        if image is None:
            self.n_skipped += 1
        else:
            self.images.append(image)

    def merge(self, other: KeypointDistance) -> None:
        """Add the images of another shard. Raises `UsageError` if its settings differ."""
        mine, others = (self.side, self.top, self.frame), (other.side, other.top, other.frame)
        if mine != others:
            raise UsageError(
                f"cannot merge key-point distances with (side, top, frame) {others}; expected {mine}"
            )
        self.images.extend(other.images)
        self.n_skipped += other.n_skipped

    def compute(self) -> KeypointDistanceResult:
        """Return the means so far; every image has equal weight.

        Raises `DataError` if no image has a visible point and a real box.
        """
        real = [image for image in self.images if image.real.any()]
        if not real:
            raise DataError(
                f"key-point distance is undefined: {len(self.images)} images have a visible key point "
                f"({self.n_skipped} have none), and none of them has a box; expected at least one"
            )
        slot_px, slot_norm = self._slots("px"), self._slots("norm")
        means_px, means_norm = [_mean(values) for values in slot_px], [_mean(values) for values in slot_norm]
        hits = [bool(hit) for image in real for hit in image.hit[image.real]]
        return KeypointDistanceResult(
            px=_mean_of_known(means_px),
            norm=_mean_of_known(means_norm),
            slot_px=tuple(means_px),
            slot_norm=tuple(means_norm),
            slot_median_px=tuple(float(np.median(values)) if values else None for values in slot_px),
            slot_median_norm=tuple(float(np.median(values)) if values else None for values in slot_norm),
            hit=sum(hits) / len(hits),
            distinct=sum(len(set(image.nearest[image.real].tolist())) for image in real) / len(real),
            covered=sum(len(set(image.nearest[image.real & (image.norm <= NEAR)].tolist())) for image in real)
            / len(real),
            n=len(real),
            n_skipped=self.n_skipped,
            n_padded=sum(int((~image.real).sum()) for image in self.images),
        )

    def rows(self, which: Literal["px", "norm"] = "norm") -> Float64[np.ndarray, "n c"]:
        """Return one row per image for the bootstrap, with `slot_mean`: (n, 2 top).

        The first half is the distance in each slot, 0 if it has none. The second half is 1 if it has one.
        """
        rows = np.zeros((len(self.images), 2 * self.top))
        for row, image in zip(rows, self.images, strict=True):
            slots = np.flatnonzero(image.real)
            row[slots] = getattr(image, which)[slots]
            row[self.top + slots] = 1.0
        return rows

    def _slots(self, which: Literal["px", "norm"]) -> list[list[float]]:
        slots: list[list[float]] = [[] for _ in range(self.top)]
        for image in self.images:
            for slot in np.flatnonzero(image.real):
                slots[slot].append(float(getattr(image, which)[slot]))
        return slots


def slot_mean(rates: Float64[np.ndarray, "r c"]) -> Float64[np.ndarray, " r"]:
    """Return the distance from means of `KeypointDistance.rows`: the mean over slots that occur.

    It is NaN if no slot occurs.
    """
    top = rates.shape[-1] // 2
    known = rates[..., top:] > 0
    slots = np.divide(rates[..., :top], rates[..., top:], out=np.zeros_like(rates[..., :top]), where=known)
    count = known.sum(axis=-1)
    return np.asarray(np.divide(slots.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0))


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _mean_of_known(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known)
