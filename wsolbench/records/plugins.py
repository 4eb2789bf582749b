"""Plug-in files: a method, backbone, post-process, detector or metric in one file, without a package.

`load_plugin(path)` imports a file and offers what it defines as an installed package would: through entry
points. A finder on `sys.meta_path` provides the module and its entry points, so lists, records and digests of
source code need to know nothing of plug-in files.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from wsolbench.exceptions import UsageError
from wsolbench.methods import (
    BACKBONE_ENTRY_POINT_GROUP,
    DETECTOR_ENTRY_POINT_GROUP,
    ENTRY_POINT_GROUP,
    POST_ENTRY_POINT_GROUP,
    MethodInfo,
    registry,
)
from wsolbench.metrics import catalog
from wsolbench.records.program import _plugins, _source_digest
from wsolbench.system.files import sha256_of_file

TASK = "TASK"
"""Name of the constant of a method's file that says `localization` (the default) or `recognition`."""
METRICS = "extra_metrics"
"""Name of the function of a file that returns `ExtraMetricInfo` rows, as for an entry point."""
_TASKS = ("localization", "recognition")
_ROWS = "_offered_by_plugin_file"


@dataclass(frozen=True)
class Plugin:
    """A plug-in file: its path, its SHA-256, and what it offers: group of entry points -> names."""

    path: Path
    sha256: str
    offered: dict[str, tuple[str, ...]]

    @property
    def module(self) -> str:
        """Name of its module: that of the file, with underscores."""
        return _module_name(self.path)


class _PluginDistribution(Distribution):
    """The entry points of a plug-in file, as those of an installed distribution."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def read_text(self, filename: str) -> str | None:
        """Return the text of a metadata file, or None."""
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: wsolbench-plugin-{self.plugin.module}\nVersion: 0\n"
        if filename == "entry_points.txt":
            return "".join(
                f"[{group}]\n{self.plugin.module} = {self.plugin.module}:{_attribute(group)}\n"
                for group in self.plugin.offered
            )
        return None

    def locate_file(self, path: Any) -> Path:
        """Return the path of a file next to the plug-in."""
        return Path(self.plugin.path.parent, path)


class _PluginFinder(MetaPathFinder):
    """Finds the module and the entry points of one plug-in file."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the signature of finders, here and below
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return the spec of the plug-in's module, or None for another one."""
        if fullname != self.plugin.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.plugin.path)

    def find_distributions(self, context: DistributionFinder.Context) -> Iterator[Distribution]:
        """Yield the distribution of the plug-in, unless another name is asked for."""
        if context.name in (None, f"wsolbench-plugin-{self.plugin.module}"):
            yield _PluginDistribution(self.plugin)


def loaded_plugins() -> list[Plugin]:
    """Return the plug-in files of this process, in the order in which they were loaded."""
    return [finder.plugin for finder in sys.meta_path if isinstance(finder, _PluginFinder)]


def plugin_digests() -> dict[str, str]:
    """Return file name -> SHA-256 of the plug-in files of this process, for records."""
    return {plugin.path.name: plugin.sha256 for plugin in loaded_plugins()}


def load_plugin(path: Path) -> Plugin:
    """Import a file and offer its objects under their names in this process. A loaded file is left as it is.

    - A class with `method_name` is a method if it has `localize`, a detector if it has `detect`, and a
      post-process if it has `maps`.
    - A module with `build` and `PROFILE` is a backbone with the name of the file.
    - A function `extra_metrics()` offers metrics.

    The summary is the first line of the file's docstring. The constants `PAPER`, `GROUP` and `TASK` of the
    file count as in a package.

    Raises `UsageError` for a file that is missing, has the name of a module, raises when it is imported, or
    offers nothing.
    """
    path = path.expanduser().resolve()
    name = _module_name(path)
    _check_file(path, name)
    digest = sha256_of_file(path)
    for plugin in loaded_plugins():
        if plugin.path == path and plugin.sha256 == digest:
            return plugin
        if plugin.module == name:
            raise UsageError(
                f"--plugin {path}: {plugin.path} is loaded already; expected files of different names"
            )
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        raise UsageError(f"--plugin {path}: there is a module {name!r} already; rename the file")
    # Import the file, and find what it offers.
    module = _import(path, name)
    try:
        offered = _find_offered(module, path)
    except UsageError:
        del sys.modules[name]
        raise
    for group, rows in offered.items():
        setattr(module, _attribute(group), rows)
    names = {group: tuple(row.name for row in rows()) for group, rows in offered.items()}
    plugin = Plugin(path=path, sha256=digest, offered=names)
    sys.meta_path.append(_PluginFinder(plugin))
    forget_lists()
    return plugin


