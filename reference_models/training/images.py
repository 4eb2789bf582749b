"""Images for training: read by threads or worker processes, kept in memory if they fit, and augmented.

Augmentation depends only on (seed, epoch, image, batch). It does not depend on the number and kind of
workers, nor on whether a run was interrupted.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reference_models.core.recipes import Recipe
from reference_models.training.parallel import all_reduce_sum
from reference_models.training.views import (
    Augmentation,
    Item,
    Place,
    Preparation,
    Prepared,
    Squares,
    rng_of_view,
)
from wsolbench.exceptions import UsageError
from wsolbench.maps.masks import MaskSource, has_target
from wsolbench.methods import InputSpec
from wsolbench.methods.device import normalized
from wsolbench.system.distributed import World
from wsolbench.system.free_memory import available_bytes
from wsolbench.system.processes import JOB, WORTH_SECONDS, SharedArray, WorkerPool, is_sendable
from wsolbench.system.progress import track
from wsolbench.types import Dataset

CACHE_BYTES = 1 << 30
"""Bytes of resized images of a split that every machine can keep in memory."""

AHEAD = 64
"""Number of images that are prepared while others are in use, or more: two jobs of each worker."""

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")
Job = tuple[Sequence[Item], "Augmentation | None"]


class ImageReader:
    """Reader of the resized images of a split, uint8. With `masks`, channel four is the mask, 0 to 255.

    Worker processes prepare the images if a pass over the split needs more than `WORTH_SECONDS` of one core,
    judged by its first images. Otherwise threads do. `close` ends the processes.

    Args:
        dataset: the split.
        side: images are resized to side x side.
        short_side: images keep their aspect ratio instead, and `side` is the length of the shorter side.
        workers: threads or processes that prepare images. 0: the calling thread does. 1: one thread.
        cache_bytes: the split is kept in memory if it needs at most this.
        here: this process among those of the same training. Each one reads a share of what is kept in memory.
        masks: ground truth that masks are made of, or None without masks. An image without it raises
            `DataError`.
        processes: whether at least two workers are processes, or None to judge by the first images.
    """

    def __init__(
        self,
        dataset: Dataset,
        side: int,
        *,
        workers: int = 2,
        cache_bytes: int = CACHE_BYTES,
        here: World | None = None,
        masks: MaskSource | None = None,
        short_side: bool = False,
        processes: bool | None = None,
    ) -> None:
        self.dataset, self.side, self.workers, self._processes = dataset, side, workers, processes
        self._pool: WorkerPool[Job, Prepared] | None = None
        self._lock = threading.Lock()
        # Images of one size are all read now if they fit. Others are kept when they are first read, while
        # there is room.
        shape = (len(dataset), side, side, 3 + (masks is not None))
        self.cache_bytes = cache_bytes if short_side else math.prod(shape)
        if self.cache_bytes > cache_bytes:
            self.cache_bytes = 0
        self._memory = SharedArray((self.cache_bytes,)) if self.cache_bytes else None
        self._places: dict[int, Place] = {}
        self._used = 0
        lacking = 0 if masks is None else sum(not has_target(sample, masks) for sample in dataset.samples)
        named = {"mask": "mask", "box": "ground-truth box", "any": "mask or ground-truth box", None: "mask"}[
            masks
        ]
        self._prepare = Preparation(
            side=side,
            short_side=short_side,
            masks=masks,
            lacking=f"of {dataset.name} {dataset.split} has no {named}; this training needs a {named} of "
            f"every image, and {lacking:,} of {len(dataset):,} have none: choose settings that need none",
            memory=self._memory,
            keeps=short_side and self._memory is not None,
        )
        if self._memory is not None and not short_side:
            self._read_all(self._memory, shape, here or World())

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def squares(self, batches: Sequence[Int[np.ndarray, " _"]]) -> Iterator[Squares]:
        """Yield the resized images of each batch. Not available with `short_side`."""
        return self._batches(batches, None)

    def views(
        self, batches: Sequence[Int[np.ndarray, " _"]], size: int, recipe: Recipe, *, seed: int, epoch: int
    ) -> Iterator[Squares]:
        """Yield augmented views of each batch, `size` pixels wide.

        With `rotate_on=device`, these are the resized images, and `draw_views` gives the numbers for
        `device_views`.
        """
        if recipe.rotate_on == "device":
            if recipe.short_side:
                raise UsageError(
                    "recipe.rotate_on=device needs images of one size, and this recipe keeps their aspect "
                    "ratio; use recipe.rotate_on=host or recipe.short_side=false"
                )
            return self.squares(batches)
        augmentation = Augmentation(
            size=size,
            flip=recipe.flip,
            rotation=recipe.rotation,
            rotation_filter=recipe.rotation_filter,
            seed=seed,
            epoch=epoch,
        )
        return self._batches(batches, augmentation)

    def _batches(
        self, batches: Sequence[Int[np.ndarray, " _"]], augmentation: Augmentation | None
    ) -> Iterator[Squares]:
        side = self.side if augmentation is None else augmentation.size
        first = [self._item(int(index), 0) for batch in batches[:1] for index in batch]
        self._start_pool(first, augmentation, sum(map(len, batches)))

        def jobs() -> Iterator[tuple[Squares, Int[np.ndarray, " _"], int]]:
            for number, batch in enumerate(batches):
                whole = np.empty(
                    (len(batch), side, side, 3 + (self._prepare.masks is not None)), dtype=np.uint8
                )
                for start in range(0, len(batch), JOB):
                    yield whole[start : start + JOB], batch[start : start + JOB], number
                yield whole, batch[:0], number

        def fill(job: tuple[Squares, Int[np.ndarray, " _"], int]) -> Squares:
            part, indices, number = job

            def take(prepared: Prepared) -> None:
                part[:] = prepared.views
                self._keep(prepared.read)

            if len(indices):
                self._run(([self._item(int(index), number) for index in indices], augmentation), take)
            return part

        filled = self._map(jobs(), fill)
        for batch in batches:
            for _ in range(0, len(batch), JOB):
                next(filled)
            yield next(filled)

    def _read_all(self, memory: SharedArray, shape: tuple[int, ...], here: World) -> None:
        mine = range(here.rank, shape[0], here.size)
        places = [Place(index * math.prod(shape[1:]), shape[1:]) for index in range(shape[0])]
        self._start_pool([self._item(index, 0) for index in mine[:JOB]], None, len(mine))

        def read(indices: Sequence[int]) -> int:
            def take(prepared: Prepared) -> None:
                for index, view in zip(indices, prepared.views, strict=True):
                    places[index].of(memory)[:] = view

            self._run(([self._item(index, 0) for index in indices], None), take)
            return len(indices)

        jobs = (mine[start : start + JOB] for start in range(0, len(mine), JOB))
        with track(description=f"reading {self.dataset.name} {self.dataset.split}", total=shape[0]) as bar:
            done = 0
            for count in self._map(jobs, read):
                done += count
                bar.advance(count * here.size if done < len(mine) else shape[0] - (done - count) * here.size)
        self.close()
        # Every image is 0 except in the process that read it.
        all_reduce_sum(torch.from_numpy(memory.array.reshape(shape)), here)
        self._places = dict(enumerate(places))

    def _item(self, index: int, number: int) -> Item:
        return self._places.get(index) or self.dataset[index], index, number

    def _keep(self, images: dict[int, np.ndarray]) -> None:
        """Keep images in memory while there is room."""
        for index, image in images.items():
            with self._lock:
                if index in self._places or self._used + image.nbytes > self.cache_bytes:
                    continue
                place = Place(self._used, image.shape)
                self._used += image.nbytes
            assert self._memory is not None
            place.of(self._memory)[:] = image
            self._places[index] = place  # others use it from now on

    def _start_pool(self, items: Sequence[Item], augmentation: Augmentation | None, count: int) -> None:
        """Start worker processes if `count` images like these are worth it, and if they can be sent there."""
        if self._pool is not None or self._processes is False or self.workers < 2 or not items:
            return
        if self._processes is None:
            start, some = time.perf_counter(), items[:JOB]
            self._prepare((some, augmentation))
            if (time.perf_counter() - start) / len(some) * count < WORTH_SECONDS:
                return
        if is_sendable((self._prepare, items[0])):
            inherit = [] if self._memory is None else [self._memory]
            self._pool = WorkerPool(self._prepare, self.workers, inherit)

    def _run(self, job: Job, take: Callable[[Prepared], T]) -> T:
        return take(self._prepare(job)) if self._pool is None else self._pool.run(job, take)

    def _map(self, jobs: Iterable[A], work: Callable[[A], R]) -> Iterator[R]:
        """Map with one thread for each process, or without processes with one for each worker."""
        threads = self.workers if self._pool is None else self._pool.count
        if self._pool is None and len(self._places) == len(self.dataset):
            threads = min(threads, 2)  # views from memory are fast
        return map_ordered(jobs, work, workers=threads, ahead=max(-(-AHEAD // JOB), 2 * threads))


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


def cache_budget(gibibytes: float | None) -> int:
    """Return the bytes of memory for resized images: as requested, else half of what is available.

    The processes of torchrun on a machine share the half. Without a request it is at least `CACHE_BYTES`
    for each of two splits.
    """
    if gibibytes is not None:
        return int(gibibytes * (1 << 30))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(2 * CACHE_BYTES, (available_bytes() or 0) // (2 * processes))


def draw_views(indices: Int[np.ndarray, " b"], number: int, *, seed: int, epoch: int) -> Tensor:
    """Return the (b, 4) uniform numbers that views of batch `number` draw, for `device_views`."""
    draws = [rng_of_view(seed, epoch, int(index), number).random(4) for index in indices]
    return torch.from_numpy(np.array(draws).reshape(-1, 4))


def normalized_images(pixels: UInt8[Tensor, "b s s c"], spec: InputSpec) -> Float[Tensor, "b 3 s s"]:
    """Convert 3 or 4 channels of uint8 to normalised float32, channels last in memory."""
    return normalized(pixels[..., :3].contiguous(), spec, pixels.device)


def masks_of(pixels: UInt8[Tensor, "b s s c"]) -> Float[Tensor, "b s s"] | None:
    """Return the masks, float32 in [0, 1], or None if there are none."""
    return pixels[..., 3].contiguous().float() / 255 if pixels.shape[-1] == 4 else None
