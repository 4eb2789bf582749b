"""Score, write the requested outputs, and print: the common part of `eval`, `score` and `merge`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.exceptions import UsageError
from wsolbench.system.progress import note
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from wsolbench.cli.scoring import ScoringOptions
    from wsolbench.evaluation.percentile import PercentileChoice
    from wsolbench.evaluation.request import EvalRequest
    from wsolbench.evaluation.result import Evaluation
    from wsolbench.evaluation.score_table import ScoreTable
    from wsolbench.protocol import EvalProtocol
    from wsolbench.system.distributed import World


def evaluate_and_report(
    requests: Sequence[EvalRequest],
    scorings: Sequence[ScoringOptions],
    *,
    whole: Dataset | None = None,
    world: World | None = None,
) -> None:
    """Score, then write the requested outputs and print their paths.

    `requests` differ only in the protocol and share their maps (`score_together`). `scorings` say where the
    outputs of each go. Shards, and all processes except the first, only score. `whole` is the split that the
    scored images were selected from, if any. Images are numbered as in it.
    """
    from wsolbench.evaluation.evaluate import conclude, score_shards, score_together
    from wsolbench.system.distributed import World

    started = time.perf_counter()
    world, scoring = world or World(), scorings[0]
    # A shard only writes its scores.
    if scoring.shard is not None:
        if world.size > 1:
            raise UsageError(
                "--shard and torchrun exclude each other, because torchrun makes one shard per process; "
                "leave one of them out"
            )
        for folder in score_shards(requests, scoring.shard, scoring.out):
            click.echo(f"shard    {scoring.shard} in {folder.root}")
        click.echo(
            f"time     {time.perf_counter() - started:.1f} s\n"
            f"next     wsolbench merge {scoring.out} --out results/measured, when all "
            f"{scoring.shard.count} are done"
        )
        return
    # Choose percentiles on the other split, if requested.
    choices: list[PercentileChoice | None] = [None] * len(requests)
    if scoring.choose_percentile is not None:
        from wsolbench.evaluation.percentile import choose_percentiles

        if world.size > 1:
            raise UsageError(
                f"--choose-percentile runs in one process, found {world.size} of torchrun; save the maps "
                "with --save-maps, then add it to `wsolbench score`"
            )
        found = choose_percentiles(requests, scoring.choose_percentile)
        requests, choices = [request for request, _ in found], [choice for _, choice in found]
    # Score all images, in all processes.
    runs = score_together(requests, world=world)
    if not world.is_first:
        return
    for request, run, choice, own in zip(requests, runs, choices, scorings, strict=True):
        if choice is not None:
            run.provenance["percentile"] = choice.to_json()
        _write_and_print(request, conclude(run), own, whole, started)


def group_protocols(
    protocols: Sequence[EvalProtocol], *, of_network: bool, cropped: bool = False
) -> list[list[EvalProtocol]]:
    """Group the protocols that score the same maps, in their order. Arguments are those of `map_key`."""
    from wsolbench.evaluation.evaluate import map_key

    groups: dict[Any, list[EvalProtocol]] = {}
    for protocol in protocols:
        groups.setdefault(map_key(protocol, of_network=of_network, cropped=cropped), []).append(protocol)
    return list(groups.values())


def _write_and_print(
    request: EvalRequest,
    evaluation: Evaluation,
    scoring: ScoringOptions,
    whole: Dataset | None,
    started: float,
) -> None:
    """Write the outputs of one record. Everything is written before anything is printed."""
    source, drawn, size = request.source, request.splits[0], request.options.batch_size

    def maps_of(indices: Sequence[int]) -> Sequence[Any]:
        samples = [drawn[index] for index in indices]
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        return [
            raw
            for batch in batches
            for raw in source.maps(batch, source.collate([source.load(sample) for sample in batch])).maps
        ]

    lines: list[str] = []
    with _print_at_the_end(evaluation, lines, full=scoring.prints_all):
        write_evaluation(
            evaluation,
            scoring.out,
            lines,
            save_scores=scoring.save_scores,
            save_outcomes=scoring.with_outcomes,
        )
        if scoring.save_boxes is not None:
            from wsolbench.datasets.coco_export import image_numbers
            from wsolbench.evaluation.coco_boxes import write_coco_boxes

            numbers = image_numbers(whole or request.dataset)
            count = write_coco_boxes(
                scoring.save_boxes, evaluation.record, evaluation.scores, drawn, maps_of, numbers
            )
            lines.append(f"boxes    {scoring.save_boxes} ({count})")
        if scoring.pictures is not None:
            from wsolbench.report.pictures.plots import add_pictures

            folder, pictures = add_pictures(
                scoring.pictures,
                evaluation.record,
                evaluation.scores,
                drawn,
                maps_of,
                formats=scoring.picture_format,
            )
            names = ", ".join(path.name for path in pictures)
            lines.append(
                f"pictures {folder} ({names})"
                if pictures
                else "pictures none, because no image has a ground-truth box or mask"
            )
        evaluation.finish()
        lines.append(f"time     {time.perf_counter() - started:.1f} s")


def report_evaluation(evaluation: Evaluation, out: Path, *, full: bool, **saved: bool) -> None:
    """Write the record and, if requested, scores and outcomes. Then print a table and their paths."""
    lines: list[str] = []
    with _print_at_the_end(evaluation, lines, full=full):
        write_evaluation(evaluation, out, lines, **saved)


def write_evaluation(
    evaluation: Evaluation, out: Path, lines: list[str], *, save_scores: bool, save_outcomes: bool
) -> None:
    """Write the record and, if requested, scores and outcomes. Adds their paths to `lines`."""
    from wsolbench.evaluation.score_table import OUTCOMES, SCORES

    path = evaluation.record.write(out)
    if save_scores:
        scores = path.with_suffix(SCORES)
        evaluation.scores.write(scores, evaluation.record)
        lines.append(f"scores   {scores}")
    if save_outcomes:
        outcomes = path.with_suffix(OUTCOMES)
        evaluation.scores.write(outcomes, evaluation.record, outcomes=evaluation.record.map_protocol)
        lines.append(f"outcomes {outcomes}")
    lines.append(f"record   {path}")


_ONLY_IN_FULL = ("outcomes ", "time ")
"""First words of lines that are left out below the short table. What they say is with the record."""


@contextlib.contextmanager
def _print_at_the_end(evaluation: Evaluation, lines: list[str], *, full: bool) -> Iterator[None]:
    """Print a table and `lines` after the block, even if the block fails.

    It is the table of all metrics with `full`, and otherwise the short one.
    """
    from rich.console import Console

    from wsolbench.evaluation.short_table import describe_missing, short_table
    from wsolbench.report.board.tables import metrics_table

    useless = _describe_useless_maps(evaluation.scores)
    try:
        yield
    finally:
        if full:
            Console(soft_wrap=True).print(metrics_table(evaluation.record))
        else:
            click.echo(short_table(evaluation.record))
        for line in lines:
            if full or not line.startswith(_ONLY_IN_FULL):
                click.echo(line)
        if not full and (missing := describe_missing(evaluation.record)):
            note(missing)
        if useless:
            note(useless)


def _describe_useless_maps(scores: ScoreTable) -> str:
    """Describe how many maps find nothing at any threshold. Empty if they are only a few."""
    useless = scores.column(
        lambda part: (
            (part.has_boxes & ~part.best_iou.any(axis=1))
            | (part.has_object & ((part.level_histogram.sum(axis=1) > 0).sum(axis=1) == 1))
        )
    )
    if useless.sum() <= 0.05 * len(useless):
        return ""
    return (
        f"{useless.sum():,} of {len(useless):,} maps are constant, or have no box on the object at any "
        "threshold. Look at some with --pictures: are they maps, and of these images?"
    )
