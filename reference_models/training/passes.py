"""Passes over the training images as they are: in their order, the whole image each, without augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from reference_models.core.model import Model
from reference_models.core.outputs import Batch
from reference_models.training.images import ImageReader, masks_of, to_device
from reference_models.training.steps import mixed
from wsolbench.types import Dataset

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Each call is one pass; a method that trains by gradients can make one in `before_training`, too.

    Images are read when the first pass begins, so a method that needs boxes alone reads none.
    """

    train: Dataset
    model: Model
    device: torch.device
    batch_size: int = BATCH_SIZE
    workers: int = 0
    seed: int = 0

    @cached_property
    def reader(self) -> ImageReader:
        """The images at the size of the model's input, and their masks where the model wants them."""
        size = self.model.input_spec.size
        return ImageReader(self.train, size, workers=self.workers, masks=self.model.wants_masks)

    def __call__(self) -> Iterator[Batch]:
        """One pass."""
        count, size = len(self.train), self.batch_size
        batches = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        generator = torch.Generator(device=self.device).manual_seed(mixed(self.seed, 0, 1))
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
