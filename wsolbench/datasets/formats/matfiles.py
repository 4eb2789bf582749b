"""Reader of annotations in MATLAB files."""

from __future__ import annotations

import functools
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.exceptions import DataError
from wsolbench.system.regular_files import check_regular, name_content

_CHILD = """
import io, pickle, sys, warnings
from scipy.io import loadmat
warnings.simplefilter("ignore")  # for a broken variable scipy warns and returns the text of its error
values = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=[sys.argv[1]], squeeze_me=True)
sys.stdout.buffer.write(pickle.dumps((sys.argv[1] in values, values.get(sys.argv[1]))))
"""

_TITLE = 116
"""Number of bytes of text, with the date, at the start of a file of version 5."""


def load_mat(path: Path, name: str) -> np.ndarray:
    """Return one variable of a MATLAB file, squeezed. Structs are read by field name. Raises `DataError`."""
    # Read the file, and reject versions that scipy cannot read.
    check_regular(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if what := name_content(path):
        raise DataError(f"{path} is not a MATLAB file that can be read{what}")
    if content.startswith((b"MATLAB 7.3", b"\x89HDF\r\n")):
        raise DataError(
            f"{path} is a MATLAB file of version 7.3 (HDF5); expected version 7. In MATLAB, save it with "
            "save(..., '-v7')."
        )
    # Mask the date, so that equal contents are parsed once; then parse.
    if content.startswith(b"MATLAB 5.0"):
        content = b"MATLAB 5.0".ljust(_TITLE) + content[_TITLE:]
    try:
        found, value = _parse(content, name)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: no process for it could be started ({error.strerror})"
        ) from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1][:200] if lines and error.returncode > 0 else "its reader crashed"
        raise DataError(f"{path} is not a MATLAB file that can be read ({last})") from error
    if not found:
        raise DataError(f"{path}: expected a variable `{name}`, found none")
    return np.asarray(value)


@functools.lru_cache(maxsize=8)
def _parse(content: bytes, name: str) -> tuple[bool, Any]:
    """Return whether a MATLAB file has a variable, and its value. Cached, because every split reads it.

    A child process parses the file, because scipy can crash on a flipped bit instead of raising. Raises
    `CalledProcessError`.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part or "." for part in sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, name], input=content, capture_output=True, env=environment, check=True
    )
    found, value = pickle.loads(done.stdout)
    return found, value


def load_structs(path: Path, name: str, fields: Sequence[str]) -> list[np.void]:
    """Return the rows of a struct array with these fields. Raises `DataError`."""
    rows = np.atleast_1d(load_mat(path, name))
    absent = [field for field in fields if field not in (rows.dtype.names or ())]
    if absent:
        raise DataError(
            f"{path}: expected the fields {', '.join(fields)} in `{name}`, found no {', '.join(absent)}"
        )
    return list(rows.ravel())


def load_texts(path: Path, name: str) -> tuple[str, ...]:
    """Return a cell array of texts. Raises `DataError`."""
    values = np.atleast_1d(load_mat(path, name)).ravel().tolist()
    for value in values:
        if not isinstance(value, str):
            raise DataError(f"{path}: expected texts in `{name}`, found {_short(value)}")
    return tuple(values)


def whole_number(row: np.void, field: str, path: Path, what: str) -> int:
    """Return a field as a whole number. Raises `DataError`.

    The file stores the smallest integer type, so the value is converted before any arithmetic.
    """
    value = finite_number(row, field, path, what)
    if value != int(value):
        raise DataError(f"{path}: expected a whole number as `{field}` of {what}, found {value:g}")
    return int(value)


def finite_number(row: np.void, field: str, path: Path, what: str) -> float:
    """Return a field as a finite number. Raises `DataError`."""
    try:
        value = float(row[field])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{path}: expected a finite number as `{field}` of {what}, found {_short(row[field])}"
        )
    return value


def text(row: np.void, field: str, path: Path, what: str) -> str:
    """Return a field as non-empty text. Raises `DataError`."""
    value = row[field]
    if not isinstance(value, str) or not value:
        raise DataError(f"{path}: expected text as `{field}` of {what}, found {_short(value)}")
    return str(value)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
