"""Registry of methods, backbones, post-processes and detectors.

A package offers methods through one entry point of the group `wsolbench.methods`: a function without
arguments that returns `MethodInfo` rows. `methods_in(package)` makes those rows from the text of the files of
a package (one method, one file). So listing methods imports none of them and loads no torch.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.methods.contracts import Method, ObjectDetector, PostProcessor
from wsolbench.system.listing import is_junk

ENTRY_POINT_GROUP = "wsolbench.methods"
BACKBONE_ENTRY_POINT_GROUP = "wsolbench.backbones"
POST_ENTRY_POINT_GROUP = "wsolbench.postprocesses"
DETECTOR_ENTRY_POINT_GROUP = "wsolbench.detectors"

METHOD_FILE = "method.py"
"""Name of the method's own file in a method's folder."""
PAPER = "PAPER"
"""Name of the constant that names the paper in a method's file: `PAPER = "cam"`."""
GROUP = "GROUP"
"""Name of the constant that puts a method into another group than that of its folder."""
GROUPS = (
    "floor",
    "training-free",
    "class activation",
    "trained localizer",
    "fine-grained",
    "ceiling",
)
"""Groups of methods in the order of lists and tables.

A floor ignores the image; a ceiling reads the ground truth, in training or at test time.
"""
_GROUP_OF_TASK = {"localization": "trained localizer", "recognition": "fine-grained"}
TIMM = "timm:"
"""Prefix of the names of timm's backbones."""


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A row of `wsolbench list methods`, `list posts` or `list backbones`."""

    name: str
    summary: str
    task: str
    """"localization", "recognition", "post-process", "backbone" or "detection"."""
    module: str
    """Import path of the file; it defines one class with the attribute `method_name` equal to `name`."""
    paper: str = ""
    """Key of the method's paper in papers.toml, or empty if it has none."""
    group: str = ""
    """One of `GROUPS`. Empty: that of the task, or none for what is not a method."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", self.group or _GROUP_OF_TASK.get(self.task, ""))


def methods_in(package: str, task: str) -> list[MethodInfo]:
    """Return one row for each file of `package`, an import path.

    The summary is the first line of the file's docstring. The paper is the value of the file's constant
    `PAPER`, and the group that of `GROUP`, or else that of the task. A file `center_box.py` is the method
    `center-box`, and so is `method.py` in a folder `center_box`, next to layers that only this method has.
    Names that start with `_` are not methods.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"no package {package!r}; expected an importable package with method files")
    # Find single files, and folders with a method file.
    rows = []
    for folder in spec.submodule_search_locations:
        own_files = {path.stem: path for path in Path(folder).glob("[!_]*.py") if not is_junk(path.name)}
        own_folders = {
            path.parent.name: path
            for path in Path(folder).glob(f"[!_]*/{METHOD_FILE}")
            if not is_junk(path.parent.name)
        }
        # Read each file's text, without importing it.
        for stem, path in sorted({**own_files, **own_folders}.items()):
            summary, paper, group = read_head(path.read_text(encoding="utf-8"))
            if group and group not in GROUPS:
                raise UsageError(f"{path} has {GROUP} = {group!r}; expected one of {', '.join(GROUPS)}")
            rows.append(
                MethodInfo(
                    name=stem.replace("_", "-"),
                    summary=summary,
                    task=task,
                    module=f"{package}.{stem}" if stem in own_files else f"{package}.{stem}.{path.stem}",
                    paper=paper,
                    group=group,
                )
            )
    return rows


@cache  # commands list the methods many times, and parsing all files takes half a second
def read_head(text: str) -> tuple[str, str, str]:
    """Return the summary, the paper and the group that a file's text states; empty where it states none."""
    file = ast.parse(text)
    summary = (ast.get_docstring(file) or "").partition("\n")[0].rstrip(".")
    return summary, _constant(file, PAPER), _constant(file, GROUP)


def _constant(file: ast.Module, wanted: str) -> str:
    """Return the text that a file assigns to a constant, or an empty string."""
    for statement in file.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(key))) if (
                name == wanted
            ):
                return key
    return ""


