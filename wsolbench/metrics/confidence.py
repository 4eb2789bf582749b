"""Bootstrap over images: intervals of any metric, and the paired comparison of two runs.

A metric is two steps: a mean over images of per-image rows (hits at each threshold, pixel counts, ...), the *rates*; and a
function of the rates (best threshold, average precision, ...). Only the first step is repeated for each resample, and it is
one matrix product: counts of how often each image was drawn x rows. All products are of whole numbers that the floating type
holds exactly, so neither the block size nor the number of threads can change a bit.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile interval (chapter 13).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Integer, Shaped

from wsolbench.exceptions import DataError, UsageError

Rows = Shaped[np.ndarray, "n s"]
"""One row of numbers for each image: whole numbers or booleans, used exactly, or floats, rounded to some 1e-11 of the largest."""

Value = Callable[[Float64[np.ndarray, "r s"]], Float64[np.ndarray, " r"]]
"""The metric from the rates: each row of the input is one resample."""

_WEIGHT_BYTES = 1 << 26
"""Bound on one block of resampling weights, and on one block of columns."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A percentile interval of a metric over images."""

    low: float
    high: float
    level: float
    n_resamples: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Run A minus run B on the same images, with the interval of the difference and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    """Images."""
    level: float
    n_resamples: int
    seed: int


def bootstrap_interval(
    rows: Rows,
    value: Value,
    *,
    groups: Integer[np.ndarray, " n"] | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `value(mean of rows over images)` over resamples of the images.

    With `groups` (the class of each image) the rates are the mean over groups of each group's resampled mean; a group of
    which a resample draws no image is left out of that resample's mean. Results depend on the rows and the seed alone.

    Raises `UsageError` on empty or non-finite rows and on settings that mean nothing, `DataError` when the metric is
    undefined (not finite) in a resample, and whatever `value` raises.

    >>> rows = np.array([[1], [0], [1], [1]])
    >>> interval = bootstrap_interval(rows, lambda rates: rates[:, 0], seed=1)
    >>> interval.low, interval.high
    (0.25, 1.0)
    """
    plan = _Plan(len(rows), groups, n_resamples, level, seed)
    values = np.concatenate([_defined(value(rates)) for (rates,) in plan.rates(rows)])
    low, high = plan.interval(values)
    return Interval(low=low, high=high, level=level, n_resamples=n_resamples, seed=seed)


def paired_difference(
    rows_a: Rows,
    rows_b: Rows,
    value: Value,
    *,
    groups: Integer[np.ndarray, " n"] | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Compare two runs on the same images, row for row, with the same resamples for both.

    The interval is the percentile interval of the difference. The p-value counts signs: twice the smaller of the shares of
    resamples with a difference <= 0 and with one >= 0, each count and the number of resamples raised by one, at most 1.
    Raises as `bootstrap_interval`, and `UsageError` when the runs have different numbers of images.
    """
    if len(rows_a) != len(rows_b):
        raise UsageError(f"paired comparison of {len(rows_a)} with {len(rows_b)} images; both runs must have scored the same images")
    plan = _Plan(len(rows_a), groups, n_resamples, level, seed)
    pairs = plan.rates(rows_a, rows_b)
    differences = np.concatenate([_defined(value(rates_a)) - _defined(value(rates_b)) for rates_a, rates_b in pairs])
    low, high = plan.interval(differences)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    point_a, point_b = (float(_defined(value(mean_rates(rows, groups=groups)[None]))[0]) for rows in (rows_a, rows_b))
    return PairedDifference(
        difference=point_a - point_b,
        low=low,
        high=high,
        p_value=min(1.0, 2 * (tail + 1) / (n_resamples + 1)),
        n=plan.n,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
    )


def mean_rates(rows: Rows, *, groups: Integer[np.ndarray, " n"] | None = None) -> Float64[np.ndarray, " s"]:
    """The rates of the images themselves: mean over images, or with `groups` the mean over groups of each group's mean.

    Raises `UsageError` without an image.

    >>> mean_rates(np.array([[1], [1], [0]]), groups=np.array([4, 4, 7]))
    array([0.5])
    """
    if len(rows) == 0:
        raise UsageError("no image, so the mean is undefined; score at least one")
    if groups is None:
        return np.asarray(np.mean(rows, axis=0, dtype=np.float64))
    order, bounds = _side_by_side(groups)
    sums = np.add.reduceat(np.asarray(rows)[order], bounds[:-1], axis=0, dtype=np.float64)
    return np.asarray(np.mean(sums / np.diff(bounds)[:, None], axis=0))


def _side_by_side(groups: Integer[np.ndarray, " n"]) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " g"]]:
    """An order in which the images of a group are neighbours, and where each group starts, with the end behind."""
    _, codes = np.unique(groups, return_inverse=True)
    codes = codes.reshape(-1)
    return np.argsort(codes, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(codes))])


