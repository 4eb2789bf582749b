"""`wsolbench merge`: one record from the shards of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(
    epilog="Example:  wsolbench eval --method cam --dataset cub --shard 1/2 --out shards/\n\n"
    "          wsolbench eval --method cam --dataset cub --shard 2/2 --out shards/\n\n"
    "          wsolbench merge shards/"
)
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("results/measured"),
    show_default=True,
    help="Folder of records.",
)
@click.option(
    "--save-scores", is_flag=True, help="Keep the per-image scores beside the record (.scores.npz)."
)
@click.option("--keep", is_flag=True, help="Do not delete the shards when the record is written.")
def command(folders: tuple[Path, ...], out: Path, save_scores: bool, keep: bool) -> None:
    """Make the record of every run whose parts `eval --shard` or `score --shard` left in FOLDERS or below.

    The record is the one that a single run without --shard gives.
    """
    from wsolbench.cli._evaluation import report_evaluation
    from wsolbench.evaluation.evaluate import conclude
    from wsolbench.evaluation.runs import merge
    from wsolbench.system.files import make_folder

    make_folder(out)
    for run in merge(folders):
        run.provenance["merged_by"] = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        evaluation = conclude(run)
        report_evaluation(evaluation, out, save_scores)
        if not keep:
            evaluation.finish()
