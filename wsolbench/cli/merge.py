"""`wsolbench merge`: one record from the shards of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import full_option, records_option, save_outcomes_option, save_scores_option


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench eval --method cam --dataset cub --shard 1/2 --out shards/\n\n"
    "          wsolbench eval --method cam --dataset cub --shard 2/2 --out shards/\n\n"
    "          wsolbench merge shards/",
)
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@records_option
@save_scores_option
@save_outcomes_option
@full_option
@option("Output", "--keep", is_flag=True, help="Keep the shards after the record is written.")
def command(
    folders: tuple[Path, ...],
    out: Path,
    keep: bool,
    full: bool,
    save_scores: bool,
    save_outcomes: bool | None,
) -> None:
    """Merge the shards in FOLDERS into one record per run.

    Shards are written by `eval --shard` and `score --shard`. The record is the same as that of a run without
    --shard.
    """
    from wsolbench.cli._evaluation import report_evaluation
    from wsolbench.evaluation.evaluate import conclude
    from wsolbench.evaluation.runs import merge
    from wsolbench.system.files import make_folder

    make_folder(out)
    for run in merge(folders):
        run.provenance["merged_by"] = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        evaluation = conclude(run)
        outcomes = not save_scores if save_outcomes is None else save_outcomes
        shown = full or bool(run.plan.extra_metrics)
        report_evaluation(evaluation, out, full=shown, save_scores=save_scores, save_outcomes=outcomes)
        if not keep:
            evaluation.finish()
