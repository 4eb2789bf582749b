"""Writing the maps of a run into a folder of its own.

Before its first map a run writes into maps.json whose the folder is (`run`: all that the maps depend on) and
which splits are unfinished. Each process that writes holds a lock file of its own, so that another run is
refused while one of them lives. The file of a process that was killed is free, and the next run removes it.
Each map's digest is noted as it is written; when all are there, `finish_maps` lists them, with the digest of
the predicted labels. What was killed in between is taken up by the same run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.exceptions import UsageError
from wsolbench.maps.predictions import PREDICTIONS, read_predictions
from wsolbench.maps.store import JOURNAL, LISTING, MANIFEST, MapFolder, fold_name, format_digest
from wsolbench.system.files import (
    atomic_path,
    hold_lock,
    make_folder,
    remove_leftovers,
    sha256_of_file,
    write_text,
)
from wsolbench.types import ScoreMap

_LOCK = ".maps.lock"
"""Held to change maps.json."""
_WRITER = ".maps-{}.lock"
"""Held by a process that writes maps, each its own."""
_BINARY = getattr(os, "O_BINARY", 0)
"""No translation of line ends, where the system has one."""
_PATIENCE = 20.0
"""Seconds to wait for a process that changes maps.json, which takes milliseconds."""
_LONGEST_NAME = 255
"""Largest number of bytes of a file name on common file systems."""


@dataclass(frozen=True, kw_only=True)
class MapRun:
    """Identity and description of the run whose maps a folder contains.

    Attributes:
        identity: everything the maps and the predicted labels depend on, as JSON values. It is equal for the
            processes of one run.
        facts: entries of maps.json for readers: method, data set, view.
        fingerprints: split -> fingerprint of the data set.
    """

    identity: dict[str, Any]
    facts: dict[str, Any]
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class MapWriter(MapFolder):
    """A folder that is open for writing the maps of a run. See `open_writer`."""

    _journal: int
    """File descriptor. Each thread appends a line in one call, so lines do not mix."""
    _listed: dict[str, str] = field(repr=False)

    def find(self, image_id: str) -> Path | None:
        """Return the file of `image_id` if this run has written it and it still exists, else None."""
        path = self.root / f"{image_id}.npy"
        return path if f"{image_id}.npy" in self._listed and path.is_file() else None

    def write(self, image_id: str, score_map: ScoreMap) -> None:
        """Store a raw map as float32 `.npy`, atomically, and log its digest."""
        stream = io.BytesIO()
        np.save(stream, np.asarray(score_map, dtype=np.float32), allow_pickle=False)
        content, name = stream.getvalue(), f"{image_id}.npy"
        with atomic_path(self.root / name, tidy=False) as temporary:
            temporary.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        os.write(self._journal, format_digest(name, digest).encode("utf-8", "surrogateescape"))
        self._listed[name] = digest


@contextlib.contextmanager
def open_writer(folder: MapFolder, run: MapRun, image_ids: Iterable[str]) -> Iterator[MapWriter]:
    """Claim a folder for the maps of these images, and exclude other runs until the block ends.

    Raises `UsageError` if the folder contains other maps or predicted labels, if another run writes there,
    and for ids that cannot be file names.
    """
    ids = list(image_ids)
    with _writing(folder, run, ids) as name:
        journal = folder.root / JOURNAL.replace("*", name)
        listed = folder.digests()
        handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _BINARY, 0o666)
        try:
            yield MapWriter(folder.root, handle, listed)
        finally:
            os.close(handle)


def finish_maps(
    folder: MapFolder, run: MapRun, image_ids: Iterable[str], ranked: Mapping[str, Iterable[int]] | None
) -> None:
    """Mark the splits of the run as complete in maps.json, with the digests of all maps and predicted labels.

    Nothing is done if the folder now belongs to another run, or lacks maps, because shards on several
    machines may have their own folders. Raises `UsageError` if other processes still write there.
    """
    with _alone(folder):
        manifest = folder.manifest()
        if manifest.get("run") != run.identity:
            return
        listed = folder.digests()
        if not all(f"{image_id}.npy" in listed for image_id in image_ids):
            return
        # Add the predicted labels to those of splits that were finished before.
        sha256 = dict(manifest.get("sha256", {}))
        if ranked is not None:
            path = folder.root / PREDICTIONS
            rows = _read_earlier_rows(path, sha256.get(PREDICTIONS)) | {
                image_id: list(labels) for image_id, labels in ranked.items()
            }
            depth = len(list(next(iter(ranked.values()))))
            folder.write_predictions(
                {image_id: labels for image_id, labels in rows.items() if len(labels) == depth}
            )
            sha256[PREDICTIONS] = sha256_of_file(path)
        # List all digests, update maps.json, and remove the journals.
        write_text(
            folder.root / LISTING,
            "".join(format_digest(name, digest) for name, digest in sorted(listed.items())),
        )
        sha256[LISTING] = sha256_of_file(folder.root / LISTING)
        unfinished = [split for split in manifest.get("unfinished", []) if split not in run.fingerprints]
        folder.write_manifest({**manifest, "sha256": sha256, "unfinished": unfinished})
        for part in folder.root.glob(JOURNAL):
            part.unlink(missing_ok=True)


def _read_earlier_rows(path: Path, digest: str | None) -> dict[str, list[int]]:
    """Return the predicted labels of splits that were finished before."""
    if digest is None or not path.is_file() or sha256_of_file(path) != digest:
        return {}
    return read_predictions(path, num_classes=sys.maxsize)


def _is_claimed(manifest: Mapping[str, Any], run: MapRun) -> bool:
    fingerprints = manifest.get("fingerprints", {})
    return manifest.get("run") == run.identity and all(
        split in manifest.get("unfinished", []) and fingerprints.get(split) == own
        for split, own in run.fingerprints.items()
    )


def _claim(folder: MapFolder, run: MapRun, ids: list[str]) -> None:
    """Write the run's identity into maps.json. Raises `UsageError` if the folder belongs to another run."""
    manifest = folder.manifest()
    way_out = "Choose another folder, or remove this one."
    # Which files of the folder were not written by this run?
    located = folder.locate(ids)
    if "run" in manifest:
        if manifest["run"] != run.identity:
            differs = ", ".join(_differences(manifest["run"], run.identity)[:6])
            raise UsageError(
                f"{folder.root} holds maps of {_owner(manifest)}, which differ from those of this run in "
                f"{differs}. {way_out}"
            )
        for split, own in run.fingerprints.items():
            if (other := manifest.get("fingerprints", {}).get(split, own)) != own:
                raise UsageError(
                    f"{folder.root} holds maps of {_owner(manifest)} on {split} with fingerprint {other}, "
                    f"but the data here have {own}: other images or annotations. {way_out}"
                )
        foreign = [path for image_id, path in located.items() if path != folder.root / f"{image_id}.npy"]
        foreign += (
            []
            if manifest.get("unfinished") or _has_own_predictions(folder, manifest)
            else [folder.root / PREDICTIONS]
        )
    else:
        foreign = [
            *located.values(),
            *(path for name in (MANIFEST, PREDICTIONS) if os.path.lexists(path := folder.root / name)),
        ]
        if not foreign:  # remove lists of maps that no longer exist
            for path in (folder.root / LISTING, *folder.root.glob(JOURNAL)):
                path.unlink(missing_ok=True)
    if foreign:
        raise UsageError(
            f"{folder.root} holds {foreign[0].relative_to(folder.root)}, which this run has not written. "
            f"{way_out}"
        )
    # Claim the folder.
    remove_leftovers(folder.root)
    folder.write_manifest(
        {
            **manifest,
            **run.facts,
            "fingerprints": {**manifest.get("fingerprints", {}), **run.fingerprints},
            "run": run.identity,
            "unfinished": sorted({*manifest.get("unfinished", []), *run.fingerprints}),
        }
    )


