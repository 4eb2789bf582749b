"""Views of images for training: read, resized, augmented. Without torch, so that worker processes start fast.

A view depends only on the image and on (seed, epoch, image, batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8

from wsolbench.exceptions import DataError
from wsolbench.maps.masks import MaskSource, target_mask
from wsolbench.methods.inputs import RotationFilter, resize_picture, resize_short_side, resized, training_view
from wsolbench.system.processes import SharedArray
from wsolbench.types import Sample

if TYPE_CHECKING:
    import PIL.Image

# Sizes differ between batches, so the axes have no names, which would have to agree.
Squares = UInt8[np.ndarray, "_ _ _ _"]
Pixels = UInt8[np.ndarray, "h w c"]
View = UInt8[np.ndarray, "v v c"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random views of `size` pixels: rotated, cropped and mirrored as the recipe states."""

    size: int
    flip: float
    rotation: float
    rotation_filter: RotationFilter
    seed: int
    epoch: int

    def view(self, image: Pixels | PIL.Image.Image, index: int, number: int) -> View:
        """Return the view of image `index` in batch `number`."""
        return training_view(
            image,
            self.size,
            rng_of_view(self.seed, self.epoch, index, number),
            flip=self.flip,
            rotation=self.rotation,
            rotation_filter=self.rotation_filter,
        )


def rng_of_view(seed: int, epoch: int, index: int, number: int) -> np.random.Generator:
    """Return the source of all randomness of the view of image `index` in batch `number`."""
    return np.random.default_rng((seed, epoch, index, number))


class Place(NamedTuple):
    """Where the memory of a reader has a resized image: its first byte, and its shape."""

    start: int
    shape: tuple[int, ...]

    def of(self, memory: SharedArray) -> Pixels:
        """Return the image, which shares the memory."""
        return np.asarray(memory.array[self.start : self.start + math.prod(self.shape)].reshape(self.shape))


Item = tuple["Place | Sample", int, int]
"""An image to prepare: where it is in memory, or the sample to read; its index and its batch."""


class Prepared(NamedTuple):
    """Views (n, S, S, C), and the resized images that were read for them, by index."""

    views: Squares
    read: dict[int, Pixels]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Callable that prepares images, in a thread or in a worker process.

    Attributes:
        side: images are resized to side x side, or to this shorter side if `short_side`.
        short_side: whether images keep their aspect ratio.
        masks: ground truth that channel four is the mask of, 0 to 255. None: three channels.
        lacking: end of the message for an image without this ground truth.
        memory: memory of the reader, or None without one.
        keeps: whether images that were read are returned, too.
    """

    side: int
    short_side: bool
    masks: MaskSource | None
    lacking: str
    memory: SharedArray | None
    keeps: bool

    def __call__(self, job: tuple[Sequence[Item], Augmentation | None]) -> Prepared:
        """Prepare the items of a job. Without an augmentation, views are the resized images."""
        items, augmentation = job
        views, read = [], {}
        for source, index, number in items:
            image: Pixels | PIL.Image.Image
            if isinstance(source, Place):
                assert self.memory is not None
                image = source.of(self.memory)
            elif self.masks is not None or self.keeps or augmentation is None:
                image = pixels = self.read(source)
                if self.keeps:
                    read[index] = pixels
            else:  # an array of the whole image is not needed
                image = resize_picture(source.picture(), self.side, short_side=self.short_side)
            views.append(
                np.asarray(image) if augmentation is None else augmentation.view(image, index, number)
            )
        return Prepared(np.stack(views), read)

    def read(self, sample: Sample) -> Pixels:
        """Read and resize an image. Raises `DataError` if it, or its mask, cannot be read."""
        image = (resize_short_side if self.short_side else resized)(sample.picture(), self.side)
        if self.masks is None:
            return image
        mask = target_mask(sample, self.masks, (image.shape[1], image.shape[0]))
        if mask is None:
            raise DataError(f"image {sample.id!r} {self.lacking}")
        return np.dstack([image, mask])
