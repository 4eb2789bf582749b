"""Benchmark of number formats and of torch.compile: a training step and localizing, next to plain float32.

    python benchmarks/bench_precision.py [--backbone resnet50] [--method cam] [--size 224] [--device auto]
    python benchmarks/bench_precision.py --kind compiled --frozen-stages 4 --batch-size 32

All kinds take turns, so that other work on the machine slows all of them down. On the CPU, the time is that
of the process in all its threads, not the time that passes. Prints milliseconds per image, medians of the
repeats; the first call of each kind, which compiles, does not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reference_models.core.model import Model
from reference_models.core.outputs import Batch
from reference_models.training.steps import make_optimizer, scaler_for, take_step
from wsolbench.methods import Numerics, load_method
from wsolbench.methods.device import pick_device
from wsolbench.methods.numerics import COMPILE

CLASSES = 200
PLAIN = Numerics(amp="off")
KINDS = {"bfloat16": Numerics(amp="bf16"), "compiled": Numerics(amp="off", compile=True)}


def milliseconds(
    work: Callable[[Numerics], object], kinds: Sequence[Numerics], device: torch.device, repeats: int
) -> list[float]:
    """Return the median time of each kind. The first call of each is a warm-up."""
    times: list[list[float]] = [[] for _ in kinds]
    for number in range(repeats + 1):
        for each, numerics in zip(times, kinds, strict=True):
            clock = time.process_time if device.type == "cpu" else time.perf_counter
            start = clock()
            work(numerics)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                each.append(1e3 * (clock() - start))
    return [statistics.median(each) for each in times]


def maps_of(
    model: Model, images: Tensor, labels: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return a function that computes the maps of a model, and the same compiled."""

    def maps() -> Tensor:
        return model.localize(images).score_maps(labels[:, None])

    return maps, torch.compile(maps, **COMPILE)


@click.command()
@click.option("--backbone", "backbones", multiple=True, default=("efficientnet_lite0", "resnet50"))
@click.option("--method", "methods", multiple=True, default=("cam", "baseline"))
@click.option("--size", default=224, show_default=True, help="Side of the images.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), default=tuple(KINDS))
@click.option("--frozen-stages", default=0, show_default=True, help="With pretrained weights if not 0.")
@click.option("--device", "name", default="auto", show_default=True)
def main(
    backbones: tuple[str, ...],
    methods: tuple[str, ...],
    size: int,
    batch_size: int,
    repeats: int,
    kinds: tuple[str, ...],
    frozen_stages: int,
    name: str,
) -> None:
    """Print milliseconds per image in plain float32 and in other kinds."""
    device = pick_device(name)
    images = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % CLASSES
    columns = [word for kind in kinds for word in (kind, "ratio")]
    table = Table("backbone", "method", "work", "float32", *columns, title=f"ms per image, {device}")
    numerics_of = [PLAIN, *(KINDS[kind] for kind in kinds)]
    for backbone in backbones:
        for method in methods:
            model = (
                load_method(method)
                .create(
                    backbone=backbone,
                    num_classes=CLASSES,
                    weights="imagenet" if frozen_stages else "none",
                    settings={},
                    image_size=size,
                )
                .to(device, memory_format=torch.channels_last)
            )
            model.backbone.freeze(frozen_stages)
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

            compiled = torch.compile(objective.loss, **COMPILE)

            def step(
                numerics: Numerics,
                loss=objective.loss,
                compiled=compiled,
                optimizer=optimizer,
                batch=batch,
            ) -> None:
                take_step(
                    lambda: (compiled if numerics.compile else loss)(batch),
                    optimizer,
                    scaler_for(device, numerics),
                    [],
                    autocast=numerics.autocast(device),
                    clip_norm=0.0,
                )

            maps = maps_of(model, images, labels)

            def localize(numerics: Numerics, maps=maps) -> None:
                with numerics.autocast(device), torch.inference_mode():
                    maps[numerics.compile]()

            for title, work in (("training", step), ("localizing", localize)):
                model.train(title == "training")
                plain, *others = (
                    each / batch_size for each in milliseconds(work, numerics_of, device, repeats)
                )
                cells = [cell for each in others for cell in (f"{each:.1f}", f"{plain / each:.2f}")]
                table.add_row(backbone, method, title, f"{plain:.1f}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
