"""The evaluation frame: where map and true boxes meet, in the pixels and by the conventions of the
protocol.
"""

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
    """(width, height) of the frame in which the maps of an image of `image_size` = (width, height) are
    compared.
    """
    return (
        check_size(image_size) if protocol.frame == "original" else (protocol.frame_size, protocol.frame_size)
    )


def view(protocol: EvalProtocol) -> str:
    """What a map of this protocol covers: the whole image, or its central crop."""
    return "center_crop" if protocol.frame == "center_crop" else "image"


def to_frame(
    score_map: np.ndarray, image_size: tuple[int, int], protocol: EvalProtocol, *, what: str = "score map"
) -> Float[np.ndarray, "fh fw"]:
    """Raw map (any shape, any finite range, covering the frame) -> map in [0, 1] of the frame's size.

    `what` names the map in errors. Raises `DataError` for a map that is not two-dimensional, is empty, or
    holds NaN or Inf.

    >>> to_frame(np.array([[0.0, 2.0]]), (2, 1), EvalProtocol.preset("lid"))
    array([[0., 1.]], dtype=float32)
    """
    values = np.asarray(score_map)
    check_map(values, what)
    size = frame_size(image_size, protocol)
    if (
        values.min() == values.max()
    ):  # said before resizing: a cubic kernel's rounding makes a pattern of a constant
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
    """The part of a raw map of the whole image that lies in the protocol's centre crop: resized to
    `resize_size` squared, then cut.

    Not what a network gives that sees the crop alone, which is what evaluators with a centre crop score.
    Raises `UsageError` under a protocol without a centre crop.

    >>> cut_center(np.arange(256.0)[None].repeat(256, axis=0), EvalProtocol.preset("bas"))[0, [0, -1]]
    array([ 16., 239.])
    """
    if protocol.frame != "center_crop":
        raise UsageError(
            f"protocol {protocol.name!r} compares on the {protocol.frame} frame; a centre crop is for "
            "frame='center_crop'"
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
    """True boxes (continuous xyxy pixels of the image) in the frame and the numbers of the protocol.

    In this order: first box only or all; one less at the end (`gt_end`); cut at (W-1, H-1) (`clip_boxes`);
    scaled by `x * new / old`; truncated (`gt_truncate`); for the centre crop shifted and cut to the crop.

    Raises `DataError` for boxes of another shape, that are not finite, end before they start (x, y, width,
    height), or lie outside the image. With `check_unit` boxes that look like fractions of the image are
    refused, too. `evaluate` asks this of all images at once, because a single box can be smaller than a
    pixel.
    """
    result = check_boxes_of_image(boxes, image_size, "true boxes", unit=check_unit)
    result = result[:1] if protocol.gt_boxes == "first" else result
    width, height = image_size
    if protocol.gt_end == "inclusive":
        result[:, 2:] -= 1
    if protocol.clip_boxes:
        result = np.clip(result, 0, [width - 1, height - 1] * 2)
    if protocol.frame == "original":
        return np.trunc(result) if protocol.gt_truncate else result
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
    """Predicted boxes in the frame and the numbers of the protocol -> continuous xyxy pixels of an image of
    (width, height).

    The protocol's own rounding and cutting stay, and so does its empty box. Raises `DataError` for broken
    boxes.

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


def in_view(
    points: Float64[np.ndarray, "p 2"], image_size: tuple[int, int], side: int, protocol: EvalProtocol
) -> Float64[np.ndarray, "p 2"]:
    """Points (x, y) of an image of (width, height) in pixels of what a network of input `side` sees of it;
    neither rounded nor cut.
    """
    outer, start = protocol.view_of(side)
    return np.asarray(points * outer / np.array(image_size, dtype=np.float64) - start)
