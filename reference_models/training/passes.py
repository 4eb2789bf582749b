"""Passes over the training images in their order, whole and without augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int

from reference_models.core.model import Model
from reference_models.core.outputs import Batch
from reference_models.training.images import ImageReader, cache_budget, masks_of, normalized_images
from reference_models.training.steps import mix_seeds
from wsolbench.methods.transfers import uploaded
from wsolbench.types import Dataset

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Callable that makes one pass over the training images.

    A method that trains by gradients can create one in `before_training`, too. Images are read when the first
    pass begins, so a method that needs only boxes reads none.
    """

    train: Dataset
    model: Model
    device: torch.device
    batch_size: int = BATCH_SIZE
    workers: int = 0
    seed: int = 0
    cache: float | None = None
    """As in `TrainRequest`."""
    size: int | None = None
    """Side of the images. None: the model's input size."""
    with_masks: bool = True
    """Whether batches have masks if the model needs them. False: they have none."""

    @cached_property
    def reader(self) -> ImageReader:
        """Reader of the resized images."""
        return ImageReader(
            self.train,
            self.size or self.model.input_spec.size,
            workers=self.workers,
            cache_bytes=cache_budget(self.cache),
            masks=self.model.mask_source if self.with_masks else None,
        )

    @property
    def count(self) -> int:
        """Number of batches of a pass over all images."""
        return -(-len(self.train) // self.batch_size)

    def __call__(self, chosen: Int[np.ndarray, " n"] | None = None) -> Iterator[Batch]:
        """Yield the batches of one pass over the images at the `chosen` positions. None: over all images."""
        order, size = np.arange(len(self.train)) if chosen is None else chosen, self.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        generator = torch.Generator(device=self.device).manual_seed(mix_seeds(self.seed, 0, 1))
        labels = np.array([sample.label for sample in self.train.samples], dtype=np.int64)
        arriving = uploaded(
            (
                {
                    "pixels": torch.from_numpy(squares),
                    "labels": torch.from_numpy(labels[indices]),
                    "indices": torch.from_numpy(indices),
                }
                for indices, squares in zip(batches, self.reader.squares(batches), strict=True)
            ),
            self.device,
        )
        for step, arrays in enumerate(arriving):
            yield Batch(
                images=normalized_images(arrays["pixels"], self.model.input_spec),
                labels=arrays["labels"],
                indices=arrays["indices"],
                epoch=0,
                epochs=1,
                step=step,
                generator=generator,
                masks=masks_of(arrays["pixels"]),
            )
