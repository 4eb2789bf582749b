"""Reading annotations from MATLAB files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.exceptions import DataError
from wsolbench.regular_files import check_regular, name_content


def load_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a MATLAB file, squeezed; structs are read by field name. Raises `DataError`."""
    from scipy.io import loadmat

    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for a broken variable scipy warns and returns the text of its error
            values = loadmat(path, variable_names=[name], squeeze_me=True)
    except Exception as error:  # scipy raises whatever broken bytes make it stumble on
        reason = name_content(path) or f" ({error or type(error).__name__})"
        raise DataError(f"{path} is not a MATLAB file that can be read{reason}") from error
    if name not in values:
        raise DataError(f"{path}: expected a variable `{name}`")
    return np.asarray(values[name])


def load_structs(path: Path, name: str, fields: Sequence[str]) -> list[np.void]:
    """The rows of a struct array that has these fields. Raises `DataError`."""
    rows = np.atleast_1d(load_mat(path, name))
    absent = [field for field in fields if field not in (rows.dtype.names or ())]
    if absent:
        raise DataError(f"{path}: expected the fields {', '.join(fields)} in `{name}`, found no {', '.join(absent)}")
    return list(rows.ravel())


def load_texts(path: Path, name: str) -> tuple[str, ...]:
    """A cell array of texts. Raises `DataError`."""
    values = np.atleast_1d(load_mat(path, name)).ravel().tolist()
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{path}: expected texts in `{name}`, found {_short(value)}")
    return tuple(values)


def whole_number(row: np.void, field: str, path: Path, what: str) -> int:
    """A field as a whole number. The file stores the smallest integer type, so it is converted before any arithmetic."""
    value = finite_number(row, field, path, what)
    if value != int(value):
        raise DataError(f"{path}: expected a whole number as `{field}` of {what}, found {value:g}")
    return int(value)


def finite_number(row: np.void, field: str, path: Path, what: str) -> float:
    """A field as a finite number. Raises `DataError`."""
    try:
        value = float(row[field])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: expected a finite number as `{field}` of {what}, found {_short(row[field])}")
    return value


def text(row: np.void, field: str, path: Path, what: str) -> str:
    """A field as text that is not empty. Raises `DataError`."""
    value = row[field]
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: expected text as `{field}` of {what}, found {_short(value)}")
    return str(value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
