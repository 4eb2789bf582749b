"""`wsolbench predict`: labels, boxes and overlays of images that have no annotations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.numerics import check_device, numerics_options
from wsolbench.cli.options import plugin_option, post_set_option, say, workers_option
from wsolbench.cli.scoring import ScoringOptions
from wsolbench.cli.values import Device, Number
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import Numerics, TrainRequest

if TYPE_CHECKING:
    from wsolbench.methods import Method

OVERLAYS = "overlays"


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench predict --checkpoint runs/cub/cam-resnet50-seed0/last.safetensors --images "
    "photos/ --out predicted/\n\n"
    "With a threshold of your own:  wsolbench predict --checkpoint last.safetensors --images photos/ --tau "
    "0.3 --out predicted/",
)
@option(
    "Model",
    "--checkpoint",
    required=True,
    type=click.Path(path_type=Path),
    help="Trained model, a .safetensors file written by a training run. It names its method.",
)
@option(
    "Data",
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of images, with all folders below it, or one image.",
)
@option(
    "Output",
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for predictions.json, predictions.csv, COCO's files and overlays.",
)
@option(
    "Protocol",
    "--tau",
    type=Number(ScoringOptions, "fixed_tau"),
    help="Threshold of the boxes.  [default: the transferred threshold of the model's record]",
)
@option(
    "Protocol",
    "--records",
    type=click.Path(path_type=Path),
    default=Path("results/measured"),
    show_default=True,
    help="Record of the model, or folder of records, for the threshold.",
)
@option(
    "Protocol",
    "--protocol",
    default="wsoleval",
    show_default=True,
    help="How a map becomes boxes (see `wsolbench list protocols`).",
)
@option(
    "Protocol",
    "--protocol-set",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change one field of the protocol; can be repeated.",
)
@option(
    "Model",
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change one setting that training does not depend on; can be repeated.",
)
@option("Model", "--post", default="none", show_default=True, help="Post-process of the maps.")
@post_set_option
@plugin_option
@option(
    "Output",
    "--all-boxes",
    is_flag=True,
    help="Write and draw the boxes of all regions above the threshold, and not one box per image.",
)
@option(
    "Output",
    "--overlays/--no-overlays",
    default=True,
    show_default=True,
    help="Write a picture of each image with its map and boxes.",
)
@option(
    "Execution",
    "--batch-size",
    type=Number(TrainRequest, "batch_size"),
    default=8,
    show_default=True,
    help="Images per batch.",
)
@option(
    "Execution",
    "--device",
    type=Device(),
    default="auto",
    show_default=True,
    help="Device to use: auto, cpu, cuda or cuda:N.",
)
@workers_option
@numerics_options
def command(
    checkpoint: Path,
    images: Path,
    out: Path,
    tau: float | None,
    records: Path,
    protocol: str,
    protocol_set: tuple[str, ...],
    settings: tuple[str, ...],
    post: str,
    post_set: tuple[str, ...],
    all_boxes: bool,
    overlays: bool,
    batch_size: int,
    device: str,
    workers: int,
    numerics: Numerics,
) -> None:
    """Predict labels and boxes of images without annotations."""
    from wsolbench.cli._models import open_posts
    from wsolbench.cli.settings import parse_settings, read_protocol
    from wsolbench.evaluation.predict import predict
    from wsolbench.evaluation.prediction_files import chosen_boxes, write_predictions
    from wsolbench.methods.checkpoints import load_checkpoint
    from wsolbench.report.pictures.predictions import write_overlay
    from wsolbench.system.files import make_folder
    from wsolbench.system.progress import track

    # Check everything before the model is run.
    check_device(device, numerics)
    conventions = read_protocol(protocol, protocol_set)
    made, *more = open_posts(post, post_set).values()
    if more:
        raise UsageError(f"--post is {post}; expected one post-process")
    names = _find_images(images, out)
    name_of = list(names)
    broken: list[DataError] = []
    model = load_checkpoint(checkpoint, device=device, settings=parse_settings(settings))
    found = predict(
        model,
        list(names.values()),
        tau=tau,
        protocol=conventions,
        batch_size=batch_size,
        device=device,
        workers=workers,
        post=made,
        numerics=numerics,
        record=records,
        on_error=broken.append,
    )
    is_new = not out.exists()
    make_folder(out)
    # Predict, and draw each image when it is there.
    predictions = {}
    for prediction in track(found, "predicting", total=len(names)):
        name = name_of[prediction.index]
        predictions[name] = prediction
        if overlays:
            boxes = chosen_boxes(prediction, all_boxes=all_boxes)
            write_overlay(out / OVERLAYS / f"{name}.jpg", prediction, boxes)
    if broken and not predictions:
        if is_new:
            out.rmdir()
        raise DataError(f"none of the {len(names):,} images of {images} can be read: {broken[0]}")
    if broken:
        say(f"images   {len(broken):,} cannot be read and are left out: {broken[0]}")
    # Write the files.
    threshold = next(iter(predictions.values())).tau
    description = {
        "schema": 1,
        "method": _described(model, post, made),
        "protocol": conventions.to_json(),
        "tau": threshold,
        "tau_from": "the user" if tau is not None else "transfer",
        "all_boxes": all_boxes,
    }
    paths = write_predictions(out, predictions, model.class_names, description, all_boxes=all_boxes)
    click.echo(f"images   {len(predictions):,}, boxes at tau {threshold:g}")
    for path in [*paths, *([out / OVERLAYS] if overlays else [])]:
        click.echo(f"written  {path}")


def _described(model: Method, post: str, made: Any) -> dict[str, Any]:
    described = {**model.describe(), "name": model.method_name}
    return described if made is None else {**described, "post": {"name": post, **made.describe()}}


def _find_images(images: Path, out: Path) -> dict[str, Path]:
    """Return name → file of the images, sorted by name, without those in the output folder.

    Files that are no images are counted on stderr.

    Raises `UsageError` for a path without images, and `DataError` if no image can be read.
    """
    from wsolbench.datasets.formats.imagefiles import read_headers
    from wsolbench.datasets.imagefolder import SUFFIXES
    from wsolbench.system.listing import is_junk

    if images.is_file():
        return {images.name: images}
    if not images.is_dir():
        raise UsageError(f"--images {images}: there is no such file or folder")
    written = out / OVERLAYS if out.resolve() == images.resolve() else out
    files = sorted(
        Path(top, name)
        for top, _, names in os.walk(images)
        for name in names
        if name.lower().endswith(SUFFIXES)
        and not is_junk(name)
        and written.resolve() not in Path(top, name).resolve().parents
    )
    if not files:
        raise UsageError(
            f"--images {images}: no file there ends in {', '.join(SUFFIXES)}; expected a folder of images"
        )
    # A header that cannot be read is no image; a file that is cut short is found when it is read.
    headers = read_headers(map(str, files))
    broken = [str(error) for error in headers if isinstance(error, DataError)]
    if len(broken) == len(files):
        raise DataError(f"none of the {len(files):,} images of {images} can be read: {broken[0]}")
    if broken:
        say(f"images   {len(broken):,} cannot be read and are left out: {broken[0]}")
    return {
        path.relative_to(images).as_posix(): path
        for path, header in zip(files, headers, strict=True)
        if not isinstance(header, DataError)
    }
