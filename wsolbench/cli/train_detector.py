"""`wsolbench train-detector`: train a detector on a split in COCO's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsolbench.cli._models import default_backbone, default_run, default_weights
from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.numerics import check_device, numerics_options
from wsolbench.cli.options import detector_options, run_folder_option, workers_option
from wsolbench.cli.settings import parse_settings
from wsolbench.cli.values import Number
from wsolbench.methods import DetectorRequest

BACKBONE = "resnet50_fpn"
"""The default for real data."""


batch_size_option = option(
    "Training",
    "--batch-size",
    type=Number(DetectorRequest, "batch_size"),
    help="Images per batch.  [default: as in the recipe]",
)


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench export --dataset toybirds --split train --out toybirds-coco\n\n"
    "          wsolbench train-detector --data-root toybirds-coco\n\n"
    "Mask R-CNN without LIO's auxiliary loss:  wsolbench train-detector --data-root toybirds-coco "
    "--set scl_weight=0",
)
@detector_options
@option("Data", "--split", default="train", show_default=True, help="Split to train on.")
@option(
    "Data",
    "--limit",
    type=Number(DetectorRequest, "limit"),
    help="Train on at most this many images, spread evenly over the split. Images without objects are left "
    "out.",
)
@batch_size_option
@run_folder_option
@workers_option
@numerics_options
def command(data_root: Path | None, split: str, limit: int | None, out: Path | None, **model: Any) -> None:
    """Train a detector. Interrupted runs resume; finished runs are not repeated."""
    click.echo(f"checkpoint  {train(data_root, split, out, limit, **model)}")


def train(data_root: Path | None, split: str, out: Path | None, limit: int | None, **model: Any) -> Path:
    """Fit the detector, as `train-detector` and `eval-detector --train` do; return the last checkpoint."""
    from wsolbench.datasets.coco import load_instances
    from wsolbench.methods import load_detector

    check_device(model["device"], model["numerics"])
    detector = load_detector(model["method"])
    train = load_instances(data_root, split)
    backbone = default_backbone(train.name, model["backbone"], BACKBONE)
    request = DetectorRequest(
        train=train,
        out=out or default_run(train.name, backbone, {**model, "image_size": None}),
        backbone=backbone,
        weights=default_weights(backbone, model["weights"]),
        limit=limit,
        epochs=model["epochs"],
        batch_size=model["batch_size"],
        lr=model["lr"],
        seed=model["seed"],
        device=model["device"],
        workers=model["workers"],
        settings=parse_settings(model["settings"]),
        numerics=model["numerics"],
    )
    return detector.fit(request)
