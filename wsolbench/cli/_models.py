"""Work of several commands on models: train, find a checkpoint, open methods and post-processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wsolbench.cli.config import write_config
from wsolbench.cli.numerics import check_device
from wsolbench.cli.options import DataOptions, say
from wsolbench.cli.settings import parse_settings
from wsolbench.methods import Method, PostProcessor
from wsolbench.system.distributed import world
from wsolbench.system.files import file_name
from wsolbench.types import Dataset


def open_posts(names: str, pairs: Sequence[str]) -> dict[str, PostProcessor | None]:
    """Return the post-processes of `--post` by name, with their settings. `none` gives None."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import load_post

    settings: dict[str, dict[str, str]] = {name: {} for name in names.split(",")}
    for key, value in parse_settings(pairs, "--post-set").items():
        name, dot, field = key.partition(".")
        if not dot or name not in settings or name == "none":
            raise UsageError(
                f"--post-set {key}={value}; expected POST.NAME=VALUE with one of the post-processes of "
                f"--post {names}"
            )
        settings[name][field] = value
    return {name: None if name == "none" else load_post(name).create(own) for name, own in settings.items()}


def open_method(
    method: type[Method],
    data: DataOptions,
    dataset: Dataset,
    checkpoint: Path | None,
    model: dict[str, Any],
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Method:
    """Return the trained model with `changes` of its settings, or a new model.

    `dataset` is a split of `data`.

    A new model is returned if the method needs no training, or if `--weights` selects a pretrained one.
    Without `--weights`, a method that needs no training gets the default weights of its backbone.
    """
    from wsolbench.exceptions import DataError, UsageError
    from wsolbench.methods import check_backbone

    backbone = default_backbone(data.dataset, model["backbone"])
    if not method.trainable and checkpoint is not None:
        raise UsageError(f"method {model['method']!r} has no checkpoint; leave out --checkpoint")
    # A new model.
    if not method.trainable or (checkpoint is None and model["weights"]):
        settings = parse_settings(model["settings"])
        weights = default_weights(backbone, model["weights"])
        new = method.create(
            backbone=backbone,
            num_classes=len(dataset.class_names),
            weights=weights,
            settings=settings,
            image_size=model["image_size"],
        )
        if not new.ready:
            raise UsageError(
                f"method {model['method']!r} with weights {weights!r} has untrained layers for these "
                f"{len(dataset.class_names)} classes; add --train, or name a checkpoint with --checkpoint "
                "(an unchanged pretrained ImageNet classifier: --set head=fc on ILSVRC)"
            )
        return new
    # A trained model: from --checkpoint, or from the run folder of these options.
    is_default = checkpoint is None
    if checkpoint is None:
        check_backbone(backbone)
        checkpoint = default_run(name_runs(data), backbone, model) / "last.safetensors"
        if not checkpoint.is_file():
            # An invalid setting is the more likely reason.
            method.recipe_for(backbone, len(dataset.class_names), parse_settings(model["settings"]))
            known = _list_others(checkpoint, model["method"], dataset)
            raise UsageError(
                f"no trained model: {checkpoint} does not exist. Add --train, repeat the options of the "
                f"training, or name a file with --checkpoint.{known}"
            )
    # Check that it knows the data, and the classes of this data set.
    trained = method.load(checkpoint, device=model["device"], settings=changes)
    if not is_default and model["image_size"] is not None:
        _resize(trained, checkpoint, model["image_size"], model["device"])
    if difference := _describe_other_data(trained, data, dataset):
        if is_default:
            raise UsageError(
                f"{checkpoint} {difference}. Train in another working folder, or name the file with "
                "--checkpoint to use it anyway"
            )
        say(f"model    {checkpoint} {difference}")
    if len(trained.class_names) == len(dataset.class_names):  # the number is checked by its user
        for known, wanted in zip(trained.class_names, dataset.class_names, strict=True):
            if known != wanted:
                raise DataError(
                    f"{checkpoint} was trained on other classes than those of {dataset.name} "
                    f"{dataset.split}: found {known!r}, expected {wanted!r}. Name a model of these classes "
                    "with --checkpoint"
                )
    return trained


def _resize(trained: Method, checkpoint: Path, size: int, device: str) -> None:
    """Set the input size of a trained model, and try it.

    Raises `UsageError` for a model whose layers need the size that it was trained with.
    """
    import torch

    from wsolbench.exceptions import UsageError
    from wsolbench.methods.device import pick_device

    resize = getattr(trained, "resize_input", None)
    if resize is None:
        raise UsageError(f"--image-size: method {trained.method_name!r} has no other input size at test")
    before = trained.input_spec.size
    resize(size)
    try:
        trained.localize(torch.zeros(1, 3, size, size, device=pick_device(device)))
    except (RuntimeError, ValueError, IndexError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UsageError(
            f"--image-size {size}: {checkpoint} was trained at {before}, and its layers need that size "
            f"({reason}); leave out --image-size"
        ) from error


def _list_others(checkpoint: Path, method: str, dataset: Dataset) -> str:
    """Name the models of this method that exist instead: of the same data, and of other data of this name."""
    runs, pattern = checkpoint.parents[2], f"{method}-*/last.safetensors"
    same = sorted(checkpoint.parents[1].glob(pattern))
    known = f" Existing ones: {', '.join(map(str, same))}." if same else ""
    if not dataset.format:
        return known
    folders = [folder for folder in sorted(runs.glob(f"{dataset.name}-*")) if folder != checkpoint.parents[1]]
    others = [str(path) for folder in folders for path in sorted(folder.glob(pattern))]
    if others:
        known += f" Of other data or annotations named {dataset.name!r}: {', '.join(others)}."
    return known


def _describe_other_data(trained: Method, data: DataOptions, dataset: Dataset) -> str:
    """Return how the data that a model was trained on differ from these, or an empty string.

    A known data set is told by its name. The user's own data are told by the fingerprint of the training
    split.
    """
    from wsolbench.datasets import available_splits, load_dataset
    from wsolbench.exceptions import DataError

    training = trained.describe().get("training", {}).get("dataset") or {}
    if not training:
        return ""
    if not dataset.format:
        same = training.get("name") in (dataset.name, None)
        return (
            "" if same else f"was trained on {training['name']} {training.get('split')}, not {dataset.name}"
        )
    # Compare the fingerprint of the training split with the checkpoint's.
    split = str(training.get("split", "train")).partition("/")[0]
    found, known = f"no split {split!r}", [training.get("fingerprint"), *training.get("within", [])]
    if ("train" if data.carve_val else split) in available_splits(data.dataset, data.data_root, **data.extra):
        try:
            whole = load_dataset(
                data.dataset, split, data.data_root, missing="keep", carve_val=data.carve_val, **data.extra
            )
            found = f"fingerprint {whole.fingerprint}"
            if whole.fingerprint in known:
                return ""
        except DataError as error:
            found = f"a split {split!r} that cannot be read ({error})"
    return (
        f"was trained on other data than that in {dataset.root}: expected a training split with "
        f"fingerprint {training.get('fingerprint')} (of {training.get('name')}), found {found}"
    )


def name_runs(data: DataOptions) -> str:
    """Return the name of the folder below `runs` for models of this data.

    It is the name of a known data set. For the user's own data, it is the name of their folder and the start
    of the fingerprint of `train`, or of their first split. So other annotations have other run folders.
    """
    from wsolbench.datasets import available_splits, dataset_info, load_dataset
    from wsolbench.exceptions import DataError

    if not dataset_info(data.dataset).own:
        return data.dataset
    splits = available_splits(data.dataset, data.data_root, **data.extra)
    split = "train" if "train" in splits else splits[0]
    try:
        whole = load_dataset(data.dataset, split, data.data_root, missing="keep", **data.extra)
    except DataError as error:
        raise DataError(
            f"{error} The run folder is named by the fingerprint of {split}; without it, name the model with "
            "--checkpoint, or the folder with --out"
        ) from error
    return f"{whole.name}-{whole.fingerprint[:8]}"


def train(data: DataOptions, out: Path | None, **model: Any) -> Path:
    """Fit the method, as `train` and `eval --train` do, and return the last checkpoint."""
    from wsolbench.exceptions import UsageError
    from wsolbench.integrations.training_logs import open_logs
    from wsolbench.methods import TrainRequest, check_backbone, load_method
    from wsolbench.methods.contracts import refuse_given_twice

    check_device(model["device"], model["numerics"])
    method = load_method(model["method"])
    if not method.trainable:
        raise UsageError(f"method {model['method']!r} has nothing to train; evaluate it directly")
    backbone = default_backbone(data.dataset, model["backbone"])
    check_backbone(backbone)
    settings = parse_settings(model["settings"])
    refuse_given_twice(model, settings)
    split = method.train_split(settings)
    request = TrainRequest(
        train=data.open(split),
        val=data.open_val(without="no epoch is validated", way_out=""),
        out=out or default_run(name_runs(data), backbone, {**model, "carve_val": data.carve_val}),
        backbone=backbone,
        weights=default_weights(backbone, model["weights"]),
        epochs=model["epochs"],
        batch_size=model["batch_size"],
        image_size=model["image_size"],
        lr=model["lr"],
        seed=model["seed"],
        device=model["device"],
        workers=model["workers"],
        cache=model["cache"],
        settings=settings,
        numerics=model["numerics"],
        val_loc_every=model["val_loc_every"],
        logs=open_logs(model["log"]),
    )
    checkpoint = method.fit(request)
    if world().is_first:
        from wsolbench.cli.train import command

        names = [str(param.name) for param in command.params]
        write_config(checkpoint.parent, names, {"method": model["method"]})
    return checkpoint


def default_backbone(dataset: str, backbone: str | None, real: str = "resnet50") -> str:
    """Return the requested backbone, else `tiny` for generated data sets and `real` for others."""
    from wsolbench.datasets import is_generated

    return backbone or ("tiny" if is_generated(dataset) else real)


def default_weights(backbone: str, weights: str | None) -> str:
    """Return the requested weights, else those that the backbone's file states."""
    from wsolbench.methods import weights_of_backbone

    return weights or weights_of_backbone(backbone)


def default_run(dataset: str, backbone: str, model: Mapping[str, Any]) -> Path:
    """Return the run folder of these options. Other options have other folders.

    >>> model = dict(method="cam", seed=0, weights="runs/old/last.safetensors", epochs=3, image_size=None,
    ...     lr=None, settings=("head=fc",))
    >>> str(default_run("cub", "resnet50", model))
    'runs/cub/cam-resnet50-seed0-weights=old-epochs=3-head=fc'
    """
    given = {"weights": model["weights"] and _name_of(Path(model["weights"]))} | {
        name: model[name] for name in ("epochs", "image_size", "lr")
    }
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    options += ["carve_val"] if model.get("carve_val") else []
    formats = model["numerics"].identity if "numerics" in model else {}
    options += [f"{name}={value}" for name, value in formats.items()]
    parts = (model["method"], backbone, f"seed{model['seed']}", *options, *sorted(model["settings"]))
    return Path("runs") / dataset / "-".join(map(file_name, parts))


def _name_of(weights: Path) -> str:
    """Return the name of a checkpoint. A checkpoint of a run has the name of the run."""
    return weights.parent.name if weights.stem in {"last", "best"} and weights.parent.name else weights.stem