def _has_own_predictions(folder: MapFolder, manifest: Mapping[str, Any]) -> bool:
    """Whether the predicted labels are those that maps.json names, or do not exist."""
    path = folder.root / PREDICTIONS
    return not os.path.lexists(path) or (
        path.is_file() and sha256_of_file(path) == manifest.get("sha256", {}).get(PREDICTIONS)
    )


def _owner(manifest: Mapping[str, Any]) -> str:
    name = manifest.get("method", {}).get("name")
    return f"{name or 'another run'} ({manifest.get('dataset')})"


def _differences(left: Any, right: Any, name: str = "") -> list[str]:
    """Return the names of the fields that differ, in dotted form."""
    if not (isinstance(left, dict) and isinstance(right, dict)):
        return [] if left == right else [name]
    names = sorted({*left, *right})
    return [
        found
        for key in names
        for found in _differences(left.get(key), right.get(key), f"{name}.{key}" if name else key)
    ]


def _check_names(folder: MapFolder, ids: list[str]) -> None:
    """Raise `UsageError` for ids that cannot be file names, and for two ids with the same file."""
    for image_id in ids:
        longest = max(len(part.encode("utf-8", "surrogateescape")) for part in f"{image_id}.npy".split("/"))
        if longest > _LONGEST_NAME or "\n" in image_id or "\x00" in image_id:
            reason = (
                f"is longer than {_LONGEST_NAME} bytes"
                if longest > _LONGEST_NAME
                else "contains a line break or a zero byte"
            )
            raise UsageError(
                f"the map of image {image_id[:60]!r} cannot be saved: the name of its file {reason}"
            )
    if not (folder.root / _LOCK.upper()).exists():
        return
    known: dict[str, str] = {}
    for image_id in ids:  # this file system ignores the case of letters
        if (other := known.setdefault(fold_name(image_id), image_id)) != image_id:
            raise UsageError(
                f"the images {other!r} and {image_id!r} would have one map in {folder.root}, because its "
                "file system ignores the case of letters. Choose a folder on another file system."
            )


