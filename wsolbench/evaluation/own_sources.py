"""Turn what `wsolbench.evaluate` is given into a data set and a source of maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsolbench.exceptions import UsageError
from wsolbench.maps.function_source import FunctionSource
from wsolbench.maps.sources import MapSource, ModelSource
from wsolbench.methods import InputSpec, Method, PostProcessor, load_post
from wsolbench.methods.checkpoints import load_checkpoint
from wsolbench.methods.own_networks import CamObject, TorchClassifier, is_cam, is_module
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Dataset

if TYPE_CHECKING:
    from torch import nn

_PARTS = ("load", "collate", "maps", "describe", "identity", "provenance")


def open_source(
    source: Any,
    dataset: Dataset,
    protocol: EvalProtocol,
    *,
    batch_size: int,
    name: str | None = None,
    layer: str | nn.Module | None = None,
    post: str | PostProcessor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    device: str | None = None,
) -> MapSource:
    """Return the source of maps that `source` stands for.

    Args:
        source: a `MapSource`, a method, the path of a checkpoint, a pytorch-grad-cam object, a classifier of
            torch, or a function.
        dataset: the split that is evaluated. It gives the number of classes.
        protocol: how maps are scored.
        batch_size: number of images per forward pass.
        name: name of the method in the record.
        layer: layer of a classifier of torch, or its name.
        post: post-process of a network's maps, or its name.
        mean: channel means of the input of a network, or None for ImageNet's.
        std: channel standard deviations of the input, or None for ImageNet's.
        image_size: side of the input in pixels, or None for 224.
        device: device of a network, or None for where it is.

    Raises `UsageError` for anything else, and for an argument that has no effect on this source.
    """
    given = {
        "name": name,
        "layer": layer,
        "post": post,
        "mean": mean,
        "std": std,
        "image_size": image_size,
        "device": device,
    }
    # What gives maps by itself.
    if all(hasattr(source, part) for part in _PARTS):
        _refuse(given, (), "a source of maps")
        found: MapSource = source
        return found
    is_model = hasattr(source, "localize") and hasattr(source, "input_spec")
    if not (is_model or isinstance(source, str | Path) or is_cam(source) or is_module(source)):
        if not callable(source):
            raise UsageError(
                f"the source of maps is {type(source).__name__}; expected a function (image, label) -> map, "
                "a torch module with its layer, a pytorch-grad-cam object, a method, or the path of a "
                "checkpoint"
            )
        _refuse(given, ("name",), "a function")
        return FunctionSource(source, protocol, num_classes=len(dataset.class_names), name=name)
    # Networks.
    spec = _input_spec(mean, std, image_size)
    method, place = _open_method(source, is_model, given, spec, len(dataset.class_names))
    return ModelSource(
        method,
        protocol,
        num_classes=len(dataset.class_names),
        device=place,
        batch_size=batch_size,
        post=load_post(post).create({}) if isinstance(post, str) else post,
    )


def _open_method(
    source: Any, is_model: bool, given: dict[str, Any], spec: InputSpec, num_classes: int
) -> tuple[Any, str]:
    """Return the method that `source` stands for, and its device."""
    device = given["device"]
    method: Method | CamObject | TorchClassifier
    if is_model or isinstance(source, str | Path):
        _refuse(given, ("post", "device"), "a method")
        if not is_model and Path(source).is_dir():
            raise UsageError(
                f"{source} is a folder; expected a checkpoint. Score a folder of maps with `wsolbench score`"
            )
        method = source if is_model else load_checkpoint(Path(source), device=device or "auto")
        return method, device or "auto"
    if is_cam(source):
        _refuse(given, ("name", "mean", "std", "image_size"), "a pytorch-grad-cam object")
        method = CamObject(source, num_classes=num_classes, input_spec=spec, name=given["name"])
        return method, method.device
    if given["layer"] is None:
        raise UsageError(
            f"{type(source).__name__} is a torch module without a layer; expected layer=..., the layer whose "
            "features make the maps, or its name. A module that returns maps is passed as a function: "
            "lambda image, label: ..."
        )
    method = TorchClassifier(
        source, given["layer"], num_classes=num_classes, input_spec=spec, name=given["name"] or "cam"
    )
    return method, device or method.device


def _refuse(given: dict[str, Any], allowed: Sequence[str], kind: str) -> None:
    """Raise `UsageError` for an argument that has no effect."""
    for name, value in given.items():
        if value is not None and name not in allowed:
            raise UsageError(f"{name}={str(value)[:40]} has no effect on {kind}; leave it out")


def _input_spec(
    mean: Sequence[float] | None, std: Sequence[float] | None, image_size: int | None
) -> InputSpec:
    """Return the input of a network. Raises `UsageError` for invalid numbers."""
    usual = InputSpec()
    values = {"mean": usual.mean if mean is None else mean, "std": usual.std if std is None else std}
    for name, numbers in values.items():
        if len(numbers) != 3 or (name == "std" and min(numbers) <= 0):
            raise UsageError(
                f"{name}={tuple(numbers)}; expected three numbers (R, G, B), for pixels in [0, 1]"
                + (", above 0" if name == "std" else "")
            )
    size = usual.size if image_size is None else image_size
    if size < 1:
        raise UsageError(f"image_size={size}; expected at least 1")
    means, stds = (tuple(float(number) for number in numbers) for numbers in values.values())
    return InputSpec(size=size, mean=means, std=stds)  # type: ignore[arg-type]
