"""`wsolbench export`: a data set in the format of another program."""

from __future__ import annotations

from pathlib import Path

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import DataOptions, data_options


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench export --format coco --dataset toybirds --split train --out toybirds-coco\n\n"
    "OUT then has the images in <split>/, and annotations/instances_<split>.json, which pycocotools reads. "
    "Further splits can be exported into the same folder. `wsolbench train-detector --data-root OUT` trains "
    "on it.",
)
@option(
    "Output",
    "--format",
    "form",
    type=click.Choice(["coco"]),
    default="coco",
    show_default=True,
    help="Format to write.",
)
@data_options
@option("Data", "--split", default="train", show_default=True, help="Split to export.")
@option("Output", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def command(form: str, data: DataOptions, split: str, out: Path) -> None:  # noqa: ARG001 - there is only one format yet
    """Write images, boxes and masks of a split for detectors.

    Every data set with boxes can be exported. Objects have a segmentation if the data set has a mask for each
    box. An existing export only gets the images that it lacks.
    """
    from wsolbench.datasets.coco_export import export_coco

    export = export_coco(data.open(split), out)
    click.echo(f"annotations  {export.annotations}{'' if export.written else ' (was there already)'}")
    click.echo(
        "images       "
        f"{export.images}{f', {export.without_box} of them without a box' if export.without_box else ''}"
    )
    click.echo(
        "objects      "
        f"{export.objects}{f', {export.without_mask} of them without a mask' if export.without_mask else ''}"
    )
