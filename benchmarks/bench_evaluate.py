"""Benchmark of an evaluation: throughput relative to the network alone, memory, and start-up time.

    python benchmarks/bench_evaluate.py [--images 256] [--device auto] [--part throughput --part together
    --part memory --part start]

Throughput: images per second of `evaluate` (decoding JPEG files of 500 x 375, the network, boxes, masks, all
scores on disk), and of the same network on batches in memory, in one run. Together: the class map, SEM and
SCG of one network in one pass, and in an evaluation each. Memory: the peak resident size of a process that
scores synthetic 14 x 14 maps in 224 x 224 frames, with box and mask. Each number of images has its own
process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.maps.sources import SourceOutput
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Dataset, Sample

SIZE = (500, 375)
BOX = np.array([[120.0, 80.0, 380.0, 300.0]])


def pictures(folder: Path, count: int) -> Dataset:
    """Write JPEG files of smooth noise, with the same box and mask for all."""
    rng = np.random.default_rng(0)
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[80:300, 120:380] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    samples = []
    for index in range(count):
        path = folder / f"{index:06d}.jpg"
        if index < 64:  # the other samples reuse these files
            small = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        samples.append(
            Sample(
                id=path.name,
                label=index % 10,
                size=SIZE,
                boxes=BOX,
                path=folder / f"{index % 64:06d}.jpg",
                mask_paths=(folder / "mask.png",),
            )
        )
    names = tuple(f"class {number}" for number in range(10))
    return Dataset(
        name="synthetic", split="test", samples=tuple(samples), class_names=names, fingerprint="synthetic"
    )


@dataclass(frozen=True)
class MadeUpMaps:
    """Source of smooth 14 x 14 maps, generated on request."""

    def load(self, sample: Sample) -> np.ndarray:
        rng = np.random.default_rng(int(sample.id[:6]))
        return rng.random((14, 14)).astype(np.float32)

    def collate(self, loaded: Any) -> Any:
        return loaded

    def maps(self, samples: Any, batch: Any) -> SourceOutput:
        return SourceOutput(
            maps=batch, ranked=np.array([[sample.label, *range(20, 24)] for sample in samples])
        )

    def describe(self) -> dict[str, Any]:
        return {"name": "made-up"}

    def identity(self, ids: Any) -> None:  # noqa: ARG002 - the signature of a source
        return None

    def provenance(self) -> dict[str, Any]:
        return {"device": "cpu"}


def throughput(
    count: int, backbone: str, size: int, device_name: str, batch_size: int, workers: int
) -> dict[str, Any]:
    """Return images per second of the network alone and of the whole evaluation."""
    import torch

    from wsolbench.maps.sources import ModelSource
    from wsolbench.methods import load_method
    from wsolbench.methods.device import pick_device

    device = pick_device(device_name)
    protocol = EvalProtocol.preset("wsoleval")
    torch.manual_seed(0)
    method = (
        load_method("cam")
        .create(backbone=backbone, num_classes=10, weights="none", settings={}, image_size=size)
        .to(device)
    )
    images = torch.randn(batch_size, 3, size, size, device=device)
    labels = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)

    def forward() -> None:
        method.localize(images).score_maps(labels).cpu()

    for _ in range(2):
        forward()
    start = time.perf_counter()
    steps = max(1, count // batch_size)
    for _ in range(steps):
        forward()
    bare = steps * batch_size / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        data = pictures(Path(folder), count)
        source = ModelSource(method, protocol, num_classes=10, device=device_name, batch_size=batch_size)
        options = RunOptions(
            batch_size=batch_size, workers=workers, work=Path(folder) / "work", resamples=100
        )
        evaluate(
            data, source, protocol, limit=2 * batch_size, options=options
        ).finish()  # compiles what is compiled
        result = evaluate(data, source, protocol, options=options)
        seconds = result.record.provenance["seconds"]
        whole = count / sum(duration for stage, duration in seconds.items() if stage != "metrics")
    return {
        "network": f"{backbone} at {size}",
        "images": count,
        "network alone, images/s": bare,
        "evaluate, images/s": whole,
        "ratio": whole / bare,
        "metrics, s": seconds["metrics"],
    }


def together(
    count: int, backbone: str, size: int, device: str, batch_size: int, workers: int
) -> dict[str, Any]:
    """Return the seconds of three maps of one network, in an evaluation each and in one pass."""
    from wsolbench.evaluation.evaluate import score_together
    from wsolbench.evaluation.request import EvalRequest
    from wsolbench.maps.sources import ModelSource
    from wsolbench.methods import load_method, load_post

    protocol = EvalProtocol.preset("wsoleval")
    method = load_method("cam").create(
        backbone=backbone, num_classes=10, weights="none", settings={}, image_size=size
    )
    sources = [
        ModelSource(method, protocol, num_classes=10, device=device, batch_size=batch_size, post=post)
        for post in (None, load_post("sem").create({}), load_post("scg").create({}))
    ]
    options = RunOptions(batch_size=batch_size, workers=workers, resamples=100)
    with tempfile.TemporaryDirectory() as folder:
        data = pictures(Path(folder), count)
        requests = [
            EvalRequest(dataset=data, source=source, protocol=protocol, options=options) for source in sources
        ]
        score_together(requests)  # compiles what is compiled
        start = time.perf_counter()
        for request in requests:
            score_together([request])
        apart = time.perf_counter() - start
        start = time.perf_counter()
        score_together(requests)
        shared = time.perf_counter() - start
    return {
        "network": f"{backbone} at {size}",
        "images": count,
        "three evaluations, s": apart,
        "one pass, s": shared,
        "ratio": apart / shared,
    }


def memory(console: Console, counts: tuple[int, ...], workers: int) -> None:
    """Print the peak resident size for each number of images, each in its own process."""
    table = Table("images", "peak MiB", "scoring, images/s", "metrics, s", title="Memory of an evaluation")
    for count in counts:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", str(count), "--workers", str(workers)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        measured = json.loads(done.stdout.splitlines()[-1])
        table.add_row(
            f"{count:,}", f"{measured['mib']:.0f}", f"{measured['rate']:.0f}", f"{measured['metrics']:.1f}"
        )
    console.print(table)


def measure(count: int, workers: int) -> None:
    """Evaluate `count` synthetic maps and print the peak memory of this process."""
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(work=Path(folder) / "work", workers=workers)
        result = evaluate(
            pictures(Path(folder), count), MadeUpMaps(), EvalProtocol.preset("wsoleval"), options=options
        )
    seconds = result.record.provenance["seconds"]
    rate = count / sum(duration for stage, duration in seconds.items() if stage != "metrics")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(json.dumps({"mib": peak, "rate": rate, "metrics": seconds["metrics"]}))


def start(console: Console, repeats: int = 5) -> None:
    """Print the shortest of several start-up times of the package and of the command."""
    table = Table("start", "s", title="Start-up")
    for name, code in (
        ("import wsolbench", "import wsolbench"),
        ("wsolbench --help", "import sys; sys.argv[1:] = ['--help']; from wsolbench.cli import main; main()"),
    ):
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begun)
        table.add_row(name, f"{min(times):.2f}")
    console.print(table)


def print_row(console: Console, title: str, row: dict[str, Any]) -> None:
    """Print a table of one row."""
    table = Table(*row, title=title)
    table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


@click.command()
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["throughput", "together", "memory", "start"]),
    help="Default: all of them.",
)
@click.option("--images", "count", default=256, show_default=True, help="Images of the throughput part.")
@click.option("--backbone", default="resnet50", show_default=True)
@click.option("--size", default=224, show_default=True, help="Side of the network's input.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--workers", default=len(os.sched_getaffinity(0)), show_default="all cores")
@click.option(
    "--counts", default="1000,50000", show_default=True, help="Numbers of images of the memory part."
)
@click.option("--measure", "measured", type=int, hidden=True)
def main(
    parts: tuple[str, ...],
    count: int,
    backbone: str,
    size: int,
    batch_size: int,
    device: str,
    workers: int,
    counts: str,
    measured: int | None,
) -> None:
    """Print what an evaluation costs in addition to its network."""
    if measured is not None:
        measure(measured, workers)
        return
    console = Console()
    if not parts or "start" in parts:
        start(console)
    if not parts or "throughput" in parts:
        row = throughput(count, backbone, size, device, batch_size, workers)
        print_row(console, f"Throughput on {device}", row)
    if not parts or "together" in parts:
        row = together(count, backbone, size, device, batch_size, workers)
        print_row(console, f"Class map, SEM and SCG on {device}", row)
    if not parts or "memory" in parts:
        memory(console, tuple(int(number) for number in counts.split(",")), workers)


if __name__ == "__main__":
    main()
