"""The loop of every evaluation: images, maps, per-image scores, metrics, record.

`evaluate(dataset, source, protocol)` asks a source (a function, a network, a folder of stored maps) for the
map of each image's true class. It scores the map and returns a record.

Evaluation has two steps, which shards and several processes run separately. `score` writes per-image scores
in chunks. `conclude` makes the record from them. Both get what they need in one `EvalRequest`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.datasets import available_splits, load_dataset
from wsolbench.datasets.subsets import limit_dataset, transfer_part
from wsolbench.evaluation.extra_metrics.base import find_extra_metrics
from wsolbench.evaluation.loop import score_chunks, score_in_memory
from wsolbench.evaluation.own_sources import open_source
from wsolbench.evaluation.request import EvalRequest, RunOptions
from wsolbench.evaluation.result import Evaluation
from wsolbench.evaluation.runs import RunFolder, RunPlan, ScoredRun, Shard, gather
from wsolbench.evaluation.saved_maps import finish_saved_maps, saving_maps
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import UsageError
from wsolbench.maps.folder_source import FolderSource
from wsolbench.maps.function_source import FunctionSource
from wsolbench.maps.sources import MapSource, ModelSource, fitting_batch
from wsolbench.methods import PostProcessor
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol
from wsolbench.records import SHARDS, RunRecord, provenance
from wsolbench.system.distributed import World, barrier, gathered
from wsolbench.system.progress import silenced
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from torch import nn


def evaluate(
    dataset: Dataset | str,
    source: Any,
    protocol: EvalProtocol | str = "wsoleval",
    *,
    split: str = "test",
    data_root: Path | str | None = None,
    policy: str = "oracle",
    limit: int | None = None,
    fixed_tau: float | None = None,
    transfer_from: Dataset | None = None,
    name: str | None = None,
    layer: str | nn.Module | None = None,
    post: str | PostProcessor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    device: str | None = None,
    options: RunOptions | None = None,
    extra_metrics: Sequence[str] = (),
    progress: bool = True,
) -> Evaluation:
    """Score every image of a data set and compute all metrics.

    Args:
        dataset: the split, or the name of a data set (`wsolbench.list_datasets`). Images without boxes or
            mask count only for metrics that need neither.
        source: what gives the maps. A function `(image, label) -> map` (`FunctionSource`). A classifier of
            torch, with `layer` (`TorchClassifier`). An object of pytorch-grad-cam (`CamObject`). A method,
            the path of its checkpoint, or a `MapSource`.
        protocol: how maps become boxes and are counted, or the name of a preset.
        split: split to load if `dataset` is a name.
        data_root: folder of the data if `dataset` is a name, or None for that of the environment.
        policy: threshold policy of `Evaluation.metrics`, and the first in the printed table: `oracle`,
            `transfer`, or `fixed:T`. For `transfer`, the split `val` of a named data set is scored, too.
        limit: number of images to score, evenly spread, or None for all.
        fixed_tau: threshold of the policy `fixed`, or None for that of `policy`, or else of the protocol.
        transfer_from: split whose best thresholds the policy `transfer` applies.
        name: name of the method in the record, for a function, a classifier or a pytorch-grad-cam object.
        layer: layer of a classifier whose features make the maps, or its name.
        post: post-process of a network's maps, or its name (`grad-cam`). None: the map of the method, which
            is CAM for a classifier.
        mean, std: normalisation of the input of a classifier or a pytorch-grad-cam object, for pixels in
            [0, 1]. None: ImageNet's.
        image_size: side of its input in pixels. None: 224.
        device: device of a network. None: where it is, or `auto` for a method of wsolbench.
        options: batch size, workers, work folder.
        extra_metrics: names of `wsolbench list metrics` that are computed on request, for instance
            `pointing-game`.
        progress: whether to show the progress on stderr.

    Raises `DataError` for images, masks or maps that cannot be read. Raises `UsageError` for an argument
    that has no effect, for a policy that the data do not allow, and if another process works on the same run
    in the same work folder.

    >>> from wsolbench import evaluate
    >>> import numpy as np
    >>> def middle(image, label):  # the same map for every image: 1 in the middle, 0 at the edges
    ...     return np.outer(np.hanning(56), np.hanning(56))
    >>> result = evaluate("toybirds-v2", middle, limit=20, progress=False)
    >>> result.metrics["gt_known"].n
    20
    """
    conventions = EvalProtocol.preset(protocol) if isinstance(protocol, str) else protocol
    fixed_tau = _fixed_tau(policy, fixed_tau)
    own_val = isinstance(dataset, str) and policy == "transfer" and transfer_from is None
    if isinstance(dataset, str):
        scored = load_dataset(dataset, split, data_root)
        if own_val:
            transfer_from = _load_val(dataset, split, data_root)
    else:
        scored = dataset
    if policy == "transfer" and (transfer_from is None or not transfer_from.has_boxes):
        raise UsageError(
            f"policy='transfer' needs another split of {scored.name} with boxes; expected transfer_from=..., "
            "or another policy"
        )
    options = options or RunOptions()
    opened = open_source(
        source,
        scored,
        conventions,
        batch_size=fitting_batch(options.batch_size, limit_dataset(scored, limit)),
        name=name,
        layer=layer,
        post=post,
        mean=mean,
        std=std,
        image_size=image_size,
        device=device,
    )
    if isinstance(opened, FunctionSource) and options.work is not None:
        raise UsageError(
            "a function cannot be told from another one of its name, so its run cannot be resumed; leave out "
            "options.work"
        )
    if own_val and transfer_from is not None:
        transfer_from = transfer_part(opened.describe().get("training") or {}, transfer_from)
    request = EvalRequest(
        dataset=scored,
        source=opened,
        protocol=conventions,
        limit=limit,
        fixed_tau=fixed_tau,
        transfer_from=transfer_from,
        options=options,
        extra_metrics=find_extra_metrics(extra_metrics),
    )
    with nullcontext() if progress else silenced():
        return replace(conclude(score(request)), policy=_policy(policy))


def _fixed_tau(policy: str, fixed_tau: float | None) -> float | None:
    """Return the threshold of the policy `fixed`. Raises `UsageError` for an unknown policy."""
    kind, _, text = policy.partition(":")
    if policy in ("oracle", "transfer"):
        return fixed_tau
    if kind != "fixed":
        raise UsageError(
            f"policy={policy!r}; expected 'oracle', 'transfer' or 'fixed:T', such as 'fixed:0.3'"
        )
    try:
        tau = float(text)
    except ValueError as error:
        raise UsageError(f"policy={policy!r}; expected a threshold, such as 'fixed:0.3'") from error
    if fixed_tau not in (None, tau):
        raise UsageError(f"policy={policy!r} and fixed_tau={fixed_tau} differ; leave one of them out")
    return tau


def _policy(policy: str) -> str:
    """Return a policy as records name it."""
    kind, _, text = policy.partition(":")
    return str(ThresholdPolicy.fixed(float(text))) if kind == "fixed" else policy


def _load_val(name: str, split: str, root: Path | str | None) -> Dataset:
    """Load the split for transferred thresholds. Raises `UsageError` if there is none."""
    splits = available_splits(name, root)
    if split == "val" or "val" not in splits:
        raise UsageError(
            f"policy='transfer' needs the split 'val' next to {split!r}; {name} has the splits "
            f"{', '.join(splits)}. Choose another policy"
        )
    return load_dataset(name, "val", root)


def score(request: EvalRequest, *, world: World | None = None) -> ScoredRun:
    """Score every image: the first step of `evaluate`.

    With a `world` of several processes, each scores its share into the work folder, which all of them must
    see. Every process returns the whole run. Raises as `evaluate`.
    """
    (run,) = score_together([request], world=world)
    return run


def score_together(requests: Sequence[EvalRequest], *, world: World | None = None) -> list[ScoredRun]:
    """Do what `score` does for several requests of the same images.

    They may differ in the protocol, if all have one `map_key`, and in what is read from one pass of a network
    (`ModelSource.pass_key`): extra maps and post-processes. Each map is then computed once. A folder for maps
    is given in one request of each source. Raises as `score` does, and `UsageError` for requests that cannot
    share a pass.
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
        with _writing_maps(requests, plans) as writing:
            runs = score_in_memory(plans, writing)
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
    with _writing_maps(requests, [folder.plan for folder in folders]) as writing:
        return score_chunks(folders, shard, writing)


