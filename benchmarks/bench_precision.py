"""Benchmark of mixed precision: a training step and localizing, in float32 and in bfloat16.

    python benchmarks/bench_precision.py [--backbone resnet50] [--method cam] [--size 224] [--device auto]

Both precisions take turns, so that other work on the machine slows both down. On the CPU, the time is that
of the process in all its threads, not the time that passes. Prints milliseconds per image, medians of the
repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import click
import torch
from rich.console import Console
from rich.table import Table

from reference_models.core.outputs import Batch
from reference_models.training.steps import make_optimizer, scaler_for, take_step
from wsolbench.methods import Numerics, load_method
from wsolbench.methods.device import pick_device

CLASSES = 200
KINDS = (Numerics(amp="off"), Numerics(amp="bf16"))


def milliseconds(work: Callable[[Numerics], object], device: torch.device, repeats: int) -> list[float]:
    """Return the median time of each precision. The first call of each is a warm-up."""
    times: list[list[float]] = [[], []]
    for number in range(repeats + 1):
        for each, numerics in zip(times, KINDS, strict=True):
            clock = time.process_time if device.type == "cpu" else time.perf_counter
            start = clock()
            work(numerics)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                each.append(1e3 * (clock() - start))
    return [statistics.median(each) for each in times]


@click.command()
@click.option("--backbone", "backbones", multiple=True, default=("efficientnet_lite0", "resnet50"))
@click.option("--method", "methods", multiple=True, default=("cam", "baseline"))
@click.option("--size", default=224, show_default=True, help="Side of the images.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", "name", default="auto", show_default=True)
def main(
    backbones: tuple[str, ...], methods: tuple[str, ...], size: int, batch_size: int, repeats: int, name: str
) -> None:
    """Print milliseconds per image in float32 and bfloat16."""
    device = pick_device(name)
    images = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % CLASSES
    table = Table(
        "backbone", "method", "work", "float32", "bfloat16", "ratio", title=f"ms per image, {device}"
    )
    for backbone in backbones:
        for method in methods:
            model = (
                load_method(method)
                .create(backbone=backbone, num_classes=CLASSES, weights="none", settings={}, image_size=size)
                .to(device, memory_format=torch.channels_last)
            )
            (objective,) = model.objectives(model.recipe_for(backbone, CLASSES, {}))
            optimizer = make_optimizer(objective.groups, objective.recipe, nesterov=True)
            batch = Batch(
                images=images,
                labels=labels,
                indices=labels,
                epoch=0,
                epochs=10,
                step=0,
                generator=torch.Generator(device),
            )

            def step(numerics: Numerics, objective=objective, optimizer=optimizer, batch=batch) -> None:
                take_step(
                    lambda: objective.loss(batch),
                    optimizer,
                    scaler_for(device, numerics),
                    [],
                    autocast=numerics.autocast(device),
                    clip_norm=0.0,
                )

            def localize(numerics: Numerics, model=model) -> None:
                with numerics.autocast(device):
                    model.localize(images).score_maps(labels[:, None])

            for title, work in (("training", step), ("localizing", localize)):
                model.train(title == "training")
                exact, mixed = (each / batch_size for each in milliseconds(work, device, repeats))
                table.add_row(backbone, method, title, f"{exact:.1f}", f"{mixed:.1f}", f"{exact / mixed:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
