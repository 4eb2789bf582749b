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
from dataclasses import dataclass
from typing import Any

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured on.

    Attributes:
        images: (B, 3, H, W), synthetic.
        labels: (B,) in pairs, for methods that want them.
    """

    backbone: str
    images: Tensor
    labels: Tensor
    repeats: int

    @classmethod
    def create(cls, backbone: str, size: int, batch_size: int, device: torch.device, repeats: int) -> Setting:
        """Draw the images, in the memory layout of the training loops."""
        images = torch.randn(batch_size, 3, size, size, device=device)
        return cls(
            backbone=backbone,
            images=images.to(memory_format=torch.channels_last),
            labels=torch.arange(batch_size, device=device) // 2 % CLASSES,
            repeats=repeats,
        )

    def rate(self, function: Callable[[], object]) -> float:
        """Return the images per second of the fastest call."""
        return rate(function, len(self.images), self.images.device, self.repeats)

    def model(self, name: str) -> Any:
        """Create a method with random weights."""
        return (
            load_method(name)
            .create(
                backbone=self.backbone,
                num_classes=CLASSES,
                weights="none",
                settings={},
                image_size=self.images.shape[2],
            )
            .to(self.images.device, memory_format=torch.channels_last)
        )


def bare_rates(on: Setting) -> tuple[float, float]:
    """Return images per second of the bare backbone in training and in a forward pass."""
    network = (
        load_backbone(on.backbone, weights="none", image_size=on.images.shape[2])
        .to(on.images.device, memory_format=torch.channels_last)
        .train()
    )
    linear = nn.Linear(network.channels[-1], CLASSES).to(on.images.device)
    optimizer = torch.optim.SGD([*network.parameters(), *linear.parameters()], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(linear(network.run(on.images).mean(dim=(2, 3))), on.labels).backward()
        optimizer.step()

    def infer() -> None:
        with torch.no_grad():
            network.run(on.images)

    train = on.rate(step)
    network.eval()
    return train, on.rate(infer)


def method_rates(name: str, on: Setting) -> tuple[float, float]:
    """Return images per second of a method in training, as in the ninth of ten epochs, and localization."""
    model = on.model(name).train()
    steps = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    masks = torch.zeros_like(on.images[:, 0])  # for methods that learn from boxes
    side = on.images.shape[2]
    masks[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1.0
    batch = Batch(
        images=on.images,
        labels=on.labels,
        indices=torch.arange(len(on.images), device=on.images.device),
        epoch=9,
        epochs=10,
        step=9,
        generator=torch.Generator(on.images.device).manual_seed(0),
        masks=masks,
    )

    def step() -> None:
        steps.zero_grad()
        torch.stack(list(model.loss(batch).values())).sum().backward()
        steps.step()

    train = on.rate(step)
    model.eval()
    return train, on.rate(lambda: model.localize(on.images).score_maps(on.labels[:, None]))


def post_rate(name: str, on: Setting) -> float:
    """Return images per second of CAM's localization with a post-process."""
    cam, post = on.model("cam").eval(), load_post(name).create({})
    gradients = post.needs_gradients
    return on.rate(lambda: post.maps(cam.localize(on.images, gradients=gradients), on.labels[:, None]))


def trained_methods(task: str = "") -> tuple[str, ...]:
    """Return the names of this project's methods that are trained, of one task or of all.

    Methods that run on vision transformers alone are left out: all are measured on one backbone.
    """
    return tuple(
        row.name
        for row in list_methods()
        if row.module.startswith("reference_models.")
        and row.task.startswith(task)
        and load_method(row.name).trainable
        and not load_method(row.name).needs_tokens
    )


@click.command()
@click.option("--backbone", default="tiny", show_default=True)
@click.option("--size", default=128, show_default=True, help="Side of the images.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--device", "device_name", default="auto", show_default=True)
@click.option("--method", "names", multiple=True, help="Default: all that train, and all post-processes.")
def main(
    backbone: str, size: int, batch_size: int, repeats: int, device_name: str, names: tuple[str, ...]
) -> None:
    """Print images per second of every method and post-process, and their share of the bare backbone's."""
    device = pick_device(device_name)
    on = Setting.create(backbone, size, batch_size, device, repeats)
    bare_train, bare_infer = bare_rates(on)
    table = Table(
        "method",
        "training, images/s",
        "of bare",
        "localizing, images/s",
        "of bare",
        title=f"{backbone} at {size}, batches of {batch_size}, {device}",
    )
    table.add_row("bare backbone", f"{bare_train:.1f}", "", f"{bare_infer:.1f}", "")
    for name in names or trained_methods():
        train, infer = method_rates(name, on)
        table.add_row(
            name, f"{train:.1f}", f"{train / bare_train:.0%}", f"{infer:.1f}", f"{infer / bare_infer:.0%}"
        )
    for row in [] if names else list_posts():
        infer = post_rate(row.name, on)
        table.add_row(f"cam+{row.name}", "", "", f"{infer:.1f}", f"{infer / bare_infer:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
