"""Benchmark of scoring maps against the official algorithm, in one run.

    python benchmarks/bench_scoring.py [--maps 20] [--seed 0]

MaxBoxAccV2 uses all contours, MaxBoxAcc the largest one. `sweep`, which an evaluation calls, gives both. The
official algorithm (a thousand thresholds, `cv2.findContours` for each, every contour's box against every
ground-truth box) is reimplemented here from its description. Before anything is timed, both are checked to
give the same numbers on every map.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from wsolbench.metrics.boxes import iou_matrix
from wsolbench.metrics.sweep import best_iou_per_tau, sweep
from wsolbench.protocol import EvalProtocol

TRUTH = np.array([[40.0, 50.0, 150.0, 180.0]])


def official(score_map: np.ndarray, protocol: EvalProtocol) -> np.ndarray:
    """Return the best IoU at each of the protocol's thresholds, with one `findContours` call each."""
    levels = (score_map * 255).astype(np.uint8)
    height, width = levels.shape
    result = []
    for tau in protocol.taus:
        _, binary = cv2.threshold(levels, int(tau * levels.max()), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if protocol.components == "largest" and contours:
            contours = [max(contours, key=cv2.contourArea)]
        rows = [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]
        boxes = np.array(
            [[x, y, min(x + w, width - 1), min(y + h, height - 1)] for x, y, w, h in rows], dtype=np.float64
        )
        result.append(iou_matrix(boxes, TRUTH, plus_one=True).max())
    return np.array(result)


def maps(kind: int | str, count: int, seed: int) -> list[np.ndarray]:
    """Return maps of 224 x 224: random `kind` x `kind` grids enlarged by a bicubic filter, or noise."""
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
    """Return the median time of one call."""
    times = []
    for item in inputs:
        start = time.perf_counter()
        function(item)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def maps_per_second(
    function: Callable[[np.ndarray], object], inputs: list[np.ndarray], threads: int
) -> float:
    """Return the throughput of a pool of threads.

    Maps repeat, so that it runs for some tenths of a second.
    """
    work = inputs * max(1, 400 // len(inputs))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, inputs))
        start = time.perf_counter()
        list(pool.map(function, work))
        return len(work) / (time.perf_counter() - start)


@click.command()
@click.option(
    "--maps",
    "count",
    default=20,
    show_default=True,
    help="Maps of each kind; a twentieth of that for the official algorithm on noise, which takes seconds.",
)
@click.option("--seed", default=0, show_default=True)
def main(count: int, seed: int) -> None:
    """Print milliseconds per map on one thread, the ratio, and maps per second.

    The column `maps` is the side of the grid that is enlarged.
    """
    cv2.setNumThreads(1)
    every, one = EvalProtocol(), EvalProtocol(components="largest")
    table = Table("maps", "what", "official ms", "ms", "ratio", "maps/s", "2 threads")
    for kind in (7, 14, 28, "noise"):
        inputs = maps(kind, count, seed)
        few = inputs[: max(1, count // 20)] if kind == "noise" else inputs
        for item in few[:2]:
            for protocol in (every, one):
                np.testing.assert_array_equal(
                    best_iou_per_tau(item, TRUTH, protocol), official(item, protocol)
                )
        slow = {
            protocol: milliseconds(lambda item, protocol=protocol: official(item, protocol), few)
            for protocol in (every, one)
        }
        for what, function, reference in (
            ("MaxBoxAccV2", lambda item: best_iou_per_tau(item, TRUTH, every), slow[every]),
            ("MaxBoxAcc", lambda item: best_iou_per_tau(item, TRUTH, one), slow[one]),
            ("sweep", lambda item: sweep(item, TRUTH, every), slow[every] + slow[one]),
        ):
            fast = milliseconds(function, inputs)
            rates = (f"{maps_per_second(function, inputs, threads):.0f}" for threads in (1, 2))
            name = kind if kind == "noise" else f"{kind}x{kind}"
            table.add_row(
                str(name), what, f"{reference:.1f}", f"{fast:.2f}", f"{reference / fast:.0f}", *rates
            )
    Console().print(table)


if __name__ == "__main__":
    main()
