"""`wsolbench train`: train a method on the train split of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsolbench.cli._models import train
from wsolbench.cli.groups import GroupedCommand
from wsolbench.cli.numerics import numerics_options
from wsolbench.cli.options import DataOptions, model_options, run_folder_option, split_options


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench train --method cam --dataset toybirds --backbone tiny --epochs 12",
)
@model_options
@split_options
@run_folder_option
@numerics_options
def command(data: DataOptions, out: Path | None, **model: Any) -> None:
    """Train a method. Interrupted runs resume; finished runs are not repeated.

    Several GPUs:  torchrun --nproc-per-node 4 -m wsolbench train ...
    """
    from wsolbench.system.distributed import connected

    with connected() as here:
        checkpoint = train(data, out, **model)
        if here.is_first:
            click.echo(f"checkpoint  {checkpoint}")
