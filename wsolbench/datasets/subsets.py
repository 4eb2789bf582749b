"""Subsets of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from wsolbench.datasets.base import divide, part_of
from wsolbench.datasets.coco import InstanceDataset
from wsolbench.exceptions import UsageError
from wsolbench.types import Dataset

D = TypeVar("D", Dataset, InstanceDataset)


def limit_dataset(dataset: D, limit: int | None) -> D:
    """Return `limit` images spread evenly over the split, and so over its classes, in order.

    If `limit` is None, all images are returned. Raises `UsageError` unless 1 <= limit.
    """
    if limit is None or limit >= len(dataset):
        return dataset
    if limit < 1:
        raise UsageError(f"--limit {limit}; expected at least 1")
    chosen = np.linspace(0, len(dataset) - 1, limit).round().astype(int)
    return replace(dataset, samples=tuple(dataset.samples[index] for index in chosen))


def hold_out(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a split with ground truth by class into `SPLIT/fit`, 80 %, and `SPLIT/tune`, 20 %.

    A method that learns from the boxes of `val` trains on the first part. Its thresholds are transferred from
    the second one. `seed` is that of the training.
    """
    return divide(dataset, (f"{dataset.split}/fit", f"{dataset.split}/tune"), fraction=0.2, seed=seed)


def draw_per_class(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    """Draw up to `count` images of each class, or all if `count` is None, in the order of the split.

    With the same seed, the images of a smaller count are among those of a larger one.
    """
    if count is None:
        return dataset
    rng = np.random.default_rng((seed, 1))
    labels = np.array([sample.label for sample in dataset.samples])
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:count] for label in np.unique(labels)]
    return part_of(dataset, np.sort(np.concatenate(drawn)).tolist())


def transfer_part(training: Mapping[str, Any], val: Dataset) -> Dataset:
    """Return the part of `val` for transferred thresholds: what `hold_out` has kept out of a training.

    `training` is the `training` of a method's description. If the method was not trained on a part of `val`,
    all of `val` is returned.
    """
    seen = training.get("dataset") or {}
    if seen.get("split") != f"{val.split}/fit" or val.fingerprint not in (seen.get("within") or ()):
        return val
    return hold_out(val, int(training.get("seed") or 0))[1]


def shares_images(seen: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether a split can have images in common with the one that a method was trained on.

    `seen` is the `dataset` of the method's training: a fingerprint, and for a part of a split also those of
    `Dataset.within` and `Dataset.apart`. Splits of other fingerprints have no image in common.
    """
    theirs = {seen.get("fingerprint"), *(seen.get("within") or ())}
    ours = {dataset.fingerprint, *dataset.within}
    are_apart = theirs & set(dataset.apart) or ours & set(seen.get("apart") or ())
    return bool(ours & theirs) and not are_apart
