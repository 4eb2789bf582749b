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
    """Result of `TopKAccuracy.compute`."""

    top_k: dict[int, float]
    """Accuracy in [0, 1] for each k."""
    n: int
    """Number of images."""


@dataclass(frozen=True, kw_only=True)
class MeanPerClassAccuracyResult:
    """Result of `MeanPerClassAccuracy.compute`."""

    value: float
    """Mean of the Top-1 accuracies of the classes that occur, in [0, 1]."""
    per_class: dict[int, float]
    n: int
    """Number of images."""


class TopKAccuracy:
    """Share of images whose true class is among the k best labels.

    >>> metric = TopKAccuracy(ks=(1, 2))
    >>> metric.update([3, 7], label=7)
    >>> metric.compute().top_k
    {1: 0.0, 2: 1.0}
    """

    def __init__(self, ks: Sequence[int] = (1, 5)) -> None:
        if not ks or min(ks) < 1:
            raise UsageError(f"Top-k accuracy with ks {tuple(ks)}; expected one or more k of at least 1")
        self.ks = tuple(sorted(set(ks)))
        self.hits = dict.fromkeys(self.ks, 0)
        self.n = 0

    def update(self, ranked_labels: Ranking, label: int) -> None:
        """Count one image. Raises `UsageError` if fewer labels are ranked than the largest k."""
        if len(ranked_labels) < self.ks[-1]:
            raise UsageError(
                f"ranking has {len(ranked_labels)} labels; expected at least {self.ks[-1]} for "
                f"Top-{self.ks[-1]} accuracy. Rank more labels, or choose smaller ks"
            )
        ranking = [int(item) for item in ranked_labels[: self.ks[-1]]]
        for k in self.ks:
            self.hits[k] += label in ranking[:k]
        self.n += 1

    def merge(self, other: TopKAccuracy) -> None:
        """Add the images of another shard. Raises `UsageError` if its ks differ."""
        if other.ks != self.ks:
            raise UsageError(f"cannot merge Top-k accuracies with ks {other.ks}; expected ks {self.ks}")
        for k in self.ks:
            self.hits[k] += other.hits[k]
        self.n += other.n

    def compute(self) -> TopKAccuracyResult:
        """Return the accuracies so far. Raises `UsageError` if no image was counted."""
        if self.n == 0:
            raise UsageError("Top-k accuracy has counted no image; call update first")
        return TopKAccuracyResult(top_k={k: self.hits[k] / self.n for k in self.ks}, n=self.n)


class MeanPerClassAccuracy:
    """Mean of per-class Top-1 accuracies over the classes that occur, so that all classes weigh alike."""

    def __init__(self) -> None:
        self.hits: Counter[int] = Counter()
        self.images: Counter[int] = Counter()

    def update(self, ranked_labels: Ranking, label: int) -> None:
        """Count one image by its best label. Raises `UsageError` for an empty ranking."""
        if len(ranked_labels) == 0:
            raise UsageError("ranking is empty; expected at least one label for mean-per-class accuracy")
        self.hits[label] += int(ranked_labels[0]) == label
        self.images[label] += 1

    def merge(self, other: MeanPerClassAccuracy) -> None:
        """Add the images of another shard."""
        self.hits.update(other.hits)
        self.images.update(other.images)

    def compute(self) -> MeanPerClassAccuracyResult:
        """Return the accuracies so far. Raises `UsageError` if no image was counted."""
        if not self.images:
            raise UsageError("mean-per-class accuracy has counted no image; call update first")
        per_class = {label: self.hits[label] / count for label, count in sorted(self.images.items())}
        return MeanPerClassAccuracyResult(
            value=math.fsum(per_class.values()) / len(per_class),
            per_class=per_class,
            n=sum(self.images.values()),
        )
