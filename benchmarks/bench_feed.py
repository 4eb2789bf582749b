"""Benchmark of the images that a training or an evaluation gets: their cost, and images per second.

    python benchmarks/bench_feed.py [--folder IMAGES] [--images 128] [--workers 1,2,4]

Images are JPEG files of the folder and its subfolders, or files of 500 x 375 that are made if none is given.
Views are 224 pixels of a square of 256, mirrored, as most recipes have them; and 448 of 512, rotated, as
LIO's recipe has them. The next rows leave the rotation to the device of the network (`rotate_on=device`), and
take the squares from memory, as all epochs do if they fit.

Cost: processor time of a view in one thread, and the part of it outside of the functions of Pillow that
decode, resize and transform without Python's lock. The inverse of that part is the most that threads can
give, on any number of cores. With processes the threads of the caller only pass views on. All their processor
time is counted, as if it held the lock.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import click
import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from rich.console import Console
from rich.table import Table

from reference_models.core.recipes import RECIPES, Recipe
from reference_models.training.images import ImageReader
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
    on_device: bool = False
    in_memory: bool = False

    @property
    def recipe(self) -> Recipe:
        where: Literal["host", "device"] = "device" if self.on_device else "host"
        return replace(RECIPES["spa_cub"], rotation=self.rotation, rotate_on=where)


KINDS = (
    Kind("224", 256, 224, 0.0),
    Kind("448, rotated", 512, 448, 15.0),
    Kind("448, rotated on the device", 512, 448, 15.0, on_device=True),
    Kind("448, rotated, from memory", 512, 448, 15.0, in_memory=True),
)


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


def reader_of(data: Dataset, kind: Kind, workers: int, *, processes: bool = False) -> ImageReader:
    size = 1 << 40 if kind.in_memory else 0
    return ImageReader(data, kind.side, workers=workers, cache_bytes=size, processes=processes)


def cost(data: Dataset, kind: Kind) -> tuple[float, float]:
    """Return the seconds of a core per view, and those under Python's lock: medians of jobs."""
    reader = reader_of(data, kind, 0)
    recipe, order = kind.recipe, np.arange(JOB)
    trials = []
    for epoch in range(len(data) // JOB):
        with unlocked() as seconds:
            begun = time.thread_time()
            list(reader.views([order + epoch * JOB], kind.size, recipe, seed=0, epoch=epoch))
            whole = time.thread_time() - begun
        trials.append((whole, whole - sum(seconds)))
    whole, locked = np.median(trials, axis=0) / JOB
    return float(whole), float(locked)


@contextlib.contextmanager
def unlocked() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of the processor in functions of Pillow without Python's lock."""
    found: list[float] = []
    inside = False

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*arguments, **options)
            begun, inside = time.thread_time(), True
            try:
                return function(*arguments, **options)
            finally:
                inside = False
                found.append(time.thread_time() - begun)

        return run

    with contextlib.ExitStack() as stack:
        for kind, name in ((ImageFile, "load"), (Image.Image, "resize"), (Image.Image, "transform")):
            stack.enter_context(mock.patch.object(kind, name, timed(getattr(kind, name))))
        yield found


def rate(data: Dataset, kind: Kind, workers: int, *, processes: bool, batch_size: int) -> tuple[float, float]:
    """Return images per second, and seconds of this process's processor per image, after a first pass."""
    reader = reader_of(data, kind, workers, processes=processes)
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
            whole, locked = cost(data, kind)
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