def resampling_weights(n: int, n_resamples: int, seed: int = 0) -> Iterator[Integer[np.ndarray, " n"]]:
    """How often each of `n` images is drawn, one array (n,) for each resample; the same arrays for the same seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(n_resamples):
        yield np.bincount(generator.integers(0, n, size=n), minlength=n)


class _Plan:
    """The resamples of one comparison: checked settings, weights in blocks, and what follows from them."""

    def __init__(self, n: int, groups: Integer[np.ndarray, " n"] | None, n_resamples: int, level: float, seed: int) -> None:
        if n == 0:
            raise UsageError("no image to resample; a bootstrap needs at least one")
        if n_resamples < 1 or not 0.0 < level < 1.0:
            raise UsageError(f"bootstrap with {n_resamples} resamples at level {level}; expected at least 1 and a level between 0 and 1")
        if groups is not None and np.shape(groups) != (n,):
            raise UsageError(f"groups of shape {np.shape(groups)} for {n} images; expected ({n},)")
        self.n, self.n_resamples, self.level, self.seed = n, n_resamples, level, seed
        self.order: Integer[np.ndarray, " n"] | None = None
        self.bounds = np.array([0, n])
        if groups is not None:
            self.order, self.bounds = _side_by_side(groups)

    def rates(self, *runs: Rows) -> Iterator[tuple[Float64[np.ndarray, "r s"], ...]]:
        """Rates of every run in blocks of resamples, the same resamples for all runs."""
        tables = [_Table(rows, self.order) for rows in runs]
        draws = resampling_weights(self.n, self.n_resamples, self.seed)
        block = max(1, min(self.n_resamples, _WEIGHT_BYTES // (8 * self.n)))
        for start in range(0, self.n_resamples, block):
            weights = np.empty((min(block, self.n_resamples - start), self.n), dtype=np.float32)
            for row in weights:
                drawn = next(draws)
                row[:] = drawn if self.order is None else drawn[self.order]
            yield tuple(table.rates(weights, self.bounds) for table in tables)

    def interval(self, values: Float64[np.ndarray, " r"]) -> tuple[float, float]:
        tail = (1.0 - self.level) / 2.0
        low, high = np.quantile(values, [tail, 1.0 - tail])
        return float(low), float(high)


class _Table:
    """Rows of one run as whole numbers, each distinct column once, in blocks that fit the weights' arithmetic."""

    def __init__(self, rows: Rows, order: Integer[np.ndarray, " n"] | None) -> None:
        rows, self.scale = _whole(np.asarray(rows))
        self.n, n_columns = rows.shape
        self.column = np.empty(n_columns, dtype=np.intp)
        """Index among the distinct columns of each column of the rows."""
        self.blocks: list[np.ndarray] = []
        """Distinct columns as rows, (c, n) each."""
        seen: dict[bytes, int] = {}
        step = max(1, _WEIGHT_BYTES // (8 * self.n))
        for start in range(0, n_columns, step):
            columns = np.ascontiguousarray((rows[:, start : start + step] if order is None else rows[order, start : start + step]).T)
            fresh = []
            for index, column in enumerate(columns):
                digest = hashlib.blake2b(column.data, digest_size=16).digest()
                if digest not in seen:
                    seen[digest] = len(seen)
                    fresh.append(index)
                self.column[start + index] = seen[digest]
            if fresh:
                self.blocks.append(columns[fresh])

    def rates(self, weights: Float[np.ndarray, "r n"], bounds: Integer[np.ndarray, " g"]) -> Float64[np.ndarray, "r s"]:
        """Mean over the drawn images of a group, then over the groups of which something was drawn."""
        drawn = np.add.reduceat(weights, bounds[:-1], axis=1, dtype=np.float64)  # (r, groups)
        n_groups = (drawn > 0).sum(axis=1)[:, None]
        counts = np.maximum(drawn, 1.0)  # the sum over no image is 0, whatever it is divided by
        parts = []
        for block in self.blocks:
            kind = _exact_kind(weights, block)
            left, right = weights.astype(kind, copy=False), block.astype(kind).T
            total = np.zeros((len(weights), len(block)))
            for group, (start, stop) in enumerate(pairwise(bounds.tolist())):
                total += (left[:, start:stop] @ right[start:stop]).astype(np.float64) / counts[:, group, None]
            parts.append(total / n_groups / self.scale)
        return np.take(np.concatenate(parts, axis=1), self.column, axis=1)


def _whole(rows: Rows) -> tuple[Integer[np.ndarray, "n s"], float]:
    """Rows as whole numbers, and the factor by which they were multiplied for that."""
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise UsageError(f"rows of shape {rows.shape}; expected one row of numbers for each image")
    if rows.dtype == np.bool_:
        return rows.view(np.uint8), 1.0
    limit = 2.0**53 / len(rows)
    largest = max(abs(float(rows.max())), abs(float(rows.min())))
    if not np.isfinite(largest):
        raise UsageError("rows hold NaN or Inf; leave out images for which the metric is undefined")
    if np.issubdtype(rows.dtype, np.integer):
        if largest >= limit:
            raise UsageError(
                f"rows hold counts up to {largest:g}, too large to add exactly over {len(rows)} images; the limit is {limit:g}"
            )
        return rows, 1.0
    scale = 2.0 ** (np.floor(np.log2(limit / largest)) - 1) if largest > 0 else 1.0
    return np.rint(rows * scale).astype(np.int64), float(scale)


def _exact_kind(weights: Float[np.ndarray, "r n"], columns: Integer[np.ndarray, "c n"]) -> type[np.floating[Any]]:
    """The floating type in which every sum of weights x columns is exact: float32 below 2^24, else float64 (half as fast)."""
    bound = float(weights.max()) * float(np.abs(columns, dtype=np.float64).sum(axis=1).max())
    return np.float32 if bound < 2.0**24 else np.float64


def _defined(values: Float64[np.ndarray, " r"]) -> Float64[np.ndarray, " r"]:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"the metric is undefined in {int((~np.isfinite(values)).sum())} of {values.size} resamples; it has no interval")
    return values
