"""Sources of maps: a folder that any program wrote, or a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float64, Int64

from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.maps import MapFolder, cut_center, view
from wsolbench.maps.formats import read_bytes
from wsolbench.maps.store import MANIFEST, decode_map
from wsolbench.methods import Localization, Method, PostProcessor
from wsolbench.methods.device import normalized, pick_device
from wsolbench.methods.inputs import ten_crops, to_view
from wsolbench.protocol import EvalProtocol
from wsolbench.system.files import sha256_of_json
from wsolbench.system.progress import track
from wsolbench.types import Dataset, Sample, ScoreMap

if TYPE_CHECKING:
    import torch

PARTS = 4
"""Proposals of an image that are held against its key points: SSANET's Figure 4."""


@dataclass(frozen=True, kw_only=True)
class ProposedParts:
    """Boxes that a method proposes in one image, best first, in pixels of its square input."""

    boxes: Float64[np.ndarray, "m 4"]
    padded: Bool[np.ndarray, " m"]
    """Boxes that only fill up the number."""
    side: int
    """Of the input."""


RANKS = 5
"""Predicted labels kept of each image."""


@dataclass(frozen=True)
class SourceOutput:
    """What a source says about a batch: one raw map of the true class for each image, and predicted labels,
    best first.
    """

    maps: Sequence[ScoreMap]
    ranked: Int64[np.ndarray, "b k"]
    proposed: Sequence[ProposedParts] | None = None
    """For each image, from sources that propose parts."""


class MapSource(Protocol):
    """Where maps come from."""

    def load(self, sample: Sample) -> Any:
        """What is needed of one image (pixels, or a stored map); called in worker threads."""

    def collate(self, loaded: Sequence[Any]) -> Any:
        """What is needed of a batch, of what was loaded of its images; called in worker threads."""

    def maps(self, samples: Sequence[Sample], batch: Any) -> SourceOutput:
        """Maps and predicted labels of a collated batch; called in the main thread."""

    def describe(self) -> dict[str, Any]:
        """The `method` part of the record."""

    def identity(self, ids: Sequence[str]) -> str | None:
        """What tells the maps of these images from those of another source with the same description; None:
        the description does.
        """

    def provenance(self) -> dict[str, Any]:
        """`device` and `packages` for the record."""


_READERS = 8
"""Threads that read maps to digest them, more than cores, because file systems answer late."""


