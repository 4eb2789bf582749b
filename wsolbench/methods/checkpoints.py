"""Open a checkpoint without knowing its method: the file names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods.contracts import Method
from wsolbench.methods.registry import load_method

_HEADER = "wsolbench"
"""Key of the safetensors metadata under which a training run describes its checkpoint."""


def method_of_checkpoint(path: Path) -> str:
    """Return the name of the method that a checkpoint was trained with.

    Raises `DataError` if the file is missing, is not a safetensors file, or was not written by a training
    run of this package. Raises `UsageError` if safetensors is not installed.
    """
    if not path.is_file():
        raise DataError(f"no checkpoint {path}; expected the last.safetensors of a run folder")
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise UsageError(
            "a checkpoint needs safetensors, which is not installed: pip install 'wsolbench[models]'"
        ) from error
    try:
        with safe_open(path, framework="numpy") as file:
            name = json.loads((file.metadata() or {})[_HEADER])["method"]
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a safetensors file, or is truncated: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not name its method; expected a checkpoint that `wsolbench train` wrote"
        ) from error
    return str(name)


def load_checkpoint(
    path: Path, *, device: str = "auto", settings: Mapping[str, str] = MappingProxyType({})
) -> Method:
    """Return the trained method of a checkpoint. Raises as `method_of_checkpoint` and `Method.load`."""
    return load_method(method_of_checkpoint(path)).load(path, device=device, settings=settings)
