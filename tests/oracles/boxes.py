"""Map -> boxes -> IoU and error category, said again pixel by pixel without OpenCV or vectors.

A contour is described by what it encloses instead of by tracing it: the outline of an 8-connected component
bounds the component with its holes filled, the outline of a hole runs through the pixels around the hole, and
the area of the polygon through pixel centres is a sum over 2 x 2 blocks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from wsolbench.protocol import EvalProtocol

Pixel = tuple[int, int]  # (y, x)
Box = tuple[float, float, float, float]

_FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]
_EIGHT = [*_FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1)]


def foreground(score_map: np.ndarray, tau: float, protocol: EvalProtocol) -> set[Pixel]:
    """Foreground pixels at one threshold, straight from the definition."""
    values = {(y, x): float(v) for (y, x), v in np.ndenumerate(score_map)}
    if score_map.dtype == np.uint8:
        values = {pixel: value / 255.0 for pixel, value in values.items()}
    if protocol.quantize == "none":
        cut: float = float(np.float32(tau))
        values = {pixel: float(np.float32(value)) for pixel, value in values.items()}
    else:
        values = {pixel: int(255 * value) for pixel, value in values.items()}
        bases = {
            "max": max(values.values()),
            "percentile": np.percentile([*values.values()], protocol.percentile),
        }
        cut = (
            round(255 * tau)
            if protocol.threshold_basis == "unit"
            else int(tau * bases[protocol.threshold_basis])
        )
    if protocol.foreground == ">":
        return {pixel for pixel, value in values.items() if value > cut}
    return {pixel for pixel, value in values.items() if value >= cut}


def boxes(score_map: np.ndarray, tau: float, protocol: EvalProtocol, rule: str) -> list[Box]:
    """Predicted boxes under "all", "union" or "largest"; of equally large regions the first."""
    pixels = foreground(score_map, tau, protocol)
    height, width = score_map.shape
    if not pixels:
        whole = _written((0, 0, width, height), width, height, protocol)
        return [
            {"zero": (0.0, 0.0, 0.0, 0.0), "unit": (0.0, 0.0, 1.0, 1.0), "image": whole}[protocol.empty_box]
        ]
    if rule == "union":
        return [_written(_bounds(pixels), width, height, protocol)]
    regions = (
        _contours(pixels, height, width)
        if protocol.connectivity == "contour"
        else _components(pixels, protocol)
    )
    if rule == "largest":
        regions = [max(regions, key=lambda region: region[1])]
    return [_written(box, width, height, protocol) for box, _ in regions]


def overlap(a: Box, b: Box, *, plus_one: bool) -> tuple[float, float, float]:
    """IoU, IoG (share of b) and IoB (share of a) of two boxes."""
    one = 1 if plus_one else 0
    inter = max(min(a[2], b[2]) - max(a[0], b[0]) + one, 0) * max(min(a[3], b[3]) - max(a[1], b[1]) + one, 0)
    area_a, area_b = ((box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b))
    return tuple(inter / area if area > 0 else 0.0 for area in (area_a + area_b - inter, area_b, area_a))


def best_iou(predicted: Iterable[Box], truth: Iterable[Box], protocol: EvalProtocol) -> float:
    """Best IoU over all pairs."""
    truth = list(truth)
    return max(overlap(a, b, plus_one=protocol.iou_plus_one)[0] for a in predicted for b in truth)


def error_category(box: Box, truth: list[Box], class_correct: bool, protocol: EvalProtocol) -> str:
    """Category of the error breakdown, test after test."""
    if not class_correct:
        return "cls"
    overlaps = [overlap(box, true_box, plus_one=protocol.iou_plus_one) for true_box in truth]
    iou, iog, iob = max(overlaps, key=lambda values: values[0])
    if iou > protocol.error_iou:
        return "right"
    if sum(values[1] > protocol.error_multi_iog for values in overlaps) > 1:
        return "m_ins"
    if iob > protocol.error_part_iob:
        return "part"
    return "more" if iog >= protocol.error_more_iog else "other"


def _written(box: Box, width: int, height: int, protocol: EvalProtocol) -> Box:
    x0, y0, x1, y1 = box
    if protocol.box_end == "inclusive":
        x1, y1 = x1 - 1, y1 - 1
    if protocol.clip_boxes:
        x1, y1 = min(x1, width - 1), min(y1, height - 1)
    return float(x0), float(y0), float(x1), float(y1)


def _bounds(pixels: Iterable[Pixel]) -> Box:
    ys, xs = zip(*pixels, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def _connected(pixels: set[Pixel], neighbours: list[Pixel]) -> list[set[Pixel]]:
    """Connected components, in the order in which a row-wise scan meets them."""
    left, found = set(pixels), []
    for start in sorted(pixels):
        if start not in left:
            continue
        component, stack = set(), [start]
        left.remove(start)
        while stack:
            y, x = stack.pop()
            component.add((y, x))
            for dy, dx in neighbours:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    stack.append((y + dy, x + dx))
        found.append(component)
    return found


def _components(pixels: set[Pixel], protocol: EvalProtocol) -> list[tuple[Box, float]]:
    regions = []
    for component in _connected(pixels, _FOUR if protocol.connectivity == "4" else _EIGHT):
        x0, y0, x1, y1 = _bounds(component)
        size = len(component) if protocol.largest_by == "pixel_count" else (x1 - x0) * (y1 - y0)
        regions.append(((x0, y0, x1, y1), float(size)))
    return regions


def _contours(pixels: set[Pixel], height: int, width: int) -> list[tuple[Box, float]]:
    """Outlines, those that start last in a row-wise scan first, then holes; of equal ones OpenCV has the
    first of these first."""
    padded = {(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)}
    regions = []
    for component in reversed(_connected(pixels, _EIGHT)):
        filled = _filled(component, padded, _FOUR)
        # Three of four centres span half a block, two span nothing.
        regions.append((_bounds(component), _block_area(filled, {3: 0.5, 4: 1.0})))
    for hole in _connected(padded - pixels, _FOUR):
        if (-1, -1) in hole:
            continue
        x0, y0, x1, y1 = _bounds(hole)
        # The polygon runs through the surrounding pixels: one hole pixel in a block opens half of it, two or
        # more all of it.
        regions.append(
            (
                (x0 - 1, y0 - 1, x1 + 1, y1 + 1),
                _block_area(_filled(hole, padded, _EIGHT), {1: 0.5, 2: 1.0, 3: 1.0, 4: 1.0}),
            )
        )
    return regions


def _filled(region: set[Pixel], padded: set[Pixel], neighbours: list[Pixel]) -> set[Pixel]:
    """The region with all that it encloses."""
    outside = next(part for part in _connected(padded - region, neighbours) if (-1, -1) in part)
    return padded - outside


def _block_area(region: set[Pixel], share: dict[int, float]) -> float:
    corners = {(y - dy, x - dx) for y, x in region for dy in (0, 1) for dx in (0, 1)}
    return sum(
        share.get(sum((y + dy, x + dx) in region for dy in (0, 1) for dx in (0, 1)), 0.0) for y, x in corners
    )