def list_methods() -> list[MethodInfo]:
    """Return every method of every installed package, sorted by name.

    Raises `UsageError` for two with the same name.
    """
    return _offered(ENTRY_POINT_GROUP)


@cache
def group_of(name: str) -> str:
    """Return the group of a method by its name in records: that of the method before `+` or `:`.

    Empty for a method that is not installed.
    """
    groups = {row.name: row.group for row in list_methods()}
    return groups.get(re.split("[+:]", name)[0], "")


def list_backbones() -> list[MethodInfo]:
    """Return every named backbone, sorted by name. Any `timm:<name>` works, too."""
    return _offered(BACKBONE_ENTRY_POINT_GROUP)


def check_backbone(name: str) -> None:
    """Raise `UsageError` with the nearest name unless `name` is a known backbone or one of timm's."""
    rows = {row.name: row for row in list_backbones()}
    if name.startswith(TIMM) and "timm" in rows:
        importlib.import_module(rows["timm"].module).check_name(name)
    elif name not in rows or name == TIMM.removesuffix(":"):
        known = [row for row in rows if row != TIMM.removesuffix(":")]
        raise unknown_name("backbone", name, [*known, f"{TIMM}<name>"])


def weights_of_backbone(name: str) -> str:
    """Default weights of a backbone: what the `PROFILE` of its file states, else `imagenet`.

    An unknown name has `imagenet`, too: it may be the name of a detector's network.
    """
    rows = {row.name: row for row in list_backbones()}
    row = rows.get(TIMM.removesuffix(":") if name.startswith(TIMM) else name)
    profile = None if row is None else getattr(importlib.import_module(row.module), "PROFILE", None)
    return "imagenet" if profile is None else str(profile.default_weights)


def list_posts() -> list[MethodInfo]:
    """Return every post-process, sorted by name."""
    return _offered(POST_ENTRY_POINT_GROUP)


def list_detectors() -> list[MethodInfo]:
    """Return every detector, sorted by name."""
    return _offered(DETECTOR_ENTRY_POINT_GROUP)


@cache  # finding them reads a file of every installed package
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group. `path` is `sys.path`, where they are searched."""
    del path
    return tuple(entry_points(group=group))


def _offered(group: str) -> list[MethodInfo]:
    rows: dict[str, MethodInfo] = {}
    for point in _installed(group, tuple(sys.path)):
        offered: Iterable[MethodInfo] = point.load()()
        for row in offered:
            if row.name in rows:
                raise UsageError(
                    f"two {row.task} entries are called {row.name!r}: {rows[row.name].module} and "
                    f"{row.module}; expected one. Uninstall one of the packages"
                )
            rows[row.name] = row
    return [rows[name] for name in sorted(rows)]


def load_method(name: str) -> type[Method]:
    """Return the class of a method.

    Raises `UsageError` with the nearest name, or if the `models` extra is not installed.
    """
    if name in {row.name for row in list_detectors()}:
        raise UsageError(
            f"{name!r} is a detector: use `wsolbench train-detector` and `wsolbench eval-detector`"
        )
    return _class(name, list_methods(), "method")


def load_detector(name: str) -> type[ObjectDetector]:
    """Return the class of a detector. Raises as `load_method`."""
    return _class(name, list_detectors(), "detector")


def load_post(name: str) -> type[PostProcessor]:
    """Return the class of a post-process. Raises as `load_method`."""
    return _class(name, list_posts(), "post-process")


def _class(name: str, offered: Iterable[MethodInfo], kind: str) -> type[Any]:
    rows = {row.name: row for row in offered}
    if name not in rows:
        raise unknown_name(kind, name, rows)
    # Import the module, and explain a missing extra.
    try:
        module = importlib.import_module(rows[name].module)
    except ModuleNotFoundError as error:
        if error.name in {"torch", "torchvision", "timm", "safetensors"}:
            raise UsageError(
                f"{kind} {name!r} needs {error.name}, which is not installed: pip install 'wsolbench[models]'"
            ) from error
        raise
    # Find the class by its name.
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and value.__module__ == module.__name__
            and getattr(value, "method_name", None) == name
        ):
            return value
    raise UsageError(
        f"{module.__file__} has no class for {kind} {name!r}; expected one with method_name = {name!r}"
    )
