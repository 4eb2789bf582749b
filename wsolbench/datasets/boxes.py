"""Checks of boxes against their images: clipping, and signs of another unit, order or frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from wsolbench.exceptions import DataError
from wsolbench.types import Boxes, Finding, no_boxes

Box = tuple[float, float, float, float]

FEW = 8
"""Number of different boxes below which their distribution is not evidence."""
SLACK = 1.0
"""Number of pixels by which a box may exceed its image before another frame is suspected."""


def clip_boxes(
    ids: Sequence[str],
    sizes: Sequence[tuple[int, int] | None],
    boxes: Sequence[Sequence[Box]],
    notes: list[Finding],
) -> list[Boxes]:
    """Clip the boxes of each image to it, and drop boxes without area after that.

    Args:
        ids: one for each image.
        sizes: (width, height) of each image, or None if unknown.
        boxes: xyxy of each image.
        notes: findings are added here: what was clipped or dropped, and what is doubtful.

    Returns boxes (R, 4) per image. Raises `DataError` for a corner that is not finite.
    """
    # All boxes in one array, with the image and the frame of each.
    counts = [len(own) for own in boxes]
    if not sum(counts):
        return [no_boxes() for _ in boxes]
    owner = np.repeat(np.arange(len(boxes)), counts)
    given = np.array([box for own in boxes for box in own], dtype=np.float64)  # (R, 4)
    if not np.isfinite(given).all():
        first = int(np.flatnonzero(~np.isfinite(given).all(axis=1))[0])
        raise DataError(
            f"image {ids[owner[first]]!r} has the box {given[first].tolist()}; expected finite numbers"
        )
    frames = np.array([size or (np.inf, np.inf) for size in sizes], dtype=np.float64)[owner]  # (R, 2)
    # Clip, and note what was done or is doubtful.
    clipped = np.clip(given, 0.0, np.concatenate([frames, frames], axis=1))
    sound = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)

    def example(index: int) -> str:
        return f"{ids[owner[index]]}: box {given[index].tolist()} in an image of {sizes[owner[index]]}"

    def note(which: np.ndarray, what: str, severity: str) -> None:
        if which.any():
            notes.append(
                Finding(
                    what=what,
                    count=int(which.sum()),
                    example=example(int(np.argmax(which))),
                    severity=severity,
                )
            )

    note(sound & np.any(clipped != given, axis=1), "boxes that exceed the image: clipped", "warning")
    note(~sound, "boxes without area inside the image: dropped", "error")
    for which, what, severity in find_doubts(given, frames):
        note(which, what, severity)
    # Split the boxes by image again.
    ends = np.cumsum(np.bincount(owner[sound], minlength=len(boxes)))
    kept = np.split(clipped[sound], ends[:-1])
    bare = [image_id for image_id, own in zip(ids, kept, strict=True) if not len(own)]
    if bare:
        notes.append(
            Finding(
                what="images without a box, in a split that has boxes",
                count=len(bare),
                example=bare[0],
                severity="error",
            )
        )
    return kept


def find_doubts(given: np.ndarray, frames: np.ndarray) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield signs that boxes are in another unit, order or frame: (affected boxes, what, severity).

    `given` (R, 4) is xyxy. `frames` (R, 2) is width and height of each box's image.
    """
    # Fractions of the image, or boxes below a pixel.
    sides = given[:, 2:] - given[:, :2]
    large = frames.min(axis=1) > 4
    whole = (given == np.rint(given)).all()
    # 1-based boxes are shifted by one pixel, so they get some slack.
    in_corner = large & (given.min(axis=1) >= -SLACK) & (given.max(axis=1) <= (1 if whole else 1 + SLACK))
    small = large & (sides.min(axis=1) < 1) & (sides.min(axis=1) > 0)
    if in_corner.all():
        yield (
            in_corner,
            "boxes within the first pixels of their images: expected pixels, but these look like fractions "
            "of the image",
            "error",
        )
        return
    if (small | in_corner).all():
        yield small, "boxes smaller than a pixel: expected pixels", "error"
        return
    yield small, "boxes narrower or lower than a pixel", "warning"
    # Corners that are reversed: widths and heights are often smaller than x and y.
    turned = np.any(given[:, 2:] < given[:, :2], axis=1)
    if turned.sum() > 1 and turned.mean() >= 0.1:
        ends = given[:, :2] + given[:, 2:]
        fits = (given[:, 2:] > 0).all() and (ends <= frames + SLACK).all()
        reading = "; all boxes fit if their last two numbers are width and height, not the corner x1,y1"
        yield turned, f"boxes with reversed corners{reading if fits else ''}", "error"
        return
    # Another frame or order: many boxes exceed their images, or all centres are in one quarter.
    beyond = np.any(given[:, 2:] > frames + SLACK, axis=1)
    if beyond.sum() > 1 and beyond.mean() >= 0.1:
        yield from _other_readings(given, frames, beyond)
    centres = (given[:, :2] + given[:, 2:]) / 2 / frames
    if (
        (centres <= 0.5).all()
        and (centres.mean(axis=0) < 0.45).all()
        and len(np.unique(given, axis=0)) >= FEW
    ):
        what = (
            "boxes, all with their centre in the upper left quarter: are they x,y,width,height, "
            "percentages, or of a smaller copy?"
        )
        yield np.ones(len(given), dtype=bool), what, "warning"


def _other_readings(
    given: np.ndarray, frames: np.ndarray, beyond: np.ndarray
) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield the reading under which all boxes fit their images, if many do not fit as they are.

    Corners that end at a thousand also fit as thousandths. Then exchanged coordinates are not more likely.
    """
    # Another order of the four numbers.
    thousandths = 900 <= given.max() <= 1000 + SLACK
    readings = {
        "x and y (or width and height of the images) are exchanged": given[:, [1, 0, 3, 2]],
        "their last two numbers are the corner x1,y1 and not width and height": np.hstack(
            [given[:, :2], given[:, 2:] - given[:, :2]]
        ),
    }
    for reading, boxes in readings.items():
        if (boxes[:, 2:] <= frames + SLACK).all() and (boxes[:, 2:] >= boxes[:, :2]).all():
            other = ", or if they are thousandths of the image's sides" if thousandths else ""
            yield beyond, f"boxes that exceed their images; all boxes fit if {reading}{other}", "error"
            return
    # Another scale.
    if thousandths and given[:, 2:].max(axis=0).min() >= 900:
        what = (
            "boxes that exceed their images: are they thousandths of the image's sides, or of larger "
            "copies of the images?"
        )
        yield beyond, what, "error"
        return
    if beyond.mean() > 0.5:
        yield (
            beyond,
            "boxes that exceed their images, more than half of all: are they of larger copies of the images?",
            "error",
        )


def outside_mask(boxes: Boxes, mask: np.ndarray) -> tuple[int, float]:
    """Return the number of boxes without a pixel of `mask`, and the share of its pixels outside all boxes.

    `boxes` is (R, 4), `mask` (h, w).
    """
    covered, empty = np.zeros_like(mask), 0
    for x0, y0, x1, y1 in boxes:
        rows = slice(int(max(np.floor(y0), 0)), int(max(np.ceil(y1), 0)))
        columns = slice(int(max(np.floor(x0), 0)), int(max(np.ceil(x1), 0)))
        empty += not mask[rows, columns].any()
        covered[rows, columns] = True
    pixels = int(mask.sum())
    return empty, float((mask & ~covered).sum() / pixels) if pixels else 0.0
