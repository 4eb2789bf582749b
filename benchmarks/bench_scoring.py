"""How fast maps are scored, against the official algorithm, measured in one run.

    python benchmarks/bench_scoring.py [--maps 20] [--seed 0]

The official algorithm (a thousand thresholds, `cv2.findContours` for each, every contour's box against every true box) is
restated here from its description; both give the same numbers, which is checked on every map before anything is timed.
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

from wsolbench.metrics.boxes import iou_matrix
from wsolbench.metrics.sweep import best_iou_per_tau
from wsolbench.protocol import EvalProtocol

TRUTH = np.array([[40.0, 50.0, 150.0, 180.0]])


def official(score_map: np.ndarray, protocol: EvalProtocol) -> np.ndarray:
    """Best IoU at each of the protocol's thresholds, one `findContours` call each."""
    levels = (score_map * 255).astype(np.uint8)
    height, width = levels.shape
    result = []
    for tau in protocol.taus:
        _, binary = cv2.threshold(levels, int(tau * levels.max()), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if protocol.components == "largest" and contours:
            contours = [max(contours, key=cv2.contourArea)]
        rows = [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]
        boxes = np.array([[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rows], dtype=np.float64)
        result.append(iou_matrix(boxes, TRUTH, plus_one=True).max())
    return np.array(result)


def maps(kind: int | str, count: int, seed: int) -> list[np.ndarray]:
    """Maps of 224 x 224: random `kind` x `kind` grids enlarged by a bicubic filter, or noise."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        grid = (
            rng.random((224, 224))
            if kind == "noise"
            else cv2.resize(rng.random((int(kind), int(kind))), (224, 224), interpolation=cv2.INTER_CUBIC)
        )
        made.append((grid - grid.min()) / (grid.max() - grid.min()))
    return made


def milliseconds(function: Callable[[np.ndarray], object], inputs: list[np.ndarray]) -> float:
    """Median time of one call."""
    times = []
    for item in inputs:
        start = time.perf_counter()
        function(item)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


@click.command()
@click.option(
    "--maps",
    "count",
    default=20,
    show_default=True,
    help="Maps of each kind; a twentieth of that for noise, whose official run takes seconds.",
)
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Print milliseconds per map and the ratio, on one thread."""
    cv2.setNumThreads(1)
    table = Table("maps", "metric", "official ms", "wsolbench ms", "ratio")
    for kind in (7, 14, 28, "noise"):
        inputs = maps(kind, max(1, count // 20) if kind == "noise" else count, seed)
        for metric, components in (("MaxBoxAccV2", "all"), ("MaxBoxAcc", "largest")):
            protocol = EvalProtocol(components=components)
            for item in inputs[:2]:
                np.testing.assert_array_equal(best_iou_per_tau(item, TRUTH, protocol), official(item, protocol))
            slow = milliseconds(lambda item, protocol=protocol: official(item, protocol), inputs)
            fast = milliseconds(lambda item, protocol=protocol: best_iou_per_tau(item, TRUTH, protocol), inputs)
            table.add_row(
                f"{kind}x{kind} enlarged" if kind != "noise" else "noise", metric, f"{slow:.1f}", f"{fast:.2f}", f"{slow / fast:.1f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
