"""Transforms at test time: images rotated or reduced, with boxes, masks and key points, to test robustness.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, Tables 1 and 2: rotated images, and images reduced to 300 pixels and padded to the input of
448. Angles, filling and order are decisions of this project.

The transform applies to the view of the network, after resize and crop, so that the field of view stays the
same. The annotations are transformed in that view, too. The result is an image whose own view, under the same
protocol, is the transformed view.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from wsolbench.exceptions import UsageError
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.masks import resize_mask
from wsolbench.methods import InputSpec
from wsolbench.methods.inputs import to_view
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Boxes, Dataset, Sample, no_boxes

if TYPE_CHECKING:
    import PIL.Image

_RIGHT_ANGLES = {"rotate90": 1, "rotate180": 2, "rotate270": 3}
_REDUCED_OF = 448
"""Input side that SIDE of `reduce:SIDE` refers to."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A transform of every image.

    Its names are `rotate90`, `rotate180`, `rotate270` (exact), `rotate:ANGLE`, `rotate:random` and
    `reduce:SIDE`. Angles are degrees, counterclockwise. A random angle depends only on the image's id.
    `reduce:300` is for an input of 448 and scales with the input. Pixels from outside of the view have the
    network's mean colour.
    """

    name: str
    angle: float | None = None
    """Degrees, or None for a random angle or no rotation."""
    side: int | None = None

    @classmethod
    def parse(cls, text: str) -> Transform:
        """Read the name. Raises `UsageError` for an unknown transform.

        >>> Transform.parse("rotate:15").angle
        15.0
        """
        kind, _, value = text.partition(":")
        try:
            if text in _RIGHT_ANGLES:
                return cls(name=text, angle=90.0 * _RIGHT_ANGLES[text])
            if kind == "rotate" and value == "random":
                return cls(name=text)
            if kind == "rotate" and math.isfinite(float(value)):
                return cls(name=text, angle=float(value))
            if kind == "reduce" and 0 < int(value) < _REDUCED_OF:
                return cls(name=text, side=int(value))
        except ValueError:
            pass
        raise UsageError(
            f"unknown transform {text!r}; expected rotate90, rotate180, rotate270, rotate:ANGLE in "
            f"degrees, rotate:random, or reduce:SIDE with a side of 1 to {_REDUCED_OF - 1}"
        )

    def angle_of(self, image_id: str) -> float:
        """Return the rotation of one image, in degrees."""
        if self.angle is not None:
            return self.angle
        return float(np.random.default_rng(zlib.crc32(image_id.encode())).uniform(0, 360))

    def reduced_side(self, view: int) -> int:
        """Return the side of the reduced image in a view of this side."""
        assert self.side is not None
        return max(1, round(self.side * view / _REDUCED_OF))


@dataclass(frozen=True, kw_only=True)
class TransformedSample(Sample):
    """A sample that is the transformed view of another one. `transform_dataset` makes it."""

    original: Sample
    transform: Transform
    spec: InputSpec
    protocol: EvalProtocol

    @property
    def has_mask(self) -> bool:
        """Whether the original has a mask."""
        return self.original.has_mask

    def picture(self) -> PIL.Image.Image:
        """Return the transformed pixels as a Pillow image."""
        from PIL import Image

        return Image.fromarray(self.image())

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the transformed pixels, with the border that the protocol cuts off."""
        outer, _ = self.protocol.view_of(self.spec.size)
        view = to_view(
            self.original.picture(), self.spec.size, frame=self.protocol.network_frame, resize_size=outer
        )
        fill = tuple(round(255 * value) for value in self.spec.mean)
        return self._framed(self._moved(view, fill, smooth=True), fill)

    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """Return the transformed mask, or None."""
        return self._moved_mask(self.original.mask())

    def ignore(self) -> Bool[np.ndarray, "h w"] | None:
        """Return the transformed mask of ignored pixels, or None."""
        return self._moved_mask(self.original.ignore())

    def _moved_mask(self, mask: Bool[np.ndarray, "h w"] | None) -> Bool[np.ndarray, "s s"] | None:
        if mask is None:
            return None
        (outer, start), side = self.protocol.view_of(self.spec.size), self.spec.size
        view = resize_mask(mask, (outer, outer))[start : start + side, start : start + side]
        levels = np.repeat(255 * view[..., None].astype(np.uint8), 3, axis=2)
        return np.asarray(self._framed(self._moved(levels, (0, 0, 0), smooth=False), (0, 0, 0))[..., 0] > 127)

    def _moved(
        self, view: UInt8[np.ndarray, "s s 3"], fill: tuple[int, ...], *, smooth: bool
    ) -> UInt8[np.ndarray, "s s 3"]:
        from PIL import Image

        size = len(view)
        # Reduce: shrink and pad with the fill colour.
        if self.transform.side is not None:
            side = self.transform.reduced_side(size)
            start = (size - side) // 2
            filtered = Image.Resampling.BILINEAR if smooth else Image.Resampling.BOX
            canvas = np.full_like(view, np.array(fill, dtype=np.uint8))
            canvas[start : start + side, start : start + side] = np.asarray(
                Image.fromarray(view).resize((side, side), filtered)
            )
            return canvas
        # Rotate: exactly for right angles, else with a filter.
        angle = self.transform.angle_of(self.original.id)
        if angle % 90 == 0:
            return np.ascontiguousarray(np.rot90(view, int(angle // 90)))
        sampled = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(view).rotate(angle, resample=sampled, fillcolor=fill))

    def _framed(self, view: UInt8[np.ndarray, "s s 3"], fill: tuple[int, ...]) -> UInt8[np.ndarray, "r r 3"]:
        outer, start = self.protocol.view_of(len(view))
        if outer == len(view):
            return view
        canvas = np.full((outer, outer, 3), np.array(fill, dtype=np.uint8))
        canvas[start : start + len(view), start : start + len(view)] = view
        return canvas


def transform_dataset(
    dataset: Dataset, transform: Transform, spec: InputSpec, protocol: EvalProtocol
) -> Dataset:
    """Return the data set as a network with this input sees it under this protocol, after the transform.

    Boxes are clipped to the view and moved. Each becomes the smallest upright box around its moved corners,
    clipped again. A box outside of the view is dropped. Key points outside of the view are kept; the metric
    ignores them. The fingerprint stays that of the data set, so the record must name the transform
    (`metadata` of `wsolbench.evaluation.request.EvalRequest`).

    Raises as `check_transformable`.
    """
    check_transformable(protocol)
    return replace(
        dataset, samples=tuple(_transform(sample, transform, spec, protocol) for sample in dataset.samples)
    )


def check_transformable(protocol: EvalProtocol) -> None:
    """Raise `UsageError` for a protocol with ten crops.

    They would show what the transform has moved out of the view.
    """
    if protocol.classifier == "ten_crop":
        raise UsageError(
            f"protocol {protocol.name!r} classifies ten crops, which a transformed view does not have; "
            "use --protocol-set classifier=single"
        )


def _transform(
    sample: Sample, transform: Transform, spec: InputSpec, protocol: EvalProtocol
) -> TransformedSample:
    side, (outer, start) = spec.size, protocol.view_of(spec.size)

    def move(points: Float64[np.ndarray, "p 2"]) -> Float64[np.ndarray, "p 2"]:
        return _moved_points(points, side, transform, sample.id)

    # Map the annotations to the view, move them, and add the border that the protocol cuts off.
    key_points = sample.key_points
    if key_points is not None:
        key_points = key_points.copy()
        key_points[:, :2] = move(map_to_view(key_points[:, :2], sample.size, side, protocol)) + start
    return TransformedSample(
        id=sample.id,
        label=sample.label,
        size=(outer, outer),
        boxes=_moved_boxes(
            map_to_view(sample.boxes.reshape(-1, 2), sample.size, side, protocol).reshape(-1, 4), side, move
        )
        + start,
        key_points=key_points,
        original=sample,
        transform=transform,
        spec=spec,
        protocol=protocol,
    )


def _moved_points(
    points: Float64[np.ndarray, "p 2"], side: int, transform: Transform, image_id: str
) -> Float64[np.ndarray, "p 2"]:
    """Move points (x, y) of a view of this side."""
    if transform.side is not None:
        reduced = transform.reduced_side(side)
        return np.asarray(points * (reduced / side) + (side - reduced) // 2)
    angle = transform.angle_of(image_id)
    quarter = angle / 90
    # Use exact whole numbers for sine and cosine of right angles; radians would round them.
    sine, cosine = (
        ((0, 1, 0, -1)[int(quarter) % 4], (1, 0, -1, 0)[int(quarter) % 4])
        if quarter == int(quarter)
        else (math.sin(math.radians(angle)), math.cos(math.radians(angle)))
    )
    # Counterclockwise on a screen, whose y points down.
    turned = (points - side / 2) @ np.array([[cosine, -sine], [sine, cosine]], dtype=np.float64)
    return np.asarray(turned + side / 2)


def _moved_boxes(
    boxes: Boxes, side: int, move: Callable[[Float64[np.ndarray, "p 2"]], Float64[np.ndarray, "p 2"]]
) -> Float64[np.ndarray, "k 4"]:
    """Return the boxes around the moved corners. Boxes that are moved out of the view are dropped."""
    cut = np.clip(boxes, 0, side)
    kept = []
    for x0, y0, x1, y1 in cut[((cut[:, 2:] - cut[:, :2]) > 0).all(axis=1)]:
        corners = np.clip(move(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]])), 0, side)
        if (np.ptp(corners, axis=0) > 0).all():  # a rotation can move a box out of the view
            kept.append([*corners.min(axis=0), *corners.max(axis=0)])
    return np.array(kept, dtype=np.float64) if kept else no_boxes()
