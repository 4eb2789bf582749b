"""Training without gradients: a model fills its buffers from passes over the training images.

A pass is short, so an interrupted one starts again. The same request gives the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from reference_models.core.model import Model
from reference_models.core.outputs import Batch
from reference_models.training.checkpoint import save_checkpoint
from reference_models.training.images import ImageReader, masks_of, to_device
from reference_models.training.loop import check_split, new_model
from reference_models.training.request import dataset_facts, run_facts
from reference_models.training.run_folder import LAST, run_metadata, training_run
from reference_models.training.steps import mixed
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest
from wsolbench.system.distributed import world
from wsolbench.types import Dataset

BATCH_SIZE = 32


@dataclass(frozen=True)
class Passes:
    """Passes over the images of a split: in their order, the whole image each, without augmentation.

    Images are read when the first pass begins, so a method that needs boxes alone reads none.
    """

    train: Dataset
    model: Model
    request: TrainRequest
    device: torch.device

    @cached_property
    def reader(self) -> ImageReader:
        """The images at the size of the model's input, and their masks where the model wants them."""
        size = self.model.input_spec.size
        return ImageReader(self.train, size, workers=self.request.workers, masks=self.model.wants_masks)

    def __call__(self) -> Iterator[Batch]:
        """One pass."""
        size, count = self.request.batch_size or BATCH_SIZE, len(self.train)
        batches = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        generator = torch.Generator(device=self.device).manual_seed(mixed(self.request.seed, 0, 1))
        for step, (indices, squares) in enumerate(zip(batches, self.reader.squares(batches), strict=True)):
            labels = [self.train.samples[int(index)].label for index in indices]
            yield Batch(
                images=to_device(squares, self.model.input_spec, self.device),
                labels=torch.tensor(labels, device=self.device),
                indices=torch.from_numpy(indices).to(self.device),
                epoch=0,
                epochs=1,
                step=step,
                generator=generator,
                masks=masks_of(squares, self.device),
            )


def fit_statistics(method: type[Model], request: TrainRequest) -> Path:
    """Fill the buffers of a model (`Model.measure`) and return its checkpoint, in the folder `request.out`.

    A finished run of the same request is returned as it is.

    Raises `UsageError` when the folder holds another run, in several processes, and on options of training by
    gradients; `DataError` on labels outside the classes and on images that cannot be read.
    """
    if world().size > 1:
        raise UsageError(f"method {method.method_name!r} is fitted in one process; start it without torchrun")
    given = [f"--{name}" for name in ("epochs", "lr") if getattr(request, name) is not None]
    if given:
        raise UsageError(
            f"method {method.method_name!r} is not trained by gradients and takes no {' and '.join(given)}; "
            "leave it out"
        )
    check_split(request.train)
    facts = _facts(method, request)
    with training_run(request.out, facts, request.device, world()) as device:
        if device is not None:
            start = perf_counter()
            model = new_model(method, request, device)
            with torch.no_grad():
                model.measure(request.train, Passes(request.train, model, request, device))
            done = {**facts, "epoch": 1, "val_accuracy": None, "train_loss": None}
            save_checkpoint(request.out / LAST, model, done, run_metadata(device, perf_counter() - start))
    return request.out / LAST


def _facts(method: type[Model], request: TrainRequest) -> dict[str, Any]:
    """All that the buffers depend on, except for the machine."""
    recipe = {
        "source": "statistics of the training images",
        "epochs": 1,
        "batch_size": request.batch_size or BATCH_SIZE,
    }
    facts = run_facts(method, request, recipe, what=f"method {method.method_name!r}")
    if not method.needs_backbone:
        facts.update(backbone="none", weights="none")
    return {
        **facts,
        "image_size": request.image_size,
        "dataset": dataset_facts(request.train),
        "val": None,
    }
