"""`wsolbench eval-detector`: COCO's average precision of a trained detector. Writes table and record."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from wsolbench.cli._models import default_backbone, default_run
from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.cli.numerics import check_device, numerics_options
from wsolbench.cli.options import checkpoint_option, detector_options, records_option, workers_option
from wsolbench.cli.settings import changes_of_trained
from wsolbench.cli.train_detector import BACKBONE, batch_size_option, train
from wsolbench.cli.values import Number
from wsolbench.methods import DetectorRequest, Numerics


@click.command(
    cls=GroupedCommand,
    epilog="Example:  wsolbench export --dataset toybirds --split val --out toybirds-coco\n\n"
    "          wsolbench eval-detector --data-root toybirds-coco\n\n"
    "Without --checkpoint, the command loads the run folder that `wsolbench train-detector` writes for the "
    "same options. With --train, it trains on `train` first. Number formats and kernels are those of the "
    "training; detection is in float32.",
)
@detector_options
@checkpoint_option
@option("Data", "--split", default="val", show_default=True, help="Split to evaluate on.")
@option(
    "Data",
    "--limit",
    type=Number(DetectorRequest, "limit"),
    help="Evaluate on only this many images, spread evenly over the split.",
)
@option(
    "Training",
    "--train",
    "train_first",
    is_flag=True,
    help="Train on all images of `train` first. Interrupted runs resume; finished runs are not repeated.",
)
@batch_size_option
@workers_option
@numerics_options
@records_option
@option(
    "Output",
    "--save-detections",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file for all detections, in COCO's results format.",
)
def command(
    data_root: Path | None,
    checkpoint: Path | None,
    split: str,
    limit: int | None,
    out: Path,
    save_detections: Path | None,
    train_first: bool,
    batch_size: int | None,
    workers: int,
    **model: Any,
) -> None:
    """Evaluate a detector with COCO's average precision of boxes and masks.

    The record has the mean over IoU thresholds, the values at 0.50 and 0.75, and those of small, medium and
    large objects.
    """
    from rich.console import Console

    from wsolbench.datasets.coco import load_instances
    from wsolbench.evaluation.detectors import evaluate_detector
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import load_detector
    from wsolbench.report.board.tables import metrics_table
    from wsolbench.system.files import make_folder, write_text

    started = time.perf_counter()
    # Check the options.
    check_device(model["device"], model["numerics"])
    method = load_detector(model["method"])
    dataset = load_instances(data_root, split)
    if checkpoint is not None and train_first:
        raise UsageError("--checkpoint and --train exclude each other: a checkpoint is trained already")
    if changes := changes_of_trained(checkpoint, model):
        raise UsageError(
            f"--set {next(iter(changes))} has no effect with --checkpoint: a trained detector has no "
            "settings to change"
        )
    if save_detections is not None:
        make_folder(save_detections.parent)
    numerics = model["numerics"]
    of_training = numerics != Numerics() if checkpoint is not None else _has_kernels(numerics)
    if of_training and not train_first:
        raise UsageError(
            "number formats and kernels (--amp, --precision, --compile, --no-deterministic) have no effect "
            "on a detector that is trained already, because detection is in float32; leave them out, or use "
            "--train"
        )
    # Train, or find the checkpoint.
    if train_first:
        checkpoint = train(data_root, "train", None, None, batch_size=batch_size, workers=workers, **model)
    if checkpoint is None:
        backbone = default_backbone(dataset.name, model["backbone"], BACKBONE)
        checkpoint = default_run(dataset.name, backbone, {**model, "image_size": None}) / "last.safetensors"
        if not checkpoint.is_file():
            others = sorted(checkpoint.parents[1].glob(f"{model['method']}-*/last.safetensors"))
            known = f" Existing ones: {', '.join(map(str, others))}." if others else ""
            raise UsageError(
                f"no trained detector: {checkpoint} does not exist. "
                f"Train it with `wsolbench train-detector`, or name a file with --checkpoint.{known}"
            )
    # Evaluate and write.
    make_folder(out)
    evaluation = evaluate_detector(dataset, method.load(checkpoint, device=model["device"]), limit=limit)
    path = evaluation.record.write(out)
    if save_detections is not None:
        write_text(save_detections, json.dumps(evaluation.results) + "\n")
    Console(soft_wrap=True).print(metrics_table(evaluation.record))
    if save_detections is not None:
        click.echo(f"detections  {save_detections}")
    click.echo(f"record   {path}\ntime     {time.perf_counter() - started:.1f} s")


def _has_kernels(numerics: Numerics) -> bool:
    """Whether options are given that do not tell runs apart, so that they cannot name a trained one."""
    return numerics.compile or not numerics.deterministic or numerics.precision == "ieee"
