"""Key-point distance: how far part proposals are from the nearest annotated part.

Idea: SSANET (Figure 4 plots the distance of the four best proposals to the nearest of the 15 key points of
    CUB, without units or rules); everything else here is a decision of this project. Coordinates are
    continuous pixels of the square network
input of side S: boxes xyxy, key points and the true box brought there by the geometry of the image.
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
"""Distances are reported in pixels of an input of this side."""


@dataclass(frozen=True, kw_only=True)
class ImageDistances:
    """One image; row j is its j-th box in score order. Rows where `real` is False were padded and count
    nowhere.
    """

    px: Float64[np.ndarray, " k"]
    """Distance from the box centre to the nearest visible point, in pixels of a 448 input."""
    norm: Float64[np.ndarray, " k"]
    """The same distance as a fraction of the true box's diagonal."""
    hit: Bool[np.ndarray, " k"]
    """Whether the box holds a visible point (x0 <= x < x1, y0 <= y < y1)."""
    nearest: Int[np.ndarray, " k"]
    """Index of the nearest point; the lower of equally near ones."""
    real: Bool[np.ndarray, " k"]


@dataclass(frozen=True, kw_only=True)
class KeypointDistanceResult:
    """What `KeypointDistance.compute` gives. Per slot j of the score order; None where no image has a real
    j-th box.
    """

    px: float
    """Mean over the slots of `slot_px`, in pixels of a 448 input."""
    norm: float
    """Mean over the slots of `slot_norm`: fractions of the true box's diagonal."""
    slot_px: tuple[float | None, ...]
    """Mean over images."""
    slot_norm: tuple[float | None, ...]
    slot_median_px: tuple[float | None, ...]
    slot_median_norm: tuple[float | None, ...]
    hit: float
    """Share of boxes that hold at least one visible point, in [0, 1]."""
    distinct: float
    """Mean number of different nearest points among the boxes of an image: 1 is four boxes on one point."""
    n: int
    """Images that counted."""
    n_skipped: int
    """Images without a visible key point."""
    n_padded: int
    """Box slots left out because they were padded."""


def keypoint_distance(
    boxes: Boxes,
    key_points: KeyPoints,
    true_box: Float64[np.ndarray, " 4"],
    *,
    side: int,
    padded: Bool[np.ndarray, " k"] | None = None,
    frame: Literal["inside", "all"] = "inside",
) -> ImageDistances | None:
    """Distances of the boxes' centres (unclipped) to the nearest visible key point; None when no point is
    visible.

    `boxes` (K, 4) in score order, `key_points` (P, 3) rows (x, y, visible) and `true_box` (4,), unclipped, in
    pixels of the input of `side` squared. `frame="inside"` drops points outside of [0, side) squared, "all"
    keeps them. Raises `DataError` on coordinates that are not finite, boxes that end before they start, a
    true box without a diagonal, and arrays of other shapes.

    >>> square = np.array([[90.0, 90.0, 110.0, 110.0]])
    >>> float(keypoint_distance(square, np.array([[103.0, 104.0, 1.0]]), np.array([0.0, 0.0, 60.0, 80.0]),
        side=448).norm[0])
    0.05
    """
    boxes = check_boxes(boxes, plus_one=False, what="proposed boxes")
    true_box = check_boxes(np.asarray(true_box)[None], plus_one=False, what="the true box")[0]
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
            "key-point distance needs finite points and a true box with a diagonal; the true box is "
            f"{true_box.tolist()}"
        )
    if frame == "inside":
        inside = ((points >= 0) & (points < side)).all(axis=1)
        visible, points = visible[inside], points[inside]
    if len(points) == 0:
        return None
    offset = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - points  # (K, V, 2)
    distances = np.hypot(offset[..., 0], offset[..., 1])
    distance = distances.min(axis=1)
    holds = (points >= boxes[:, None, :2]) & (points < boxes[:, None, 2:])  # (K, V, 2)
    hit, nearest = np.asarray(np.any(np.all(holds, axis=-1), axis=1)), visible[distances.argmin(axis=1)]
    return ImageDistances(
        px=distance * (REFERENCE_SIDE / side), norm=distance / diagonal, hit=hit, nearest=nearest, real=real
    )


class KeypointDistance:
    """Accumulates `keypoint_distance` over images; keeps per-image arrays and adds them without rounding, so
    order cannot matter.

    `side` is that of the network input, `top` the number of boxes that count.
    """

    def __init__(self, *, side: int, top: int = 4, frame: Literal["inside", "all"] = "inside") -> None:
        if side < 1 or top < 1:
            raise UsageError(f"key-point distance needs side and top of at least 1, got {side} and {top}")
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
        """Add the images of another shard. Raises `UsageError` when it was counted with other settings."""
        mine, others = (self.side, self.top, self.frame), (other.side, other.top, other.frame)
        if mine != others:
            raise UsageError(
                f"cannot merge key-point distances of (side, top, frame) {others} into those of {mine}"
            )
        self.images.extend(other.images)
        self.n_skipped += other.n_skipped

    def compute(self) -> KeypointDistanceResult:
        """Means so far, every image with equal weight. Raises `DataError` when no image has a visible point
        and a real box.
        """
        real = [image for image in self.images if image.real.any()]
        if not real:
            raise DataError(
                f"key-point distance is undefined: {len(self.images)} images have a visible key point "
                f"({self.n_skipped} have none), "
                "and none of them has a box"
            )
        slot_px, slot_norm = self._slots("px"), self._slots("norm")
        means_px, means_norm = [_mean(values) for values in slot_px], [_mean(values) for values in slot_norm]
        hits = [bool(hit) for image in real for hit in image.hit[image.real]]
        return KeypointDistanceResult(
            px=_known_mean(means_px),
            norm=_known_mean(means_norm),
            slot_px=tuple(means_px),
            slot_norm=tuple(means_norm),
            slot_median_px=tuple(float(np.median(values)) if values else None for values in slot_px),
            slot_median_norm=tuple(float(np.median(values)) if values else None for values in slot_norm),
            hit=sum(hits) / len(hits),
            distinct=sum(len(set(image.nearest[image.real].tolist())) for image in real) / len(real),
            n=len(real),
            n_skipped=self.n_skipped,
            n_padded=sum(int((~image.real).sum()) for image in self.images),
        )

    def rows(self, which: Literal["px", "norm"] = "norm") -> Float64[np.ndarray, "n c"]:
        """Per image the distance in each slot (0 where it has none), then whether it has one: for the
        bootstrap, with `slot_mean`.
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
    """Mean of `KeypointDistance.rows` over images -> the distance, the mean over slots that occur (NaN where
    none does).
    """
    top = rates.shape[-1] // 2
    known = rates[..., top:] > 0
    slots = np.divide(rates[..., :top], rates[..., top:], out=np.zeros_like(rates[..., :top]), where=known)
    count = known.sum(axis=-1)
    return np.asarray(np.divide(slots.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0))


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _known_mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known)
