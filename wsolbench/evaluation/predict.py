"""Predict labels, maps and boxes of images that have no annotations.

A localizer answers three questions about a new image: which class it shows, where the evidence is, and which
box surrounds it. The box needs a threshold `tau`. Without annotations it cannot be tuned, so it comes from
the user, or from a record of the same model: the threshold of GT-known that was chosen on the split `val`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from jaxtyping import Float, Float64

from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import image_boxes, to_frame
from wsolbench.maps.sources import RANKS, ModelSource
from wsolbench.methods import Method, Numerics, PostProcessor
from wsolbench.methods.checkpoints import load_checkpoint
from wsolbench.metrics.sweep import boxes_at, single_box_per_tau
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, find_records, precedence, read_record
from wsolbench.system.json_values import tuples_to_lists
from wsolbench.types import Sample, ScoreMap

if TYPE_CHECKING:
    import PIL.Image

RESULTS = Path("results/measured")
"""Folder to which `wsolbench eval` writes records by default."""

Image = Union[str, Path, "PIL.Image.Image", np.ndarray]
"""An image: a file, a Pillow image, or uint8 pixels (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class PredictedLabel:
    """A class with its probability.

    `name` is empty if the method does not know the names of its classes.
    """

    index: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Everything that a method predicts for one image."""

    index: int
    """Position in the images that were passed, from 0."""
    path: Path | None
    """File of the image, or None if it was passed as pixels."""
    size: tuple[int, int]
    """(width, height) of the image."""
    labels: tuple[PredictedLabel, ...]
    """The five most probable classes, best first. Empty for a method that does not classify."""
    map: ScoreMap
    """Raw map (h, w) of the most probable class, of the size and range that the method gives."""
    boxes: Float64[np.ndarray, "m 4"]
    """Boxes of all regions above `tau` that the protocol's `components` selects, xyxy in pixels of the image.

    The largest box comes first.
    """
    box: Float64[np.ndarray, "4"]
    """The one box of the protocol's `single_box`, xyxy in pixels of the image."""
    tau: float
    protocol: EvalProtocol

    def unit_map(self) -> Float[np.ndarray, "fh fw"]:
        """Return the map in the evaluation frame, in [0, 1]."""
        return to_frame(self.map, self.size, self.protocol, what=f"map of image {self.index}")


def predict(
    method: Method | str | Path,
    images: Iterable[Image],
    *,
    tau: float | None = None,
    protocol: EvalProtocol | str = "wsoleval",
    batch_size: int = 8,
    device: str = "auto",
    workers: int = 2,
    post: PostProcessor | None = None,
    numerics: Numerics = Numerics(),  # noqa: B008 - immutable
    record: RunRecord | str | Path = RESULTS,
    on_error: Callable[[DataError], object] | None = None,
) -> Iterator[Prediction]:
    """Predict labels, map and boxes of each image, in order. Images are read batch by batch.

    Pixels are read as stored: the EXIF orientation is not applied, and boxes refer to stored pixels.

    Args:
        method: a trained method, or the path of its checkpoint.
        images: files, Pillow images, or uint8 arrays (H, W, 3).
        tau: threshold of the boxes, in [0, 1), or None for the transferred threshold of the model's record.
        protocol: how a map becomes boxes, or the name of a preset. With a centre crop, only the centre of
            the image is seen.
        batch_size: number of images per forward pass. Fewer images make one smaller batch.
        device: `auto`, `cpu` or `cuda:N`.
        workers: number of threads that read images.
        post: post-process of the maps, or None.
        numerics: number formats and kernels.
        record: a record of this model, its file, or a folder in which it is searched. Only used if `tau` is
            None.
        on_error: called with the reason if an image cannot be read, which is then left out. None: the error
            is raised.

    Raises `UsageError` for a method that reads the ground truth, for an invalid threshold, and if `tau` is
    None and no record of the model has a transferred threshold. Raises `DataError` for a broken checkpoint
    and, when it is reached, for an image that cannot be read.
    """
    conventions = EvalProtocol.preset(protocol) if isinstance(protocol, str) else protocol
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}; expected at least 1")
    if tau is not None and not 0 <= tau < 1:
        raise UsageError(f"threshold tau={tau}; expected a number in [0, 1)")
    model = load_checkpoint(Path(method), device=device) if isinstance(method, str | Path) else method
    source = ModelSource(
        model,
        conventions,
        num_classes=model.num_classes,
        device=device,
        batch_size=batch_size,
        post=post,
        numerics=numerics,
    )
    if source.shown:
        raise UsageError(
            f"method {model.method_name!r} reads the ground-truth {' and '.join(source.shown)} of an image, "
            "and new images have none; expected another method"
        )
    threshold = transferred_tau(source.describe(), conventions, record) if tau is None else float(tau)
    return _predictions(source, images, threshold, batch_size, workers, on_error)