@contextlib.contextmanager
def _changing(folder: MapFolder) -> Iterator[None]:
    """Hold the lock that allows a process to change maps.json. Waits for another process that has it."""
    make_folder(folder.root)
    lock = hold_lock(folder.root / _LOCK, patience=_PATIENCE)
    if lock is None:
        raise UsageError(_busy(folder))
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _alone(folder: MapFolder) -> Iterator[None]:
    """Hold the lock of `_changing` while no process writes maps. Waits for processes that do."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with _changing(folder):
            if not _has_writers(folder):
                yield
                return
        if time.monotonic() > deadline:
            raise UsageError(_busy(folder))
        time.sleep(0.02)


def _busy(folder: MapFolder) -> str:
    return f"another process is writing maps into {folder.root}; wait for it, or choose another folder"


def _has_writers(folder: MapFolder) -> bool:
    """Return whether a live process writes maps; remove the lock files of dead ones. Needs `_changing`."""
    alive = False
    for path in sorted(folder.root.glob(_WRITER.format("*"))):
        lock = hold_lock(path)
        if lock is None:
            alive = True
        else:
            lock.release()
            _remove(path)
    return alive


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # another process looks at it, and removes it
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: MapFolder, run: MapRun, ids: list[str]) -> Iterator[str]:
    """Claim the folder and count as a writer until the block ends. Yields a name for what this process
    writes.
    """
    name = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    path = folder.root / _WRITER.format(name)
    with _changing(folder):
        _check_names(folder, ids)
        if not _has_writers(folder):
            _claim(folder, run, ids)
        elif not _is_claimed(folder.manifest(), run):
            raise UsageError(
                f"another process is writing maps of {_owner(folder.manifest())} into {folder.root}; wait "
                "for it, or choose another folder"
            )
        lock = hold_lock(path)
    if lock is None:
        raise UsageError(_busy(folder))
    try:
        yield name
    finally:
        lock.release()
        _remove(path)
