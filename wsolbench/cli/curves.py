"""`wsolbench curves`: plot the training logs of runs."""

from __future__ import annotations

from pathlib import Path

import click

from wsolbench.cli.groups import GroupedCommand, option


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench curves runs/cub --out curves.png\n\n"
    "One run, with a table of all its epochs:  wsolbench curves runs/cub/cam-resnet50-seed0 --out cam.pdf",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "Output",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("curves.png"),
    show_default=True,
    help="File for the picture: .png, .jpg or .pdf.",
)
def command(runs: tuple[Path, ...], out: Path) -> None:
    """Plot loss, learning rate and validation metrics of RUNS over epochs.

    RUNS are run folders with a log.csv, or folders of them. One run prints a table of its epochs. Several
    runs print one line each: last values, and the best ones with their epoch. A run in progress shows its
    finished epochs.
    """
    from wsolbench.records.training_log import find_logs, read_log
    from wsolbench.report.pictures.curves import draw_curves, epochs_table, runs_table
    from wsolbench.report.pictures.figure_files import check_picture_path

    check_picture_path(out)
    curves = [read_log(path) for path in find_logs(runs)]
    draw_curves(curves, out)
    click.echo(epochs_table(curves[0]) if len(curves) == 1 else runs_table(curves))
    click.echo(f"picture  {out}")
