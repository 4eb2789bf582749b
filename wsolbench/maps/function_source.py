"""`FunctionSource`: a Python function as a source of maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsolbench.exceptions import DataError
from wsolbench.maps.sources import RANKS, SourceOutput
from wsolbench.methods.inputs import to_view
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Sample, ScoreMap

if TYPE_CHECKING:
    import PIL.Image

    MapFunction = Callable[[PIL.Image.Image, int], Any]


class FunctionSource:
    """Maps that a function returns, one image at a time. It needs no torch.

    `function(image, label)` gets a Pillow image in RGB and the true class index. It returns the raw map of
    this class: a two-dimensional array or tensor of any size and range. Axes of length 1 in front of them,
    such as those of a batch of one image and of one channel, are dropped. It may also return a pair of the
    map and the class scores (C,) or (1, C), for the metrics that need predicted labels.

    The image has its stored size. Under a protocol with a centre crop, it is the crop, and the map covers the
    crop.
    """

    def __init__(
        self, function: MapFunction, protocol: EvalProtocol, *, num_classes: int, name: str | None = None
    ) -> None:
        self.function, self.protocol, self.num_classes = function, protocol, num_classes
        given = getattr(function, "__name__", type(function).__name__)
        self.name = name or ("function" if given == "<lambda>" else given)

    def load(self, sample: Sample) -> PIL.Image.Image:
        """Return the part of the image that the protocol evaluates."""
        picture = sample.picture()
        if self.protocol.network_frame == "squash":
            return picture
        from PIL import Image

        side = self.protocol.frame_size
        crop = to_view(picture, side, frame="center_crop", resize_size=self.protocol.resize_size)
        return Image.fromarray(crop)

    def collate(self, loaded: Sequence[PIL.Image.Image]) -> Sequence[PIL.Image.Image]:
        """Return the images unchanged."""
        return loaded

    def maps(self, samples: Sequence[Sample], batch: Sequence[PIL.Image.Image]) -> SourceOutput:
        """Call the function for each image.

        Raises `DataError` for a result that is no map, and for scores that are not one per class.
        """
        maps, ranked = [], []
        for sample, image in zip(samples, batch, strict=True):
            result = self.function(image, sample.label)
            raw_map, scores = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
            maps.append(self._map(raw_map, sample))
            if scores is not None:
                ranked.append(self._rank(_drop_axes(_as_array(scores), 1), sample))
        if ranked and len(ranked) < len(maps):
            raise DataError(
                f"{self.name} returns class scores for {len(ranked)} of {len(maps)} images, from "
                f"{samples[0].id!r} on; expected scores for every image, or for none"
            )
        depth = min(RANKS, self.num_classes) if ranked else 0
        return SourceOutput(maps=maps, ranked=np.array(ranked, dtype=np.int64).reshape(len(maps), depth))

    def _map(self, values: Any, sample: Sample) -> ScoreMap:
        """Return the map as floats. Halves and whole numbers become float32. Scoring checks the values."""
        array = _drop_axes(_as_array(values), 2)
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiub":
            found = (
                f"an array of shape {array.shape} and type {array.dtype}" if array.ndim else repr(values)[:60]
            )
            raise DataError(
                f"{self.name} returns {found} for {sample.id!r}; expected one map, a two-dimensional array "
                "or tensor (height, width) of numbers, or a pair of map and class scores"
            )
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)

    def _rank(self, scores: np.ndarray, sample: Sample) -> np.ndarray:
        """Return the best labels. Of equal scores the lower class index comes first."""
        if scores.shape != (self.num_classes,) or not np.isfinite(scores).all():
            raise DataError(
                f"{self.name} returns scores of shape {scores.shape} for {sample.id!r}; expected "
                f"{self.num_classes} finite numbers, one per class of the data set"
            )
        return np.argsort(-scores.astype(np.float64), kind="stable")[:RANKS]

    def describe(self) -> dict[str, Any]:
        """Return the name of the function."""
        return {"name": self.name, "maps": "computed by a Python function"}

    def identity(self, ids: Sequence[str]) -> None:
        """Return None: a function has no digest, so its runs are not resumed."""

    def provenance(self) -> dict[str, Any]:
        """Return the device. A function does not state it."""
        return {"device": "unknown"}


def _as_array(values: Any) -> np.ndarray:
    """Return an array, also of a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values)


def _drop_axes(array: np.ndarray, kept: int) -> np.ndarray:
    """Drop axes of length 1 at the front until `kept` axes are left."""
    while array.ndim > kept and array.shape[0] == 1:
        array = array[0]
    return array
