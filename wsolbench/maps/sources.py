"""Sources of maps: a folder that any program wrote, or a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence, Sized
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
from wsolbench.maps.truths import true_box, true_mask
from wsolbench.methods import Localization, Method, Numerics, PostProcessor
from wsolbench.methods.device import normalized, pick_device, place
from wsolbench.methods.inputs import ViewLoader
from wsolbench.methods.numerics import COMPILE, with_numerics
from wsolbench.methods.transfers import Download, uploaded
from wsolbench.protocol import EvalProtocol
from wsolbench.system.files import sha256_of_json
from wsolbench.system.progress import track
from wsolbench.types import Dataset, Sample, ScoreMap

if TYPE_CHECKING:
    import torch

PARTS = 4
"""Number of proposals per image that are compared with the key points, as in SSANET's Figure 4."""


@dataclass(frozen=True, kw_only=True)
class ProposedParts:
    """Boxes that a method proposes in one image, best first, in pixels of its square input."""

    boxes: Float64[np.ndarray, "m 4"]
    padded: Bool[np.ndarray, " m"]
    """Flags of boxes that only fill up the number."""
    side: int
    """Side of the input in pixels."""


RANKS = 5
"""Number of predicted labels that are kept per image."""


@dataclass(frozen=True)
class SourceOutput:
    """Output of a source for a batch: one raw map of the true class per image, and predicted labels.

    The labels are sorted, best first.
    """

    maps: Sequence[ScoreMap]
    ranked: Int64[np.ndarray, "b k"]
    proposed: Sequence[ProposedParts] | None = None
    """Proposed parts of each image, or None if the source proposes none."""


