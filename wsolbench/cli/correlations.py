"""`wsolbench correlations`: feature similarity of all pixels of a stage to one pixel, as a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.options import (
    DataOptions,
    checkpoint_option,
    data_options,
    network_options,
    post_set_option,
)
from wsolbench.cli.settings import changes_of_trained, shorten


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench correlations --method cam --dataset toybirds --image test/00000.png --orders "
    "1,2,3\n\n"
    "Two points of one image:  ... --image test/00000.png --point 40,52 --point 90,30\n\n"
    "Without --checkpoint, the command loads the run folder that `wsolbench train` writes for the same "
    "options. With --weights alone, it uses a pretrained model, as `wsolbench eval` does.",
)
@network_options
@data_options
@option("Data", "--split", default="test", show_default=True, help="Split of the images.")
@checkpoint_option
@option(
    "Data", "--image", "images", required=True, multiple=True, metavar="ID", help="Image id; can be repeated."
)
@option(
    "Data",
    "--point",
    "points",
    multiple=True,
    metavar="X,Y",
    help="Point in pixels of the image: one for each image, or several for one image.  [default: the peak of "
    "the true class's map]",
)
@option(
    "Model",
    "--stage",
    help="Feature stage of the backbone, or penultimate.  [default: the last stage]",
)
@option(
    "Model",
    "--orders",
    default="1,2",
    show_default=True,
    help="Orders of the correlation, one column each.",
)
@option(
    "Model", "--post", default="scg", show_default=True, help="Post-process that defines the correlation."
)
@post_set_option
@option(
    "Output",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("correlations.png"),
    show_default=True,
    help="File for the picture, .png, .jpg or .pdf.",
)
@option(
    "Output",
    "--save-maps",
    type=click.Path(path_type=Path),
    help="An .npz file for the maps without min-max normalisation.",
)
def command(
    data: DataOptions,
    split: str,
    checkpoint: Path | None,
    images: tuple[str, ...],
    points: tuple[str, ...],
    stage: str | None,
    orders: str,
    post: str,
    post_set: tuple[str, ...],
    out: Path,
    save_maps: Path | None,
    **model: Any,
) -> None:
    """Plot the feature similarity of every pixel to a chosen point.

    Each point is a row: the image with the point, then one column per order of the correlation. Maps are
    min-max normalised; the original range is printed below each.
    """
    from wsolbench.cli._models import open_method, open_posts
    from wsolbench.exceptions import UsageError
    from wsolbench.maps.sources import ModelSource
    from wsolbench.methods import load_method
    from wsolbench.report.pictures.correlations import SHOWN, correlate, correlation_sheet, save_correlations
    from wsolbench.report.pictures.figure_files import check_picture_path
    from wsolbench.system.files import make_folder

    # Check the options.
    check_picture_path(out)
    if save_maps is not None and save_maps.suffix != ".npz":
        raise UsageError(f"--save-maps is {save_maps}; expected a name that ends with .npz")
    numbers = _orders(orders)
    places = _places(images, points)
    method, (definition, *more) = load_method(model["method"]), open_posts(post, post_set).values()
    if more:
        raise UsageError(f"--post is {post}; expected one post-process")
    dataset = data.open(split)
    samples = [dataset.find(image_id) for image_id, _ in places]
    for path in (out, save_maps):
        if path is not None:
            make_folder(path.parent)
    # Run the model.
    changes = changes_of_trained(checkpoint, model)
    localizer = open_method(method, data, dataset, checkpoint, model, changes)
    source = ModelSource(
        localizer, SHOWN, num_classes=len(dataset.class_names), device=model["device"], post=definition
    )
    rows = [
        correlate(source, sample, point, numbers, stage)
        for sample, (_, point) in zip(samples, places, strict=True)
    ]
    # Title and files.
    grid = " x ".join(map(str, rows[0].maps.shape[1:]))
    settings = ", ".join([post, *(pair.removeprefix(f"{post}.") for pair in post_set)])
    parts = [
        model["method"],
        localizer.describe().get("backbone"),
        f"{dataset.name}/{dataset.split}",
        f"{rows[0].stage} ({grid})",
        settings,
    ]
    title = f"Self-correlation with the pixel at the cross\n{' · '.join(filter(None, parts))}"
    if save_maps is not None:
        save_correlations(rows, save_maps)
    correlation_sheet(rows, out, title)
    if save_maps is not None:
        click.echo(f"maps     {save_maps}")
    click.echo(f"picture  {out}")


def _orders(text: str) -> list[int]:
    from wsolbench.exceptions import UsageError

    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[1-9][0-9]?", part) for part in parts):
        raise UsageError(f"--orders is {shorten(text)}; expected whole numbers from 1 to 99, like 1,2,3")
    return [int(part) for part in parts]


def _places(images: Sequence[str], points: Sequence[str]) -> list[tuple[str, tuple[float, float] | None]]:
    """Return image and point of each row."""
    from wsolbench.exceptions import UsageError

    if not points:
        return [(image, None) for image in images]
    if len(images) > 1 and len(images) != len(points):
        raise UsageError(
            f"{len(images)} images and {len(points)} points; expected one point for each --image, in their "
            "order, or no points"
        )
    found: list[tuple[str, tuple[float, float] | None]] = []
    for image, point in zip(images if len(images) > 1 else [*images] * len(points), points, strict=True):
        try:
            x, y = (float(part) for part in point.split(","))
            if not (math.isfinite(x) and math.isfinite(y)):
                raise ValueError(point)
        except ValueError as error:
            raise UsageError(
                f"--point is {shorten(point)}; expected X,Y in pixels of the image, like 40,52"
            ) from error
        found.append((image, (x, y)))
    return found
