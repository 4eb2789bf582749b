"""Sources of maps: what an evaluation asks of them, and `ModelSource`, a trained method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from wsolbench.exceptions import DataError, UsageError, unknown_name
from wsolbench.maps.truths import true_box, true_mask
from wsolbench.methods import Localization, Method, Numerics, PostProcessor, Supervision
from wsolbench.methods.device import normalized, pick_device, place
from wsolbench.methods.inputs import ViewLoader
from wsolbench.methods.numerics import COMPILE, with_numerics
from wsolbench.methods.transfers import Download, uploaded
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Sample, ScoreMap

if TYPE_CHECKING:
    import torch

    Measure = Callable[
        [Callable[[torch.Tensor], torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
    ]

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
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Numbers (b, c) of the extra metrics that the source itself measures (`ModelSource.measures`)."""


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
        self.measures: Mapping[str, Measure] = {}
        """Functions that measure a batch with the network, by the name of the extra metric."""
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
        (output,) = self.start(samples, batch, [self])()
        return output

    @property
    def pass_key(self) -> Any:
        """Return what the forward pass depends on. One pass gives the outputs of all sources with one key."""
        return (
            id(self.method),
            self.protocol.network_view,
            self.batch_size,
            self.device,
            self.numerics,
            self.needs_gradients,
        )

    @with_numerics
    def start(
        self, samples: Sequence[Sample], batch: Mapping[str, torch.Tensor], sources: Sequence[ModelSource]
    ) -> Callable[[], list[SourceOutput]]:
        """Start what `maps` does, for several sources with the `pass_key` of this one.

        Returns a function that waits for their outputs, in any thread.
        """
        import torch

        # Images (B, 3, S, S), and labels (B, 1), repeated as the images are. A second stream copies them.
        known = [sample.label for sample in samples]
        known += known[-1:] * (len(batch["image"]) - len(samples))
        truths = {f"true_{what}": self._truth(what, samples, len(known)) for what in self.shown}
        (sent,) = uploaded([{**batch, "labels": torch.tensor(known), **truths}], self.device)
        images = normalized(sent["image"], self.method.input_spec, self.device)
        labels = sent["labels"][:, None]
        # One pass, and the maps (n, h, w) of each source.
        differentiable: Any = self.method  # checked in __init__
        with torch.enable_grad() if self.needs_gradients else nullcontext():
            result = (
                differentiable.localize(images, gradients=True)
                if self.needs_gradients
                else self.method.localize(images, **{name: sent[name] for name in truths})
            )
            maps = [source._maps(result, labels).detach() for source in sources]
        # Scores (n, C), unless the method has none or the protocol takes another network's labels.
        shared: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            scores = self._scores(result, sent)
            if scores is not None and self.protocol.classifier != "external":
                shared["scores"] = scores[: len(samples)].float()
        shared |= self._proposals(samples, result)
        # Maps, and the numbers of extra metrics, by the place of their source.
        own = {f"maps {place}": each[: len(samples)].float() for place, each in enumerate(maps)}
        if result.logits is not None:
            for place, (source, each) in enumerate(zip(sources, maps, strict=True)):
                measured = source._measured(images, each, sent["labels"], len(samples))
                own |= {f"{name} {place}": numbers for name, numbers in measured.items()}
        download = Download({**shared, **own})

        def finish() -> list[SourceOutput]:
            arrays = download.read()
            ranked = _rank(arrays.get("scores", np.zeros((len(samples), 0))))
            proposed = self._parts(arrays)
            return [
                SourceOutput(
                    maps=list(arrays[f"maps {place}"]),
                    ranked=ranked,
                    proposed=proposed,
                    extra={
                        name: arrays[f"extra {name} {place}"]
                        for name in source.measures
                        if f"extra {name} {place}" in arrays
                    },
                )
                for place, source in enumerate(sources)
            ]

        return finish

    @with_numerics
    def predict(
        self, batch: dict[str, torch.Tensor], count: int
    ) -> tuple[list[ScoreMap], Float32[np.ndarray, "n c"] | None]:
        """Return the maps of the most probable classes of the first `count` images, and all probabilities.

        No ground truth is read. The probabilities are None, and the maps those of class 0, for a method that
        does not classify. The method itself classifies if the protocol takes another network's labels.
        """
        import torch

        (sent,) = uploaded([batch], self.device)
        images = normalized(sent["image"], self.method.input_spec, self.device)
        differentiable: Any = self.method  # checked in __init__
        with torch.enable_grad() if self.needs_gradients else nullcontext():
            result = (
                differentiable.localize(images, gradients=True)
                if self.needs_gradients
                else self.method.localize(images)
            )
            # Scores (B, C), and the best class of each image (B, 1).
            with torch.no_grad():
                scores = self._scores(result, sent)
                if scores is not None and self.protocol.classifier != "ten_crop":
                    scores = scores.float().softmax(dim=1)
                best = images.new_zeros((len(images), 1), dtype=torch.long)
                if scores is not None:
                    best = scores.argsort(dim=1, descending=True, stable=True)[:, :1]
            maps = self._maps(result, best)[:count].detach().float().cpu().numpy()
        return list(maps), None if scores is None else scores[:count].float().cpu().numpy()

    def _scores(self, result: Localization, sent: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return the logits (B, C), or the mean softmax of ten crops, or None without a classifier."""
        if result.logits is not None and self.protocol.classifier == "ten_crop":
            return self._ten_crop_scores(sent["crops"])
        return result.logits

    @staticmethod
    def _logits(method: Method, images: torch.Tensor) -> torch.Tensor:
        logits = method.localize(images).logits
        assert logits is not None
        return logits

    def _measured(
        self, images: torch.Tensor, maps: torch.Tensor, labels: torch.Tensor, count: int
    ) -> dict[str, torch.Tensor]:
        """Return the numbers of `measures` for the first `count` images, (count, c) each."""
        import torch

        with torch.no_grad():
            return {
                f"extra {name}": measure(partial(self._logits, self.method), images, maps, labels)[:count]
                for name, measure in self.measures.items()
            }

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
            method["supervision"] = Supervision.of_prediction(self.shown).to_json()
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
