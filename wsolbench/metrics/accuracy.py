"""Classification accuracy: Top-k over images, and the mean of per-class Top-1 accuracies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer

from wsolbench.exceptions import UsageError

Ranking = Sequence[int] | Integer[np.ndarray, " k"]
"""Class indices of one image, best first."""


@dataclass(frozen=True, kw_only=True)
class TopKAccuracyResult:
    """What `TopKAccuracy.compute` gives."""

    top_k: dict[int, float]
    """Accuracy in [0, 1] for each k."""
    n: int
    """Images."""


@dataclass(frozen=True, kw_only=True)
class MeanPerClassAccuracyResult:
    """What `MeanPerClassAccuracy.compute` gives."""

    value: float
    """Mean over the classes that occur of their Top-1 accuracy, in [0, 1]."""
    per_class: dict[int, float]
    n: int
    """Images."""


class TopKAccuracy:
    """Share of images whose true class is among the k best.

    >>> metric = TopKAccuracy(ks=(1, 2))
    >>> metric.update([3, 7], label=7)
    >>> metric.compute().top_k
    {1: 0.0, 2: 1.0}
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        if not ks or min(ks) < 1:
            raise UsageError(f"Top-k needs k of at least 1, got {tuple(ks)}")
        self.ks = tuple(sorted(set(ks)))
        self.hits = dict.fromkeys(self.ks, 0)
        self.n = 0

    def update(self, ranked_labels: Ranking, label: int) -> None:
        """Count one image. Raises `UsageError` when fewer labels are ranked than the largest k."""
        if len(ranked_labels) < self.ks[-1]:
            raise UsageError(
                f"Top-{self.ks[-1]} accuracy of a ranking of {len(ranked_labels)} labels; rank more, or "
                "choose smaller ks"
            )
        ranking = [int(item) for item in ranked_labels[: self.ks[-1]]]
        for k in self.ks:
            self.hits[k] += label in ranking[:k]
        self.n += 1

    def merge(self, other: TopKAccuracy) -> None:
        """Add the images of another shard. Raises `UsageError` when it has other ks."""
        if other.ks != self.ks:
            raise UsageError(f"cannot merge Top-k accuracies of ks {other.ks} into those of {self.ks}")
        for k in self.ks:
            self.hits[k] += other.hits[k]
        self.n += other.n

    def compute(self) -> TopKAccuracyResult:
        """Accuracies so far. Raises `UsageError` without an image."""
        if self.n == 0:
            raise UsageError("Top-k accuracy has seen no image; update it first")
        return TopKAccuracyResult(top_k={k: self.hits[k] / self.n for k in self.ks}, n=self.n)


class MeanPerClassAccuracy:
    """Top-1 accuracy of each class, averaged over the classes that occur: rare classes weigh as much as
    frequent ones.
    """

    def __init__(self) -> None:
        self.hits: Counter[int] = Counter()
        self.images: Counter[int] = Counter()

    def update(self, ranked_labels: Ranking, label: int) -> None:
        """Count one image by its best label. Raises `UsageError` on an empty ranking."""
        if len(ranked_labels) == 0:
            raise UsageError("mean-per-class accuracy of an empty ranking; rank at least one label")
        self.hits[label] += int(ranked_labels[0]) == label
        self.images[label] += 1

    def merge(self, other: MeanPerClassAccuracy) -> None:
        """Add the images of another shard."""
        self.hits.update(other.hits)
        self.images.update(other.images)

    def compute(self) -> MeanPerClassAccuracyResult:
        """Accuracies so far. Raises `UsageError` without an image."""
        if not self.images:
            raise UsageError("mean-per-class accuracy has seen no image; update it first")
        per_class = {label: self.hits[label] / count for label, count in sorted(self.images.items())}
        return MeanPerClassAccuracyResult(
            value=math.fsum(per_class.values()) / len(per_class),
            per_class=per_class,
            n=sum(self.images.values()),
        )
