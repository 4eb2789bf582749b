"""Benchmark of each method relative to its bare backbone, in training and localization.

    python benchmarks/bench_methods.py [--backbone tiny] [--size 128] [--batch-size 16] [--device auto]
    [--method cam --method spa]

Prints images per second on synthetic images in memory, as the best of several repeats. Training is loss,
backward pass and an SGD step; bare is the backbone with a linear layer on its pooled output. Localizing is
logits and the map of one class; bare is the backbone's forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from reference_models.core.backbone import load_backbone
from reference_models.core.outputs import Batch
from wsolbench.methods import list_methods, list_posts, load_method, load_post
from wsolbench.methods.device import pick_device

CLASSES = 200


def rate(function: Callable[[], object], images: int, device: torch.device, repeats: int) -> float:
    """Return the images per second of the fastest call."""
    times = []
    for number in range(repeats + 1):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first call is a warm-up
            times.append(time.perf_counter() - start)
    return images / min(times)


@click.command()
@click.option("--backbone", default="tiny", show_default=True)
@click.option("--size", default=128, show_default=True, help="Side of the images.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--method", "names", multiple=True, help="Default: all that train.")
def main(
    backbone: str, size: int, batch_size: int, repeats: int, device_name: str, names: tuple[str, ...]
) -> None:
    """Print images per second of every method and post-process, and their share of the bare backbone's."""
    device = pick_device(device_name)
    images = torch.randn(batch_size, 3, size, size, device=device).to(
        memory_format=torch.channels_last
    )  # as the loops have them
    labels = torch.arange(batch_size, device=device) // 2 % CLASSES  # pairs, for methods that want them
    network = (
        load_backbone(backbone, weights="none", image_size=size)
        .to(device, memory_format=torch.channels_last)
        .train()
    )
    linear = nn.Linear(network.channels[-1], CLASSES).to(device)
    optimizer = torch.optim.SGD([*network.parameters(), *linear.parameters()], lr=1e-4)

    def bare_step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(linear(network.run(images).mean(dim=(2, 3))), labels).backward()
        optimizer.step()

    def bare_pass() -> None:
        with torch.no_grad():
            network.run(images)

    bare_train = rate(bare_step, batch_size, device, repeats)
    network.eval()
    bare_infer = rate(bare_pass, batch_size, device, repeats)
    table = Table(
        "method",
        "training, images/s",
        "of bare",
        "localizing, images/s",
        "of bare",
        title=f"{backbone} at {size}, batches of {batch_size}, {device}",
    )
    table.add_row("bare backbone", f"{bare_train:.1f}", "", f"{bare_infer:.1f}", "")
    chosen = names or tuple(
        row.name
        for row in list_methods()
        if row.module.startswith("reference_models.") and load_method(row.name).trainable
    )
    for name in chosen:
        model = (
            load_method(name)
            .create(backbone=backbone, num_classes=CLASSES, weights="none", settings={}, image_size=size)
            .to(device, memory_format=torch.channels_last)
            .train()
        )
        steps = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        batch = Batch(
            images=images,
            labels=labels,
            indices=torch.arange(batch_size, device=device),
            epoch=9,
            epochs=10,
            step=9,
            generator=torch.Generator(device).manual_seed(0),
        )

        def step(model=model, steps=steps, batch=batch) -> None:
            steps.zero_grad()
            torch.stack(list(model.loss(batch).values())).sum().backward()
            steps.step()

        train = rate(step, batch_size, device, repeats)
        model.eval()
        infer = rate(
            lambda model=model: model.localize(images).score_maps(labels[:, None]),
            batch_size,
            device,
            repeats,
        )
        table.add_row(
            name, f"{train:.1f}", f"{train / bare_train:.0%}", f"{infer:.1f}", f"{infer / bare_infer:.0%}"
        )
    cam = (
        load_method("cam")
        .create(backbone=backbone, num_classes=CLASSES, weights="none", settings={}, image_size=size)
        .to(device)
    )
    for row in list_posts():
        post = load_post(row.name).create({})
        infer = rate(
            lambda post=post: post.maps(cam.localize(images), labels[:, None]), batch_size, device, repeats
        )
        table.add_row(f"cam+{row.name}", "", "", f"{infer:.1f}", f"{infer / bare_infer:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
