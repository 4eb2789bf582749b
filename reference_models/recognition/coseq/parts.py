"""Steps 4 and 5 of CoSeq: points that travel from image to image, parts, and their boxes.

J. Krause, H. Jin, J. Yang, L. Fei-Fei, "Fine-grained recognition without part annotations", CVPR 2015.
Constants are those of jkrause314/fg_without.

Each image has a frame: its ground-truth box, resized with its aspect ratio to a height of 150 pixels. Points
are spread over the mask of the first image (`pose_graph.visit_order`). Their places in another image are the
medians of the places that its finished neighbours predict, each by its alignment. So a point has a place in
all images, its trajectory. Points of similar trajectories are one part (k-means), whose place is their mean.

Departure: where alignments disagree on whether an image is mirrored, the median is over the majority. Over
both, it would move all points to the middle of the object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from reference_models.layers.k_means import k_means, k_medoids
from reference_models.recognition.coseq.alignment import Points
from reference_models.recognition.coseq.pose_graph import Visit

HEIGHT = 150
"""Height of a frame."""
HALF_SIDE = 0.25
"""Half the side of a part, relative to the geometric mean of the sides of the mask's box."""
LEAST, LEAST_AREA = 10, 1e5
"""Least side of a part in an image of that many pixels."""

Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True, eq=False)
class Frame:
    """The mask inside a ground-truth box, at a height of 150 pixels."""

    mask: Mask

    @property
    def width(self) -> float:
        """Width of the frame in pixels."""
        return float(self.mask.shape[1])


def make_frame(mask: Mask, box: tuple[int, int, int, int]) -> Frame:
    """Cut a mask to a box and resize it. A mask that would become empty becomes the box."""
    x0, y0, x1, y1 = box
    own = mask[y0:y1, x0:x1]
    width = max(1, round((x1 - x0) * HEIGHT / (y1 - y0)))
    # The border between pixels becomes smooth.
    large = cv2.resize(own.astype(np.float32), (width, HEIGHT), interpolation=cv2.INTER_LINEAR) > 0.5
    return Frame(large if large.any() else np.ones_like(large))


def root_points(mask: Mask, count: int, rng: np.random.Generator) -> Points:
    """Return the k-medoids of the pixel centres of a mask. A mask with fewer pixels repeats them."""
    pixels = np.argwhere(mask)[:, ::-1] + 0.5
    found = k_medoids(pixels.astype(np.float64), count, rng)
    return np.asarray(np.resize(found, (count, 2)))


def propagate(
    order: Iterable[Visit],
    points: Float[np.ndarray, "p 2"],
    count: int,
    predict: Callable[[int, int, Points], tuple[Points, bool]],
) -> Float[np.ndarray, "n p 2"]:
    """Return the places of the points in all images.

    Each image faces as the first one or the other way, by the majority of its predictions; of a tie the first
    decides. Predictions of the minority do not count.

    Args:
        order: the first image has the points.
        points: (p, 2) in the frame of the first image.
        count: n, number of images.
        predict: (image, other image, points of the image) -> their places in the other image, and whether
            the images are mirrored.
    """
    found, turned = np.zeros((count, len(points), 2)), np.zeros(count, dtype=np.bool_)
    for visit in order:
        if not visit.sources:
            found[visit.image] = points
            continue
        predictions = [predict(source, visit.image, found[source]) for source in visit.sources]
        facing = np.array(
            [mirrored != turned[s] for s, (_, mirrored) in zip(visit.sources, predictions, strict=True)]
        )
        votes = 2 * int(facing.sum()) - len(facing)
        turned[visit.image] = facing[0] if votes == 0 else votes > 0
        agreeing = np.flatnonzero(facing == turned[visit.image])
        places = [predictions[number][0] for number in agreeing]
        found[visit.image] = np.median(places, axis=0)
    return found


