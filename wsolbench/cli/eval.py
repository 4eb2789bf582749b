"""`wsolbench eval`: evaluate a method; table, record, pictures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from wsolbench.cli._evaluation import evaluate_and_report
from wsolbench.cli.options import (
    DataOptions,
    ScoringOptions,
    checkpoint_option,
    data_options,
    model_options,
    post_set_option,
    scoring_options,
)
from wsolbench.cli.settings import changes_of_trained, parse_settings
from wsolbench.files import file_name
from wsolbench.types import Dataset


@click.command(
    epilog="Example:  wsolbench eval --method cam --dataset toybirds --train --pictures pictures/\n\n"
    "Without --checkpoint and --train, the run folder that `wsolbench train` with the same options writes is used; with --weights alone, "
    "a pretrained model as it is:  wsolbench eval --method cam --dataset ilsvrc --weights imagenet --set head=fc\n\n"
    "A grid of methods and post-processes:  wsolbench eval --method cam,has,acol --post none,sem,scg --dataset cub --train\n\n"
    "Robustness:  wsolbench eval --method nts-net --dataset cub --transform none,rotate90,rotate180,rotate270,reduce:300"
)
@model_options
@data_options
@scoring_options
@click.option(
    "--post", default="none", show_default=True, help="Post-process of the maps (wsolbench list posts), or several: none,sem,scg."
)
@post_set_option
@click.option(
    "--map",
    "maps",
    default="class",
    show_default=True,
    help="Which map: that of the class, or maps of the method's own that its page in docs/methods names; or several: class,oel_7.",
)
@click.option(
    "--transform",
    "transforms",
    default="none",
    show_default=True,
    help="Transform the images at test time: rotate90, rotate180, rotate270, rotate:ANGLE, rotate:random, reduce:300; or several. "
    "Thresholds are not transferred then.",
)
@checkpoint_option
@click.option("--train", "train_first", is_flag=True, help="Train first (or go on, or use the finished run).")
@click.option("--save-maps", type=click.Path(path_type=Path), help="Folder for the raw maps, which `wsolbench score` reads.")
def command(
    data: DataOptions,
    scoring: ScoringOptions,
    post: str,
    post_set: tuple[str, ...],
    maps: str,
    transforms: str,
    checkpoint: Path | None,
    train_first: bool,
    save_maps: Path | None,
    **model: Any,
) -> None:
    """Evaluate a method on a data set. A run that was killed goes on where it was.

    Several methods, post-processes, maps or transforms, separated by commas, are evaluated one after the other: a record for each
    combination, with maps and pictures in folders of their own.
    """
    from wsolbench.distributed import connected
    from wsolbench.evaluate import RunOptions, limited
    from wsolbench.exceptions import UsageError
    from wsolbench.maps import MapFolder
    from wsolbench.methods import load_method
    from wsolbench.sources import ModelSource, fitting_batch
    from wsolbench.transforms import Transform, transformed

    with connected() as world:
        conventions = scoring.conventions()
        if checkpoint is not None and train_first:
            raise UsageError("--checkpoint and --train exclude each other: a checkpoint is trained already")
        names = model["method"].split(",")
        if checkpoint is not None and len(names) > 1:
            raise UsageError("--checkpoint is of one method; leave it out to evaluate the run folders of several")
        methods = {name: load_method(name) for name in names}
        readings = _readings(maps, open_posts(post, post_set))
        views = {view: None if view == "none" else Transform.parse(view) for view in transforms.split(",")}
        if scoring.save_boxes is not None and set(views) != {"none"}:
            raise UsageError("--save-boxes writes boxes of the images as they are: leave out --transform")
        scored = data.open(scoring.split)
        val = data.open_val() if scoring.transfer and scoring.split != "val" and "none" in views else None
        scoring.prepare(scored, save_maps)
        several = len(methods) * len(readings) * len(views) > 1
        batch_size = fitting_batch(model["batch_size"] or 32, *(split and limited(split, scoring.limit) for split in (scored, val)))
        options = RunOptions(batch_size=batch_size, workers=model["workers"], work=scoring.out / ".work", resamples=scoring.resamples)
        changes = changes_of_trained(checkpoint, model)
        for name, method in methods.items():
            settings = {**model, "method": name}
            path = checkpoint
            if train_first and method.trainable:
                from wsolbench.cli.train import train

                path = train(data, None, **settings)
            localizer = open_method(method, scored, path, settings, changes)
            for (label, made, map_name), (view, moved) in itertools.product(readings, views.items()):
                source = ModelSource(
                    localizer,
                    conventions,
                    num_classes=len(scored.class_names),
                    device=model["device"],
                    batch_size=options.batch_size,
                    post=made,
                    map_name=map_name,
                )
                own = Path(file_name(f"{name}{label}"), *([] if moved is None else [file_name(view)])) if several else Path()
                evaluate_and_report(
                    scored if moved is None else transformed(scored, moved, localizer.input_spec, conventions),
                    source,
                    scoring.within(own),
                    replace(options, save_maps=None if save_maps is None else MapFolder(save_maps / own)),
                    val=val if moved is None else None,
                    facts=None if moved is None else {"transform": moved.name},
                    world=world,
                )


def _readings(maps: str, posts: dict[str, Any]) -> list[tuple[str, Any, str | None]]:
    """What is scored of a model: what is added to the method's name, and a post-process or one of the method's own maps, if any."""
    from wsolbench.exceptions import UsageError

    names = maps.split(",")
    of_class = [("" if name == "none" else f"+{name}", made, None) for name, made in posts.items()] if "class" in names else []
    if not of_class and set(posts) != {"none"}:
        raise UsageError(f"--post {','.join(posts)} makes its maps of the class's; add it to --map: class,{maps}")
    return [*of_class, *((f":{name}", None, name) for name in names if name != "class")]


def open_posts(names: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The post-processes of `--post` by name, with their settings; None for `none`."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import load_post

    settings: dict[str, dict[str, str]] = {name: {} for name in names.split(",")}
    for key, value in parse_settings(pairs, "--post-set").items():
        name, dot, field = key.partition(".")
        if not dot or name not in settings or name == "none":
            raise UsageError(f"--post-set {key}={value}; expected POST.NAME=VALUE with one of the post-processes of --post {names}")
        settings[name][field] = value
    return {name: None if name == "none" else load_post(name).create(own) for name, own in settings.items()}


def open_method(
    method: Any,
    dataset: Dataset,
    checkpoint: Path | None,
    model: dict[str, Any],
    changes: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """The trained model, with `changes` of its settings; or a new one, where there is nothing to train or `--weights` asks for a
    pretrained one as it is."""
    from wsolbench.cli.train import default_backbone, default_run
    from wsolbench.exceptions import DataError, UsageError
    from wsolbench.methods import check_backbone

    backbone = default_backbone(dataset.name, model["backbone"])
    if not method.trainable and checkpoint is not None:
        raise UsageError(f"method {model['method']!r} has no checkpoint")
    if not method.trainable or (checkpoint is None and model["weights"]):
        settings = parse_settings(model["settings"])
        weights = model["weights"] or "none"
        new = method.create(
            backbone=backbone, num_classes=len(dataset.class_names), weights=weights, settings=settings, image_size=model["image_size"]
        )
        if not new.ready:
            raise UsageError(
                f"method {model['method']!r} with weights {weights!r} has layers that nobody has trained for these "
                f"{len(dataset.class_names)} classes; add --train, or name a checkpoint with --checkpoint "
                "(a pretrained ImageNet classifier as it is: --set head=fc on ILSVRC)"
            )
        return new
    is_default = checkpoint is None
    if checkpoint is None:
        check_backbone(backbone)
        checkpoint = default_run(dataset.name, backbone, model) / "last.safetensors"
        if not checkpoint.is_file():
            if hasattr(method, "recipe_for"):  # a setting that does not exist is the likelier reason
                method.recipe_for(backbone, len(dataset.class_names), parse_settings(model["settings"]))
            others = sorted(checkpoint.parents[1].glob(f"{model['method']}-*/last.safetensors"))
            known = f" There are: {', '.join(map(str, others))}." if others else ""
            raise UsageError(
                f"no trained model: {checkpoint} does not exist. Add --train, repeat the options of the training, or name a file "
                f"with --checkpoint.{known}"
            )
    trained = method.load(checkpoint, device=model["device"], settings=changes)
    if is_default:
        _check_trained_on(trained, dataset, checkpoint)
    if len(trained.class_names) == len(dataset.class_names):  # the number is looked at where it is used
        for known, wanted in zip(trained.class_names, dataset.class_names, strict=True):
            if known != wanted:
                raise DataError(
                    f"{checkpoint} was trained on other classes than those of {dataset.name} {dataset.split}: {known!r} in place of "
                    f"{wanted!r}; name a model that knows them with --checkpoint"
                )
    return trained


def _check_trained_on(trained: Any, dataset: Dataset, checkpoint: Path) -> None:
    """Raise `UsageError` where a run folder that nobody named is of another data set with the same name.

    Folders of runs have the name of the data set. It says which one it is, except for those that are a user's own.
    """
    from wsolbench.datasets import available_splits, dataset_info, load_dataset
    from wsolbench.exceptions import DataError, UsageError

    if dataset_info(dataset.name).splits:
        return
    training = getattr(trained, "facts", {}).get("dataset", {})
    found = "no split 'train'"
    if "train" in available_splits(dataset.name, dataset.root):
        try:
            found = f"fingerprint {load_dataset(dataset.name, 'train', dataset.root, missing='keep').fingerprint}"
        except DataError as error:
            found = f"a split 'train' that cannot be read ({error})"
    expected = f"fingerprint {training.get('fingerprint')}"
    if found != expected:
        raise UsageError(
            f"{checkpoint} was trained on another {dataset.name} than that in {dataset.root}: its training split has {expected}, and "
            f"here is {found}. Train in another working folder, or name the file with --checkpoint if you mean it"
        )
