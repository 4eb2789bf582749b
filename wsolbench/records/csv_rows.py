"""Rows of CSV files as objects: published numbers, claims and variants."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.stored import read_text

T = TypeVar("T")


def read_rows(
    path: Path, columns: Sequence[str], make: Callable[[dict[str, str]], T], *, what: str
) -> Iterator[tuple[int, T]]:
    """Yield the line number of each row of a CSV file, and what `make` makes of the row's cells.

    Args:
        path: the file; its first line must be `columns`.
        columns: names of the cells.
        make: reads a row; it may raise `TypeError`, `ValueError` or `UsageError`.
        what: name of a row's content, for messages: "claim".

    Raises `DataError` naming file and line for other columns, a row with too few or too many cells, and a row
    that `make` refuses.
    """
    reader = csv.DictReader(read_text(path, "file").removeprefix("\ufeff").splitlines(), strict=True)
    try:
        if reader.fieldnames != list(columns):
            raise DataError(f"{path}:1 has the columns {reader.fieldnames}; expected {','.join(columns)}")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"it does not have {len(columns)} cells")
            yield reader.line_num, make(row)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is no row of a CSV file: {error}") from error
    except (TypeError, ValueError, UsageError) as error:
        raise DataError(f"{path}:{reader.line_num} is no {what}: {error}") from error
