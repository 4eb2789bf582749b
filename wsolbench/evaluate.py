"""The one loop: images -> maps -> per-image scores -> metrics -> record.

`evaluate(dataset, source, protocol)` asks a `MapSource` (a model, or a folder of stored maps) for the map of each
image's true class, scores it, and gives a record. It is two steps, which shards and several processes take apart:
`score` leaves per-image scores in chunks, `conclude` makes the record of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Int64

from wsolbench.checks import check_unit
from wsolbench.datasets.coco import InstanceDataset
from wsolbench.distributed import World, barrier, gathered
from wsolbench.exceptions import DataError, UsageError
from wsolbench.files import remove_leftovers
from wsolbench.maps import MapFolder
from wsolbench.metrics.thresholds import check_fixed_tau
from wsolbench.progress import Progress, track
from wsolbench.protocol import EvalProtocol
from wsolbench.records import SHARDS, RunRecord, provenance
from wsolbench.runs import RunFolder, RunPlan, ScoredRun, Shard, gather
from wsolbench.saved_maps import finish_saved_maps, saving_maps
from wsolbench.score_table import ScoreTable
from wsolbench.scores import ImageScores, ProposedParts, score_image
from wsolbench.summary import summarize
from wsolbench.types import Dataset, Sample, ScoreMap

D = TypeVar("D", Dataset, InstanceDataset)

RANKS = 5
"""Predicted labels kept of each image."""


@dataclass(frozen=True)
class SourceOutput:
    """What a source says about a batch: one raw map of the true class for each image, and predicted labels, best first."""

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
        """What tells the maps of these images from those of another source with the same description; None: the description does."""

    def provenance(self) -> dict[str, Any]:
        """`device` and `packages` for the record."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The record of a run, and the per-image scores that it was derived from."""

    record: RunRecord
    scores: ScoreTable
    folders: tuple[RunFolder, ...] = ()
    """Where the chunks of this run are."""

    def finish(self) -> None:
        """Remove the chunks: call it when the record is on disk and the scores are no longer needed."""
        for folder in self.folders:
            folder.remove()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is carried out; none of it changes a metric, but for the batch size in a network's last bits."""

    batch_size: int = 32
    workers: int = 2
    """Threads that load and score images."""
    work: Path | None = None
    """Folder for scored chunks; None: they stay in memory, and a killed run starts again."""
    save_maps: MapFolder | None = None
    resamples: int = 1000


def limited(dataset: D, limit: int | None) -> D:
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
    return conclude(score(dataset, source, protocol, limit=limit, fixed_tau=fixed_tau, transfer_from=transfer_from, options=options))


def score(
    dataset: Dataset,
    source: MapSource,
    protocol: EvalProtocol,
    *,
    limit: int | None = None,
    fixed_tau: float | None = None,
    transfer_from: Dataset | None = None,
    options: RunOptions | None = None,
    facts: dict[str, Any] | None = None,
    world: World | None = None,
) -> ScoredRun:
    """The first step of `evaluate`: score every image.

    `facts` enter the record's `dataset`. With a `world` of several processes each scores its share into the work folder, which
    all must see, and the result, for every process, is the whole run. Raises as `evaluate`.
    """
    options, world = options or RunOptions(), world or World()
    plan, splits = _plan(dataset, source, protocol, limit, fixed_tau, transfer_from, options, facts or {})
    if options.work is None:
        if world.size > 1:
            raise UsageError("several processes need a work folder that all of them see, for their scores")
        with saving_maps(options.save_maps, plan, splits) as maps:
            return _score_in_memory(plan, splits, source, replace(options, save_maps=maps))
    if len(set(gathered(plan.digest))) > 1:
        raise UsageError(
            f"the {world.size} processes would score differently: they need the same program, data, kind of device and threads"
        )
    folder = RunFolder(options.work / plan.digest[:16], plan)
    folder.refuse_mixing(options.work.glob("*/"))
    with saving_maps(options.save_maps, plan, splits) as maps:
        seconds = _score_shard(folder, Shard(world.rank + 1, world.size), splits, source, replace(options, save_maps=maps))
    barrier()
    run = gather([folder])
    barrier()  # before the first process removes what the others look for
    run.provenance.update(provenance(seconds=seconds, **source.provenance()))
    if world.size > 1:
        run.provenance["processes"] = world.size
    return run


