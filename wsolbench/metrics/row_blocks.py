"""Tables of per-image rows, read block by block: validation, conversion to whole numbers, equal blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from wsolbench.exceptions import UsageError

RowBlock = Shaped[np.ndarray, "_ _"]
"""One row of numbers per image: booleans, integers, or floats in [-1, 1].

Floats are rounded to images x 2^-52.
"""


class WholeRows:
    """Iterator over the tables of all blocks that have images, as whole numbers of `units`.

    It checks that the tables match each other and the number of images. Booleans and integers are used as
    they are. Floats in [-1, 1] are rounded to units so small that the sum of n of them stays just below
    2^53. float64 adds such numbers exactly in any order.
    """

    def __init__(self, blocks: Iterable[Sequence[RowBlock]], n_tables: int, n: int) -> None:
        self.blocks, self.n = blocks, n
        self.units = [1.0] * n_tables
        self._kinds: list[tuple[np.dtype[Any], int]] = []

    def __iter__(self) -> Iterator[list[RowBlock]]:
        seen = 0
        for pieces in self.blocks:
            tables = [np.asarray(piece) for piece in pieces]
            self._check(tables)
            seen += len(tables[0])
            if seen > self.n:
                break
            if len(tables[0]):
                yield [self._to_whole(index, table) for index, table in enumerate(tables)]
        if seen != self.n:
            raise UsageError(f"blocks hold {'more' if seen > self.n else seen} images; expected {self.n}")

    def _check(self, tables: Sequence[RowBlock]) -> None:
        for table in tables:
            if table.ndim != 2 or table.shape[1] == 0 or table.dtype.kind not in "buif":
                raise UsageError(
                    f"rows of shape {table.shape} and type {table.dtype}; expected one row of numbers for "
                    "each image"
                )
        if len(tables) != len(self.units) or len({len(table) for table in tables}) != 1:
            lengths = ", ".join(str(len(table)) for table in tables)
            raise UsageError(
                f"a block with tables of {lengths or 'no'} rows; expected {len(self.units)} tables with a "
                "row for each image"
            )
        kinds = [(table.dtype, table.shape[1]) for table in tables]
        self._kinds = self._kinds or kinds
        if kinds != self._kinds:
            raise UsageError(
                f"tables of types and columns {kinds} after {self._kinds}; expected the same in every block"
            )

    def _to_whole(self, index: int, rows: RowBlock) -> RowBlock:
        if rows.dtype == np.bool_:
            return rows.view(np.uint8)
        low, high = float(rows.min()), float(rows.max())
        if rows.dtype.kind == "f":
            if not (low >= -1.0 and high <= 1.0):  # also for NaN
                what = "NaN or Inf; leave out images for which the metric is undefined"
                if np.isfinite([low, high]).all():
                    what = (
                        f"floats from {low:g} to {high:g}; divide them by a constant that brings them into "
                        "[-1, 1]"
                    )
                raise UsageError(f"rows hold {what}")
            self.units[index] = 2.0 ** (self.n.bit_length() - 53)
            return np.asarray(np.rint(rows.astype(np.float64) / self.units[index]))
        limit = 2.0**53 / self.n
        if max(-low, high) >= limit:
            raise UsageError(
                f"rows hold counts up to {max(-low, high):g}, too large to add exactly over {self.n} "
                f"images; the limit is {limit:g}"
            )
        return rows


def cut_to_blocks(blocks: Iterable[list[RowBlock]], size: int) -> Iterator[list[RowBlock]]:
    """Yield the same rows, `size` images at a time."""
    held: list[list[RowBlock]] = []
    length = 0
    for tables in blocks:
        start = 0
        while start < len(tables[0]):
            part = [table[start : start + size - length] for table in tables]
            held.append(part)
            start, length = start + len(part[0]), length + len(part[0])
            if length == size:
                yield _concatenate(held)
                held, length = [], 0
    if held:
        yield _concatenate(held)


def _concatenate(parts: Sequence[Sequence[RowBlock]]) -> list[RowBlock]:
    return [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
