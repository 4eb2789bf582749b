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
from typing import Any

from wsolbench.evaluation.extra_metrics.base import find_extra_metrics
from wsolbench.evaluation.loop import score_chunks, score_in_memory
from wsolbench.evaluation.request import EvalRequest, RunOptions
from wsolbench.evaluation.runs import RunFolder, RunPlan, ScoredRun, Shard, gather
from wsolbench.evaluation.saved_maps import finish_saved_maps, saving_maps
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import UsageError
from wsolbench.maps.folder_source import FolderSource
from wsolbench.maps.sources import MapSource, ModelSource
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
    (run,) = score_together([request], world=world)
    return run


def score_together(requests: Sequence[EvalRequest], *, world: World | None = None) -> list[ScoredRun]:
    """Do what `score` does for several requests that differ only in the protocol.

    The maps are computed once, by the source of all requests, and scored for each. So all protocols must have
    one `map_key`. Maps are saved to the folder of the first request. Raises as `score` does, and `UsageError`
    for requests that cannot share maps.
    """
    _refuse_other_maps(requests)
    world, plans = world or World(), [request.plan() for request in requests]
    work = requests[0].options.work
    # Without a work folder, one process keeps all scores in memory.
    if work is None:
        if world.size > 1:
            raise UsageError(
                f"{world.size} processes have no work folder for their scores; expected one that all of "
                "them see"
            )
        with saving_maps(requests[0].options.save_maps, plans[0], requests[0].splits) as maps:
            runs = score_in_memory(plans, [requests[0].writing_maps(maps), *requests[1:]])
        for run in runs:
            run.provenance.update(_shared_with(plans))
        return runs
    # Check that all processes would compute the same numbers.
    if any(len(set(gathered(plan.digest))) > 1 for plan in plans):
        raise UsageError(
            f"the {world.size} processes would score differently; expected the same program, data, kind "
            "of device and number of threads in each"
        )
    # Score this process's share, wait for the others, and collect all chunks.
    folders = [RunFolder(work / plan.digest[:16], plan) for plan in plans]
    for folder in folders:
        folder.refuse_mixing(work.glob("*/"))
    seconds = _score_part(requests, folders, Shard(world.rank + 1, world.size))
    barrier()
    runs = [gather([folder]) for folder in folders]
    barrier()  # the first process removes the chunks only after all have read them
    made_by = provenance(seconds=seconds, **requests[0].source.provenance())
    for run in runs:
        run.provenance.update({**made_by, **_shared_with(plans)})
        if world.size > 1:
            run.provenance["processes"] = world.size
    return runs


def score_shard(request: EvalRequest, shard: Shard, folder: Path) -> RunFolder:
    """Do what `score_shards` does for one request."""
    (run,) = score_shards([request], shard, folder)
    return run


def score_shards(requests: Sequence[EvalRequest], shard: Shard, folder: Path) -> list[RunFolder]:
    """Score the images of one shard. `wsolbench.evaluation.runs.merge` joins the shards of a run.

    Returns the folder of each request's run below `folder`. Other shards may write there, too. Raises as
    `score_together`.
    """
    _refuse_other_maps(requests)
    plans = [request.plan() for request in requests]
    runs = [RunFolder(folder / f"{plan.title}_{plan.digest[:8]}{SHARDS}", plan) for plan in plans]
    for run in runs:
        run.refuse_mixing(folder.glob(f"*{SHARDS}/"))
    seconds = _score_part(requests, runs, shard)
    made_by = provenance(seconds=seconds, **requests[0].source.provenance())
    for run in runs:
        run.write_provenance(shard, {**made_by, **_shared_with(plans)})
    return runs


def _score_part(
    requests: Sequence[EvalRequest], folders: Sequence[RunFolder], shard: Shard
) -> dict[str, float]:
    """Write the chunks of a shard, and its maps if requested, and return the seconds of each stage."""
    first = requests[0]
    with saving_maps(first.options.save_maps, folders[0].plan, first.splits) as maps:
        return score_chunks(folders, shard, [first.writing_maps(maps), *requests[1:]])


def map_key(protocol: EvalProtocol, *, of_network: bool, cropped: bool = False) -> Any:
    """Return the key of protocols that score the same maps.

    `of_network`: a network makes the maps and the predicted labels. Otherwise maps are stored; `cropped` ones
    cover the image, and their centre is scored where the protocol has a centre crop.
    """
    if of_network:
        return protocol.network_view
    if cropped and protocol.frame == "center_crop":
        return protocol.network_frame, protocol.frame_size, protocol.resize_size, protocol.resize
    return protocol.network_frame


def _refuse_other_maps(requests: Sequence[EvalRequest]) -> None:
    """Raise `UsageError` unless the requests can be scored from the same maps."""
    other = requests[0]
    kind = {
        "of_network": isinstance(other.source, ModelSource),
        "cropped": isinstance(other.source, FolderSource) and other.source.crop is not None,
    }
    for request in requests[1:]:
        keys = [map_key(each.protocol, **kind) for each in (other, request)]
        if keys[0] != keys[1]:
            raise UsageError(
                f"protocols {other.protocol.name!r} and {request.protocol.name!r} score other maps or labels "
                f"({keys[0]} and {keys[1]}); expected protocols with one `map_key`, or a call for each"
            )
        same = (
            request.source is other.source
            and request.dataset is other.dataset
            and request.transfer_from is other.transfer_from
            and (request.limit, request.options.work) == (other.limit, other.options.work)
        )
        if not same:
            raise UsageError("found requests of other images or sources; expected the same in all of them")


def _shared_with(plans: Sequence[RunPlan]) -> dict[str, Any]:
    """Return the entry of the provenance with the protocols that share its seconds, if there are several."""
    names = [plan.protocol.name for plan in plans]
    return {"scored_together": names} if len(names) > 1 else {}


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
