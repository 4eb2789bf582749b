"""The one loop: images -> maps -> per-image scores -> metrics -> record.

`evaluate(dataset, source, protocol)` asks a `MapSource` (a model, or a folder of stored maps) for the map of each
image's true class, scores it, and gives a record. With a work folder every scored chunk is kept until the end, so that
a run that is killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64

from wsolbench.exceptions import DataError, UsageError
from wsolbench.files import make_folder, sha256_of_json
from wsolbench.maps import MapFolder
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.progress import track
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, provenance
from wsolbench.scores import ImageScores, score_image
from wsolbench.summary import summarize
from wsolbench.types import Dataset, Sample, ScoreMap

RANKS = 5
"""Predicted labels kept of each image."""


@dataclass(frozen=True)
class SourceOutput:
    """What a source says about a batch: one raw map of the true class for each image, and predicted labels, best first."""

    maps: Sequence[ScoreMap]
    ranked: Int64[np.ndarray, "b k"]


class MapSource(Protocol):
    """Where maps come from."""

    def load(self, sample: Sample) -> Any:
        """What is needed of one image (pixels, or a stored map); called in worker threads."""

    def maps(self, samples: Sequence[Sample], loaded: Sequence[Any]) -> SourceOutput:
        """Maps and predicted labels of a batch; called in the main thread."""

    def describe(self) -> dict[str, Any]:
        """The `method` part of the record."""

    def provenance(self) -> dict[str, Any]:
        """`device` and `packages` for the record."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The record of a run, and the per-image scores that it was derived from."""

    record: RunRecord
    scores: ImageScores
    dataset: Dataset
    """The images that were scored: the split, or the part of it that `limit` left."""
    work: tuple[Path, ...] = ()
    """Folders with the chunks of this run."""

    def finish(self) -> None:
        """Remove the chunks: call it when the record is on disk."""
        for folder in self.work:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; none of it changes a metric, but for the batch size in a network's last bits."""

    batch_size: int = 32
    workers: int = 2
    work: Path | None = None
    """Folder for scored chunks; None: a killed run starts again."""
    save_maps: MapFolder | None = None
    resamples: int = 1000


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """`limit` images spread evenly over the split (so over its classes), in order; all of them when `limit` is None.

    Raises `UsageError` unless 1 <= limit.
    """
    if limit is None or limit >= len(dataset):
        return dataset
    if limit < 1:
        raise UsageError(f"--limit {limit}; expected at least 1")
    chosen = np.linspace(0, len(dataset) - 1, limit).round().astype(int)
    return replace(dataset, samples=tuple(dataset.samples[index] for index in chosen))


def evaluate(
    dataset: Dataset,
    source: MapSource,
    protocol: EvalProtocol,
    *,
    limit: int | None = None,
    fixed_tau: float | None = None,
    transfer_from: Dataset | None = None,
    options: RunOptions | None = None,
) -> Evaluation:
    """Score every image of `dataset` and summarise.

    Args:
        dataset: the split; images without boxes or mask count only where neither is needed.
        source: the model or the folder of maps.
        protocol: how maps become boxes and are counted.
        limit: score that many images, evenly spread.
        fixed_tau: threshold of the policy `fixed`; default `protocol.fixed_tau`.
        transfer_from: split whose best thresholds the policy `transfer` applies.
        options: batch size, workers, work folder.

    Raises `DataError` for images, masks or maps that cannot be read, and `UsageError` when another process works in the
    same work folder on the same run.
    """
    options = options or RunOptions()
    if fixed_tau is not None:  # a threshold off the grid is refused before the work, not after
        ThresholdPolicy.fixed(fixed_tau).pick(np.zeros((1, len(protocol.taus))), np.array(protocol.taus))
    seconds: dict[str, float] = defaultdict(float)
    scored = limited(dataset, limit)
    if not len(scored):
        raise DataError(f"data set {dataset.name!r} has no image in split {dataset.split!r}")
    work: list[Path] = []
    scores = _score_split(scored, source, protocol, options, seconds, work)
    other = None
    if transfer_from is not None and transfer_from.has_boxes:
        other = _score_split(limited(transfer_from, limit), source, protocol, options, seconds, work)
    with _timed(seconds, "metrics"):
        metrics = summarize(scores, protocol, fixed_tau=fixed_tau, transfer_from=other, resamples=options.resamples)
    record = RunRecord(
        method=source.describe(),
        dataset={
            "name": dataset.name,
            "split": dataset.split,
            "fingerprint": dataset.fingerprint,
            "images": len(scored),
            "limit": limit,
            "transfer_from": None
            if transfer_from is None or other is None
            else {"split": transfer_from.split, "fingerprint": transfer_from.fingerprint},
        },
        protocol=protocol,
        metrics=metrics,
        provenance=provenance(seconds=dict(seconds), **source.provenance()),
    )
    if options.save_maps is not None:
        _describe_maps(options.save_maps, record, [part for part in (scores, other) if part is not None])
    return Evaluation(record=record, scores=scores, dataset=scored, work=tuple(work))


