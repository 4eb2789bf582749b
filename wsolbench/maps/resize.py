"""Resizing of score maps."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from wsolbench.types import ScoreMap

_INTERPOLATION = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}


def resize_map(
    score_map: ScoreMap | UInt8[np.ndarray, "h w"],
    size: tuple[int, int],
    method: Literal["bicubic", "bilinear"],
) -> Float[np.ndarray, "h2 w2"]:
    """Resize a map to `size` = (width, height) by OpenCV (half-pixel centres, no antialiasing).

    float64 maps stay float64, others become float32. An 8-bit map is interpolated in OpenCV's 8-bit
    arithmetic, which rounds to whole levels, and is returned as float32 levels. A map that already has the
    size is returned unchanged, so that maps stored in the frame are scored as they are.
    """
    values = np.ascontiguousarray(
        score_map, dtype=score_map.dtype if score_map.dtype in (np.uint8, np.float64) else np.float32
    )
    if values.shape != (size[1], size[0]):
        values = cv2.resize(values, size, interpolation=_INTERPOLATION[method])
    return values.astype(np.float32) if values.dtype == np.uint8 else values
