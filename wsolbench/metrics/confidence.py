"""Bootstrap over images: intervals of any metric, and the paired comparison of two runs.

A metric has two steps. The first is the mean over images of per-image rows (hits at each threshold, pixel
counts, ...): the *rates*. The second is a function of the rates (best threshold, average precision, ...).
Only the first step is repeated for each resample. It is one matrix product: draw counts of the images x rows.

Images are processed in blocks whose draws are independent of those of other blocks. So a bootstrap needs the
rows of one block at a time, and one set of draws serves all metrics. All products are of whole numbers that
the floating type represents exactly. So neither the block boundaries nor the number of threads can change a
bit.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile interval (chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer, Shaped, UInt16

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.row_blocks import RowBlock, WholeRows, cut_to_blocks

Rows = Shaped[np.ndarray, "n s"]
"""One row of numbers per image: whole numbers or booleans, used exactly, or floats.

Floats are rounded to images x 2^-52 of the largest.
"""

Rates = Float64[np.ndarray, "_ _"]
"""Means over images of each column of a table, one row per resample."""

Value = Callable[[Float64[np.ndarray, "r s"]], Float64[np.ndarray, " r"]]
"""Function from rates to the metric. Each row of the input is one resample."""

_Codes = Int64[np.ndarray, "_"]
"""Class of each image, numbered from 0 without gaps."""

BLOCK = 4096
"""Number of images whose draws are made together. Another value gives other resamples."""

_DIGIT = 8
"""Number of bits of a row's numbers that enter one product with class weights."""


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
    """Number of images."""
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

    With `groups` (the class of each image), the rates are the mean over groups of each group's resampled mean
    (see `Bootstrap.rates`). Results depend only on the rows and the seed.

    Raises `UsageError` for empty or non-finite rows, for integers too large to add exactly and for invalid
    settings. Raises `DataError` if the metric is not finite in a resample. Exceptions of `value` propagate.

    >>> rows = np.array([[1], [0], [1], [1]])
    >>> interval = bootstrap_interval(rows, lambda rates: rates[:, 0], seed=1)
    >>> interval.low, interval.high
    (0.25, 1.0)
    """
    bootstrap = Bootstrap(len(rows), n_resamples=n_resamples, level=level, seed=seed)
    blocks, scale = scale_to_unit(rows)
    (rates,) = bootstrap.rates(blocks, [groups])
    return bootstrap.interval(value(rates * scale))


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
    """Compare two runs on the same images, row by row, with the same resamples for both.

    The interval is the percentile interval of the difference. The p-value is that of `sign_p_value`. Raises
    as `bootstrap_interval` does, and `UsageError` if the runs have different numbers of images.
    """
    if len(rows_a) != len(rows_b):
        raise UsageError(
            f"paired comparison of {len(rows_a)} with {len(rows_b)} images; expected two runs that scored "
            "the same images"
        )
    # Resampled values of both runs, and the interval of their difference.
    bootstrap = Bootstrap(len(rows_a), n_resamples=n_resamples, level=level, seed=seed)
    blocks, scale = scale_to_unit(rows_a, rows_b)
    both = [groups, groups]
    a, b = (_check_finite(value(rates * scale)) for rates in bootstrap.rates(blocks, both))
    interval = bootstrap.interval(a - b)
    # The difference on the images themselves.
    point_a, point_b = (
        float(_check_finite(value(means[None] * scale))[0]) for means in bootstrap.means(blocks, both)
    )
    return PairedDifference(
        difference=point_a - point_b,
        low=interval.low,
        high=interval.high,
        p_value=sign_p_value(a - b),
        n=bootstrap.n,
        level=level,
        n_resamples=n_resamples,
        seed=seed,
    )


def sign_p_value(differences: Float64[np.ndarray, " r"]) -> float:
    """Two-sided p-value of resampled differences: twice the smaller of the shares that are <= 0 and >= 0.

    The counts and the number of resamples are raised by one, so it is never 0. It is at most 1.
    """
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(differences) + 1))


def mean_rates(rows: Rows, *, groups: Integer[np.ndarray, " n"] | None = None) -> Float64[np.ndarray, " s"]:
    """Return the rates of the images themselves (s,): the mean over images.

    With `groups`, it is the mean over groups of each group's mean. Raises `UsageError` if there is no image
    and for rows that `bootstrap_interval` rejects.

    >>> mean_rates(np.array([[1], [1], [0]]), groups=np.array([4, 4, 7]))
    array([0.5])
    """
    bootstrap = Bootstrap(len(rows))
    blocks, scale = scale_to_unit(rows)
    return bootstrap.means(blocks, [groups])[0] * scale


def resampling_weights(n: int, n_resamples: int, seed: int = 0) -> Iterator[UInt16[np.ndarray, "r b"]]:
    """Yield how often each of `n` images is drawn in each resample: (resamples, images) per `BLOCK` images.

    A resample draws n times one of n images. The number of draws in each block is one multinomial draw.
    Within a block the draws are uniform, from the block's own generator. A larger `n_resamples` adds rows
    and leaves the others unchanged.
    """
    sizes = np.diff([*range(0, n, BLOCK), n])
    per_block = np.random.Generator(np.random.PCG64(seed)).multinomial(
        n, sizes / n, size=n_resamples
    )  # (r, blocks)
    for block, size in enumerate(sizes.tolist()):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(block,))))
        ends = np.cumsum(per_block[:, block])
        draws = generator.integers(0, size, size=int(ends[-1]), dtype=np.uint16)
        weights = np.empty((n_resamples, size), dtype=np.uint16)
        for row, drawn in zip(weights, np.split(draws, ends[:-1]), strict=True):
            row[:] = np.bincount(drawn, minlength=size)
        yield weights


class Bootstrap:
    """Resamples of `n` images: rates of tables that are read block by block, and intervals of metrics.

    >>> bootstrap = Bootstrap(4, seed=1)
    >>> blocks = [[np.array([[1], [0]])], [np.array([[1], [1]])]]
    >>> (rates,) = bootstrap.rates(blocks, [None])
    >>> bootstrap.interval(rates[:, 0]).low
    0.25
    """

    def __init__(self, n: int, *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> None:
        """Raises `UsageError` for invalid settings."""
        if n < 1:
            raise UsageError(
                "there is no image, so a mean is undefined; expected at least one. Score one or more images"
            )
        if n_resamples < 1 or not 0.0 < level < 1.0:
            raise UsageError(
                f"bootstrap with {n_resamples} resamples at level {level}; expected at least 1 and a level "
                "between 0 and 1"
            )
        if seed < 0:
            raise UsageError(f"bootstrap with seed {seed}; expected a whole number, 0 or larger")
        self.n, self.n_resamples, self.level, self.seed = n, n_resamples, level, seed

    def rates(
        self, blocks: Iterable[Sequence[RowBlock]], groups: Sequence[Integer[np.ndarray, " n"] | None]
    ) -> list[Rates]:
        """Return the resampled rates (n_resamples, s_k) of every table k, with the same resamples for all.

        Args:
            blocks: for consecutive runs of images of any length, one array (m, s_k) per table; n in total.
            groups: for each table None (rates are means over images) or the class of each image. Then rates
                are the mean over classes of each class's resampled mean. A class without an image in a
                resample is left out of that resample. Classes weigh alike up to the rounding of 1 / (images
                drawn of the class): a relative 2^-44 x classes x images drawn, some 3e-9 for a thousand
                classes of fifty images.

        Keeps the rows of about `BLOCK` images in memory at a time. Raises `UsageError` for integers too
        large to add exactly, for floats outside [-1, 1], and for blocks that do not match each other, `n`
        or `groups`.
        """
        # Tables with the same groups share the weights of the draws.
        groupings = _groupings(groups, self.n)
        class_weights = self._class_weights([codes for _, codes in groupings])
        # Sums of weights x rows of every table, one block of images at a time.
        sums = [_Sum() for _ in groups]
        reader = WholeRows(blocks, len(groups), self.n)
        draws = resampling_weights(self.n, self.n_resamples, self.seed)
        for block, (rows, drawn) in enumerate(zip(cut_to_blocks(reader, BLOCK), draws, strict=True)):
            for (tables, _), weights in zip(groupings, class_weights, strict=True):
                if weights is None:
                    _add_drawn([sums[table] for table in tables], drawn, [rows[table] for table in tables])
                else:
                    of_block = weights.of_block(block, drawn)
                    for table in tables:
                        _add_weighted(sums[table], of_block, rows[table])
        # Back to the units of the rows, then from sums to means.
        rates = [total.value() * unit for total, unit in zip(sums, reader.units, strict=True)]
        for (tables, _), weights in zip(groupings, class_weights, strict=True):
            for table in tables:
                rates[table] /= self.n if weights is None else weights.total[:, None]
        return rates

    def means(
        self, blocks: Iterable[Sequence[RowBlock]], groups: Sequence[Integer[np.ndarray, " n"] | None]
    ) -> list[Float64[np.ndarray, " _"]]:
        """Return the rates (s_k,) of the images themselves. Arguments and errors are those of `rates`."""
        groupings = _groupings(groups, self.n)
        counts = [np.array([self.n]) if codes is None else np.bincount(codes) for _, codes in groupings]
        sums = [np.zeros((1, 1)) for _ in groups]
        reader = WholeRows(blocks, len(groups), self.n)
        start = 0
        for rows in reader:
            stop = start + len(rows[0])
            for (tables, codes), count in zip(groupings, counts, strict=True):
                for table in tables:
                    sums[table] = sums[table] + _class_sums(
                        rows[table], None if codes is None else codes[start:stop], len(count)
                    )
            start = stop
        means = [np.empty(0) for _ in groups]
        for (tables, _), count in zip(groupings, counts, strict=True):
            for table in tables:
                means[table] = np.mean(sums[table] / count[:, None], axis=0) * reader.units[table]
        return means

    def interval(self, values: Float64[np.ndarray, " r"]) -> Interval:
        """Return the percentile interval of a metric from its values in the resamples.

        Raises `DataError` if a value is not finite.
        """
        tail = (1.0 - self.level) / 2.0
        low, high = np.quantile(_check_finite(values), [tail, 1.0 - tail])
        return Interval(
            low=float(low), high=float(high), level=self.level, n_resamples=self.n_resamples, seed=self.seed
        )

    def _class_weights(self, groupings: Sequence[_Codes | None]) -> list[_ClassWeights | None]:
        """Return the weights of drawn images for each grouping. One pass over the draws if any is needed."""
        drawn = [np.zeros((self.n_resamples, 0 if codes is None else codes.max() + 1)) for codes in groupings]
        if any(codes is not None for codes in groupings):
            for block, weights in enumerate(resampling_weights(self.n, self.n_resamples, self.seed)):
                for codes, counts in zip(groupings, drawn, strict=True):
                    if codes is not None:
                        of_block = codes[block * BLOCK : (block + 1) * BLOCK]
                        for row, images in enumerate(weights):
                            counts[row] += np.bincount(of_block, images, minlength=counts.shape[1])
        return [
            None if codes is None else _ClassWeights(codes, counts)
            for codes, counts in zip(groupings, drawn, strict=True)
        ]


class _ClassWeights:
    """Weights that make every class of a resample count alike.

    They are whole numbers near 2^k / (images drawn of the class).
    """

    def __init__(self, codes: _Codes, drawn: Float64[np.ndarray, "r g"]) -> None:
        self.codes = codes
        # Over all images drawn, weights sum to at most classes x 2^k, which with `_DIGIT` bits of the rows
        # stays below 2^53.
        scale = 2.0 ** (53 - _DIGIT - drawn.shape[1].bit_length())
        self.per_draw: Float64[np.ndarray, "r g"] = np.floor(
            np.divide(scale, drawn, out=np.zeros_like(drawn), where=drawn > 0)
        )
        # A mean is divided by the sum of the weights, not by classes x 2^k, so it stays in the range of the
        # rows.
        self.total: Float64[np.ndarray, " r"] = (self.per_draw * drawn).sum(axis=1)

    def of_block(self, block: int, drawn: UInt16[np.ndarray, "r b"]) -> Float64[np.ndarray, "r b"]:
        """Return the weight of each image of a block, (r, b): draws x weight of a draw."""
        return np.asarray(
            np.take(self.per_draw, self.codes[block * BLOCK : (block + 1) * BLOCK], axis=1) * drawn
        )


class _Sum:
    """Sums of weights x rows as digits in base 2^`_DIGIT`, each digit a whole number that float64 holds."""

    def __init__(self) -> None:
        self.digits: list[np.ndarray] = []

    def add(self, digit: int, product: Shaped[np.ndarray, "r s"]) -> None:
        if digit == len(self.digits):
            self.digits.append(np.zeros(product.shape))
        self.digits[digit] += product

    def value(self) -> Float64[np.ndarray, "r s"]:
        total = self.digits[-1]
        for digit in self.digits[-2::-1]:
            total = total * 2.0**_DIGIT + digit
        return total


def _add_drawn(sums: Sequence[_Sum], drawn: UInt16[np.ndarray, "r b"], tables: Sequence[RowBlock]) -> None:
    """Add draws x rows (whole numbers) of each table to its sum.

    Uses float32, which is twice as fast, where it is exact: a sum of non-negative numbers that ends below
    2^24 was below it throughout. The other columns are computed in float64.
    """
    single, double = drawn.astype(np.float32), drawn.astype(np.float64)
    narrow = [index for index, table in enumerate(tables) if table.dtype.kind in "ui" and table.min() >= 0]
    if narrow:
        columns = np.concatenate(
            [tables[index] for index in narrow], axis=1, dtype=np.float32, casting="unsafe"
        )
        ends = np.cumsum([tables[index].shape[1] for index in narrow])
        for index, product in zip(narrow, np.split(single @ columns, ends[:-1], axis=1), strict=True):
            wide = product.max(axis=0) >= 2.0**24
            product[:, wide] = 0.0
            sums[index].add(0, product)
            sums[index].digits[0][:, wide] += double @ tables[index][:, wide].astype(np.float64)
    for index in set(range(len(tables))).difference(narrow):
        sums[index].add(0, double @ tables[index].astype(np.float64))


def _add_weighted(total: _Sum, weights: Float64[np.ndarray, "r b"], table: RowBlock) -> None:
    """Add weights x rows (whole numbers), one digit of the rows after another."""
    sign, rest = np.sign(table).astype(np.float64), np.abs(table).astype(np.int64)
    digit = 0
    while digit == 0 or rest.any():
        total.add(digit, weights @ (sign * (rest & (2**_DIGIT - 1))))
        rest >>= _DIGIT
        digit += 1


def _class_sums(table: RowBlock, codes: _Codes | None, n_classes: int) -> Float64[np.ndarray, "g s"]:
    """Return the sums (g, s) of rows (whole numbers) over the images of each class, or (None) over all."""
    if codes is None:
        return np.asarray(table.sum(axis=0, dtype=np.float64, keepdims=True))
    order = np.argsort(codes, kind="stable")
    present, starts = np.unique(codes[order], return_index=True)
    sums = np.zeros((n_classes, table.shape[1]))
    sums[present] = np.add.reduceat(table[order], starts, axis=0, dtype=np.float64)
    return sums


def _groupings(
    groups: Sequence[Integer[np.ndarray, " n"] | None], n: int
) -> list[tuple[list[int], _Codes | None]]:
    """Group the tables by their array of groups, and number the groups from 0."""
    tables: dict[int, list[int]] = {}
    for table, labels in enumerate(groups):
        if labels is not None and np.shape(labels) != (n,):
            raise UsageError(f"groups of shape {np.shape(labels)} for {n} images; expected ({n},)")
        tables.setdefault(id(labels), []).append(table)
    found = [(members, groups[members[0]]) for members in tables.values()]
    return [
        (members, None if labels is None else np.unique(labels, return_inverse=True)[1].reshape(-1))
        for members, labels in found
    ]


def scale_to_unit(*runs: Rows) -> tuple[list[list[Rows]], float]:
    """Return the runs as one block, and the scale: floats are divided by a power of two to lie in [-1, 1].

    It is the smallest power that does so. Whole numbers are not scaled.
    """
    tables = [np.asarray(rows) for rows in runs]
    if not any(rows.dtype.kind == "f" for rows in tables):
        return [tables], 1.0
    largest = max(float(np.abs(rows).max(initial=0.0)) for rows in tables)
    if not 0.0 < largest < np.inf:
        return [tables], 1.0
    scale = 2.0 ** math.frexp(largest)[1]
    return [[rows / scale for rows in tables]], scale


def _check_finite(values: Float64[np.ndarray, " r"]) -> Float64[np.ndarray, " r"]:
    """Return `values`. Raises `DataError` if one is not finite."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(
            f"the metric is undefined in {int((~np.isfinite(values)).sum())} of {values.size} resamples; "
            "expected finite values. It has no interval"
        )
    return values