@contextmanager
def _writing_maps(requests: Sequence[EvalRequest], plans: Sequence[RunPlan]) -> Iterator[list[EvalRequest]]:
    """Open the folders for maps of the requests that have one, and give requests that write there."""
    with ExitStack() as stack:
        yield [
            request.writing_maps(
                stack.enter_context(saving_maps(request.options.save_maps, plan, request.splits))
            )
            for request, plan in zip(requests, plans, strict=True)
        ]


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
    """Raise `UsageError` unless the requests can be scored in one pass over the images."""
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
            _shares_pass(request.source, other.source)
            and request.dataset is other.dataset
            and request.transfer_from is other.transfer_from
            and (request.limit, request.options.work) == (other.limit, other.options.work)
        )
        if not same:
            raise UsageError(
                "found requests of other images, or of sources that one pass does not serve; expected the "
                "same in all of them, or a call for each"
            )


def _shares_pass(one: MapSource, other: MapSource) -> bool:
    """Return whether one forward pass serves both sources."""
    if one is other:
        return True
    networks = isinstance(one, ModelSource) and isinstance(other, ModelSource)
    return networks and one.pass_key == other.pass_key  # type: ignore[attr-defined]


def _shared_with(plans: Sequence[RunPlan]) -> dict[str, Any]:
    """Return the entry of the provenance with the runs that share its seconds, if there are several.

    They are named by their protocols, and by the maps if these differ, too.
    """
    maps = [plan.method["name"] for plan in plans]
    names = [plan.protocol.name for plan in plans]
    if len(set(maps)) > 1:
        names = [f"{name} of {own}" for name, own in zip(names, maps, strict=True)]
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
