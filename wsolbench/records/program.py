"""The program that computes the numbers: versions and source digests of this package, plug-ins and libraries.

Plug-ins are the packages that offer methods.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from wsolbench.methods import (
    BACKBONE_ENTRY_POINT_GROUP,
    DETECTOR_ENTRY_POINT_GROUP,
    ENTRY_POINT_GROUP,
    POST_ENTRY_POINT_GROUP,
)

OWN = "wsolbench"
LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "numba", "scipy")
"""Distributions that take part in computing every number."""


def program(libraries: Iterable[str] = ()) -> dict[str, dict[str, str | None]]:
    """Return what must be the same for a run to resume: versions of libraries and digests of source code.

    The digests cover this package and all that offer methods, backbones, post-processes or detectors.
    """
    return {
        "versions": {name: version_of(name) for name in (OWN, *LIBRARIES, *libraries)},
        "source": {name: _source_digest(name) for name in (OWN, *_plugins())},
    }


def unlike(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Describe how two descriptions of `program` differ. Empty if they are equal.

    >>> unlike(
    ...     {"versions": {"numpy": "1.26.4"}, "source": {}}, {"versions": {"numpy": "2.0.0"}, "source": {}}
    ... )
    'numpy 1.26.4 there and 2.0.0 here'
    """
    if not there:
        return f"an earlier version there, which did not state its number, and {OWN} {version_of(OWN)} here"
    # Versions that differ.
    versions, own = (
        (there.get("versions") or {}, here["versions"]),
        (there.get("source") or {}, here["source"]),
    )
    parts = [
        f"{name} {versions[0].get(name)} there and {value} here"
        for name, value in versions[1].items()
        if versions[0].get(name) != value
    ]
    # Packages whose source differs.
    for name in [name for name in {**own[1], **own[0]} if own[0].get(name) != own[1].get(name)]:
        both = [
            f"{name} {side[0].get(name) or ''} (source {(side[1].get(name) or 'none')[:12]})".replace(
                "  ", " "
            )
            for side in zip(versions, own, strict=True)
        ]
        parts.append(f"{both[0]} there and {both[1]} here")
    return ", ".join(parts)


@functools.cache
def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None if it is not installed as one."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def revisions() -> dict[str, Any]:
    """Return `revision`, the commit of this package, and `plugins`, the commits of plug-ins elsewhere.

    A commit ends with `+changes` if files differ from it. It is None for files that no repository tracks,
    whatever repository surrounds them.
    """
    own = _folder(OWN)
    others = {name: folder for name in _plugins() if (folder := _folder(name)) is not None}
    top = None if own is None else _tracked_in(own)
    with_own = [folder for folder in others.values() if top is not None and _tracked_in(folder) == top]
    found: dict[str, Any] = {
        "revision": None if own is None or top is None else _revision(top, [own, *with_own])
    }
    apart = {name: folder for name, folder in others.items() if folder not in with_own}
    plugins = {
        name: None if (root := _tracked_in(folder)) is None else _revision(root, [folder])
        for name, folder in apart.items()
    }
    return {**found, "plugins": plugins} if any(plugins.values()) else found


@functools.cache
def _plugins() -> tuple[str, ...]:
    """Return the top-level packages that offer something through an entry point, sorted."""
    groups = (
        ENTRY_POINT_GROUP,
        BACKBONE_ENTRY_POINT_GROUP,
        POST_ENTRY_POINT_GROUP,
        DETECTOR_ENTRY_POINT_GROUP,
    )
    installed = entry_points()
    return tuple(
        sorted(
            {point.module.partition(".")[0] for group in groups for point in installed.select(group=group)}
            - {OWN}
        )
    )


def _folder(package: str) -> Path | None:
    """Return the folder of a package, or the file of a module, or None if there is neither."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    place = places[0] if places else spec.origin
    return Path(place).resolve() if place and Path(place).exists() else None


@functools.cache
def _source_digest(package: str) -> str | None:
    """Return the SHA-256 of names and bytes of a package's Python files, or None without readable files."""
    folder = _folder(package)
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder.parent).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@functools.cache
def _tracked_in(folder: Path) -> str | None:
    """Return the repository that tracks the files of a package.

    None without a repository, or if it only surrounds them.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    return top if top and _git(folder, "ls-files", "--", _inside(folder)) else None


def _revision(top: str, folders: Iterable[Path]) -> str | None:
    commit = _git(Path(top), "rev-parse", "HEAD")
    changes = _git(
        Path(top), "status", "--porcelain", "--", *map(str, folders), ":(exclude,glob)**/__pycache__/**"
    )
    return None if not commit or changes is None else commit + ("+changes" if changes else "")


def _inside(folder: Path) -> str:
    return "." if folder.is_dir() else folder.name


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git, or None if it fails.

    No program that the repository's settings name is run. No repository that the environment names is used.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}
    }
    try:
        return subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=folder if folder.is_dir() else folder.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
