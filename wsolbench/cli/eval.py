"""`wsolbench eval`: evaluate a method; table, record, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsolbench.cli.options import (
    DataOptions,
    ScoringOptions,
    data_options,
    evaluate_and_report,
    model_options,
    parse_settings,
    scoring_options,
)


@click.command(
    epilog="Example:  wsolbench eval --method cam --dataset toybirds --train --pictures pictures/\n\n"
    "Without --checkpoint and --train, the run folder that `wsolbench train` with the same options writes is used; with --weights alone, "
    "a pretrained model as it is:  wsolbench eval --method cam --dataset ilsvrc --weights imagenet --set head=fc"
)
@model_options
@data_options
@scoring_options
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file that `train` wrote.")
@click.option("--train", "train_first", is_flag=True, help="Train first (or go on, or use the finished run).")
@click.option("--save-maps", type=click.Path(path_type=Path), help="Folder for the raw maps, which `wsolbench score` reads.")
def command(
    data: DataOptions, scoring: ScoringOptions, checkpoint: Path | None, train_first: bool, save_maps: Path | None, **model: Any
) -> None:
    """Evaluate a method on a data set. A run that was killed goes on where it was."""
    from wsolbench.distributed import connected
    from wsolbench.evaluate import RunOptions
    from wsolbench.exceptions import UsageError
    from wsolbench.maps import MapFolder
    from wsolbench.methods import load_method
    from wsolbench.sources import ModelSource, pick_device

    conventions = scoring.conventions()
    if checkpoint is not None and train_first:
        raise UsageError("--checkpoint and --train exclude each other: a checkpoint is trained already")
    method = load_method(model["method"])
    scored = data.open(scoring.split)
    scoring.make_folders(save_maps)
    with connected(pick_device(model["device"])) as world:
        if train_first and method.trainable:
            from wsolbench.cli.train import train

            checkpoint = train(data, None, **model)
        localizer = _open_method(method, data.dataset, len(scored.class_names), checkpoint, model)
        batch_size = model["batch_size"] or 32
        source = ModelSource(localizer, conventions, num_classes=len(scored.class_names), device=model["device"], batch_size=batch_size)
        options = RunOptions(
            batch_size=batch_size,
            workers=model["workers"],
            work=scoring.out / ".work",
            save_maps=None if save_maps is None else MapFolder(save_maps),
            resamples=scoring.resamples,
        )
        val = data.open_val() if scoring.transfer and scoring.split != "val" else None
        evaluate_and_report(scored, source, scoring, options, val=val, world=world)


def _open_method(method: Any, dataset: str, num_classes: int, checkpoint: Path | None, model: dict[str, Any]) -> Any:
    """The trained model; or a new one, where there is nothing to train or `--weights` asks for a pretrained one as it is."""
    from wsolbench.cli.train import default_backbone, default_run
    from wsolbench.exceptions import UsageError

    backbone = default_backbone(dataset, model["backbone"])
    if not method.trainable and checkpoint is not None:
        raise UsageError(f"method {model['method']!r} has no checkpoint")
    if not method.trainable or (checkpoint is None and model["weights"]):
        settings = parse_settings(model["settings"])
        weights = model["weights"] or "none"
        new = method.create(backbone=backbone, num_classes=num_classes, weights=weights, settings=settings, image_size=model["image_size"])
        if not new.ready:
            raise UsageError(
                f"method {model['method']!r} with weights {weights!r} has layers that nobody has trained for these {num_classes} classes; "
                "add --train, or name a checkpoint with --checkpoint (a pretrained ImageNet classifier as it is: --set head=fc on ILSVRC)"
            )
        return new
    if checkpoint is None:
        checkpoint = default_run(dataset, model["method"], backbone, model["seed"]) / "last.safetensors"
        if not checkpoint.is_file():
            raise UsageError(f"no trained model: {checkpoint} does not exist. Add --train, or name a file with --checkpoint.")
    return method.load(checkpoint, device=model["device"])