def group_points(
    trajectories: Float[np.ndarray, "n p 2"], parts: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " p"], Float[np.ndarray, "n k 2"]]:
    """Return the part of each point, and the place of each part in each image.

    Of fewer points than parts some are parts of their own twice.
    """
    images, count = trajectories.shape[:2]
    labels = k_means(trajectories.transpose(1, 0, 2).reshape(count, -1), parts, rng)
    found = min(parts, count)
    belongs = np.arange(found)[:, None] == labels  # (k, p)
    means = np.einsum("kp,npd->nkd", belongs / belongs.sum(axis=1, keepdims=True), trajectories)
    return labels, means[:, np.arange(parts) % found] if images else np.zeros((0, parts, 2))


def mask_box(mask: Mask) -> tuple[int, int, int, int]:
    """Return the box (x0, y0, x1, y1) of a mask that is not empty, with exclusive ends."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def nearest_inside(mask: Mask, points: Points) -> Points:
    """Move points outside of a mask to the centre of its nearest pixel. Others stay."""
    height, width = mask.shape
    pixels = np.floor(points).astype(np.intp)
    valid = (pixels >= 0).all(axis=1) & (pixels < (width, height)).all(axis=1)
    outside = ~valid
    outside[valid] = ~mask[pixels[valid, 1], pixels[valid, 0]]
    if not outside.any():
        return points
    centres = np.argwhere(mask)[:, ::-1] + 0.5
    moved = points.copy()
    distances = ((points[outside][:, None] - centres[None]) ** 2).sum(axis=2)
    moved[outside] = centres[distances.argmin(axis=1)]
    return np.asarray(moved)


def part_boxes(frame: Frame, points: Points, least: float) -> Float[np.ndarray, "k 4"]:
    """Return the box of each part, in the frame.

    A part is a square around its point, moved into the mask. Its sides are shrunk to the mask inside it. If a
    side would have less than `least` pixels, it keeps the square, cut to the frame.
    """
    mask = frame.mask
    height, width = mask.shape
    x0, y0, x1, y1 = mask_box(mask)
    half = HALF_SIDE * np.sqrt((x1 - x0) * (y1 - y0))
    centres = nearest_inside(mask, points)
    limits = np.array([width, height, width, height], dtype=np.float64)
    squares = np.clip(np.concatenate([centres - half, centres + half], axis=1), 0, limits)
    boxes = squares.copy()
    for box, square in zip(boxes, squares, strict=True):
        left, top = np.floor(square[:2]).astype(np.intp)
        right, bottom = np.ceil(square[2:]).astype(np.intp)
        tight = mask_box(mask[top:bottom, left:right])  # not empty: the centre is in the mask
        offset = np.array([left, top, left, top])
        shrunk = np.clip(offset + tight, np.tile(square[:2], 2), np.tile(square[2:], 2))
        if min(shrunk[2:] - shrunk[:2]) >= least:
            box[:] = shrunk
    return np.asarray(boxes)


def least_side(box: Sequence[int], area: int | float) -> float:
    """Return the least side of a part in the frame of a box, in an image of that area."""
    return LEAST * float(np.sqrt(area / LEAST_AREA)) * HEIGHT / (box[3] - box[1])


def grid_boxes(parts: int) -> Float[np.ndarray, "k 4"]:
    """Return a fixed grid of boxes in [0, 1] x [0, 1], of half its width and height: a control.

    Rows have numbers of boxes that differ by at most one.
    """
    rows = max(1, int(np.sqrt(parts)))
    sizes = [(parts + row) // rows for row in range(rows)]
    boxes = []
    for row, size in enumerate(sizes):
        y = (row + 0.5) / rows
        for column in range(size):
            x = (column + 0.5) / size
            boxes.append((x - HALF_SIDE, y - HALF_SIDE, x + HALF_SIDE, y + HALF_SIDE))
    return np.clip(np.array(boxes, dtype=np.float64).reshape(-1, 4), 0, 1)