def _describe_maps(folder: MapFolder, record: RunRecord, parts: Sequence[ImageScores]) -> None:
    splits = [record.dataset, *([record.dataset["transfer_from"]] if record.dataset["transfer_from"] else [])]
    folder.write_manifest(
        {
            "method": record.method,
            "dataset": record.dataset["name"],
            "fingerprints": {split["split"]: split["fingerprint"] for split in splits},
            "view": view(record.protocol),
            "values": "raw, float32",
        }
    )
    if all(part.ranked.shape[1] for part in parts):
        ids = [image_id for part in parts for image_id in part.ids.tolist()]
        folder.write_predictions(dict(zip(ids, np.concatenate([part.ranked for part in parts]).tolist(), strict=True)))


def view(protocol: EvalProtocol) -> str:
    """What a map of this protocol covers: the whole image, or its central crop."""
    return "center_crop" if protocol.frame == "center_crop" else "image"


def _score_split(
    dataset: Dataset, source: MapSource, protocol: EvalProtocol, options: RunOptions, seconds: dict[str, float], work: list[Path]
) -> ImageScores:
    """Scores of a split, chunk by chunk: while the source works on one, the next is loaded and the last is scored."""
    chunks = [range(start, min(start + options.batch_size, len(dataset))) for start in range(0, len(dataset), options.batch_size)]
    with _chunk_store(dataset, source, protocol, options) as store, ThreadPoolExecutor(max(1, options.workers)) as pool:
        if store is not None:
            work.append(store)
        todo = [number for number in range(len(chunks)) if not (store and (store / f"{number:06d}.npz").exists())]
        loading: dict[int, list[Future[Any]]] = {}
        scoring: dict[int, list[Future[ImageScores]]] = {}
        done: dict[int, ImageScores] = {}
        with track(
            total=len(dataset),
            description=f"{dataset.name} {dataset.split}",
            done=sum(len(c) for n, c in enumerate(chunks) if n not in set(todo)),
        ) as bar:
            for step, number in enumerate(todo):
                for ahead in todo[step : step + 2]:
                    if ahead not in loading:
                        loading[ahead] = [pool.submit(source.load, dataset[index]) for index in chunks[ahead]]
                samples = [dataset[index] for index in chunks[number]]
                with _timed(seconds, "load"):
                    loaded = [future.result() for future in loading.pop(number)]
                with _timed(seconds, "model"):
                    output = source.maps(samples, loaded)
                with _timed(seconds, "score"):
                    scoring[number] = [
                        pool.submit(partial(_score_one, options.save_maps), sample, raw_map, ranked, protocol)
                        for sample, raw_map, ranked in zip(samples, output.maps, output.ranked, strict=True)
                    ]
                    for earlier in list(scoring) if step + 1 == len(todo) else list(scoring)[:-1]:
                        done[earlier] = _keep(store, earlier, scoring.pop(earlier))
                        bar.advance(len(chunks[earlier]))
        return ImageScores.concatenate([done[n] if n in done else ImageScores.read(_path(store, n)) for n in range(len(chunks))])


def _score_one(
    save_maps: MapFolder | None, sample: Sample, raw_map: ScoreMap, ranked: Int64[np.ndarray, " k"], protocol: EvalProtocol
) -> ImageScores:
    if save_maps is not None:
        save_maps.write(sample.id, raw_map)
    return score_image(sample, raw_map, ranked.tolist(), protocol)


def _keep(store: Path | None, number: int, futures: list[Future[ImageScores]]) -> ImageScores:
    scores = ImageScores.concatenate([future.result() for future in futures])
    if store is not None:
        scores.write(_path(store, number))
    return scores


def _path(store: Path | None, number: int) -> Path:
    assert store is not None
    return store / f"{number:06d}.npz"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start


@contextlib.contextmanager
def _chunk_store(dataset: Dataset, source: MapSource, protocol: EvalProtocol, options: RunOptions) -> Iterator[Path | None]:
    """The folder for this run's chunks, named by all that the scores depend on, and locked while it is in use."""
    if options.work is None:
        yield None
        return
    import fcntl

    facts = {
        "method": source.describe(),
        "dataset": [dataset.name, dataset.split, dataset.fingerprint, list(dataset.ids)],
        "protocol": protocol.to_json(),
        "batch_size": options.batch_size,
        "maps": None if options.save_maps is None else str(options.save_maps.root),
    }
    store = make_folder(options.work / sha256_of_json(facts)[:16])
    with (store / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process is evaluating the same run (it holds {store / 'lock'}); wait for it, or choose another --out"
            ) from error
        yield store
