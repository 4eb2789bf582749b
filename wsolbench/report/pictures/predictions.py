"""Pictures of predictions: the map over the image, with the predicted boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wsolbench.evaluation.predict import Prediction
from wsolbench.report.pictures.overlays import drawable, overlay
from wsolbench.system.files import atomic_path
from wsolbench.types import Boxes, Sample, no_boxes

LONGEST = 640
"""Most pixels of the longer side of a picture."""


def prediction_overlay(found: Prediction, boxes: Boxes) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the map of the best class over the image, and the boxes (m, 4) in pixels of the image.

    The picture has the shape of the image, at most `LONGEST` pixels long. Outside the part that a centre crop
    sees, the map is 0. Raises `DataError` for an image that cannot be read.
    """
    import cv2

    assert found.path is not None
    # The image, and the map on the part that the protocol evaluates.
    image = Sample(id=str(found.path), label=0, path=found.path).image()
    scale = min(1.0, LONGEST / max(found.size))
    width, height = (max(1, round(scale * side)) for side in found.size)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    unit_map = np.zeros((height, width), dtype=np.float32)
    left, top, right, bottom = _seen(found, (width, height))
    frame = np.asarray(found.unit_map(), dtype=np.float32)
    unit_map[top:bottom, left:right] = cv2.resize(
        frame, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
    )
    return overlay(image, np.clip(unit_map, 0, 1), no_boxes(), drawable(boxes * scale, "exclusive"))


def _seen(found: Prediction, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part (xyxy) of a picture of this size that is in the evaluation frame."""
    protocol = found.protocol
    if protocol.frame != "center_crop":
        return 0, 0, *size
    edge = (protocol.resize_size - protocol.frame_size) / 2 / protocol.resize_size
    left, top = (round(edge * side) for side in size)
    return left, top, size[0] - left, size[1] - top


def write_overlay(path: Path, found: Prediction, boxes: Boxes) -> None:
    """Write `prediction_overlay` as a JPEG file."""
    from PIL import Image

    picture = Image.fromarray(prediction_overlay(found, boxes))
    with atomic_path(path, tidy=False) as temporary:
        picture.save(temporary, format="JPEG", quality=90)
