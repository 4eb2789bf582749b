"""Reading annotations from MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsolbench.exceptions import DataError


def load_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a MATLAB file, squeezed; structs are read by field name. Raises `DataError`."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path, variable_names=[name], squeeze_me=True)[name])
    except FileNotFoundError as error:
        raise DataError(f"no file {path}") from error
    except KeyError as error:
        raise DataError(f"{path}: expected a variable `{name}`") from error
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path} is not a MATLAB file that can be read ({error})") from error
