"""Benchmark of the bootstrap: seconds and memory of the intervals of all metrics of a run, on synthetic
scores.

    python benchmarks/bench_bootstrap.py [--images 50000] [--resamples 1000] [--repeats 3]

The tables are those of a data set with boxes and masks: six tables of hits at 256 thresholds, the error
breakdown, both kinds of pixel histograms, the IoU per image, and the class average of accuracy. Rows are
generated while they are read; the time of generating them is subtracted. Each run has its own process, so
that peak memory is measured separately.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from wsolbench.metrics.confidence import Bootstrap, resampling_weights
from wsolbench.metrics.peak_iou import pixel_iou
from wsolbench.metrics.pxap import average_precision

BLOCK = 1000
THRESHOLDS = 256
BINS = 1002
PIXELS = 224 * 224
CLASSES = 1000


def values() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the metrics of each table, in the order of the tables."""
    best = {f"hits {index + 1}": lambda rates: rates.max(axis=1) for index in range(6)}
    shares = {f"error {index + 1}": lambda rates: rates[:, 0] for index in range(15)}
    return {
        **best,
        **shares,
        "pxap": lambda rates: average_precision(rates.reshape(-1, 2, BINS)),
        "peak_iou": lambda rates: pixel_iou(rates.reshape(-1, 2, 256)).max(axis=1),
        "mean_image_iou": lambda rates: rates.max(axis=1),
        "mean_class_accuracy": lambda rates: rates[:, 0],
    }


class Rows:
    """Blocks of synthetic rows, and the seconds that generating them took."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seconds = n, 0.0
        self.rng = np.random.default_rng(seed)
        # The background fills the low bins, the object spreads over the high ones. A few histograms that
        # repeat are enough, because time depends only on the sizes of the counts.
        self.pixels = np.stack([self.histogram(BINS) for _ in range(64)])
        self.levels = np.stack([self.histogram(256) for _ in range(64)])

    def histogram(self, bins: int) -> np.ndarray:
        background, inside = self.rng.beta(0.5, 3.0, PIXELS * 3 // 4), self.rng.beta(2.0, 2.0, PIXELS // 4)
        return np.concatenate(
            [np.bincount((scores * bins).astype(int), minlength=bins) for scores in (inside, background)]
        ).astype(np.int32)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for start in range(0, self.n, BLOCK):
            began = time.perf_counter()
            m = min(BLOCK, self.n - start)
            hits = [self.rng.random((m, THRESHOLDS), dtype=np.float32) < 0.5 for _ in range(6)]
            errors = [self.rng.random((m, 1)) < 0.1 for _ in range(15)]
            picked = self.rng.integers(0, 64, m)
            rows = [
                *hits,
                *errors,
                self.pixels[picked],
                self.levels[picked],
                pixel_iou(self.levels[picked].reshape(m, 2, 256)),
            ]
            rows.append(self.rng.random((m, 1)) < 0.7)
            self.seconds += time.perf_counter() - began
            yield rows


def run(n: int, resamples: int) -> dict[str, float]:
    """Return the seconds of each part, and the memory of this process in MiB: at first, and the peak."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts: dict[str, float] = {}

    def timed(name: str, start: float, less: float = 0.0) -> None:
        parts[name] = time.perf_counter() - start - less

    start = time.perf_counter()
    for _ in resampling_weights(n, resamples):
        pass
    timed("draws alone", start)
    metrics = values()
    groups = [None] * (len(metrics) - 1) + [np.random.default_rng(0).integers(0, CLASSES, n)]
    bootstrap = Bootstrap(n, n_resamples=resamples)
    rows = Rows(n, 0)
    start = time.perf_counter()
    bootstrap.means(rows, groups)
    timed("means", start, rows.seconds)
    rows = Rows(n, 0)
    start = time.perf_counter()
    rates = bootstrap.rates(rows, groups)
    timed("rates", start, rows.seconds)
    start = time.perf_counter()
    for value, table in zip(metrics.values(), rates, strict=True):
        bootstrap.interval(value(table))
    timed("values and intervals", start)
    parts["rates, values, intervals"] = parts["rates"] + parts["values and intervals"]
    parts["MiB before"], parts["MiB peak"] = before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return parts


@click.command()
@click.option("--images", default=50_000, show_default=True)
@click.option("--resamples", default=1000, show_default=True)
@click.option(
    "--repeats",
    default=3,
    show_default=True,
    help="Number of runs. The smallest time of each part counts.",
)
def main(images: int, resamples: int, repeats: int) -> None:
    """Print seconds of each part and peak memory, for 1,000, 10,000 and `--images` images."""
    sizes = (1000, 10_000, images)
    results: dict[int, list[dict[str, float]]] = {}
    for n in sizes:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results[n] = [pool.apply(run, (n, resamples)) for _ in range(repeats)]
    table = Table("part", *(f"{n:,} images" for n in sizes))
    for part in results[images][0]:
        table.add_row(part, *(f"{min(each[part] for each in results[n]):.3f}" for n in sizes))
    Console().print(table)


if __name__ == "__main__":
    main()
