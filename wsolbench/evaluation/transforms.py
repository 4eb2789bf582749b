"""Images turned or made smaller at test time, with their boxes, masks and key points: how robust a method is.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, Tables 1 and 2: rotated images, and images reduced to 300 pixels and padded to the input of
448. Angles, filling and order are decisions of this project.

What the network sees of an image is transformed (after resize and crop, so that the field of view is the
same), and so is the truth in that view. The transformed view is handed out as an image whose own view, under
the same protocol, is just that.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from wsolbench.exceptions import UsageError
from wsolbench.maps.frame import map_to_view
from wsolbench.maps.masks import resize_mask
from wsolbench.methods import InputSpec
from wsolbench.methods.inputs import to_view
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Boxes, Dataset, Sample, no_boxes

_RIGHT_ANGLES = {"rotate90": 1, "rotate180": 2, "rotate270": 3}
_REDUCED_OF = 448
"""Side of the input that the side of `reduce` is given for."""


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What is done to every image: `rotate90`, `rotate180`, `rotate270` (exact), `rotate:ANGLE`,
    `rotate:random`, or `reduce:SIDE`.

    Angles are degrees, counterclockwise; a random one depends on the image's id alone. `reduce:300` is for an
    input of 448 and scales with the input. What comes from outside of the view has the network's mean colour.
    """

    name: str
    angle: float | None = None
    """None: a random one, or none."""
    side: int | None = None

    @classmethod
    def parse(cls, text: str) -> Transform:
        """Read the name. Raises `UsageError` on one that is none.

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
            "degrees, rotate:random, "
            f"or reduce:SIDE with a side of 1 to {_REDUCED_OF - 1}"
        )

    def angle_of(self, image_id: str) -> float:
        """Degrees for one image."""
        if self.angle is not None:
            return self.angle
        return float(np.random.default_rng(zlib.crc32(image_id.encode())).uniform(0, 360))

    def reduced_side(self, view: int) -> int:
        """Side of the reduced image in a view of this side."""
        assert self.side is not None
        return max(1, round(self.side * view / _REDUCED_OF))


@dataclass(frozen=True, kw_only=True)
class TransformedSample(Sample):
    """A sample as the transformed view of another one; see `transformed`."""

    original: Sample
    transform: Transform
    spec: InputSpec
    protocol: EvalProtocol

    @property
    def has_mask(self) -> bool:
        """As the original."""
        return self.original.has_mask

    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The transformed pixels, with the border that the protocol cuts off."""
        outer, _ = self.protocol.view_of(self.spec.size)
        view = to_view(
            self.original.image(), self.spec.size, frame=self.protocol.network_frame, resize_size=outer
        )
        fill = tuple(round(255 * value) for value in self.spec.mean)
        return self._framed(self._moved(view, fill, smooth=True), fill)

    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """The transformed mask."""
        return self._moved_mask(self.original.mask())

    def ignore(self) -> Bool[np.ndarray, "h w"] | None:
        """The transformed pixels to leave out."""
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
        if self.transform.side is not None:
            side = self.transform.reduced_side(size)
            start = (size - side) // 2
            filtered = Image.Resampling.BILINEAR if smooth else Image.Resampling.BOX
            canvas = np.full_like(view, np.array(fill, dtype=np.uint8))
            canvas[start : start + side, start : start + side] = np.asarray(
                Image.fromarray(view).resize((side, side), filtered)
            )
            return canvas
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


def transformed(dataset: Dataset, transform: Transform, spec: InputSpec, protocol: EvalProtocol) -> Dataset:
    """The data set as a network with this input sees it under this protocol after the transform.

    Boxes are cut to the view, moved, and become the smallest upright boxes around what they have become, cut
    again; one that is outside of the view is left out. Key points outside of it are still there: the metric
    leaves them out. The fingerprint is that of the data set, so the record must name the transform (`facts`
    of `wsolbench.evaluation.evaluate.score`).

    Raises `UsageError` for a protocol with ten crops, which would see what the transform has moved out of the
    view.
    """
    if protocol.classifier == "ten_crop":
        raise UsageError(
            f"protocol {protocol.name!r} classifies ten crops, which a transformed view does not have; use "
            "--protocol-set classifier=single"
        )
    return replace(
        dataset, samples=tuple(_transformed(sample, transform, spec, protocol) for sample in dataset.samples)
    )


def _transformed(
    sample: Sample, transform: Transform, spec: InputSpec, protocol: EvalProtocol
) -> TransformedSample:
    side, (outer, start) = spec.size, protocol.view_of(spec.size)

    def move(points: Float64[np.ndarray, "p 2"]) -> Float64[np.ndarray, "p 2"]:
        return _moved_points(points, side, transform, sample.id)

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
    """Points (x, y) of a view of this side."""
    if transform.side is not None:
        reduced = transform.reduced_side(side)
        return np.asarray(points * (reduced / side) + (side - reduced) // 2)
    angle = transform.angle_of(image_id)
    quarter = angle / 90
    # Of right angles sine and cosine are whole numbers, which radians would miss by a bit.
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
    """Boxes around the moved corners; those that are left or turn out of the view have none."""
    cut = np.clip(boxes, 0, side)
    kept = []
    for x0, y0, x1, y1 in cut[((cut[:, 2:] - cut[:, :2]) > 0).all(axis=1)]:
        corners = np.clip(move(np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]])), 0, side)
        if (np.ptp(corners, axis=0) > 0).all():  # a box can turn out of the view
            kept.append([*corners.min(axis=0), *corners.max(axis=0)])
    return np.array(kept, dtype=np.float64) if kept else no_boxes()
