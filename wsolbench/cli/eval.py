"""`wsolbench eval`: evaluate a method; table, record, pictures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from wsolbench.cli._evaluation import evaluate_and_report
from wsolbench.cli._models import open_method, open_posts
from wsolbench.cli.options import (
    DataOptions,
    ScoringOptions,
    checkpoint_option,
    model_options,
    post_set_option,
    scoring_options,
    split_options,
)
from wsolbench.cli.settings import changes_of_trained
from wsolbench.system.files import file_name


@click.command(
    epilog="Example:  wsolbench eval --method cam --dataset toybirds --train --pictures pictures/\n\n"
    "Without --checkpoint and --train, the run folder that `wsolbench train` with the same options writes "
    "is used; with --weights alone, "
    "a pretrained model as it is:  wsolbench eval --method cam --dataset ilsvrc --weights imagenet --set "
    "head=fc\n\n"
    "A grid of methods and post-processes:  wsolbench eval --method cam,has,acol --post none,sem,scg "
    "--dataset cub --train\n\n"
    "Robustness:  wsolbench eval --method nts-net --dataset cub --transform "
    "none,rotate90,rotate180,rotate270,reduce:300"
)
@model_options
@split_options
@scoring_options
@click.option(
    "--post",
    default="none",
    show_default=True,
    help="Post-process of the maps (wsolbench list posts), or several: none,sem,scg.",
)
@post_set_option
@click.option(
    "--map",
    "maps",
    default="class",
    show_default=True,
    help=(
        "Which map: that of the class, or maps of the method's own that its page in docs/methods names; "
        "or several: class,oel_7."
    ),
)
@click.option(
    "--transform",
    "transforms",
    default="none",
    show_default=True,
    help="Transform the images at test time: rotate90, rotate180, rotate270, rotate:ANGLE, rotate:random, "
    "reduce:300; or several. "
    "Thresholds are not transferred then.",
)
@checkpoint_option
@click.option("--train", "train_first", is_flag=True, help="Train first (or go on, or use the finished run).")
@click.option(
    "--save-maps",
    type=click.Path(path_type=Path),
    help="Folder for the raw maps, which `wsolbench score` reads.",
)
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

    Several methods, post-processes, maps or transforms, separated by commas, are evaluated one after the
    other: a record for each combination, with maps and pictures in folders of their own.
    """
    from wsolbench.datasets.subsets import limited
    from wsolbench.evaluation.loop import RunOptions
    from wsolbench.evaluation.transforms import Transform, transformed
    from wsolbench.exceptions import UsageError
    from wsolbench.maps import MapFolder
    from wsolbench.maps.sources import ModelSource, fitting_batch
    from wsolbench.methods import load_method
    from wsolbench.system.distributed import connected

    with connected() as world:
        conventions = scoring.conventions()
        if checkpoint is not None and train_first:
            raise UsageError("--checkpoint and --train exclude each other: a checkpoint is trained already")
        names = model["method"].split(",")
        if checkpoint is not None and len(names) > 1:
            raise UsageError(
                "--checkpoint is of one method; leave it out to evaluate the run folders of several"
            )
        methods = {name: load_method(name) for name in names}
        readings = _readings(maps, open_posts(post, post_set))
        views = {view: None if view == "none" else Transform.parse(view) for view in transforms.split(",")}
        if scoring.save_boxes is not None and set(views) != {"none"}:
            raise UsageError("--save-boxes writes boxes of the images as they are: leave out --transform")
        scored = data.open(scoring.split)
        val = data.open_val() if scoring.transfer and scoring.split != "val" and "none" in views else None
        scoring.prepare(scored, save_maps)
        several = len(methods) * len(readings) * len(views) > 1
        batch_size = fitting_batch(
            model["batch_size"] or 32, *(split and limited(split, scoring.limit) for split in (scored, val))
        )
        options = RunOptions(
            batch_size=batch_size,
            workers=model["workers"],
            work=scoring.out / ".work",
            resamples=scoring.resamples,
        )
        changes = changes_of_trained(checkpoint, model)
        for name, method in methods.items():
            settings = {**model, "method": name, "carve_val": data.carve_val}
            path = checkpoint
            if train_first and method.trainable:
                from wsolbench.cli._models import train

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
                own = (
                    Path(file_name(f"{name}{label}"), *([] if moved is None else [file_name(view)]))
                    if several
                    else Path()
                )
                evaluate_and_report(
                    scored
                    if moved is None
                    else transformed(scored, moved, localizer.input_spec, conventions),
                    source,
                    scoring.within(own),
                    replace(options, save_maps=None if save_maps is None else MapFolder(save_maps / own)),
                    val=val if moved is None else None,
                    facts=None if moved is None else {"transform": moved.name},
                    world=world,
                )


def _readings(maps: str, posts: dict[str, Any]) -> list[tuple[str, Any, str | None]]:
    """What is scored of a model: what is added to the method's name, and a post-process or one of the
    method's own maps, if any.
    """
    from wsolbench.exceptions import UsageError

    names = maps.split(",")
    of_class = (
        [("" if name == "none" else f"+{name}", made, None) for name, made in posts.items()]
        if "class" in names
        else []
    )
    if not of_class and set(posts) != {"none"}:
        raise UsageError(
            f"--post {','.join(posts)} makes its maps of the class's; add it to --map: class,{maps}"
        )
    return [*of_class, *((f":{name}", None, name) for name in names if name != "class")]
