"""`wsolbench train`: train a method on the train split of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsolbench.cli._models import train
from wsolbench.cli.options import DataOptions, model_options, split_options


@click.command(epilog="Example:  wsolbench train --method cam --dataset toybirds --backbone tiny --epochs 12")
@model_options
@split_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder; default: runs/<data set>/<method>-<backbone>-seed<seed>-<other options>.",
)
def command(data: DataOptions, out: Path | None, **model: Any) -> None:
    """Train a method. A run that was killed goes on where it was; a finished one is left as it is.

    Several GPUs:  torchrun --nproc-per-node 4 -m wsolbench train ...
    """
    from wsolbench.system.distributed import connected

    with connected() as here:
        checkpoint = train(data, out, **model)
        if here.is_first:
            click.echo(f"checkpoint  {checkpoint}")
