"""`wsolbench eval`: evaluate a method; table, record, pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from wsolbench.cli.options import (
    dataset_options,
    model_options,
    open_dataset,
    open_val,
    parse_settings,
    read_protocol,
    report_evaluation,
    scoring_options,
)


@click.command(
    epilog="Example:  wsolbench eval --method cam --dataset toybirds --train --pictures pictures/\n\n"
    "Without --checkpoint and --train, the run folder that `wsolbench train` with the same options writes is used; with --weights alone, "
    "a pretrained model as it is:  wsolbench eval --method cam --dataset ilsvrc --weights imagenet --set head=fc"
)
@model_options
@dataset_options
@scoring_options
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A .safetensors file that `train` wrote.")
@click.option("--train", "train_first", is_flag=True, help="Train first (or go on, or use the finished run).")
@click.option("--save-maps", type=click.Path(path_type=Path), help="Folder for the raw maps, which `wsolbench score` reads.")
def command(
    dataset: str,
    data_root: Path | None,
    metadata_root: Path | None,
    split: str,
    protocol: str,
    protocol_set: tuple[str, ...],
    fixed_tau: float | None,
    transfer: bool,
    limit: int | None,
    resamples: int,
    out: Path,
    save_scores: bool,
    pictures: Path | None,
    checkpoint: Path | None,
    train_first: bool,
    save_maps: Path | None,
    **model: Any,
) -> None:
    """Evaluate a method on a data set. A run that was killed goes on where it was."""
    from wsolbench.evaluate import RunOptions, evaluate
    from wsolbench.exceptions import UsageError
    from wsolbench.files import make_folder
    from wsolbench.maps import MapFolder
    from wsolbench.methods import load_method
    from wsolbench.sources import ModelSource

    started = time.perf_counter()
    conventions = read_protocol(protocol, protocol_set)
    if checkpoint is not None and train_first:
        raise UsageError("--checkpoint and --train exclude each other: a checkpoint is trained already")
    method = load_method(model["method"])
    scored = open_dataset(dataset, split, data_root, metadata_root)
    for folder in (out, pictures, save_maps):
        if folder is not None:
            make_folder(folder)
    if train_first and method.trainable:
        from wsolbench.cli.train import train

        checkpoint = train(dataset, data_root, metadata_root, None, **model)
    localizer = _open_method(method, dataset, len(scored.class_names), checkpoint, model)
    source = ModelSource(localizer, conventions, num_classes=len(scored.class_names), device=model["device"])
    options = RunOptions(
        batch_size=model["batch_size"] or 32,
        workers=model["workers"],
        work=out / ".work",
        save_maps=None if save_maps is None else MapFolder(save_maps),
        resamples=resamples,
    )
    evaluation = evaluate(
        scored,
        source,
        conventions,
        limit=limit,
        fixed_tau=fixed_tau,
        transfer_from=open_val(dataset, data_root, metadata_root) if transfer and split != "val" else None,
        options=options,
    )
    report_evaluation(evaluation, out=out, save_scores=save_scores, pictures=pictures, options=options, source=source, started=started)


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
