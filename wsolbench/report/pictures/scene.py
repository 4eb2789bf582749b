"""Scenes: an image in its own shape, with map, boxes and masks brought back from the evaluation frame.

A protocol compares maps and boxes in its frame, which is often a square. A picture for readers keeps the
shape of the image instead. So the map is resized from the frame to the part of the image that it covers, and
boxes are converted to pixels of the image. Under a centre crop, the rest of the image is shown without a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

from wsolbench.maps import frame_boxes, image_boxes
from wsolbench.metrics.sweep import single_box_per_tau
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures.grid import Outlines, Panel
from wsolbench.report.pictures.overlays import STRENGTH, blend, drawable, overlay
from wsolbench.types import Boxes, Sample, no_boxes

LONGEST, LEAST = 600, 300
"""Longer side of a picture in pixels. Longer images are shrunk, and shorter ones repeat their pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """An image with its map and outlines. Everything is in pixels of `image`, which has the image's shape."""

    image: UInt8[np.ndarray, "h w 3"]
    unit_map: Float32[np.ndarray, "h w"] | None
    """Map in [0, 1]. It is NaN outside the part that the protocol sees. None without a map."""
    outlines: Outlines

    def panel(self, *, strength: float = STRENGTH, **text: Any) -> Panel:
        """Return a panel of a grid, with outlines as vectors. `text` is its name and caption."""
        pixels = self.image if self.unit_map is None else blend(self.image, self.unit_map, strength)
        return Panel(pixels=pixels, outlines=self.outlines, **text)

    def photograph(self, **text: Any) -> Panel:
        """Return a panel with the image alone, in its own colours."""
        return Panel(pixels=self.image, **text)

    def painted(self, *, strength: float = STRENGTH, **style: Any) -> UInt8[np.ndarray, "h w 3"]:
        """Return pixels with the map blended over the image and the outlines painted on top."""
        none = np.full(self.image.shape[:2], np.nan) if self.unit_map is None else self.unit_map
        found = self.outlines
        return overlay(
            self.image,
            none,
            found.true_boxes,
            found.predicted_boxes,
            true_mask=found.true_mask,
            predicted_mask=found.predicted_mask,
            strength=strength,
            **style,
        )


def drawn_size(size: tuple[int, int], longest: int = LONGEST, least: int = LEAST) -> tuple[int, int]:
    """Return width and height of the picture of an image of `size` = (width, height).

    >>> drawn_size((500, 375)), drawn_size((1200, 300)), drawn_size((64, 32))
    ((500, 375), (600, 150), (320, 160))
    """
    longer = max(size)
    scale = longest / longer if longer > longest else math.ceil(min(least, longest) / longer)
    width, height = (max(1, round(scale * side)) for side in size)
    return width, height


