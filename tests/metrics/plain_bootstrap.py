"""The bootstrap as a plain loop, and tables to resample, for tests of the fast one."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np

from wsolbench.metrics import confidence
from wsolbench.metrics.confidence import resampling_weights


def first_column(rates: np.ndarray) -> np.ndarray:
    return rates[:, 0]


def best_column(rates: np.ndarray) -> np.ndarray:
    return rates.max(axis=1)


def small_blocks(size: int = 5):
    """Reduce the block size to a few images, so that a small data set has several blocks."""
    return mock.patch.object(confidence, "BLOCK", size)


def all_weights(n: int, n_resamples: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(resampling_weights(n, n_resamples, seed)), axis=1)


def naive_rates(rows: np.ndarray, groups: np.ndarray | None, n_resamples: int, seed: int) -> np.ndarray:
    """Resample one after another: repeat each drawn image as often as it was drawn, and take plain means."""
    rates = []
    for weights in all_weights(len(rows), n_resamples, seed):
        drawn = np.repeat(np.arange(len(rows)), weights)
        members: dict[int, list[int]] = {}
        for image in drawn.tolist():
            members.setdefault(0 if groups is None else int(groups[image]), []).append(image)
        rates.append(
            np.mean([np.mean(rows[images].astype(float), axis=0) for images in members.values()], axis=0)
        )
    return np.array(rates)


def naive_values(
    rows: np.ndarray, value, groups: np.ndarray | None, n_resamples: int, seed: int
) -> np.ndarray:
    return value(naive_rates(rows, groups, n_resamples, seed))


def cut(tables: list[np.ndarray], lengths: list[int]) -> Iterator[list[np.ndarray]]:
    """Yield the tables in blocks of these lengths, then the remaining images."""
    for start, stop in zip([0, *np.cumsum(lengths)], [*np.cumsum(lengths), len(tables[0])], strict=True):
        yield [table[start:stop] for table in tables]


def tables_of_all_kinds(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    return [
        rng.random((n, 3)) < 0.5,
        rng.integers(0, 256, (n, 2)).astype(np.uint8),
        rng.integers(0, 50_000, (n, 4)).astype(np.int32) * (rng.random(4) < 0.5).astype(np.int32),
        rng.integers(-(2**40), 2**40, (n, 2)),
        rng.random((n, 1), dtype=np.float32),
        rng.uniform(-1.0, 1.0, (n, 2)),
        rng.random((n, 1)) < 0.9,
    ]
