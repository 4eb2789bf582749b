"""Images for training: read in threads, kept in memory if they fit, and augmented.

Augmentation depends only on (seed, epoch, image, batch). It does not depend on the number of threads, nor on
whether a run was interrupted.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from reference_models.core.recipes import Recipe
from reference_models.training.parallel import all_reduce_sum
from wsolbench.exceptions import DataError
from wsolbench.maps.masks import resize_mask
from wsolbench.methods import InputSpec
from wsolbench.methods.device import normalized
from wsolbench.methods.inputs import resize_short_side, resized, training_view
from wsolbench.system.distributed import World
from wsolbench.system.progress import track
from wsolbench.types import Dataset

CACHE_BYTES = 1 << 30
"""Largest size of the resized images of a split that are kept in memory."""

AHEAD = 64
"""Number of images that are prepared while others are in use. If whole batches are prepared: two batches."""

# Sizes differ between batches, so the axes have no names, which would have to agree.
Squares = UInt8[np.ndarray, "_ _ _ _"]
Pixels = UInt8[np.ndarray, "h w c"]
View = UInt8[np.ndarray, "v v c"]
Change = Callable[[Pixels, int, int], View]
"""Signature `change(image, its index, number of the batch)`."""

A = TypeVar("A")
R = TypeVar("R")


class ImageReader:
    """Reader of the resized images of a split, uint8. With `masks`, channel four is the mask, 0 or 255.

    Args:
        dataset: the split.
        side: images are resized to side x side.
        short_side: images keep their aspect ratio instead, and `side` is the length of the shorter side.
        workers: reading threads. 0: the calling thread reads.
        cache_bytes: the split is kept in memory if it needs at most this.
        here: this process among those of the same training. Each one reads a share of what is kept in memory.
        masks: whether masks are needed. An image without one raises `DataError`.
    """

    def __init__(
        self,
        dataset: Dataset,
        side: int,
        *,
        workers: int = 2,
        cache_bytes: int = CACHE_BYTES,
        here: World | None = None,
        masks: bool = False,
        short_side: bool = False,
    ) -> None:
        self.dataset, self.side, self.workers, self.masks, self.short_side = (
            dataset,
            side,
            workers,
            masks,
            short_side,
        )
        self._shape = (len(dataset), side, side, 3 + masks)
        self._kept = (
            self._all(here or World()) if not short_side and math.prod(self._shape) <= cache_bytes else None
        )
        # Images of different sizes are cached one by one when they are first read, within the limit.
        self._seen: dict[int, Pixels] = {}
        self._room = cache_bytes if short_side else 0
        self._lock = threading.Lock()

    def squares(self, batches: Sequence[Int[np.ndarray, " _"]]) -> Iterator[Squares]:
        """Yield the resized images of each batch. Not available with `short_side`."""
        return self._batches(batches, lambda image, _index, _number: image)

    def views(
        self, batches: Sequence[Int[np.ndarray, " _"]], size: int, recipe: Recipe, *, seed: int, epoch: int
    ) -> Iterator[Squares]:
        """Yield augmented views of each batch, `size` pixels wide."""

        def augmented(image: Pixels, index: int, number: int) -> View:
            rng = np.random.default_rng((seed, epoch, index, number))
            return training_view(
                image,
                size,
                rng,
                flip=recipe.flip,
                rotation=recipe.rotation,
                rotation_filter=recipe.rotation_filter,
            )

        return self._batches(batches, augmented)

    def _batches(self, batches: Sequence[Int[np.ndarray, " _"]], change: Change) -> Iterator[Squares]:
        def one(item: tuple[int, int]) -> View:
            return change(self._image(item[0]), *item)

        def whole(items: list[tuple[int, int]]) -> Squares:
            return np.stack([one(item) for item in items])

        jobs = [[(int(index), number) for index in batch] for number, batch in enumerate(batches)]
        if self._kept is not None or self.workers == 0:
            # Cropping views from memory is fast: one thread is enough.
            yield from map_ordered(jobs, whole, workers=min(self.workers, 1), ahead=2)
            return
        images = map_ordered(
            (item for items in jobs for item in items), one, workers=self.workers, ahead=AHEAD
        )
        for items in jobs:
            yield np.stack([next(images) for _ in items])

    def _all(self, here: World) -> Squares:
        kept = np.zeros(self._shape, dtype=np.uint8)
        mine = range(here.rank, len(kept), here.size)
        images = map_ordered(mine, self._read, workers=self.workers, ahead=AHEAD)
        with track(description=f"reading {self.dataset.name} {self.dataset.split}", total=len(kept)) as bar:
            for index, image in zip(mine, images, strict=True):
                kept[index] = image
                bar.advance(min(here.size, len(kept) - index))
        all_reduce_sum(torch.from_numpy(kept), here)  # every image is 0 except in the process that read it
        return kept

    def _image(self, index: int) -> Pixels:
        if self._kept is not None:
            return np.asarray(self._kept[index])
        if index in self._seen:
            return self._seen[index]
        image = self._read(index)
        with self._lock:
            if image.nbytes <= self._room and index not in self._seen:
                self._seen[index] = image
                self._room -= image.nbytes
        return image

    def _read(self, index: int) -> Pixels:
        sample = self.dataset[index]
        image = (resize_short_side if self.short_side else resized)(sample.image(), self.side)
        if not self.masks:
            return image
        mask = sample.mask()
        if mask is None:
            lacking = sum(not other.has_mask for other in self.dataset.samples)
            raise DataError(
                f"image {sample.id!r} of {self.dataset.name} {self.dataset.split} has no mask; this "
                "training needs a mask of every image, "
                f"and {lacking:,} of {len(self.dataset):,} have none: choose settings that need none"
            )
        return np.dstack([image, 255 * resize_mask(mask, (image.shape[1], image.shape[0])).astype(np.uint8)])


def map_ordered(items: Iterable[A], work: Callable[[A], R], *, workers: int, ahead: int) -> Iterator[R]:
    """Yield `work(item)` for each item in order, computing up to `ahead` items in advance.

    They are computed in `workers` threads. 0: no threads.
    """
    if workers == 0:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def to_device(squares: Squares, spec: InputSpec, device: torch.device) -> Tensor:
    """Convert (B, S, S, 3 or 4) uint8 to normalised (B, 3, S, S) float32, channels last, on the device."""
    pixels = torch.from_numpy(np.ascontiguousarray(squares[..., :3]))
    return normalized(pixels.pin_memory() if device.type == "cuda" else pixels, spec, device)


def masks_of(squares: Squares, device: torch.device) -> Tensor | None:
    """Return the masks (B, S, S), float32 in [0, 1], or None if there are none."""
    return (
        torch.from_numpy(np.ascontiguousarray(squares[..., 3])).to(device).float() / 255
        if squares.shape[-1] == 4
        else None
    )
