"""The evaluation frame: the pixels and conventions in which map and ground-truth boxes are compared."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from wsolbench.checks import check_boxes, check_boxes_of_image, check_size
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.normalize import normalize
from wsolbench.maps.resize import resize_map
from wsolbench.protocol import EvalProtocol, crop_start
from wsolbench.types import Boxes, ScoreMap


def frame_size(image_size: tuple[int, int], protocol: EvalProtocol) -> tuple[int, int]:
    """Return (width, height) of the evaluation frame for an image of `image_size` = (width, height)."""
    return (
        check_size(image_size) if protocol.frame == "original" else (protocol.frame_size, protocol.frame_size)
    )


def view(protocol: EvalProtocol) -> str:
    """Return what a map covers under this protocol: the whole image ("image") or its "center_crop"."""
    return "center_crop" if protocol.frame == "center_crop" else "image"


def to_frame(
    score_map: np.ndarray, image_size: tuple[int, int], protocol: EvalProtocol, *, what: str = "score map"
) -> Float[np.ndarray, "fh fw"]:
    """Bring a raw map into the evaluation frame: (fh, fw) in [0, 1].

    The map may have any shape and any finite range, and must cover the frame. `what` names it in errors.
    Raises `DataError` for a map that is not two-dimensional, is empty, or contains NaN or Inf.

    The arithmetic has the precision of the map, float32 or float64, as in the official programs. Maps of
    another type become float32. `lid` makes the map 8-bit before it is resized, and returns float32. Its
    largest value is then 1 for a float32 map. For a float64 map it is 254/255, because float64 does not round
    away the small number in the divisor. Pass the float32 map that a network gives; stored maps are float32.

    >>> raw_map = np.array([[0.0, 2.0]])
    >>> to_frame(raw_map.astype(np.float32), (2, 1), EvalProtocol.preset("lid"))
    array([[0., 1.]], dtype=float32)
    >>> to_frame(raw_map, (2, 1), EvalProtocol.preset("lid"))
    array([[0.        , 0.99607843]], dtype=float32)
    >>> to_frame(raw_map, (2, 1), EvalProtocol.preset("wsoleval")).dtype
    dtype('float64')
    """
    values = np.asarray(score_map)
    check_map(values, what)
    size = frame_size(image_size, protocol)
    # Before resizing, because the rounding of a cubic kernel turns a constant map into a pattern.
    if values.min() == values.max():
        return np.zeros((size[1], size[0]), dtype=np.float32)
    if protocol.order == "resize_then_normalize":
        return normalize(resize_map(values, size, protocol.resize), protocol)
    unit_map = normalize(values, protocol)
    if protocol.order == "quantize_then_resize":
        levels = np.trunc(unit_map * np.float64(255)).astype(np.uint8)
        return np.asarray(resize_map(levels, size, protocol.resize) / np.float32(255))
    # A bicubic kernel overshoots; the comparison is defined on [0, 1].
    return np.asarray(np.clip(resize_map(unit_map, size, protocol.resize), 0, 1))


def cut_center(score_map: ScoreMap, protocol: EvalProtocol) -> Float[np.ndarray, "ch cw"]:
    """Cut a raw map of the whole image to the protocol's centre crop: (frame_size, frame_size).

    The map is resized to `resize_size` squared and then cut. This differs from the map of a network that sees
    only the crop, which is what evaluators with a centre crop score. Raises `UsageError` if the protocol
    has no centre crop.

    >>> cut_center(np.arange(256.0)[None].repeat(256, axis=0), EvalProtocol.preset("bas"))[0, [0, -1]]
    array([ 16., 239.])
    """
    if protocol.frame != "center_crop":
        raise UsageError(
            f"protocol {protocol.name!r} has frame={protocol.frame!r}; expected frame='center_crop' for a "
            "centre crop"
        )
    if score_map.min() == score_map.max():  # see `to_frame`
        return score_map
    edge = crop_start(protocol.resize_size, protocol.frame_size)
    whole = resize_map(score_map, (protocol.resize_size, protocol.resize_size), protocol.resize)
    return whole[edge : edge + protocol.frame_size, edge : edge + protocol.frame_size]


def check_map(values: np.ndarray, what: str) -> None:
    """Raise `DataError` unless `values` is a finite, non-empty, two-dimensional array of numbers."""
    if values.ndim != 2 or values.size == 0:
        raise DataError(
            f"{what} has shape {values.shape}; expected a non-empty (height, width) array. Store one map "
            "of one class per image."
        )
    if not np.issubdtype(values.dtype, np.number) or np.issubdtype(values.dtype, np.complexfloating):
        raise DataError(f"{what} has dtype {values.dtype}; expected real numbers")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise DataError(
            f"{what} holds {bad} NaN or Inf of {values.size} values; expected finite numbers. Find what "
            "made them."
        )


def frame_boxes(
    boxes: Boxes, image_size: tuple[int, int], protocol: EvalProtocol, *, check_unit: bool = True
) -> Float64[np.ndarray, "g 4"]:
    """Convert ground-truth boxes to the frame and the protocol's convention.

    `boxes` are continuous xyxy pixels of the image. The steps are, in this order: first box only or all;
    one less at the end (`gt_end`); clipped at (W-1, H-1) (`clip_boxes`); scaled by `x * new / old`;
    truncated (`gt_truncate`); for the centre crop, shifted and clipped to the crop.

    Raises `DataError` for boxes of another shape, that are not finite, end before they start (x, y, width,
    height), or lie outside the image. With `check_unit`, boxes that look like fractions of the image are
    rejected too. `evaluate` checks this for all images at once, because a single box can be smaller than a
    pixel.
    """
    # In the pixels of the image: which boxes, where they end, and clipping.
    result = check_boxes_of_image(boxes, image_size, "ground-truth boxes", unit=check_unit)
    result = result[:1] if protocol.gt_boxes == "first" else result
    width, height = image_size
    if protocol.gt_end == "inclusive":
        result[:, 2:] -= 1
    if protocol.clip_boxes:
        result = np.clip(result, 0, [width - 1, height - 1] * 2)
    if protocol.frame == "original":
        return np.trunc(result) if protocol.gt_truncate else result
    # In the pixels of the frame.
    side = protocol.resize_size if protocol.frame == "center_crop" else protocol.frame_size
    result = result * side / np.array([width, height] * 2, dtype=np.float64)
    if protocol.gt_truncate:
        result = np.trunc(result)
    if protocol.frame == "center_crop":
        result = np.clip(
            result - crop_start(side, protocol.frame_size),
            0,
            protocol.frame_size - (protocol.gt_end == "inclusive"),
        )
    return result


def image_boxes(
    boxes: Boxes, image_size: tuple[int, int], protocol: EvalProtocol
) -> Float64[np.ndarray, "g 4"]:
    """Convert predicted boxes from the frame to continuous xyxy pixels of an image of (width, height).

    The boxes are in the protocol's convention. The protocol's rounding, clipping and empty box are kept.
    Raises `DataError` for invalid boxes.

    >>> image_boxes(np.array([[56.0, 56.0, 112.0, 168.0]]), (448, 224), EvalProtocol.preset("wsoleval"))
    array([[112.,  56., 224., 168.]])
    """
    check_size(image_size)
    result = check_boxes(
        np.zeros((0, 4)) if np.size(boxes) == 0 else boxes,
        plus_one=protocol.box_end == "inclusive",
        what="predicted boxes",
    )
    if protocol.box_end == "inclusive":
        result[:, 2:] += 1
    if protocol.frame == "original":
        return result
    side, edge = protocol.frame_size, 0
    if protocol.frame == "center_crop":
        side, edge = protocol.resize_size, crop_start(protocol.resize_size, protocol.frame_size)
    return (result + edge) * np.array(image_size * 2, dtype=np.float64) / side


def map_to_view(
    points: Float64[np.ndarray, "p 2"], image_size: tuple[int, int], side: int, protocol: EvalProtocol
) -> Float64[np.ndarray, "p 2"]:
    """Convert points (x, y) of an image to pixels of the view of a network with input side `side`.

    `image_size` is (width, height). The result is neither rounded nor clipped.
    """
    outer, start = protocol.view_of(side)
    return np.asarray(points * outer / np.array(image_size, dtype=np.float64) - start)
