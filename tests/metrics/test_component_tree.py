"""The one-pass sweep equals OpenCV, level by level, on maps of every kind that is hard for it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from wsolbench.metrics.boxes import iou_matrix
from wsolbench.metrics.sweep import boxes_at, sweep
from wsolbench.protocol import EvalProtocol

KINDS = ("smooth", "noise", "plateaus", "checkerboard", "rings", "lines")
SPA_ALL = replace(EvalProtocol.preset("spa"), components="all", single_box="largest")
BAS_ALL = replace(EvalProtocol.preset("bas"), components="all")
PROTOCOLS = (*(EvalProtocol.preset(name) for name in EvalProtocol.presets()), SPA_ALL, BAS_ALL)


def make_map(kind: str, rng: np.random.Generator) -> np.ndarray:
    height, width = (int(side) for side in rng.integers(1, 48, size=2))
    y, x = np.mgrid[:height, :width]
    if kind == "smooth":
        grid = cv2.resize(rng.random((5, 5)), (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind == "noise":
        grid = rng.random((height, width))
    elif kind == "plateaus":
        grid = rng.integers(0, 4, (height, width)).astype(float)
    elif kind == "checkerboard":
        grid = ((x + y) % 2) * rng.random((height, width)).round(1)
    elif kind == "rings":
        grid = np.sin(np.hypot(y - height / 2, x - width / 2) * rng.uniform(0.5, 2)) + 0.2 * rng.random((height, width))
    else:
        grid = np.zeros((height, width), dtype=np.float32)
        for level in (0.3, 0.6, 1.0):
            cv2.polylines(grid, [rng.integers(0, [width, height], (5, 2)).astype(np.int32)], True, level)
    grid = grid - grid.min()
    return np.clip(grid / max(float(grid.max()), 1e-9), 0, 1).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: f"{protocol.name}-{protocol.components}")
def test_boxes_and_ious_equal_those_that_opencv_finds_at_each_threshold(kind: str, protocol: EvalProtocol) -> None:
    rng = np.random.default_rng(KINDS.index(kind))
    protocol = replace(protocol, taus=tuple((np.arange(0, 64) / 64).tolist()))
    for _ in range(6):
        score_map = make_map(kind, rng)
        height, width = score_map.shape
        corners = rng.integers(0, [width, height], (2, 2, 2))  # two boxes of two corners
        truth = np.hstack([corners.min(axis=0), corners.max(axis=0)]).astype(float)
        swept = sweep(score_map, truth, protocol)
        for column, tau in enumerate(protocol.taus):
            boxes = boxes_at(score_map, tau, protocol)
            assert swept.best_iou[column] == iou_matrix(boxes, truth, plus_one=True).max()
            single = boxes_at(score_map, tau, replace(protocol, components=protocol.single_box))
            np.testing.assert_array_equal(swept.single_boxes[column], single[0])
