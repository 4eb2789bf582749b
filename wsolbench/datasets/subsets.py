"""Subsets of a split."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

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
