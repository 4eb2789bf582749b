"""Benchmark of the pixel histograms of PxAP and Peak-IoU against the official algorithms, in one run.

    python benchmarks/bench_masks.py [--maps 20] [--seed 0]

The official algorithms are reimplemented here from their description. PxAP: `numpy.histogram` of the scores
of object and background. Peak-IoU: intersection and union with the mask at each of 256 thresholds. Before
anything is timed, both are checked to give the same counts on every map.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from wsolbench.metrics.histograms import histograms
from wsolbench.metrics.peak_iou import level_histogram
from wsolbench.metrics.pxap import pixel_histogram
from wsolbench.protocol import EvalProtocol

PROTOCOL = EvalProtocol()
EDGES = [*PROTOCOL.taus, 1.0, 2.0, 3.0]
Image = tuple[np.ndarray, np.ndarray]


def official_pxap(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the pixels of object and background between adjacent thresholds."""
    scores = scores.astype(np.float64)
    return np.stack([np.histogram(scores[mask], bins=EDGES)[0], np.histogram(scores[~mask], bins=EDGES)[0]])


def official_peak_iou(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return intersection and union at each level."""
    levels = scores if scores.dtype == np.uint8 else (scores.astype(np.float64) * 255).astype(np.uint8)
    counts = [
        (np.logical_and(levels >= level, mask).sum(), np.logical_or(levels >= level, mask).sum())
        for level in range(256)
    ]
    return np.array(counts).T


def counts_at_levels(histogram: np.ndarray) -> np.ndarray:
    """Return intersection and union at each level, from the histogram."""
    inside, outside = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
    return np.stack([inside, histogram[0].sum() + outside])


def images(kind: int | str, dtype: type, count: int, seed: int) -> list[Image]:
    """Return maps of 224 x 224 with an elliptic mask.

    They are random `kind` x `kind` grids enlarged by a bicubic filter, or noise.
    """
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        side = 224 if kind == "noise" else int(kind)
        grid = cv2.resize(rng.random((side, side)), (224, 224), interpolation=cv2.INTER_CUBIC)
        grid = (grid - grid.min()) / (grid.max() - grid.min())
        mask = np.zeros((224, 224), np.uint8)
        cv2.ellipse(mask, (120, 100), tuple(rng.integers(30, 90, 2).tolist()), 30, 0, 360, 1, cv2.FILLED)
        made.append(((grid * 255).astype(np.uint8) if dtype is np.uint8 else grid.astype(dtype), mask > 0))
    return made


def milliseconds(function: Callable[[np.ndarray, np.ndarray], object], inputs: list[Image]) -> float:
    """Return the median time of one call."""
    times = []
    for scores, mask in inputs:
        start = time.perf_counter()
        function(scores, mask)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


@click.command()
@click.option("--maps", "count", default=20, show_default=True, help="Maps of each kind.")
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Print milliseconds per map and the ratio, on one thread."""
    table = Table("maps", "type", "histograms", "official ms", "wsolbench ms", "ratio")
    for kind in (14, "noise"):
        for dtype in (np.float64, np.float32, np.uint8):
            inputs = images(kind, dtype, count, seed)
            for scores, mask in inputs:
                pixel, level = histograms(scores, mask, None, PROTOCOL)
                unit = scores / 255.0 if dtype is np.uint8 else scores
                np.testing.assert_array_equal(pixel, official_pxap(unit, mask))
                np.testing.assert_array_equal(counts_at_levels(level), official_peak_iou(scores, mask))
            pxap, peak = milliseconds(official_pxap, inputs), milliseconds(official_peak_iou, inputs)
            rows = (
                ("PxAP", pxap, lambda scores, mask: pixel_histogram(scores, mask, None, PROTOCOL)),
                ("Peak-IoU", peak, level_histogram),
                ("both", pxap + peak, lambda scores, mask: histograms(scores, mask, None, PROTOCOL)),
            )
            for name, slow, function in rows:
                fast = milliseconds(function, inputs)
                label = "noise" if kind == "noise" else f"{kind}x{kind} enlarged"
                table.add_row(
                    label, np.dtype(dtype).name, name, f"{slow:.2f}", f"{fast:.3f}", f"{slow / fast:.0f}"
                )
    Console().print(table)


if __name__ == "__main__":
    main()