def score_shard(
    dataset: Dataset,
    source: MapSource,
    protocol: EvalProtocol,
    shard: Shard,
    folder: Path,
    *,
    limit: int | None = None,
    fixed_tau: float | None = None,
    transfer_from: Dataset | None = None,
    options: RunOptions | None = None,
    facts: dict[str, Any] | None = None,
) -> RunFolder:
    """Score one shard's images; `wsolbench.runs.merge` puts the shards of a run together.

    The result is the folder of the run below `folder`; other shards may write there, too. Raises as `evaluate`.
    """
    options = options or RunOptions()
    plan, splits = _plan(dataset, source, protocol, limit, fixed_tau, transfer_from, options, facts or {})
    run = RunFolder(folder / f"{plan.title}_{plan.digest[:8]}{SHARDS}", plan)
    run.refuse_mixing(folder.glob(f"*{SHARDS}/"))
    with saving_maps(options.save_maps, plan, splits) as maps:
        seconds = _score_shard(run, shard, splits, source, replace(options, save_maps=maps))
    run.describe(shard, provenance(seconds=seconds, **source.provenance()))
    return run


def conclude(run: ScoredRun) -> Evaluation:
    """The second step of `evaluate`: metrics and record. Raises `DataError` for scores that cannot be read."""
    start = time.perf_counter()
    own = run.plan.dataset["split"]
    scores, others = run.tables[own], [table for split, table in run.tables.items() if split != own]
    metrics = summarize(
        scores,
        run.plan.protocol,
        fixed_tau=run.plan.fixed_tau,
        transfer_from=others[0] if others else None,
        resamples=run.plan.resamples,
    )
    seconds = {**run.provenance["seconds"], "metrics": round(time.perf_counter() - start, 3)}
    record = RunRecord(
        method=run.plan.method,
        dataset=run.plan.dataset,
        protocol=run.plan.protocol,
        metrics=metrics,
        provenance={**run.provenance, "seconds": seconds},
    )
    finish_saved_maps(run.plan, run.tables)
    return Evaluation(record=record, scores=scores, folders=run.folders)


def _plan(
    dataset: Dataset,
    source: MapSource,
    protocol: EvalProtocol,
    limit: int | None,
    fixed_tau: float | None,
    transfer_from: Dataset | None,
    options: RunOptions,
    facts: dict[str, Any],
) -> tuple[RunPlan, list[Dataset]]:
    """What is scored, and the splits. A threshold off the grid is refused here, before the work."""
    check_fixed_tau(fixed_tau, protocol.taus)
    splits = [limited(dataset, limit)]
    if not len(splits[0]):
        raise DataError(f"data set {dataset.name!r} has no image in split {dataset.split!r}")
    transferred = None
    if transfer_from is not None and transfer_from.has_boxes:
        splits.append(limited(transfer_from, limit))
        transferred = {"split": transfer_from.split, "fingerprint": transfer_from.fingerprint}
    for split in splits:
        check_unit((sample.id, sample.boxes, sample.size) for sample in split.samples if len(sample.boxes))
    maps_digest = source.identity([image_id for split in splits for image_id in split.ids])
    plan = RunPlan.make(
        splits=splits,
        reads_images=maps_digest is None,  # then the source is a model
        method=source.describe(),
        dataset={
            "name": dataset.name,
            "split": dataset.split,
            "fingerprint": dataset.fingerprint,
            "images": len(splits[0]),
            "limit": limit,
            "transfer_from": transferred,
            **facts,
        },
        protocol=protocol,
        fixed_tau=fixed_tau,
        resamples=options.resamples,
        batch_size=options.batch_size,
        made_by=source.provenance(),
        source=maps_digest,
        maps=None if options.save_maps is None else str(options.save_maps.root.resolve()),
    )
    # A description that a record cannot hold is refused before the work.
    RunRecord(method=plan.method, dataset=plan.dataset, protocol=protocol, metrics=(), provenance={}).check()
    return plan, splits


# --- scoring ----------------------------------------------------------------------------------------------------------


