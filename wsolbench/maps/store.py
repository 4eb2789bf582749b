"""Folders of score maps: one file per image, named by the image id; `.npy`, `.npz` or 8-/16-bit `.png`.

DIR/maps.json                                   what the maps are (written by us, optional in anybody's folder)
DIR/predictions.csv                             image,rank1,rank2,... predicted labels (optional)
DIR/001.Black_footed_Albatross/x.jpg.npy        the map of image 001.Black_footed_Albatross/x.jpg
DIR/001.Black_footed_Albatross/x.npy            the same, with the image suffix left out
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsolbench.exceptions import DataError
from wsolbench.files import atomic_path, write_json
from wsolbench.maps.frame import check_map
from wsolbench.types import ScoreMap

SUFFIXES = (".npy", ".npz", ".png")
MANIFEST = "maps.json"
PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class MapFolder:
    """A folder of maps. Reading looks for the file of an id under both naming customs."""

    root: Path

    def find(self, image_id: str) -> Path | None:
        """The file that holds the map of `image_id`, or None. Raises `DataError` when there are several."""
        stems = dict.fromkeys((image_id, image_id.removesuffix(Path(image_id).suffix)))
        found = [path for stem in stems for suffix in SUFFIXES if (path := self.root / f"{stem}{suffix}").is_file()]
        if len(found) > 1:
            raise DataError(f"image {image_id!r} has several maps: {', '.join(map(str, found))}. Keep one.")
        return found[0] if found else None

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """The ids without a map, in order. Raises `DataError` when the folder does not exist."""
        if not self.root.is_dir():
            raise DataError(f"no folder of maps {self.root}")
        return [image_id for image_id in image_ids if self.find(image_id) is None]

    def read(self, image_id: str) -> ScoreMap:
        """The (h, w) map of an image: float64 stays, everything else becomes float32, PNG levels as fractions of their full scale.

        Raises `DataError`, naming the file, when it is missing, unreadable, pickled, of another rank or not finite.
        """
        path = self.find(image_id)
        if path is None:
            raise DataError(
                f"no map for image {image_id!r} in {self.root}: looked for {image_id}{{{','.join(SUFFIXES)}}}, or without the image suffix"
            )
        values = _read_png(path) if path.suffix == ".png" else _read_numpy(path)
        check_map(values, f"map {path}")
        return values if values.dtype == np.float64 else values.astype(np.float32)

    def write(self, image_id: str, score_map: ScoreMap) -> None:
        """Store a raw map as float32 `.npy`, atomically."""
        with atomic_path(self.root / f"{image_id}.npy", tidy=False) as temporary:
            np.save(temporary, np.asarray(score_map, dtype=np.float32), allow_pickle=False)

    def write_manifest(self, facts: Mapping[str, Any]) -> None:
        """Say what the maps are: method, data set, fingerprint, frame."""
        write_json(self.root / MANIFEST, dict(facts))

    def manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote; empty for a folder from elsewhere."""
        path = self.root / MANIFEST
        if not path.is_file():
            return {}
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is not JSON ({error}); remove it, or write the maps again") from error
        if not isinstance(facts, dict) or not all(isinstance(facts.get(name, {}), dict) for name in ("method", "fingerprints")):
            raise DataError(
                f"{path} is no manifest: expected an object whose 'method' and 'fingerprints' are objects; correct or remove it"
            )
        return facts

    def write_predictions(self, ranked: Mapping[str, Iterable[int]]) -> None:
        """Store predicted labels, best first, one row per image."""
        rows = {image_id: list(labels) for image_id, labels in ranked.items()}
        depth = max((len(labels) for labels in rows.values()), default=0)
        with atomic_path(self.root / PREDICTIONS) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["image", *(f"rank{rank}" for rank in range(1, depth + 1))])
            writer.writerows([image_id, *labels] for image_id, labels in rows.items())


def read_predictions(path: Path, num_classes: int) -> dict[str, list[int]]:
    """Image id -> predicted labels, best first, from a CSV with the columns image, rank1, rank2, ...

    Raises `DataError` naming file and line for a missing column, a repeated image or a label outside 0..num_classes-1.
    """
    if not path.is_file():
        raise DataError(f"no file of predictions {path}")
    ranked: dict[str, list[int]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        if header[:2] != ["image", "rank1"]:
            raise DataError(f"{path}:1 has the columns {','.join(header) or '(none)'}; expected image,rank1,rank2,...")
        for line, row in enumerate(reader, start=2):
            if len(row) != len(header):
                raise DataError(f"{path}:{line} has {len(row)} fields; expected {len(header)}")
            try:
                labels = [int(value) for value in row[1:]]
            except ValueError as error:
                raise DataError(f"{path}:{line} holds a label that is no integer: {','.join(row[1:])}") from error
            if not all(0 <= label < num_classes for label in labels) or len(set(labels)) != len(labels):
                raise DataError(f"{path}:{line} has labels {labels}; expected different classes in 0..{num_classes - 1}")
            if row[0] in ranked:
                raise DataError(f"{path}:{line} repeats the image {row[0]!r}")
            ranked[row[0]] = labels
    return ranked


def _read_numpy(path: Path) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = (
            "it holds Python objects (a pickle), which are never loaded"
            if "pickle" in str(error).lower()
            else str(error) or "it is truncated"
        )
        raise DataError(f"map {path} cannot be read: {reason}. Store a plain float array with numpy.save(path, map).") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = loaded.files
        name = "map" if "map" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise DataError(f"map {path} holds the arrays {', '.join(names) or '(none)'}; expected one array, or one called 'map'")
        try:
            return np.asarray(loaded[name])
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"map {path} cannot be read: {error}") from error


def _read_png(path: Path) -> np.ndarray:
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f"map {path} is not a PNG image that can be read")
    if pixels.ndim != 2:
        raise DataError(f"map {path} has {pixels.shape[2]} channels; expected a gray-scale PNG with one")
    full_scale = np.float32(255 if pixels.dtype == np.uint8 else 65535)
    return np.asarray(pixels / full_scale, dtype=np.float32)