def forget_lists() -> None:
    """Let lists of methods, backbones and metrics be read again, after a change of the plug-ins."""
    for cached in (
        registry._installed,
        registry.group_of,
        catalog.offered_metrics,
        catalog.all_metrics,
        _plugins,
        _source_digest,
    ):
        cached.cache_clear()


def _module_name(path: Path) -> str:
    return path.stem.replace("-", "_")


def _attribute(group: str) -> str:
    return f"{_ROWS}_{group.rpartition('.')[2]}"


def _check_file(path: Path, name: str) -> None:
    if not path.is_file():
        raise UsageError(f"--plugin {path}: no such file; expected a Python file")
    if path.suffix != ".py" or not name.isidentifier():
        raise UsageError(
            f"--plugin {path}: expected a file NAME.py, with NAME of letters, digits, - and _, and no digit "
            "first"
        )


def _import(path: Path, name: str) -> ModuleType:
    """Import the file as a module. An error of it becomes a `UsageError` that names the line."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file can raise anything
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else f"{path}"
        raise UsageError(f"--plugin {where}: {type(error).__name__}: {error}") from error
    return module


def _find_offered(module: ModuleType, path: Path) -> dict[str, Callable[[], list[Any]]]:
    """Return the function of each entry point group that the module offers something in."""
    summary, paper, group = registry.read_head(path.read_text(encoding="utf-8"))
    task = getattr(module, TASK, _TASKS[0])
    if task not in _TASKS:
        raise UsageError(f"--plugin {path}: {TASK} = {task!r}; expected one of {', '.join(_TASKS)}")
    if group and group not in registry.GROUPS:
        raise UsageError(f"--plugin {path}: GROUP = {group!r}; expected one of {', '.join(registry.GROUPS)}")
    rows: dict[str, list[MethodInfo]] = {}

    def add(point: str, name: str, what: str, **more: str) -> None:
        row = MethodInfo(name=name, summary=summary, task=what, module=module.__name__, **more)
        rows.setdefault(point, []).append(row)

    for value in list(vars(module).values()):
        own = isinstance(value, type) and value.__module__ == module.__name__
        name = getattr(value, "method_name", None) if own else None
        if not isinstance(name, str):
            continue
        if hasattr(value, "localize"):
            add(ENTRY_POINT_GROUP, name, task, paper=paper, group=group)
        elif hasattr(value, "detect"):
            add(DETECTOR_ENTRY_POINT_GROUP, name, "detection", paper=paper)
        elif hasattr(value, "maps"):
            add(POST_ENTRY_POINT_GROUP, name, "post-process", paper=paper)
    if hasattr(module, "build") and hasattr(module, "PROFILE"):
        add(BACKBONE_ENTRY_POINT_GROUP, path.stem, "backbone")
    offered: dict[str, Callable[[], list[Any]]] = {
        point: functools.partial(list, own) for point, own in rows.items()
    }
    if callable(metrics := getattr(module, METRICS, None)):
        offered[catalog.ENTRY_POINT_GROUP] = metrics
    if not offered:
        raise UsageError(
            f"--plugin {path} offers nothing; expected a class with method_name (and localize, maps or "
            f"detect), a backbone (build and PROFILE), or a function {METRICS}"
        )
    return offered