def _score_in_memory(plan: RunPlan, splits: Sequence[Dataset], source: MapSource, options: RunOptions) -> ScoredRun:
    seconds: dict[str, float] = defaultdict(float)
    tables = {}
    for dataset in splits:
        chunks = Shard().chunks(len(dataset))
        with _bar(dataset, 0, len(dataset)) as bar:
            tables[dataset.split] = ScoreTable(tuple(_scored_chunks(dataset, chunks, source, plan.protocol, options, seconds, bar)))
    return ScoredRun(plan=plan, tables=tables, provenance=provenance(seconds=dict(seconds), **source.provenance()))


def _score_shard(folder: RunFolder, shard: Shard, splits: Sequence[Dataset], source: MapSource, options: RunOptions) -> dict[str, float]:
    """Write the chunks of a shard that are not there yet, or damaged; seconds for each stage."""
    seconds: dict[str, float] = defaultdict(float)
    maps = options.save_maps
    with folder.opened(shard):
        if maps is not None:
            remove_leftovers(maps.root)
        for dataset in splits:
            chunks = shard.chunks(len(dataset))
            todo = [chunk for chunk in chunks if not folder.has([dataset[at].id for at in chunk], dataset.split, chunk.start, maps)]
            total, left = sum(map(len, chunks)), sum(map(len, todo))
            with _bar(dataset, total - left, total) as bar:
                scored = _scored_chunks(dataset, todo, source, folder.plan.protocol, options, seconds, bar)
                for chunk, scores in zip(todo, scored, strict=True):
                    folder.write_chunk(dataset.split, chunk.start, scores)
    return dict(seconds)


def _bar(dataset: Dataset, done: int, total: int) -> Progress:
    return track(description=f"{dataset.name} {dataset.split}", done=done, total=total)


def _scored_chunks(
    dataset: Dataset,
    chunks: Sequence[range],
    source: MapSource,
    protocol: EvalProtocol,
    options: RunOptions,
    seconds: dict[str, float],
    bar: Progress,
) -> Iterator[ImageScores]:
    """Scores of the images at these positions, chunk by chunk.

    While the source works on one batch, threads load the next two and score the one before; no more is held.
    """
    positions = [position for chunk in chunks for position in chunk]
    batches = [positions[start : start + options.batch_size] for start in range(0, len(positions), options.batch_size)]
    sizes = deque(map(len, chunks))
    ready: list[ImageScores] = []
    with ThreadPoolExecutor(max(1, options.workers)) as pool:

        def load(batch: Sequence[int]) -> tuple[list[Sample], Future[Any]]:
            samples = [dataset[position] for position in batch]
            loaded = [pool.submit(source.load, sample) for sample in samples]
            # Threads take jobs in the order of their submission, so those that this one waits for are running or done.
            return samples, pool.submit(lambda: source.collate([future.result() for future in loaded]))

        try:
            loading = deque(load(batch) for batch in batches[:2])
            scoring: deque[list[Future[ImageScores]]] = deque()
            for number in range(len(batches) + 1):
                if number < len(batches):
                    samples, collated = loading.popleft()
                    with _timed(seconds, "load"):
                        batch = collated.result()
                    loading.extend(load(batch) for batch in batches[number + 2 : number + 3])
                    with _timed(seconds, "model"):
                        output = source.maps(samples, batch)
                    scoring.append(
                        [
                            pool.submit(_score_one, sample, output, place, protocol, options.save_maps)
                            for place, sample in enumerate(samples)
                        ]
                    )
                if number > 0:
                    with _timed(seconds, "score"):
                        ready += [future.result() for future in scoring.popleft()]
                    bar.advance(len(batches[number - 1]))
                while sizes and len(ready) >= sizes[0]:
                    size = sizes.popleft()
                    yield ImageScores.concatenate(ready[:size])
                    ready = ready[size:]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _score_one(sample: Sample, output: SourceOutput, place: int, protocol: EvalProtocol, save_maps: MapFolder | None) -> ImageScores:
    """Scores of the sample at this place of a batch."""
    if save_maps is not None:
        save_maps.write(sample.id, output.maps[place])
    proposed = None if output.proposed is None else output.proposed[place]
    return score_image(sample, output.maps[place], output.ranked[place].tolist(), protocol, proposed)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] += time.perf_counter() - start
