"""`wsolbench export`: a data set in the format of another program."""

from __future__ import annotations

from pathlib import Path

import click

from wsolbench.cli.options import DataOptions, data_options


@click.command(
    epilog="Example:  wsolbench export --format coco --dataset toybirds --split train --out toybirds-coco\n\n"
    "DIR then holds annotations/instances_<split>.json, which pycocotools reads, and the images in "
    "<split>/. Further splits can be "
    "exported into the same folder; `wsolbench train-detector --data-root DIR` trains on it."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["coco"]),
    default="coco",
    show_default=True,
    help="Format to write.",
)
@data_options
@click.option("--split", default="train", show_default=True, help="Split to export.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def command(form: str, data: DataOptions, split: str, out: Path) -> None:  # noqa: ARG001 - there is one format as yet
    """Write images, boxes and masks of a split for detectors. An export that is there already gets the images
    that it lacks.

    Every data set with boxes can be exported; objects have a segmentation where the data set has a mask for
    each box.
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
