"""The one loop: images -> maps -> per-image scores -> metrics -> record.

`evaluate(dataset, source, protocol)` asks a `MapSource` (a model, or a folder of stored maps) for the map of
each image's true class, scores it, and gives a record. It is two steps, which shards and several processes
take apart: `score` leaves per-image scores in chunks, `conclude` makes the record of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsolbench.checks import check_unit
from wsolbench.datasets.subsets import limit_dataset
from wsolbench.evaluation.loop import RunOptions, _score_in_memory, _score_shard
from wsolbench.evaluation.runs import RunFolder, RunPlan, ScoredRun, Shard, gather
from wsolbench.evaluation.saved_maps import finish_saved_maps, saving_maps
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps.sources import MapSource
from wsolbench.metrics.thresholds import check_fixed_tau
from wsolbench.protocol import EvalProtocol
from wsolbench.records import SHARDS, RunRecord, provenance
from wsolbench.system.distributed import World, barrier, gathered
from wsolbench.types import Dataset


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

    Raises `DataError` for images, masks or maps that cannot be read, and `UsageError` when another process
    works in the same work folder on the same run.
    """
    return conclude(
        score(
            dataset,
            source,
            protocol,
            limit=limit,
            fixed_tau=fixed_tau,
            transfer_from=transfer_from,
            options=options,
        )
    )


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

    `facts` enter the record's `dataset`. With a `world` of several processes each scores its share into the
    work folder, which all must see, and the result, for every process, is the whole run. Raises as
    `evaluate`.
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
            f"the {world.size} processes would score differently: they need the same program, data, kind "
            "of device and threads"
        )
    folder = RunFolder(options.work / plan.digest[:16], plan)
    folder.refuse_mixing(options.work.glob("*/"))
    with saving_maps(options.save_maps, plan, splits) as maps:
        seconds = _score_shard(
            folder, Shard(world.rank + 1, world.size), splits, source, replace(options, save_maps=maps)
        )
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
    """Score one shard's images; `wsolbench.evaluation.runs.merge` puts the shards of a run together.

    The result is the folder of the run below `folder`; other shards may write there, too. Raises as
    `evaluate`.
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
    """The second step of `evaluate`: metrics and record. Raises `DataError` for scores that cannot be
    read.
    """
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
    splits = [limit_dataset(dataset, limit)]
    if not len(splits[0]):
        raise DataError(f"data set {dataset.name!r} has no image in split {dataset.split!r}")
    transferred = None
    if transfer_from is not None and transfer_from.has_boxes:
        splits.append(limit_dataset(transfer_from, limit))
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


# --- scoring ------------------------------------------------------------------------------------------------
