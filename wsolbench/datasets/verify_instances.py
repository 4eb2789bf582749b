"""Verification of a data set in COCO's layout, for `wsolbench.datasets.verify`.

It checks files, sizes, boxes and masks of images with many objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from wsolbench.datasets.boxes import outside_mask
from wsolbench.datasets.coco import InstanceDataset, InstanceSample
from wsolbench.datasets.pixels import Problem, check_file
from wsolbench.exceptions import DataError


def check_instances(
    dataset: InstanceDataset, pool: ThreadPoolExecutor, block: int
) -> Iterator[list[Problem]]:
    """Decode every image and mask, and yield the problems of each image."""
    samples: Sequence[InstanceSample] = dataset.samples
    for start in range(0, len(samples), block):
        yield from pool.map(_check_sample, samples[start : start + block])


def _check_sample(sample: InstanceSample) -> list[Problem]:
    # The image file.
    found: list[Problem] = []
    try:
        check_file(
            sample.path,
            sample.file_name,
            sample.size,
            located=True,
            problems=found,
            boxed=len(sample.boxes) > 0,
        )
        sample.image()
    except DataError as error:
        found.append(Problem("error", "images that cannot be read", str(error), sample.path))
    # The masks, and whether their boxes contain them.
    given = [index for index, segmentation in enumerate(sample.segmentations) if segmentation is not None]
    if not given:
        return found
    try:
        masks = sample.masks_of(given)
    except DataError as error:
        return [*found, Problem("error", "masks that cannot be used", str(error))]
    for index, mask in zip(given, masks, strict=True):
        if mask.any() and outside_mask(sample.boxes[index : index + 1], mask > 0)[1] > 0.5:
            example = f"{sample.file_name}: box {sample.boxes[index].tolist()}"
            found.append(
                Problem("warning", "boxes with less than half of their object's mask inside", example)
            )
    return found
