"""The jobs of a plan as commands: their run folders, and checks of their options without data."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from wsolbench.cli import eval as eval_command
from wsolbench.cli import eval_detector
from wsolbench.cli._models import default_backbone, default_run, name_runs
from wsolbench.cli.options import DataOptions
from wsolbench.cli.settings import parse_settings, read_protocols
from wsolbench.cli.train_detector import BACKBONE
from wsolbench.methods import Numerics
from wsolbench.records.plans import Job, Plan

_COMMANDS = {"eval": eval_command.command, "eval-detector": eval_detector.command}
_ANY_NUMBER = 200
"""A number of classes. It chooses between published recipes, which have the same settings."""


def checkpoint_of(options: Mapping[str, Any]) -> Path:
    """Return the checkpoint that `eval --train` with these options of a plan leaves. They include `seed`."""
    settings = tuple(f"{name}={value}" for name, value in options.get("set", {}).items())
    model = {name: options.get(name.replace("_", "-")) for name in ("weights", "epochs", "image_size", "lr")}
    model |= {"seed": options["seed"], "settings": settings, "carve_val": options.get("carve-val", False)}
    formats = {name: options[name] for name in ("amp", "precision") if name in options}
    model["numerics"] = Numerics(**formats)
    dataset = options["dataset"]
    if "detector" in options:
        backbone = default_backbone(dataset, options.get("backbone"), BACKBONE)
        model |= {"method": options["detector"]}
    else:
        backbone = default_backbone(dataset, options.get("backbone"))
        model |= {"method": options["method"]}
        dataset = _name_runs(dataset)
    return default_run(dataset, backbone, model) / "last.safetensors"


def _name_runs(dataset: str) -> str:
    """Return the folder below `runs` for models of a data set, or its name if the data cannot be read."""
    from wsolbench.datasets.base import environment_name

    return _name_runs_in(dataset, os.environ.get(environment_name(dataset)), os.environ.get("WSOLBENCH_DATA"))


@functools.cache  # plans have hundreds of jobs
def _name_runs_in(dataset: str, _root: str | None, _common: str | None) -> str:
    from wsolbench.exceptions import WsolbenchError

    try:
        return name_runs(DataOptions(dataset=dataset, data_root=None, metadata_root=None))
    except WsolbenchError:  # the jobs report it
        return dataset


def check_jobs(plan: Plan, jobs: Sequence[Job]) -> None:
    """Check the commands of the jobs as far as this is possible without data and weights.

    Raises `DataError` naming the plan and the run for an invalid option, and for an unknown method, backbone,
    setting, post-process, transform or protocol.
    """
    from wsolbench.exceptions import DataError, WsolbenchError
    from wsolbench.methods import check_backbone, load_method

    # Both read the files of all methods or backbones; hundreds of jobs have few of them.
    load, check = functools.cache(load_method), functools.cache(check_backbone)
    trained = {str(job.checkpoint) for job in plan.jobs}
    checked = set()
    for job in jobs:
        if (command := re.sub(r"\bseed\d+|--seed \d+", "", job.command)) in checked:
            continue  # seeds differ in nothing that is checked
        checked.add(command)
        try:
            _check(job, trained, load, check)
        except (WsolbenchError, click.ClickException) as error:
            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            raise DataError(f"plan {plan.path}, run {job.name.partition('/')[0]}: {text}") from error


def _check(
    job: Job, trained: set[str], load: Callable[[str], Any], check_backbone: Callable[[str], None]
) -> None:
    """Check one command; `trained` are the checkpoints of the plan."""
    name, *arguments = job.arguments
    values = _COMMANDS[name].make_context(name, arguments).params
    settings = {
        key: value for key, value in parse_settings(values["settings"]).items() if value not in trained
    }
    if name == "eval-detector":
        _check_detector(values, settings)
    else:
        check_backbone(default_backbone(values["dataset"], values["backbone"]))
        _check_method(values, settings, load)


def _check_method(values: Mapping[str, Any], settings: Mapping[str, str], load: Callable[[str], Any]) -> None:
    from wsolbench.datasets import dataset_info
    from wsolbench.evaluation.transforms import Transform
    from wsolbench.exceptions import unknown_name
    from wsolbench.metrics.thresholds import check_fixed_tau

    # The data set and its split.
    info = dataset_info(values["dataset"])
    if info.splits and values["split"] not in info.splits:
        raise unknown_name(f"split of {info.name}", values["split"], info.splits)
    # The methods, their settings and recipes.
    backbone = default_backbone(info.name, values["backbone"])
    for method in values["method"].split(","):
        kind = load(method)
        kind.recipe_for(backbone, _ANY_NUMBER, settings)
        if not kind.trainable:  # it takes no recipe
            kind.create(backbone=backbone, num_classes=_ANY_NUMBER, weights="none", settings=settings)
    # How they are scored.
    eval_command.read_maps(values["maps"], values["post"], values["post_set"])
    for transform in values["transforms"].split(","):
        if transform != "none":
            Transform.parse(transform)
    for protocol in read_protocols(values["protocol"], values["protocol_set"]):
        check_fixed_tau(values["fixed_tau"], protocol.taus)


def _check_detector(values: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    from wsolbench.methods import load_detector

    backbone = values["backbone"] or BACKBONE
    load_detector(values["method"]).recipe_for(backbone, settings)
