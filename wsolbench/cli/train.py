"""`wsolbench train`: train a method on the train split of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from wsolbench.cli.options import DataOptions, data_options, model_options
from wsolbench.cli.settings import parse_settings
from wsolbench.files import file_name


@click.command(epilog="Example:  wsolbench train --method cam --dataset toybirds --backbone tiny --epochs 12")
@model_options
@data_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder; default: runs/<data set>/<method>-<backbone>-seed<seed>-<other options>."
)
def command(data: DataOptions, out: Path | None, **model: Any) -> None:
    """Train a method. A run that was killed goes on where it was; a finished one is left as it is.

    Several GPUs:  torchrun --nproc-per-node 4 -m wsolbench train ...
    """
    from wsolbench.distributed import connected

    with connected() as here:
        checkpoint = train(data, out, **model)
        if here.is_first:
            click.echo(f"checkpoint  {checkpoint}")


def train(data: DataOptions, out: Path | None, **model: Any) -> Path:
    """What `train` and `eval --train` do: fit the method and return the last checkpoint."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import TrainRequest, load_method

    method = load_method(model["method"])
    if not method.trainable:
        raise UsageError(f"method {model['method']!r} has nothing to train; evaluate it directly")
    backbone = default_backbone(data.dataset, model["backbone"])
    request = TrainRequest(
        train=data.open("train"),
        val=data.open_val(without="no epoch is validated", way_out=""),
        out=out or default_run(data.dataset, backbone, model),
        backbone=backbone,
        weights=default_weights(backbone, model["weights"]),
        epochs=model["epochs"],
        batch_size=model["batch_size"],
        image_size=model["image_size"],
        lr=model["lr"],
        seed=model["seed"],
        device=model["device"],
        workers=model["workers"],
        settings=parse_settings(model["settings"]),
    )
    checkpoint: Path = method.fit(request)
    return checkpoint


def default_backbone(dataset: str, backbone: str | None, real: str = "resnet50") -> str:
    """The backbone that was asked for, else `tiny` for the generated data set and `real` for others."""
    return backbone or ("tiny" if dataset == "toybirds" else real)


def default_weights(backbone: str, weights: str | None) -> str:
    """The weights that were asked for, else `none` for `tiny`, which has none, and `imagenet`."""
    return weights or ("none" if backbone == "tiny" else "imagenet")


def default_run(dataset: str, backbone: str, model: Mapping[str, Any]) -> Path:
    """Where a run is kept when no folder is named: runs that were asked for with other options have other folders.

    >>> model = dict(method="cam", seed=0, weights="runs/old/last.safetensors", epochs=3, image_size=None, lr=None, settings=("head=fc",))
    >>> str(default_run("cub", "resnet50", model))
    'runs/cub/cam-resnet50-seed0-weights=old-epochs=3-head=fc'
    """
    asked = {"weights": model["weights"] and _name_of(Path(model["weights"]))} | {
        name: model[name] for name in ("epochs", "image_size", "lr")
    }
    options = [f"{name}={value}" for name, value in asked.items() if value is not None]
    parts = (model["method"], backbone, f"seed{model['seed']}", *options, *sorted(model["settings"]))
    return Path("runs") / dataset / "-".join(map(file_name, parts))


def _name_of(weights: Path) -> str:
    """A checkpoint of a run is called by the run."""
    return weights.parent.name if weights.stem in {"last", "best"} and weights.parent.name else weights.stem
