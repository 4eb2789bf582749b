"""`FolderSource`: maps that any program wrote, as a source of an evaluation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder, cut_center, view
from wsolbench.maps.formats import read_bytes
from wsolbench.maps.sources import RANKS, SourceOutput
from wsolbench.maps.store import MANIFEST, decode_map
from wsolbench.protocol import EvalProtocol
from wsolbench.system.files import sha256_of_json
from wsolbench.system.progress import track
from wsolbench.types import Dataset, Sample, ScoreMap

_READERS = 8
"""Number of threads that read maps: more than cores, because file systems are slow to answer."""


class _Seen(NamedTuple):
    """State of a stored map when it was read: the file, its `os.stat`, and the digest of its bytes."""

    path: Path
    state: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class FolderSource:
    """Maps from a folder that any program wrote.

    `ranked` gives the predicted labels by image id, best first, if they are known. With `crop`, a protocol
    with a centre crop, the maps are of the whole image, and their centre is scored.
    """

    folder: MapFolder
    name: str
    ranked: dict[str, list[int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    crop: EvalProtocol | None = None
    _seen: dict[str, _Seen] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self, dataset: Dataset, protocol: EvalProtocol, *, allow_partial: bool = False) -> None:
        """Raise `DataError` if the folder contradicts the data set, the protocol or its own manifest.

        Refused are maps of other data, of another view or of transformed images. Refused is a folder whose
        run has not finished, unless `allow_partial`. Refused are maps that the run of maps.json did not
        write, and labels for only some of the images. If the folder names the digests of its maps, all maps
        are read.
        """
        manifest = self.folder.manifest()
        where = self.folder.root
        # Same data set, same annotations, untransformed images?
        # The user may have renamed the folder of own data: then its fingerprint tells.
        renamed = bool(dataset.format) and dataset.split in manifest.get("fingerprints", {})
        if not renamed and manifest.get("dataset", dataset.name) != dataset.name:
            raise DataError(
                f"the maps in {where} were made on data set {manifest['dataset']!r}, but "
                f"{dataset.name!r} is scored. Use the same data, or correct {MANIFEST}."
            )
        made_on = manifest.get("fingerprints", {}).get(dataset.split, dataset.fingerprint)
        partial = allow_partial and dataset.left_out  # then the fingerprint differs anyway
        if made_on != dataset.fingerprint and not partial:
            raise DataError(
                f"the maps in {where} were made on {manifest.get('dataset')} {dataset.split} with "
                f"fingerprint {made_on}, but {dataset.name} {dataset.split} here has "
                f"{dataset.fingerprint}: other images or annotations. Use the same data."
            )
        if "transform" in manifest:
            raise DataError(
                f"the maps in {where} are of images transformed by {manifest['transform']}, but "
                f"{dataset.name} has the original images; score maps that were made without --transform"
            )
        # Complete, and of the right view?
        if dataset.split in manifest.get("unfinished", []) and not allow_partial:
            raise DataError(
                f"the run that writes the maps of {dataset.split} into {where} has not finished. Run it "
                "again to complete them, or add --allow-partial to score those that are there."
            )
        self._check_view(manifest, protocol)
        if self.ranked and (without := [image_id for image_id in dataset.ids if image_id not in self.ranked]):
            unknown = min(self.ranked.keys() - set(dataset.ids), default="")
            found = f", and name {unknown!r}, for instance" if len(without) == len(dataset) else ""
            raise DataError(
                f"predictions for the maps in {where} lack {len(without)} of {len(dataset)} images, the "
                f"first {without[0]!r}{found}; expected labels for all images, or no labels"
            )
        # Unchanged since they were written?
        if "run" in manifest:
            self._look_at(dataset.ids)
            self.folder.check_digests(
                {seen.path: seen.digest for image_id in dataset.ids if (seen := self._seen.get(image_id))}
            )

    def _check_view(self, manifest: Mapping[str, Any], protocol: EvalProtocol) -> None:
        """Raise `DataError` if the maps cover another part of the image than the protocol's frame."""
        where = self.folder.root
        if self.crop is not None and view(protocol) != "center_crop":
            raise UsageError(
                f"protocol {protocol.name!r} compares on the {view(protocol)}, so there is no centre "
                "crop to cut maps to; use --crop-maps only with a protocol that has one"
            )
        expected = "image" if self.crop is not None else view(protocol)
        if manifest.get("view", expected) != expected:
            way_out = (
                " To score the centre of each map, add --crop-maps." if expected == "center_crop" else ""
            )
            wanted = (
                "maps to be cut must cover the image"
                if self.crop is not None
                else f"protocol {protocol.name!r} compares on the {expected}"
            )
            raise DataError(f"the maps in {where} cover the {manifest['view']}, but {wanted}.{way_out}")
        crop = manifest.get("crop")
        if expected == "center_crop" and isinstance(crop, dict):
            sides = {name: getattr(protocol, name) for name in ("frame_size", "resize_size")}
            if (
                crop.get("frame_size", 0) * sides["resize_size"]
                != crop.get("resize_size", 0) * sides["frame_size"]
            ):
                raise DataError(
                    f"the maps in {where} cover the centre crop {crop}, but protocol {protocol.name!r} "
                    f"compares on {sides}"
                )

    def load(self, sample: Sample) -> ScoreMap:
        """Return the stored map, or its centre.

        Raises `DataError` if it has changed since `identity` read it.
        """
        seen = self._seen.get(sample.id)
        if seen is None:
            raw = self.folder.read(sample.id)
        else:
            content = read_bytes(seen.path, "map")
            if hashlib.sha256(content).hexdigest() != seen.digest:
                raise DataError(
                    f"map {seen.path} has changed while the maps were being scored. Wait until all are "
                    "written, and score them again."
                )
            raw = decode_map(content, seen.path)
        return raw if self.crop is None else cut_center(raw, self.crop)

    def collate(self, loaded: Sequence[ScoreMap]) -> Sequence[ScoreMap]:
        """Return the stored maps unchanged."""
        return loaded

    def maps(self, samples: Sequence[Sample], batch: Sequence[ScoreMap]) -> SourceOutput:
        """Return the stored maps and the predicted labels (none unless every image has some)."""
        rows = [self.ranked.get(sample.id, [])[:RANKS] for sample in samples]
        depth = min((len(row) for row in rows), default=0)
        return SourceOutput(
            maps=batch,
            ranked=np.array([row[:depth] for row in rows], dtype=np.int64).reshape(len(rows), depth),
        )

    def describe(self) -> dict[str, Any]:
        """Return the name and, if the folder states it, what made the maps."""
        maps = "stored" if self.crop is None else "stored, of the whole image, cut to the centre crop"
        return {**self.facts, "name": self.name, "maps": maps}

    def identity(self, ids: Sequence[str]) -> str:
        """Return a digest of the bytes of all these maps and of the predicted labels.

        It is the same for a copy of the folder. Reads every map. `load` returns these bytes or raises.
        """
        self._look_at(ids)
        digests = [
            [image_id, self._seen[image_id].digest if image_id in self._seen else None] for image_id in ids
        ]
        return sha256_of_json([digests, self.ranked])

    def _look_at(self, ids: Sequence[str]) -> None:
        """Keep the digests of these maps.

        Maps that have not changed since the last time are not read again.
        """
        located = self.folder.locate(ids)
        for image_id in ids:
            if image_id not in located:
                self._seen.pop(image_id, None)

        def look(item: tuple[str, Path]) -> tuple[str, _Seen]:
            image_id, path = item
            try:
                found = os.stat(path)  # noqa: PTH116 - called for every map, and faster than Path.stat
            except OSError as error:
                raise DataError(f"map {path} cannot be read: {error.strerror}") from error
            state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            seen = self._seen.get(image_id)
            if seen is None or (seen.path, seen.state) != (path, state):
                seen = _Seen(path, state, hashlib.sha256(read_bytes(path, "map")).hexdigest())
            return image_id, seen

        with (
            ThreadPoolExecutor(_READERS) as pool,
            track(description="reading maps", total=len(located)) as bar,
        ):
            for image_id, seen in pool.map(look, located.items()):
                self._seen[image_id] = seen
                bar.advance()

    def provenance(self) -> dict[str, Any]:
        """Return the device, which is always the CPU."""
        return {"device": "cpu"}