def photograph(sample: Sample, *, longest: int = LONGEST, least: int = LEAST) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of a sample in the shape of the image that its boxes refer to, see `drawn_size`.

    Raises `DataError` for an image that cannot be read.
    """
    import cv2

    image = sample.image()
    width, height = drawn_size(sample.size, longest, least)
    if image.shape[:2] == (height, width):
        return image
    if image.shape[0] * image.shape[1] > width * height:
        interpolation = cv2.INTER_AREA
    elif width % image.shape[1] or height % image.shape[0]:
        interpolation = cv2.INTER_LINEAR
    else:
        interpolation = cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation))


def seen_part(size: tuple[int, int], protocol: EvalProtocol) -> Float64[np.ndarray, "4"]:
    """Return the part of an image that is in the protocol's frame, xyxy in its pixels.

    >>> seen_part((512, 256), EvalProtocol(frame="center_crop"))
    array([ 32.,  16., 480., 240.])
    """
    if protocol.frame == "original":
        return np.array([0.0, 0.0, *size])
    whole = np.array([[0.0, 0.0, protocol.frame_size, protocol.frame_size]])
    return np.asarray(image_boxes(whole, size, replace(protocol, box_end="exclusive"))[0])


def place(
    values: np.ndarray, part: Float64[np.ndarray, "4"], size: tuple[int, int], *, smooth: bool = True
) -> Float32[np.ndarray, "h w"]:
    """Resize an array (fh, fw) of the frame to its part of a picture of `size`; NaN elsewhere."""
    import cv2

    width, height = size
    left, top = (min(round(float(part[axis])), size[axis] - 1) for axis in (0, 1))
    right, bottom = (max(round(float(part[axis])), low + 1) for axis, low in ((2, left), (3, top)))
    inner = right - left, bottom - top
    shrinks = inner[0] * inner[1] < values.size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    interpolation = interpolation if smooth else cv2.INTER_NEAREST
    whole = np.full((height, width), np.nan, dtype=np.float32)
    whole[top:bottom, left:right] = cv2.resize(
        np.asarray(values, dtype=np.float32),
        inner,
        interpolation=interpolation if smooth else cv2.INTER_NEAREST,
    )
    return whole


def true_boxes(sample: Sample, protocol: EvalProtocol) -> Float64[np.ndarray, "g 4"]:
    """Return the ground-truth boxes that the protocol compares with, xyxy in pixels of the image.

    These are all boxes or the first, cut at the part that is seen. They are not rounded as in the frame.
    """
    exact = replace(protocol, gt_end="exclusive", gt_truncate=False, clip_boxes=False)
    return _to_image(frame_boxes(sample.boxes, sample.size, exact, check_unit=False), sample.size, protocol)


def predicted_boxes(
    boxes: Boxes, size: tuple[int, int], protocol: EvalProtocol
) -> Float64[np.ndarray, "m 4"]:
    """Convert predicted boxes of the frame to pixels of the image. Boxes without area are dropped."""
    return _to_image(drawable(boxes, protocol.box_end), size, protocol)


def _to_image(boxes: Boxes, size: tuple[int, int], protocol: EvalProtocol) -> Float64[np.ndarray, "m 4"]:
    return image_boxes(drawable(boxes, "exclusive"), size, replace(protocol, box_end="exclusive"))


def scene(
    sample: Sample,
    protocol: EvalProtocol,
    unit_map: Float[np.ndarray, "fh fw"] | None = None,
    *,
    predicted: Boxes | None = None,
    predicted_mask: Bool[np.ndarray, "fh fw"] | None = None,
    masks: bool = False,
    **sizes: Any,
) -> Scene:
    """Bring map, predicted boxes and mask of the frame to the image, and add the ground truth.

    Args:
        sample: the image, with its ground truth.
        protocol: the protocol of map and boxes.
        unit_map: map in the frame, in [0, 1].
        predicted: predicted boxes in the frame, in the protocol's convention.
        predicted_mask: predicted region in the frame.
        masks: whether the ground truth is the sample's mask instead of its boxes.
        sizes: `longest` and `least` of `photograph`.

    Raises `DataError` for an image that cannot be read.
    """
    import cv2

    image = photograph(sample, **sizes)
    size = image.shape[1], image.shape[0]
    scale = np.array(size * 2) / np.array(sample.size * 2)
    part = seen_part(sample.size, protocol) * scale
    true_mask = sample.mask() if masks else None
    if true_mask is not None:
        shape = true_mask.astype(np.uint8)
        true_mask = cv2.resize(shape, size, interpolation=cv2.INTER_NEAREST).astype(bool)
        true_mask &= ~np.isnan(place(np.ones((1, 1)), part, size))  # only the part that is seen
    region = None
    if predicted_mask is not None:
        region = place(predicted_mask, part, size, smooth=False) == 1
    found = predicted_boxes(no_boxes() if predicted is None else predicted, sample.size, protocol)
    return Scene(
        image=image,
        unit_map=None if unit_map is None else np.clip(place(unit_map, part, size), 0, 1),
        outlines=Outlines(
            true_boxes=(no_boxes() if masks else true_boxes(sample, protocol)) * scale,
            predicted_boxes=found * scale,
            true_mask=true_mask,
            predicted_mask=region,
            seen=part if protocol.frame == "center_crop" else None,
        ),
    )


def box_scene(
    sample: Sample, protocol: EvalProtocol, unit_map: Float[np.ndarray, "fh fw"], tau: float, **sizes: Any
) -> Scene:
    """Return the scene of a map with the ground-truth boxes and the protocol's single box at `tau`."""
    predicted = single_box_per_tau(unit_map, replace(protocol, taus=(tau,)))
    return scene(sample, protocol, unit_map, predicted=predicted, **sizes)


def mask_scene(
    sample: Sample, protocol: EvalProtocol, unit_map: Float[np.ndarray, "fh fw"], level: int, **sizes: Any
) -> Scene:
    """Return the scene of a map with the ground-truth mask and the region at or above an 8-bit level."""
    selected = (unit_map * np.float64(255)).astype(np.uint8) >= level
    return scene(sample, protocol, unit_map, predicted_mask=selected, masks=True, **sizes)
