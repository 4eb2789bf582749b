"""Load modules on first use, so that importing the package is fast and optional libraries stay optional."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from wsolbench.exceptions import UsageError


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a module-level `__getattr__` and `__dir__` (PEP 562).

    `home` gives the submodule of `package` that defines each name.
    """

    def lookup(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return lookup, names


def pycocotools(module: str) -> ModuleType:
    """Return a module of pycocotools, for instance `mask`. Raises `UsageError` if it is not installed."""
    try:
        return importlib.import_module(f"pycocotools.{module}")
    except ModuleNotFoundError as error:
        raise UsageError(
            "this needs pycocotools, which is not installed: pip install 'wsolbench[coco]'"
        ) from error