class _Seen(NamedTuple):
    """A stored map as it was when it was looked at: the file, what `os.stat` says about it, and the digest of
    its bytes.
    """

    path: Path
    state: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class FolderSource:
    """Maps from a folder, from any program. `ranked` gives predicted labels by image id, best first, where
    they are known.

    With `crop`, a protocol with a centre crop, the maps are of the whole image, and their centre is scored.
    """

    folder: MapFolder
    name: str
    ranked: dict[str, list[int]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    crop: EvalProtocol | None = None
    _seen: dict[str, _Seen] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check(self, dataset: Dataset, protocol: EvalProtocol, *, allow_partial: bool = False) -> None:
        """Raise `DataError` when the folder contradicts the data set or the protocol, or does not hold what
        its run has written.

        These are refused: maps of other data, of another view or of transformed images; a folder whose run
        has not finished, unless `allow_partial`; maps that the run of maps.json did not write; labels for
        some of the images only. Reads the maps of a folder that names their digests.
        """
        facts = self.folder.manifest()
        where = self.folder.root
        if facts.get("dataset", dataset.name) != dataset.name:
            raise DataError(
                f"the maps in {where} were made on data set {facts['dataset']!r}, but {dataset.name!r} is "
                "scored. Use the same data, or "
                f"correct {MANIFEST}."
            )
        made_on = facts.get("fingerprints", {}).get(dataset.split, dataset.fingerprint)
        if made_on != dataset.fingerprint and not (
            allow_partial and dataset.left_out
        ):  # which has another fingerprint
            raise DataError(
                f"the maps in {where} were made on {facts.get('dataset')} {dataset.split} with fingerprint "
                f"{made_on}, "
                f"but {dataset.name} {dataset.split} here has {dataset.fingerprint}: other images or "
                "annotations. Use the same data."
            )
        if "transform" in facts:
            raise DataError(
                f"the maps in {where} are of images transformed by {facts['transform']}, but "
                f"{dataset.name} has the images as they are; "
                "score maps that were made without --transform"
            )
        if dataset.split in facts.get("unfinished", []) and not allow_partial:
            raise DataError(
                f"the run that writes the maps of {dataset.split} into {where} has not finished. Run it "
                "again to complete them, or add "
                "--allow-partial to score those that are there."
            )
        self._check_view(facts, protocol)
        if self.ranked and (without := [image_id for image_id in dataset.ids if image_id not in self.ranked]):
            raise DataError(
                f"predictions lack {len(without)} of {len(dataset)} images, the first {without[0]!r}; give "
                "all, or none"
            )
        if "run" in facts:
            self._look_at(dataset.ids)
            self.folder.check_digests(
                {seen.path: seen.digest for image_id in dataset.ids if (seen := self._seen.get(image_id))}
            )

    def _check_view(self, facts: Mapping[str, Any], protocol: EvalProtocol) -> None:
        """Raise `DataError` when the maps cover another part of the image than the protocol compares on."""
        where = self.folder.root
        if self.crop is not None and view(protocol) != "center_crop":
            raise UsageError(
                f"protocol {protocol.name!r} compares on the {view(protocol)}, so there is no centre crop "
                "to cut maps to"
            )
        expected = "image" if self.crop is not None else view(protocol)
        if facts.get("view", expected) != expected:
            way_out = (
                " To score the centre of each map, add --crop-maps." if expected == "center_crop" else ""
            )
            wanted = (
                "maps to be cut must cover the image"
                if self.crop is not None
                else f"protocol {protocol.name!r} compares on the {expected}"
            )
            raise DataError(f"the maps in {where} cover the {facts['view']}, but {wanted}.{way_out}")
        crop = facts.get("crop")
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
        """The stored map, or its centre. Raises `DataError` when it has changed since `identity` was asked
        for.
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
        """The stored maps as they are."""
        return loaded

    def maps(self, samples: Sequence[Sample], batch: Sequence[ScoreMap]) -> SourceOutput:
        """The stored maps, and the predicted labels (none unless every image has some)."""
        rows = [self.ranked.get(sample.id, [])[:RANKS] for sample in samples]
        depth = min((len(row) for row in rows), default=0)
        return SourceOutput(
            maps=batch,
            ranked=np.array([row[:depth] for row in rows], dtype=np.int64).reshape(len(rows), depth),
        )

    def describe(self) -> dict[str, Any]:
        """Name and, where the folder says so, what made the maps."""
        maps = "stored" if self.crop is None else "stored, of the whole image, cut to the centre crop"
        return {**self.facts, "name": self.name, "maps": maps}

    def identity(self, ids: Sequence[str]) -> str:
        """Digest of the bytes of all these maps and of the predicted labels: the same for a copy of the
        folder.

        Reads every map. `load` gives these bytes or raises.
        """
        self._look_at(ids)
        digests = [
            [image_id, self._seen[image_id].digest if image_id in self._seen else None] for image_id in ids
        ]
        return sha256_of_json([digests, self.ranked])

    def _look_at(self, ids: Sequence[str]) -> None:
        """Remember the digests of these maps; those that have not changed since the last time are not read
        again.
        """
        located = self.folder.locate(ids)
        for image_id in ids:
            if image_id not in located:
                self._seen.pop(image_id, None)

        def look(item: tuple[str, Path]) -> tuple[str, _Seen]:
            image_id, path = item
            try:
                found = os.stat(path)  # noqa: PTH116 - often
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
        """Nothing but the processor is involved."""
        return {"device": "cpu"}


class ModelSource:
    """Maps, labels and proposals from a trained method; the maps are those of `post`, or the method's own
    `map_name`, where given.

    Raises `UsageError` for a device that is not there, and `DataError` when the model knows another number of
    classes than the data set.
    """

    def __init__(
        self,
        method: Method,
        protocol: EvalProtocol,
        *,
        num_classes: int,
        device: str = "auto",
        batch_size: int = 32,
        post: PostProcessor | None = None,
        map_name: str | None = None,
    ) -> None:
        if method.num_classes != num_classes:
            raise DataError(
                f"the checkpoint of {method.method_name!r} has {method.num_classes} classes, the data set "
                f"has {num_classes}; "
                "evaluate it on the data set that it was trained on"
            )
        self.method, self.protocol, self.batch_size, self.post, self.map_name = (
            method,
            protocol,
            batch_size,
            post,
            map_name,
        )
        self.needs_gradients = post is not None and post.needs_gradients
        if self.needs_gradients and "gradients" not in signature(method.localize).parameters:
            raise UsageError(
                f"the post-process needs gradients of the scores, and method {method.method_name!r} has no "
                "localize(images, gradients=True); expected a method that offers it, or another --post"
            )
        self.device = pick_device(device)
        method.to(self.device)
        method.eval()

    def load(self, sample: Sample) -> dict[str, np.ndarray]:
        """The pixels of the view that the map is made of, and for ten-crop classification those of the ten
        crops.
        """
        pixels, size, protocol = sample.image(), self.method.input_spec.size, self.protocol
        loaded = {
            "image": to_view(
                pixels, size, frame=protocol.network_frame, resize_size=protocol.view_of(size)[0]
            )
        }
        if protocol.classifier == "ten_crop":
            loaded["crops"] = ten_crops(
                pixels, size, resize_size=round(protocol.resize_size * size / protocol.frame_size)
            )
        return loaded

    def collate(self, loaded: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Tensors of `batch_size` images, the last one repeated where there are fewer.

        A network's last bits can depend on the size of the batch, never on an image's neighbours or place in
        it; so batches of one size make the maps independent of where a run was cut into batches. A batch of
        one is doubled, because matrix products with one row take another path.
        """
        import torch

        size = max(2, self.batch_size)
        filled = [*loaded, *[loaded[-1]] * (size - len(loaded))]
        batch = {name: torch.from_numpy(np.stack([item[name] for item in filled])) for name in loaded[0]}
        return (
            {name: tensor.pin_memory() for name, tensor in batch.items()}
            if self.device.type == "cuda"
            else batch
        )

    def maps(self, samples: Sequence[Sample], batch: dict[str, torch.Tensor]) -> SourceOutput:
        """One forward pass for maps, labels and, where key points are known, proposals; with ten crops a
        second one, whose mean softmax gives the labels.
        """
        import torch

        images = normalized(batch["image"], self.method.input_spec, self.device)
        labels = torch.tensor([sample.label for sample in samples], device=self.device)
        labels = torch.cat([labels, labels[-1:].expand(len(images) - len(samples))])[:, None]
        if self.needs_gradients:
            differentiable: Any = self.method  # checked in __init__
            with torch.enable_grad():
                result = differentiable.localize(images, gradients=True)
                score_maps = self._maps(result, labels)[: len(samples)]
        else:
            result = self.method.localize(images)
            score_maps = self._maps(result, labels)[: len(samples)]
        with torch.no_grad():
            scores = result.logits
            if scores is not None and self.protocol.classifier == "ten_crop":
                scores = self._ten_crop_scores(batch["crops"])
            if (
                scores is None or self.protocol.classifier == "external"
            ):  # then the labels are another network's
                ranked = np.zeros((len(samples), 0), dtype=np.int64)
            else:
                # A stable sort: of equal scores the lower class index comes first on every device.
                ranked = (
                    scores[: len(samples)]
                    .float()
                    .cpu()
                    .argsort(dim=1, descending=True, stable=True)[:, :RANKS]
                    .numpy()
                )
        return SourceOutput(
            maps=list(score_maps.detach().float().cpu().numpy()),
            ranked=ranked,
            proposed=self._proposed(samples, result),
        )

    def _maps(self, result: Localization, labels: torch.Tensor) -> torch.Tensor:
        if self.map_name is not None:
            if self.map_name not in result.extra_maps:
                raise unknown_name(
                    f"map of {self.method.method_name}", self.map_name, ["class", *result.extra_maps]
                )
            return result.extra_maps[self.map_name]
        maps = result.score_maps(labels) if self.post is None else self.post.maps(result, labels)
        return maps[:, 0]

    def _proposed(self, samples: Sequence[Sample], result: Localization) -> Sequence[ProposedParts] | None:
        if result.propose is None or all(sample.key_points is None for sample in samples):
            return None
        found, side = result.propose(), self.method.input_spec.size
        boxes = found.boxes[: len(samples), :PARTS].detach().double().cpu().numpy()
        padded = (
            np.zeros(boxes.shape[:2], dtype=np.bool_)
            if found.padded is None
            else found.padded[: len(samples), :PARTS].cpu().numpy()
        )
        return [
            ProposedParts(boxes=image, padded=flags, side=side)
            for image, flags in zip(boxes, padded, strict=True)
        ]

    def _ten_crop_scores(self, crops: torch.Tensor) -> torch.Tensor:
        logits = self.method.localize(
            normalized(crops.flatten(0, 1), self.method.input_spec, self.device)
        ).logits
        assert logits is not None
        shares = logits.float().softmax(dim=1)  # (10 B, C)
        return shares.reshape(len(crops), 10, -1).mean(dim=1)

    def describe(self) -> dict[str, Any]:
        """Name and description of the method, and of the post-process."""
        if self.map_name is not None:
            return {
                **self.method.describe(),
                "name": f"{self.method.method_name}:{self.map_name}",
                "map": self.map_name,
            }
        if self.post is None:
            return {**self.method.describe(), "name": self.method.method_name}
        return {
            **self.method.describe(),
            "name": f"{self.method.method_name}+{self.post.method_name}",
            "post": self.post.describe(),
        }

    def identity(self, ids: Sequence[str]) -> None:
        """The description has the digest of the weights."""

    def provenance(self) -> dict[str, Any]:
        """Device, threads and the versions that matter to a network."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": name,
            "packages": ("torch", "torchvision", "timm"),
            "threads": torch.get_num_threads(),
        }


FILLED = 256
"""Batches of up to that many images keep their size, whatever the number of images."""


def fitting_batch(batch_size: int, *splits: Sized | None) -> int:
    """The batch size for these splits: what was asked for, but no more than the images of the largest where
    that is above `FILLED`.

    Every batch of a run has the size that this gives (see `ModelSource.collate`), so it depends on the run
    alone.

    >>> fitting_batch(32, [1, 2, 3]), fitting_batch(100_000, [1, 2, 3]), fitting_batch(1000, range(700), None)
    (32, 256, 700)
    """
    return min(batch_size, max([FILLED, *(len(split) for split in splits if split is not None)]))
