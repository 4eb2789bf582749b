"""Pictures of predictions: the map over the image, with the predicted boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from wsolbench.evaluation.predict import Prediction
from wsolbench.report.pictures.overlays import drawable, overlay
from wsolbench.report.pictures.scene import scene
from wsolbench.system.files import atomic_path
from wsolbench.types import Boxes, Sample, no_boxes

LONGEST = 640
"""Most pixels of the longer side of a picture."""


def prediction_overlay(found: Prediction, boxes: Boxes) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the map of the best class over the image, and the boxes (m, 4) in pixels of the image.

    The picture has the shape of the image, at most `LONGEST` pixels long. The part that a centre crop does
    not see is shown without a map. Raises `DataError` for an image that cannot be read.
    """
    assert found.path is not None
    sample = Sample(id=str(found.path), label=0, path=found.path, size=found.size)
    drawn = scene(sample, found.protocol, found.unit_map(), longest=LONGEST, least=1)
    size = drawn.image.shape[1], drawn.image.shape[0]
    scale = np.array(size * 2) / np.array(found.size * 2)
    assert drawn.unit_map is not None
    return overlay(drawn.image, drawn.unit_map, no_boxes(), drawable(boxes * scale, "exclusive"))


def write_overlay(path: Path, found: Prediction, boxes: Boxes) -> None:
    """Write `prediction_overlay` as a JPEG file."""
    from PIL import Image

    picture = Image.fromarray(prediction_overlay(found, boxes))
    with atomic_path(path, tidy=False) as temporary:
        picture.save(temporary, format="JPEG", quality=90)
