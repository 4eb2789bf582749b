"""`wsolbench train`: train a method on the train split of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsolbench.cli._models import train
from wsolbench.cli.config import ConfigurableCommand, config_option
from wsolbench.cli.numerics import numerics_options
from wsolbench.cli.options import DataOptions, model_options, plugin_option, run_folder_option, split_options


@click.command(
    cls=ConfigurableCommand,
    epilog="Example:  wsolbench train --method cam --dataset toybirds --backbone tiny --epochs 12",
)
@model_options
@split_options
@plugin_option
@run_folder_option
@numerics_options
@config_option
def command(data: DataOptions, out: Path | None, **model: Any) -> None:
    """Train a method. Interrupted runs resume; finished runs are not repeated.

    The run folder has the options of a finished run in config.toml, for --config.

    Several GPUs:  torchrun --nproc-per-node 4 -m wsolbench train ...
    """
    from wsolbench.system.distributed import connected

    with connected() as here:
        checkpoint = train(data, out, **model)
        if here.is_first:
            click.echo(f"checkpoint  {checkpoint}")
