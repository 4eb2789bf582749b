"""The loop of every evaluation: images, maps, per-image scores, metrics, record.

`evaluate(dataset, source, protocol)` asks a `MapSource` (a model, or a folder of stored maps) for the map of
each image's true class. It scores the map and returns a record.

Evaluation has two steps, which shards and several processes run separately. `score` writes per-image scores
in chunks. `conclude` makes the record from them. Both get what they need in one `EvalRequest`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsolbench.evaluation.extra_metrics.base import find_extra_metrics
from wsolbench.evaluation.loop import score_chunks, score_in_memory
from wsolbench.evaluation.request import EvalRequest, RunOptions
from wsolbench.evaluation.runs import RunFolder, ScoredRun, Shard, gather
from wsolbench.evaluation.saved_maps import finish_saved_maps, saving_maps
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import UsageError
from wsolbench.maps.sources import MapSource
from wsolbench.protocol import EvalProtocol
from wsolbench.records import SHARDS, RunRecord, provenance
from wsolbench.system.distributed import World, barrier, gathered
from wsolbench.types import Dataset


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The record of a run, and the per-image scores that it was computed from."""

    record: RunRecord
    scores: ScoreTable
    folders: tuple[RunFolder, ...] = ()
    """Folders with the chunks of this run."""

    def finish(self) -> None:
        """Remove the chunks. Call it when the record is on disk and the scores are no longer needed."""
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
    extra_metrics: Sequence[str] = (),
) -> Evaluation:
    """Score every image of `dataset` and compute all metrics.

    Args:
        dataset: the split. Images without boxes or mask count only for metrics that need neither.
        source: the model or the folder of maps.
        protocol: how maps become boxes and are counted.
        limit: number of images to score, evenly spread, or None for all.
        fixed_tau: threshold of the policy `fixed`, or None for `protocol.fixed_tau`.
        transfer_from: split whose best thresholds the policy `transfer` applies.
        options: batch size, workers, work folder.
        extra_metrics: names of `wsolbench list metrics` that are computed on request, for instance
            `pointing-game`.

    Raises `DataError` for images, masks or maps that cannot be read. Raises `UsageError` if another process
    works on the same run in the same work folder.
    """
    request = EvalRequest(
        dataset=dataset,
        source=source,
        protocol=protocol,
        limit=limit,
        fixed_tau=fixed_tau,
        transfer_from=transfer_from,
        options=options or RunOptions(),
        extra_metrics=find_extra_metrics(extra_metrics),
    )
    return conclude(score(request))


def score(request: EvalRequest, *, world: World | None = None) -> ScoredRun:
    """Score every image: the first step of `evaluate`.

    With a `world` of several processes, each scores its share into the work folder, which all of them must
    see. Every process returns the whole run. Raises as `evaluate`.
    """
    world, plan, work = world or World(), request.plan(), request.options.work
    # Without a work folder, one process keeps all scores in memory.
    if work is None:
        if world.size > 1:
            raise UsageError(
                f"{world.size} processes have no work folder for their scores; expected one that all of "
                "them see"
            )
        with saving_maps(request.options.save_maps, plan, request.splits) as maps:
            return score_in_memory(plan, request.writing_maps(maps))
    # Check that all processes would compute the same numbers.
    if len(set(gathered(plan.digest))) > 1:
        raise UsageError(
            f"the {world.size} processes would score differently; expected the same program, data, kind "
            "of device and number of threads in each"
        )
    # Score this process's share, wait for the others, and collect all chunks.
    folder = RunFolder(work / plan.digest[:16], plan)
    folder.refuse_mixing(work.glob("*/"))
    seconds = _score_part(request, folder, Shard(world.rank + 1, world.size))
    barrier()
    run = gather([folder])
    barrier()  # the first process removes the chunks only after all have read them
    run.provenance.update(provenance(seconds=seconds, **request.source.provenance()))
    if world.size > 1:
        run.provenance["processes"] = world.size
    return run


def score_shard(request: EvalRequest, shard: Shard, folder: Path) -> RunFolder:
    """Score the images of one shard. `wsolbench.evaluation.runs.merge` joins the shards of a run.

    Returns the folder of the run below `folder`. Other shards may write there, too. Raises as `evaluate`.
    """
    plan = request.plan()
    run = RunFolder(folder / f"{plan.title}_{plan.digest[:8]}{SHARDS}", plan)
    run.refuse_mixing(folder.glob(f"*{SHARDS}/"))
    seconds = _score_part(request, run, shard)
    run.write_provenance(shard, provenance(seconds=seconds, **request.source.provenance()))
    return run


def _score_part(request: EvalRequest, folder: RunFolder, shard: Shard) -> dict[str, float]:
    """Write the chunks of a shard, and its maps if requested, and return the seconds of each stage."""
    with saving_maps(request.options.save_maps, folder.plan, request.splits) as maps:
        return score_chunks(folder, shard, request.writing_maps(maps))


def conclude(run: ScoredRun) -> Evaluation:
    """Compute metrics and record: the second step of `evaluate`.

    Raises `DataError` for scores that cannot be read.
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