class MapSource(Protocol):
    """A source of maps."""

    def load(self, sample: Sample) -> Any:
        """Load what one image needs (pixels, or a stored map). Called in worker threads."""

    def collate(self, loaded: Sequence[Any]) -> Any:
        """Join what was loaded of the images of a batch. Called in worker threads."""

    def maps(self, samples: Sequence[Sample], batch: Any) -> SourceOutput:
        """Return maps and predicted labels of a collated batch. Called in the main thread."""

    def describe(self) -> dict[str, Any]:
        """Return the `method` part of the record."""

    def identity(self, ids: Sequence[str]) -> str | None:
        """Return a digest that distinguishes this source from others with the same description.

        None if the description is enough.
        """

    def provenance(self) -> dict[str, Any]:
        """Return `device` and `packages` for the record."""


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
        if manifest.get("dataset", dataset.name) != dataset.name:
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
            raise DataError(
                f"predictions lack {len(without)} of {len(dataset)} images, the first {without[0]!r}; "
                "expected labels for all images, or no labels"
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


class ModelSource:
    """Maps, labels and proposals from a trained method.

    The maps are those of the post-process `post`, or the extra map `map_name` of the method, if given. Raises
    `UsageError` for a device or a number format that is not available. Raises `DataError` if the model has
    another number of classes than the data set.
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
        numerics: Numerics = Numerics(),  # noqa: B008 - immutable
    ) -> None:
        if method.num_classes != num_classes:
            raise DataError(
                f"the checkpoint of {method.method_name!r} has {method.num_classes} classes; expected "
                f"the {num_classes} of the data set. Evaluate it on the data set that it was trained on"
            )
        self.method, self.protocol, self.batch_size = method, protocol, batch_size
        self.post, self.map_name = post, map_name
        self.loader = ViewLoader(method.input_spec.size, protocol)
        self.shown = [what for what in ("boxes", "masks") if getattr(method, f"uses_true_{what}", False)]
        """Kinds of ground truth that the method reads: controls and upper bounds alone do."""
        self.needs_gradients = post is not None and post.needs_gradients
        if self.needs_gradients and "gradients" not in signature(method.localize).parameters:
            raise UsageError(
                f"the post-process needs gradients of the scores, and method {method.method_name!r} has no "
                "localize(images, gradients=True); expected a method that offers it, or another --post"
            )
        if self.needs_gradients and numerics.compile:
            raise UsageError(
                "the post-process needs gradients at inner features, which a compiled network does not give; "
                "leave --compile out"
            )
        self.device, self.numerics = pick_device(device), numerics.for_evaluation()
        self.numerics.check(self.device)
        place(method, self.device)
        method.eval()
        if numerics.compile and hasattr(method, "compile"):
            method.compile(**COMPILE)

    def load(self, sample: Sample) -> dict[str, np.ndarray]:
        """Return the pixels of the view, and those of the ten crops for ten-crop classification."""
        return self.loader(sample)

    def collate(self, loaded: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Stack the images to tensors of `batch_size`. The last image is repeated if there are fewer.

        A network's last bits can depend on the size of the batch, but never on an image's neighbours or place
        in it. So batches of one size make the maps independent of how a run was cut into batches. A batch of
        one is doubled, because matrix products with one row take another path.
        """

        size = max(2, self.batch_size)
        filled = [*loaded, *[loaded[-1]] * (size - len(loaded))]
        return {name: self._stacked([item[name] for item in filled]) for name in loaded[0]}

    def _stacked(self, arrays: Sequence[np.ndarray]) -> torch.Tensor:
        """Stack arrays in memory that the device can read without a further copy: pinned for CUDA."""
        import torch

        dtype = torch.from_numpy(np.empty(0, dtype=arrays[0].dtype)).dtype
        shape, pinned = (len(arrays), *arrays[0].shape), self.device.type == "cuda"
        stacked = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        np.stack(arrays, out=stacked.numpy())
        return stacked

    def maps(self, samples: Sequence[Sample], batch: dict[str, torch.Tensor]) -> SourceOutput:
        """Run one forward pass for maps, labels and, if key points are known, proposals.

        With ten crops, a second pass gives the labels, from the mean softmax.
        """
        return self.start(samples, batch)()

    @with_numerics
    def start(self, samples: Sequence[Sample], batch: dict[str, torch.Tensor]) -> Callable[[], SourceOutput]:
        """Start what `maps` does, and return a function that waits for the result, in any thread."""
        import torch

        # Images (B, 3, S, S), and labels (B, 1), repeated as the images are. A second stream copies them.
        known = [sample.label for sample in samples]
        known += known[-1:] * (len(batch["image"]) - len(samples))
        truths = {f"true_{what}": self._truth(what, samples, len(known)) for what in self.shown}
        (sent,) = uploaded([{**batch, "labels": torch.tensor(known), **truths}], self.device)
        images = normalized(sent["image"], self.method.input_spec, self.device)
        labels = sent["labels"][:, None]
        if self.needs_gradients:
            differentiable: Any = self.method  # checked in __init__
            with torch.enable_grad():
                result = differentiable.localize(images, gradients=True)
                score_maps = self._maps(result, labels)
        else:
            result = self.method.localize(images, **{name: sent[name] for name in truths})
            score_maps = self._maps(result, labels)
        found = {"maps": score_maps[: len(samples)].detach().float()}
        # Scores (n, C), unless the method has none or the protocol takes another network's labels.
        with torch.no_grad():
            scores = result.logits
            if scores is not None and self.protocol.classifier == "ten_crop":
                scores = self._ten_crop_scores(sent["crops"])
            if scores is not None and self.protocol.classifier != "external":
                found["scores"] = scores[: len(samples)].float()
        found |= self._proposals(samples, result)
        download = Download(found)

        def finish() -> SourceOutput:
            arrays = download.read()
            return SourceOutput(
                maps=list(arrays["maps"]),
                ranked=_rank(arrays.get("scores", np.zeros((len(samples), 0)))),
                proposed=self._parts(arrays),
            )

        return finish

    def _maps(self, result: Localization, labels: torch.Tensor) -> torch.Tensor:
        if self.map_name is not None:
            if self.map_name not in result.extra_maps:
                raise unknown_name(
                    f"map of {self.method.method_name}", self.map_name, ["class", *result.extra_maps]
                )
            return result.extra_maps[self.map_name]
        maps = result.score_maps(labels) if self.post is None else self.post.maps(result, labels)
        return maps[:, 0]

    def _truth(self, what: str, samples: Sequence[Sample], count: int) -> torch.Tensor:
        """Return the ground truth of each image in the frame of the input, repeated as the images are.

        Boxes: (count, 4), the first one of each image, or the whole image if it has none. Masks: (count, S,
        S) of 0 and 1. Raises `DataError` for an image without a mask.
        """
        import torch

        of = {"boxes": true_box, "masks": true_mask}[what]
        found = [of(sample, self.method.input_spec.size, self.protocol) for sample in samples]
        found += found[-1:] * (count - len(found))
        return torch.from_numpy(np.stack(found)).float()

    def _proposals(self, samples: Sequence[Sample], result: Localization) -> dict[str, torch.Tensor]:
        """Return the proposals that are compared with key points, (n, PARTS, 4) boxes and flags, if any."""
        if result.propose is None or all(sample.key_points is None for sample in samples):
            return {}
        proposed = result.propose()
        found = {"boxes": proposed.boxes, "padded": proposed.padded}
        some = {name: tensor for name, tensor in found.items() if tensor is not None}
        return {name: tensor[: len(samples), :PARTS].detach() for name, tensor in some.items()}

    def _parts(self, arrays: Mapping[str, np.ndarray]) -> Sequence[ProposedParts] | None:
        if "boxes" not in arrays:
            return None
        boxes = arrays["boxes"].astype(np.float64)
        padded = arrays.get("padded", np.zeros(boxes.shape[:2], dtype=np.bool_))
        return [
            ProposedParts(boxes=image, padded=flags, side=self.method.input_spec.size)
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
        """Return name and description of the method and of the post-process, and unusual number formats."""
        method = self.method.describe()
        formats = {name: value for name, value in self.numerics.identity.items() if value != "off"}
        if formats:
            method["numerics"] = formats
        if self.shown:
            method["supervision"] = f"ground-truth {' and '.join(self.shown)} of the evaluated images"
        if self.map_name is not None:
            return {**method, "name": f"{self.method.method_name}:{self.map_name}", "map": self.map_name}
        if self.post is None:
            return {**method, "name": self.method.method_name}
        return {
            **method,
            "name": f"{self.method.method_name}+{self.post.method_name}",
            "post": self.post.describe(),
        }

    def identity(self, ids: Sequence[str]) -> None:
        """Return None: the description has the digest of the weights."""

    def provenance(self) -> dict[str, Any]:
        """Return device, threads, numerics and the packages whose versions matter to a network."""
        import torch

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return {
            "device": name,
            "packages": ("torch", "torchvision", "timm"),
            "threads": torch.get_num_threads(),
            "numerics": self.numerics.describe(self.device),
        }


def _rank(scores: np.ndarray) -> Int64[np.ndarray, "n k"]:
    """Return the predicted labels, best first. Of equal scores the lower class index comes first."""
    import torch

    return torch.from_numpy(scores).argsort(dim=1, descending=True, stable=True)[:, :RANKS].numpy()


FILLED = 256
"""Batches of at most this size keep it, whatever the number of images."""


def fitting_batch(batch_size: int, *splits: Sized | None) -> int:
    """Return the batch size for these splits: as requested, or, above `FILLED`, at most the largest split.

    Every batch of a run has this size (see `ModelSource.collate`), so it depends only on the run.

    >>> fitting_batch(32, [1, 2, 3]), fitting_batch(100_000, [1, 2, 3]), fitting_batch(1000, range(700), None)
    (32, 256, 700)
    """
    return min(batch_size, max([FILLED, *(len(split) for split in splits if split is not None)]))
