"""`wsolbench eval`: evaluate a method. Writes table, record and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from wsolbench.cli._evaluation import evaluate_and_report, group_protocols
from wsolbench.cli._models import open_method, open_posts
from wsolbench.cli.config import ConfigurableCommand, config_option
from wsolbench.cli.groups import option
from wsolbench.cli.numerics import check_device, numerics_options
from wsolbench.cli.options import (
    DataOptions,
    checkpoint_option,
    models_options,
    plugin_option,
    post_set_option,
    split_options,
)
from wsolbench.cli.scoring import ScoringOptions, scoring_options
from wsolbench.cli.settings import changes_of_trained, parse_settings
from wsolbench.methods import Method, PostProcessor
from wsolbench.system.files import file_name


@click.command(
    cls=ConfigurableCommand,
    epilog="Example:  wsolbench eval --method cam --dataset toybirds --train --pictures pictures/\n\n"
    "Without --checkpoint and --train, the command loads the run folder that `wsolbench train` writes for "
    "the same options. With --weights alone, it evaluates a pretrained model:  wsolbench eval --method cam "
    "--dataset ilsvrc --weights imagenet --set head=fc\n\n"
    "Several methods and post-processes:  wsolbench eval --method cam,has,acol --post none,sem,scg "
    "--dataset cub --train\n\n"
    "All protocols:  wsolbench eval --method cam --dataset cub --train --protocol all\n\n"
    "Robustness to transforms:  wsolbench eval --method nts-net --dataset cub --transform "
    "none,rotate90,rotate180,rotate270,reduce:300",
)
@models_options
@split_options
@plugin_option
@scoring_options
@option(
    "Model",
    "--post",
    default="none",
    show_default=True,
    help="Post-process of the maps (see `wsolbench list posts`), or several: none,sem,scg.",
)
@post_set_option
@option(
    "Model",
    "--map",
    "maps",
    default="class",
    show_default=True,
    help="Map to score: class, or an extra map of the method (see its page in docs/methods). Or several: "
    "class,oel_7.",
)
@option(
    "Data",
    "--transform",
    "transforms",
    default="none",
    show_default=True,
    help="Transform of the test images: rotate90, rotate180, rotate270, rotate:ANGLE, rotate:random or "
    "reduce:300. Or several. Transformed images have no transferred thresholds.",
)
@checkpoint_option
@option(
    "Training",
    "--train",
    "train_first",
    is_flag=True,
    help="Train first. Interrupted runs resume; finished runs are not repeated.",
)
@option(
    "Output",
    "--save-maps",
    type=click.Path(path_type=Path),
    help="Folder for the raw maps. `wsolbench score` reads them.",
)
@numerics_options
@config_option
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
    """Evaluate a method on a data set. Interrupted runs resume.

    Methods, post-processes, maps, transforms and protocols can be lists, separated by commas. Each
    combination gets its own record, and its own folder of maps and pictures. A network runs once for all
    that can be read from one pass: maps, post-processes without gradients, and protocols of one view.
    """
    from wsolbench.datasets.subsets import limit_dataset, transfer_part
    from wsolbench.evaluation.request import EvalRequest, RunOptions
    from wsolbench.evaluation.transforms import Transform, check_transformable, transform_dataset
    from wsolbench.exceptions import UsageError
    from wsolbench.maps import MapFolder
    from wsolbench.maps.sources import ModelSource, fitting_batch
    from wsolbench.system.distributed import connected

    with connected() as world:
        protocols = scoring.protocols()
        methods = _methods(model, checkpoint, train_first)
        readings = read_maps(maps, post, post_set)
        views = {view: None if view == "none" else Transform.parse(view) for view in transforms.split(",")}
        if scoring.save_boxes is not None and set(views) != {"none"}:
            raise UsageError("--save-boxes writes boxes of untransformed images; leave out --transform")
        for protocol in protocols if set(views) != {"none"} else ():
            check_transformable(protocol)
        # Open the data.
        scored = data.open(scoring.split)
        val = data.open_val() if scoring.transfer and scoring.split != "val" and "none" in views else None
        scoring.prepare(scored, save_maps)
        several = len(methods) * len(readings) * len(views) * len(protocols) > 1
        groups = group_protocols(protocols, of_network=True)
        batch_size = fitting_batch(
            model["batch_size"] or 32,
            *(split and limit_dataset(split, scoring.limit) for split in (scored, val)),
        )
        options = RunOptions(
            batch_size=batch_size,
            workers=model["workers"],
            work=scoring.out / ".work",
            resamples=scoring.resamples,
        )
        changes = changes_of_trained(checkpoint, model)
        # Score every combination of method, map and transform.
        for name, method in methods.items():
            settings = {**model, "method": name, "carve_val": data.carve_val}
            path = checkpoint
            if train_first and method.trainable:
                from wsolbench.cli._models import train

                path = train(data, None, **settings)
            localizer = open_method(method, data, scored, path, settings, changes)
            training = localizer.describe().get("training") or {}
            unseen = None if val is None else transfer_part(training, val)
            for (view, moved), group in itertools.product(views.items(), groups):
                shown = scored
                if moved is not None:
                    shown = transform_dataset(scored, moved, localizer.input_spec, group[0])
                # Requests and their outputs, by what the forward pass depends on: one pass serves a list.
                passes: dict[Any, list[tuple[EvalRequest, ScoringOptions]]] = {}
                for label, made, map_name in readings:
                    source = ModelSource(
                        localizer,
                        group[0],
                        num_classes=len(scored.class_names),
                        device=model["device"],
                        batch_size=options.batch_size,
                        post=made,
                        map_name=map_name,
                        numerics=model["numerics"],
                    )
                    # The folders of a combination, and of its maps. Protocols of a group share maps.
                    own = Path(file_name(f"{name}{label}"), *([] if moved is None else [file_name(view)]))
                    own = own if several else Path()
                    part = own if len(groups) == 1 else own / file_name(group[0].name)
                    folder = None if save_maps is None else MapFolder(save_maps / part)
                    requests = [
                        EvalRequest(
                            dataset=shown,
                            source=source,
                            protocol=protocol,
                            limit=scoring.limit,
                            fixed_tau=scoring.fixed_tau,
                            extra_metrics=scoring.extra(),
                            transfer_from=unseen if moved is None else None,
                            options=replace(options, save_maps=folder if protocol is group[0] else None),
                            metadata={} if moved is None else {"transform": moved.name},
                        )
                        for protocol in group
                    ]
                    outputs = scoring.within_each(own, group, of=len(protocols))
                    passes.setdefault(source.pass_key, []).extend(zip(requests, outputs, strict=True))
                for shared in passes.values():
                    evaluate_and_report(*zip(*shared, strict=True), world=world)


def _methods(model: dict[str, Any], checkpoint: Path | None, train_first: bool) -> dict[str, type[Method]]:
    """Return the methods of `--method` by name. Raises `UsageError` for options that exclude each other."""
    from wsolbench.exceptions import UsageError
    from wsolbench.methods import check_backbone, load_method
    from wsolbench.methods.contracts import refuse_given_twice

    check_device(model["device"], model["numerics"])
    if checkpoint is not None and train_first:
        raise UsageError("--checkpoint and --train exclude each other: a checkpoint is trained already")
    if not train_first and (model["log"] is not None or model["val_loc_every"]):
        raise UsageError(
            f"--{'log' if model['log'] is not None else 'val-loc-every'} has no effect without --train; add "
            "--train, or leave it out"
        )
    names = model["method"].split(",")
    if checkpoint is not None and len(names) > 1:
        raise UsageError(
            f"--checkpoint is of one method, but --method names {len(names)}; leave out --checkpoint to "
            "evaluate their run folders"
        )
    methods = {name: load_method(name) for name in names}
    if model["backbone"] is not None:
        check_backbone(model["backbone"])
    if checkpoint is None:
        refuse_given_twice(model, parse_settings(model["settings"]))
    return methods


def read_maps(
    maps: str, post: str, post_set: Sequence[str]
) -> list[tuple[str, PostProcessor | None, str | None]]:
    """Return what to score of a model, from `--map`, `--post` and `--post-set`.

    Each entry has a suffix of the method's name, and a post-process or the name of an extra map, if any.
    """
    from wsolbench.exceptions import UsageError

    names, posts = maps.split(","), open_posts(post, post_set)
    of_class = (
        [("" if name == "none" else f"+{name}", made, None) for name, made in posts.items()]
        if "class" in names
        else []
    )
    if not of_class and set(posts) != {"none"}:
        raise UsageError(
            f"--post {','.join(posts)} needs the class map, but --map is {maps}; expected --map class,{maps}"
        )
    return [*of_class, *((f":{name}", None, name) for name in names if name != "class")]