def transferred_tau(
    method: dict[str, Any], protocol: EvalProtocol, record: RunRecord | str | Path = RESULTS
) -> float:
    """Return the threshold of GT-known that a record of this method transferred from its `val` split.

    `method` is `ModelSource.describe()`. `record` is a record, its file, or a folder. Of several records, the
    one of the most images counts, and then the one of the newest version. Raises `UsageError` if there is
    none.
    """
    if isinstance(record, RunRecord):
        records, where = [record], "the record"
    elif (path := Path(record)).is_dir() or not path.exists():
        records, where = [found for _, found in find_records(path).records], f"{path}"
    else:
        records, where = [read_record(path)], f"record {path}"
    wanted = _without_formats(method)
    own = [found for found in records if _without_formats(found.method) == wanted]
    way_out = (
        "Give the threshold (tau, --tau), or evaluate the model first on a data set with a split `val`: "
        "`wsolbench eval --checkpoint`"
    )
    if not own:
        raise UsageError(
            f"no threshold for method {method['name']!r}: {where} has no record of this model. {way_out}"
        )
    thresholds = [
        (found.dataset.get("images") or 0, precedence(found), metric.tau[0])
        for found in own
        if found.protocol == protocol
        and (metric := found.metric("gt_known", "transfer")) is not None
        and metric.tau
    ]
    if not thresholds:
        raise UsageError(
            f"no threshold for method {method['name']!r}: {len(own)} records of this model in {where} have "
            f"no transferred threshold under protocol {protocol.name!r}. {way_out}"
        )
    return float(max(thresholds)[-1])


def _without_formats(method: dict[str, Any]) -> Any:
    """Return the description of a method without the number formats of the evaluation."""
    return tuples_to_lists({name: value for name, value in method.items() if name != "numerics"})


def _predictions(
    source: ModelSource,
    images: Iterable[Image],
    tau: float,
    batch_size: int,
    workers: int,
    on_error: Callable[[DataError], object] | None,
) -> Iterator[Prediction]:
    """Yield the prediction of each image. The next batch is read while one is predicted."""
    samples = (_sample(index, image) for index, image in enumerate(images))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting = _load(source, samples, batch_size, pool)
        # A few images do not fill a batch.
        source.batch_size = min(batch_size, max(1, len(waiting)))
        while waiting:
            batch = []
            for sample, future in waiting:
                try:
                    batch.append((sample, future.result()))
                except DataError as error:
                    if on_error is None:
                        raise
                    on_error(error)
            waiting = _load(source, samples, batch_size, pool)
            if not batch:
                continue
            collated = source.collate([loaded for _, loaded in batch])
            maps, probabilities = source.predict(collated, len(batch))
            for place, (sample, _) in enumerate(batch):
                shares = None if probabilities is None else probabilities[place]
                yield _prediction(source, sample, maps[place], shares, tau)


def _load(
    source: ModelSource, samples: Iterator[tuple[int, Sample]], count: int, pool: ThreadPoolExecutor
) -> list[tuple[tuple[int, Sample], Any]]:
    """Start to load the next `count` images."""
    return [
        ((index, sample), pool.submit(source.load, sample))
        for index, sample in itertools.islice(samples, count)
    ]


def _sample(index: int, image: Image) -> tuple[int, Sample]:
    """Return an image as an unlabelled sample. Raises `DataError` for what is not an image."""
    if isinstance(image, str | Path):
        return index, Sample(id=str(image), label=0, path=Path(image))
    if not isinstance(image, np.ndarray):
        if not hasattr(image, "convert"):
            raise DataError(
                f"image {index} is {type(image).__name__}; expected a path, a Pillow image, or uint8 pixels "
                "(H, W, 3)"
            )
        image = np.asarray(image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            f"image {index} has shape {image.shape} and dtype {image.dtype}; expected uint8 (H, W, 3), RGB"
        )
    return index, Sample(id=f"image {index}", label=0, array=image)


def _prediction(
    source: ModelSource,
    numbered: tuple[int, Sample],
    raw_map: ScoreMap,
    probabilities: Float[np.ndarray, " c"] | None,
    tau: float,
) -> Prediction:
    """Rank the classes and cut the map at `tau`."""
    index, sample = numbered
    protocol = source.protocol
    unit_map = to_frame(raw_map, sample.size, protocol, what=f"map of {sample.id!r}")
    boxes = image_boxes(boxes_at(unit_map, tau, protocol), sample.size, protocol)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    single = single_box_per_tau(unit_map, replace(protocol, taus=(tau,)))
    return Prediction(
        index=index,
        path=sample.path,
        size=sample.size,
        labels=() if probabilities is None else _labels(probabilities, source.method.class_names),
        map=raw_map,
        boxes=boxes[np.argsort(-areas, kind="stable")],
        box=image_boxes(single, sample.size, protocol)[0],
        tau=tau,
        protocol=protocol,
    )


def _labels(probabilities: Float[np.ndarray, " c"], class_names: Sequence[str]) -> tuple[PredictedLabel, ...]:
    """Return the most probable classes, best first. Of equal ones the lower index comes first."""
    best = np.argsort(-probabilities, kind="stable")[:RANKS].tolist()
    return tuple(
        PredictedLabel(
            index=index,
            name=class_names[index] if index < len(class_names) else "",
            probability=float(probabilities[index]),
        )
        for index in best
    )
