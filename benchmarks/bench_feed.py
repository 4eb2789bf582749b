"""Benchmark of the images that a training or an evaluation gets: their cost, and images per second.

    python benchmarks/bench_feed.py [--folder IMAGES] [--images 128] [--workers 1,2,4]

Images are JPEG files of the folder and its subfolders, or files of 500 x 375 that are made if none is given.
Nothing is kept in memory. Two kinds of views are prepared: 224 pixels of a square of 256, mirrored, as most
recipes have them; and 448 of 512, rotated, as LIO's recipe has them.

One core: processor time of a view in one thread, and the time of it that holds Python's lock. That is the
time in which another thread, which only counts, gets no turn: the least of many short trials, because other
programs on the machine only add to it. Its inverse is the most that threads can give, on any number of cores.
With processes the threads of the caller only pass views on. All their processor time is counted, as if it
held the lock.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from reference_models.core.recipes import RECIPES, Recipe
from reference_models.training.images import ImageReader
from reference_models.training.views import Augmentation
from wsolbench.system.processes import JOB
from wsolbench.types import Dataset, Sample

GOAL = 2500
"""Images per second that a fast GPU takes."""


@dataclass(frozen=True)
class Kind:
    """A kind of views: `size` pixels of a square of `side`, rotated by up to `rotation` degrees."""

    name: str
    side: int
    size: int
    rotation: float

    @property
    def recipe(self) -> Recipe:
        from dataclasses import replace

        return replace(RECIPES["spa_cub"], rotation=self.rotation)


KINDS = (Kind("224", 256, 224, 0.0), Kind("448, rotated", 512, 448, 15.0))


def made_files(folder: Path, count: int = 32) -> list[Path]:
    """Write JPEG files of 500 x 375 with structures of all sizes."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (375 // cell, 500 // cell, 3), dtype=np.uint8)).resize(
                    (500, 375), Image.Resampling.BICUBIC
                ),
                dtype=np.float64,
            )
            for cell in (2, 8, 32, 128)
        ]
        mixed = np.average(layers, axis=0, weights=[1, 2, 4, 8])
        Image.fromarray(mixed.astype(np.uint8)).save(path, quality=90)
    return paths


def dataset_of(paths: list[Path], count: int) -> Dataset:
    samples = tuple(
        Sample(id=f"{number}", label=0, path=paths[number % len(paths)]) for number in range(count)
    )
    return Dataset(name="files", split="train", samples=samples, class_names=("one",), fingerprint="files")


def prepare(data: Dataset, kind: Kind) -> Callable[[int], object]:
    """Return the function that prepares one view in the calling thread."""
    reader = ImageReader(data, kind.side, workers=0, cache_bytes=0)
    augmentation = Augmentation(
        size=kind.size,
        flip=0.5,
        rotation=kind.rotation,
        rotation_filter=kind.recipe.rotation_filter,
        seed=0,
        epoch=0,
    )
    return lambda index: augmentation.view(reader._prepare.read(data[index]), index, 0)


def processor_time(view: Callable[[int], object], count: int) -> float:
    """Return the least seconds of the processor per image, over passes of `JOB` images."""
    trials = []
    for start in range(0, count - JOB + 1, JOB):
        begun = time.thread_time()
        for index in range(start, start + JOB):
            view(index)
        trials.append((time.thread_time() - begun) / JOB)
    return float(np.median(trials))


def lock_time(view: Callable[[int], object], count: int) -> float:
    """Return the seconds per image in which another thread that only counts gets no turn."""
    stop, counted = False, 0.0

    def spin() -> None:
        nonlocal counted
        while not stop:
            counted = time.thread_time()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=spin)
    thread.start()
    trials = []
    try:
        for index in range(count):
            begun, turns = time.perf_counter(), counted
            view(index)
            trials.append(time.perf_counter() - begun - (counted - turns))
    finally:
        stop = True
        thread.join()
        sys.setswitchinterval(before)
    return float(np.quantile(trials, 0.1))


def rate(data: Dataset, kind: Kind, workers: int, *, processes: bool, batch_size: int) -> tuple[float, float]:
    """Return images per second, and seconds of this process's processor per image, after a first pass."""
    reader = ImageReader(data, kind.side, workers=workers, cache_bytes=0, processes=processes)
    order = np.arange(len(data))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for epoch in (0, 1):
        begun, used = time.perf_counter(), time.process_time()
        for _ in reader.views(batches, kind.size, kind.recipe, seed=0, epoch=epoch):
            pass
        seconds, own = time.perf_counter() - begun, time.process_time() - used
    reader.close()
    return len(data) / seconds, own / len(data)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, exists=True), help="Folder with JPEG files.")
@click.option("--images", "count", default=128, show_default=True, help="Images of a pass.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--workers", default="1,2,4,8,16", show_default=True, help="Those up to the number of cores.")
def main(folder: Path | None, count: int, batch_size: int, workers: str) -> None:
    """Print what images cost, and how many come per second."""
    cores = len(os.sched_getaffinity(0))
    numbers = [number for number in map(int, workers.split(",")) if number <= max(2, cores)]
    with tempfile.TemporaryDirectory() as made:
        paths = made_files(Path(made)) if folder is None else sorted(folder.rglob("*.jp*g"))
        if not paths:
            raise click.UsageError(f"no JPEG file in {folder}; expected at least one")
        data = dataset_of(paths, count)
        console = Console()
        costs = Table(
            "view",
            "ms of a core",
            "of it under the lock",
            "most of threads, images/s",
            "ms of the caller with processes",
            "most of processes, images/s",
            f"cores for {GOAL:,} images/s",
            title="Cost of an image",
        )
        columns = [(number, processes) for number in numbers for processes in (False, True)[:number]]
        rates = Table(
            "view",
            *(f"{number} {'processes' if processes else 'threads'}" for number, processes in columns),
            title=f"Images per second on {cores} cores",
        )
        for kind in KINDS:
            view = prepare(data, kind)
            view(0)
            whole, locked = processor_time(view, count), lock_time(view, count)
            found = {
                (number, processes): rate(data, kind, number, processes=processes, batch_size=batch_size)
                for number, processes in columns
            }
            own = found[max(columns)][1]
            costs.add_row(
                kind.name,
                f"{1000 * whole:.2f}",
                f"{1000 * locked:.2f}",
                f"{1 / locked:,.0f}",
                f"{1000 * own:.2f}",
                f"{1 / own:,.0f}",
                f"{GOAL * (whole + own):.1f}",
            )
            rates.add_row(
                kind.name,
                *(f"{found[column][0]:,.0f}" for column in columns),
            )
        console.print(costs)
        console.print(rates)


if __name__ == "__main__":
    main()
