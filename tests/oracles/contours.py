"""Map -> boxes -> IoU with OpenCV called for each threshold, as official evaluators do it; and maps that are
hard to sweep.

Nothing of the sweep is used here, so that it can be compared with this.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import cv2
import numpy as np

from wsolbench.metrics.sweep import sweep
from wsolbench.protocol import EvalProtocol

# --- the definition -----------------------------------------------------------------------------------------


def foreground(score_map: np.ndarray, tau: float, protocol: EvalProtocol) -> np.ndarray:
    """The foreground (h, w) at one threshold."""
    values = score_map / 255.0 if score_map.dtype == np.uint8 else score_map
    if protocol.quantize == "none":
        picture, cut = values.astype(np.float32), np.float32(tau)
    else:
        picture = (values.astype(np.float64) * 255.0).astype(np.int64)
        if protocol.threshold_basis == "unit":
            cut = round(tau * 255)
        else:
            cut = int(
                tau
                * (
                    picture.max()
                    if protocol.threshold_basis == "max"
                    else np.percentile(picture, protocol.percentile)
                )
            )
    return picture > cut if protocol.foreground == ">" else picture >= cut


def boxes(picture: np.ndarray, rule: str, protocol: EvalProtocol) -> np.ndarray:
    """Boxes (m, 4) of a foreground under "all", "largest" or "union", in the numbers of the protocol."""
    height, width = picture.shape
    if not picture.any():
        if protocol.empty_box != "image":
            return np.array([[0.0, 0.0, 1.0, 1.0] if protocol.empty_box == "unit" else [0.0] * 4])
        found = np.array([[0, 0, width, height]])
    elif rule == "union":
        y, x = np.nonzero(picture)
        found = np.array([[x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]])
    elif protocol.connectivity == "contour":
        contours = cv2.findContours(picture.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if rule == "largest":
            contours = [max(contours, key=cv2.contourArea)]
        found = np.array([cv2.boundingRect(contour) for contour in contours])
    else:
        # The default algorithm does not number components in row-wise order of their first pixel; Wu's does.
        stats = cv2.connectedComponentsWithStatsWithAlgorithm(
            picture.astype(np.uint8), int(protocol.connectivity), cv2.CV_32S, cv2.CCL_WU
        )[2][1:]
        size = stats[:, 4] if protocol.largest_by == "pixel_count" else stats[:, 2] * stats[:, 3]
        found = stats[[size.argmax()], :4] if rule == "largest" else stats[:, :4]
    end = 1 if protocol.box_end == "inclusive" else 0
    result = np.column_stack([found[:, :2], found[:, :2] + found[:, 2:] - end]).astype(np.float64)
    return np.minimum(result, [width - 1, height - 1] * 2) if protocol.clip_boxes else result


def best_iou(predicted: np.ndarray, truth: np.ndarray, protocol: EvalProtocol) -> float:
    """Best IoU of any of the boxes (m, 4) with any true box."""
    one = 1.0 if protocol.iou_plus_one else 0.0
    truth = truth[:1] if protocol.gt_boxes == "first" else truth
    a, b = predicted[:, None, :], truth[None, :, :]
    w = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0]) + one
    h = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1]) + one
    inter = np.where((w > 0) & (h > 0), w * h, 0.0)
    area_a, area_b = ((box[..., 2] - box[..., 0] + one) * (box[..., 3] - box[..., 1] + one) for box in (a, b))
    whole = area_a + area_b - inter
    return float(np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0).max())


def differences(score_map: np.ndarray, truth: np.ndarray, protocol: EvalProtocol) -> list[str]:
    """Where the sweep of a map is not what OpenCV gives, to the last bit."""
    swept = sweep(score_map, truth, protocol)
    known: dict[bytes, tuple[float, np.ndarray, float]] = {}
    found = []
    for k, tau in enumerate(protocol.taus):
        picture = foreground(score_map, tau, protocol)
        key = picture.tobytes()
        if key not in known:
            single = boxes(picture, protocol.single_box, protocol)
            best = best_iou(boxes(picture, protocol.components, protocol), truth, protocol)
            known[key] = best, single, best_iou(single, truth, protocol)
        best, single, single_iou = known[key]
        for what, got, expected in (
            ("best IoU", swept.best_iou[k], best),
            ("box", swept.single_boxes[k].tolist(), single[0].tolist()),
            ("IoU of the box", swept.single_iou[k], single_iou),
        ):
            if got != expected:
                found.append(f"{what} at tau={tau}: {got}; expected {expected}")
    return found


# --- what it is asked ---------------------------------------------------------------------------------------

KINDS = (
    "smooth",
    "noise",
    "plateaus",
    "checkerboard",
    "rings",
    "lines",
    "spiral",
    "islands",
    "binary",
    "stripes",
    "beads",
    "flat",
)


def hard_map(kind: str, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A map of a kind, in float64, float32 or uint8; one in four is not contiguous in memory."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    grid = np.zeros((height, width))
    if kind == "smooth":
        side = int(rng.integers(2, 9))
        grid = cv2.resize(rng.random((side, side)), (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind == "noise":
        grid = rng.random((height, width))
    elif kind == "plateaus":
        grid = rng.integers(0, 4, (height, width)).astype(np.float64)
    elif kind == "checkerboard":
        grid = ((x + y) % 2) * rng.random((height, width)).round(1)
    elif kind == "rings":  # round, square or on edge, one or more pixels wide, with gaps
        dy, dx = abs(y - height // 2), abs(x - width // 2)
        distance = (np.hypot(dy, dx), np.maximum(dy, dx), dy + dx)[rng.integers(3)]
        grid = (
            (distance.astype(int) % rng.integers(2, 5) == 0)
            * rng.integers(1, 4, (1, width))
            * (rng.random((height, width)) > 0.02)
        )
    elif kind == "lines":
        for level in (0.3, 0.6, 1.0):
            cv2.polylines(grid, [rng.integers(0, [width, height], (5, 2)).astype(np.int32)], True, level)
    elif kind == "spiral":  # a wall one pixel wide, sloping up or down along the way
        left, top, right, bottom = 0, 0, width - 1, height - 1
        way: list[tuple[int, int]] = []
        while left <= right and top <= bottom:
            way += [(top, c) for c in range(left, right + 1)] + [(r, right) for r in range(top, bottom + 1)]
            way += [(bottom, c) for c in range(right, left, -1)] + [
                (r, left) for r in range(bottom, top + 1, -1)
            ]
            left, top, right, bottom = left + 2, top + 2, right - 2, bottom - 2
        for step, place in enumerate(way):
            grid[place] = 0.3 + 0.7 * step / len(way)
        grid = grid if rng.random() < 0.5 else 1.3 - grid
    elif kind == "islands":  # boxes within boxes, in and out of the foreground
        for _ in range(int(rng.integers(1, 4))):
            (x0, x1), (y0, y1) = (np.sort(rng.integers(0, side, 2)) for side in (width, height))
            while x0 <= x1 and y0 <= y1:
                grid[y0 : y1 + 1, x0 : x1 + 1] = rng.integers(0, 6)
                gap = rng.integers(1, 3, 4)
                x0, x1, y0, y1 = x0 + gap[0], x1 - gap[1], y0 + gap[2], y1 - gap[3]
    elif kind == "binary":
        grid = (rng.random((height, width)) < rng.random()).astype(np.float64)
    elif kind == "stripes":  # runs in a line, often of equal length
        lines = grid[:, ::2] if rng.random() < 0.5 else grid[::2]
        lines[:] = rng.integers(0, 6, lines.shape)
    elif kind == "beads":  # pieces of equal size that are joined one by one, so that their order decides
        step = int(rng.integers(2, 4))
        grid = rng.integers(0, 6, (height, width)) * (rng.random((height, width)) < 0.3).astype(np.float64)
        grid[::step, ::step] = rng.integers(6, 8, grid[::step, ::step].shape)
    else:
        grid[:] = rng.random()
    grid = np.clip(grid - grid.min() if rng.random() < 0.9 else grid, 0, None)
    grid = np.clip(grid / max(float(grid.max()), 1e-9), 0, 1)
    made = ((grid * 255).astype(np.uint8), grid.astype(np.float32), grid)[rng.integers(3)]
    return np.asfortranarray(made) if rng.random() < 0.25 else made


_REGIONS = (
    ("contour", "contour_area"),
    ("4", "pixel_count"),
    ("4", "box_area"),
    ("8", "pixel_count"),
    ("8", "box_area"),
)
_LEVELS = (("uint8", "max"), ("uint8", "unit"), ("uint8", "percentile"), ("none", "unit"))
PROTOCOLS = tuple(
    EvalProtocol(
        name="exact",
        connectivity=connectivity,
        largest_by=largest_by,
        components=components,
        single_box=single,
        quantize=quantize,
        threshold_basis=basis,
        foreground=test,
    )
    for (connectivity, largest_by), components, single, (quantize, basis), test in itertools.product(
        _REGIONS, ("all", "largest", "union"), ("largest", "union"), _LEVELS, (">", ">=")
    )
)
"""Every combination of the fields that decide what is foreground and what is a region."""


def drawn(protocol: EvalProtocol, thresholds: int, rng: np.random.Generator) -> EvalProtocol:
    """A protocol with drawn thresholds, 0 and the highest one among them, and a drawn way of writing and
    comparing boxes."""
    reaches_one = protocol.foreground == ">=" or protocol.threshold_basis == "percentile"
    highest = 1.0 if reaches_one else 0.9999
    middle = (rng.integers(1, 1000, max(thresholds - 2, 0)) / 1000).tolist()
    return replace(
        protocol,
        taus=tuple(np.unique([0.0, highest, *middle]).tolist()),
        percentile=float(rng.choice([10.0, 90.0, 100.0])),
        box_end=str(rng.choice(["exclusive", "inclusive"])),
        clip_boxes=bool(rng.integers(2)),
        empty_box=str(rng.choice(["zero", "unit", "image"])),
        gt_boxes=str(rng.choice(["any", "first"])),
        iou_plus_one=bool(rng.integers(2)),
    )


def true_boxes(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """One to three boxes in and around the map, half of the time with fractions."""
    corners = rng.uniform(-1, [width + 1, height + 1], (int(rng.integers(1, 4)), 2, 2))
    found = np.hstack([corners.min(axis=1), corners.max(axis=1)])
    return found if rng.random() < 0.5 else np.trunc(found)
