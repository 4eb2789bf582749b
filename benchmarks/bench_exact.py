"""Check that the sweep equals OpenCV to the last bit, on many difficult maps.

    python -m benchmarks.bench_exact [--maps 20000] [--seed 0] [--jobs 1]

Each map has a random kind and size and is scored under a random protocol. At every threshold, the best IoU,
the single box and its IoU are compared with OpenCV's results for that threshold alone
(`tests/oracles/contours.py`). Most maps are small, because equally large contours and holes within holes are
common there. One in a hundred is as large as a real one. The exit code is 1 if any differs.
"""

from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat

import click
import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from tests.oracles.contours import KINDS, PROTOCOLS, differences, drawn, hard_map, true_boxes
from wsolbench.system.progress import track

SIDES = ((0.3, 1, 6), (0.4, 4, 20), (0.29, 16, 64), (0.01, 150, 400))
"""Share of the maps, and their smallest and largest side."""


def compare(index: int, seed: int) -> tuple[str, int, list[str]]:
    """Return the kind of a map, the number of compared thresholds, and where the sweep differs."""
    rng = np.random.default_rng([seed, index])
    kind, protocol = KINDS[index % len(KINDS)], PROTOCOLS[index // len(KINDS) % len(PROTOCOLS)]
    _, least, largest = SIDES[rng.choice(len(SIDES), p=[share for share, _, _ in SIDES])]
    height, width = (int(side) for side in rng.integers(least, largest + 1, 2))
    protocol = drawn(protocol, 16, rng)
    score_map = hard_map(kind, height, width, rng)
    found = differences(score_map, true_boxes(height, width, rng), protocol)
    return (
        kind,
        len(protocol.taus),
        [f"map {index} ({kind}, {height} x {width}, {protocol}): {line}" for line in found],
    )


@click.command()
@click.option("--maps", "count", default=20_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--jobs", default=1, show_default=True, help="Processes.")
def main(count: int, seed: int, jobs: int) -> None:
    """Print how many maps and thresholds of each kind were compared, and how many maps differ."""
    maps, thresholds, differing = Counter[str](), Counter[str](), Counter[str]()
    with ProcessPoolExecutor(jobs, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        results = pool.map(compare, range(count), repeat(seed), chunksize=20)
        for kind, compared, found in track(results, "comparing", total=count, unit="maps"):
            maps[kind] += 1
            thresholds[kind] += compared
            differing[kind] += bool(found)
            for line in found[:1]:
                print(line)
    table = Table("kind", "maps", "thresholds", "maps that differ")
    for kind in KINDS:
        table.add_row(kind, str(maps[kind]), str(thresholds[kind]), str(differing[kind]))
    table.add_row("all", str(maps.total()), str(thresholds.total()), str(differing.total()))
    Console().print(table)
    sys.exit(1 if differing.total() else 0)


if __name__ == "__main__":
    main()
