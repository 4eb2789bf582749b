"""Count how often the host waits for a GPU, for every method and detector. Needs no GPU.

    python benchmarks/bench_syncs.py [--backbone resnet50] [--amp auto] [--method cam]

The training loops and the evaluation run on the fake GPU of `wsolbench.testing`. Steps are those between two
looks at the loss, which the loops take every 20 steps. A wait is a value or a size that the host reads from
the device, or a blocking copy to it. Prints a table in Markdown, and what each method waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch

from reference_models.training import detector_loop, loop
from reference_models.training.detector_data import TargetReader
from reference_models.training.images import ImageReader
from reference_models.training.run_folder import StateWriter
from reference_models.training.steps import scaler_for
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import ModelSource
from wsolbench.methods import (
    DetectorRequest,
    Numerics,
    list_detectors,
    list_methods,
    list_posts,
    load_detector,
    load_method,
    load_post,
)
from wsolbench.protocol import EvalProtocol
from wsolbench.system.progress import Progress
from wsolbench.testing import detector_waits, squares
from wsolbench.testing.detectors import CLASSES, DETECTION
from wsolbench.testing.fake_cuda import Event, FakeCuda
from wsolbench.testing.subject import learns_by_loss, small_backbone

CUDA, SIZE = torch.device("cuda"), 64
SETTINGS = {"coseq": {"part_boxes": "grid"}}
"""Settings that save time: boxes of a grid need no preparation, and their steps are the same."""


class Steps(Progress):
    """A progress bar that notes how many events there were after each step."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu, self.ends = gpu, [0]

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        self.ends.append(len(self.gpu.events))

    def between_looks(self) -> list[Event]:
        """Return the events of the third step: the first one also looks at the loss, as the last one does."""
        return self.gpu.events[self.ends[2] : self.ends[3]]


def training(name: str, backbone: str, numerics: Numerics) -> list[Event]:
    """Return the waits of one step of the training loop, the worst of the first and the last epoch."""
    method, data = load_method(name), squares(48)
    worst: list[Event] = []
    for last in (False, True):
        torch.manual_seed(0)
        settings = SETTINGS.get(name, {})
        model = method.create(
            backbone=backbone, num_classes=3, weights="none", settings=settings, image_size=SIZE
        )
        recipe = method.recipe_for(backbone, 3, {**settings, "recipe.batch_size": "4"})
        reader = ImageReader(data, SIZE, workers=0, masks=model.mask_source, short_side=recipe.short_side)
        labels = np.array([sample.label for sample in data.samples])
        with (
            FakeCuda() as gpu,
            mock.patch("torch.Generator", lambda device=None, gpu=gpu: gpu.generator()),  # noqa: ARG005
        ):
            gpu.move(model)
            model.before_training(data)
            gpu.events.clear()
            run, bar = loop.prepare_run(model, recipe, CUDA, numerics), Steps(gpu)
            run.epoch = recipe.epochs - 1 if last else 0
            loop._epoch(run, reader, labels, 0, bar)
            worst = max(worst, bar.between_looks(), key=len)
    return worst


def evaluation(name: str, backbone: str, numerics: Numerics, post: str | None = None) -> list[Event]:
    """Return the waits of one batch of the evaluation."""
    data, method = squares(8), load_method(name)
    model = method.create(backbone=backbone, num_classes=3, weights="none", settings={}, image_size=SIZE)
    source = ModelSource(
        model,
        EvalProtocol(),
        num_classes=3,
        device="cpu",
        batch_size=8,
        post=None if post is None else load_post(post).create({}),
        numerics=numerics,
    )
    with FakeCuda() as gpu:
        if hasattr(model, "modules"):
            gpu.move(model)
        source.device = CUDA
        for _ in range(2):
            gpu.events.clear()
            source.maps(data.samples, source.collate([source.load(sample) for sample in data.samples]))
        return list(gpu.events)


def detector_training(name: str, numerics: Numerics) -> list[Event]:
    """Return the waits of one step of the training loop of detectors, with two images."""
    kind = load_detector(name)
    model = kind.create(backbone="tiny", class_names=CLASSES, weights="none", settings={})
    recipe = kind.recipe_for("tiny", {"recipe.batch_size": "2"})

    class Reader(TargetReader):
        def __init__(self) -> None:
            pass

        def __len__(self) -> int:
            return 8

        def batches(self, batches: Any, **_: Any) -> Iterator[Any]:
            for batch in batches:
                yield [(torch.zeros(3, 96, 120, dtype=torch.uint8), self.target()) for _ in batch]

        def target(self) -> dict[str, torch.Tensor]:
            masks = torch.zeros(1, 96, 120, dtype=torch.uint8)
            masks[:, 10:60, 20:80] = 1
            boxes = torch.tensor([[20.0, 10.0, 80.0, 60.0]])
            return {"boxes": boxes, "labels": torch.tensor([1]), "masks": masks}

    with FakeCuda() as gpu:
        gpu.move(model.train())
        optimizer = detector_loop.build_optimizer(model, recipe)
        run = detector_loop.Run(model, optimizer, scaler_for(CUDA, numerics), CUDA, numerics, recipe, {})
        bar = Steps(gpu)
        nothing: Any = None
        request = DetectorRequest(train=nothing, out=Path(), backbone="tiny", weights="none")
        with StateWriter() as states:
            detector_loop._epoch(run, Reader(), request, 4 * recipe.epochs, bar, states)
        return bar.between_looks()


def row(name: str, step: list[Event] | None, batch: list[Event]) -> str:
    counts = Counter(
        f"{event.operator.partition('::')[2].strip('_')} in {event.where.rpartition(':')[0]}"
        for event in batch
    )
    listed = ", ".join(f"{what} ({count})" for what, count in counts.items())
    return f"| {name} | {'' if step is None else len(step)} | {len(batch)} | {listed} |"


@click.command()
@click.option("--backbone", help="Default: a small one that the method accepts.")
@click.option("--amp", type=click.Choice(["auto", "bf16", "fp16", "off"]), default="auto", show_default=True)
@click.option("--method", "names", multiple=True, help="Default: all methods, post-processes and detectors.")
def main(backbone: str | None, amp: Any, names: tuple[str, ...]) -> None:
    """Print how often the host waits in a training step and in a batch of the evaluation."""
    numerics, torch_seed = Numerics(amp=amp), torch.random.fork_rng(devices=[])
    with torch_seed:
        print("| method | training step | batch of the evaluation | in the evaluation, the host waits for |")
        print("|---|---|---|---|")
        for info in list_methods():
            if names and info.name not in names:
                continue
            kind, used = load_method(info.name), backbone or small_backbone(info.name)
            learns = kind.trainable and learns_by_loss(kind)
            step = training(info.name, used, numerics) if learns else None
            print(row(info.name, step, evaluation(info.name, used, numerics)), flush=True)
            for event in step or []:
                print(f"    in training: {event}")
        for info in [] if names else list_posts():
            try:
                print(
                    row(f"cam+{info.name}", None, evaluation("cam", backbone or "tiny", numerics, info.name))
                )
            except UsageError:  # it needs another kind of backbone
                continue
        for info in list_detectors():
            if not names or info.name in names:
                step = detector_training(info.name, numerics)
                print(row(info.name, step, detector_waits(info.name)[DETECTION]))
                print(
                    "\nA training step of", info.name, "waits for", row("", [], step).split("|")[-2].strip()
                )


if __name__ == "__main__":
    main()
