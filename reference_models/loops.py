"""What the training loops share: recipe and facts of a request, the state of a run on disk, seeds, precision, the look at the loss."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import nn

from reference_models.checkpoint import read_beside, read_header, write_beside
from reference_models.detection_recipes import DetectionRecipe
from reference_models.recipes import LATER_FIELDS, Recipe
from reference_models.run_folder import must_be_same
from reference_models.weights import IMAGENET, NONE, first_line, read_safetensors
from wsolbench.exceptions import DataError, UsageError
from wsolbench.files import canonical_json, is_sealed, sha256_of_file, write_sealed
from wsolbench.methods import DetectorRequest, TrainRequest
from wsolbench.program import program, unlike
from wsolbench.progress import note

LAST, BEST, STATE, LOG = "last.safetensors", "best.safetensors", "state.pt", "log.csv"

LIBRARIES = ("torch", "torchvision", "timm")
"""Whose versions a training depends on, besides those of all numbers."""

R = TypeVar("R", Recipe, DetectionRecipe)


@runtime_checkable
class Run(Protocol):
    """What of a run in progress is kept on disk."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    facts: dict[str, Any]


def as_asked(recipe: R, request: TrainRequest | DetectorRequest) -> R:
    """The recipe with the request's changes."""
    asked: dict[str, Any] = {"epochs": request.epochs, "batch_size": request.batch_size, "lr": request.lr}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def recipe_facts(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """All fields, as JSON has them. A field of `LATER_FIELDS` at its default is left out, so that runs from before it are the same run."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}
    defaults = {item.name: item.default for item in fields(recipe)}
    return {name: value for name, value in values.items() if name not in LATER_FIELDS or value != defaults[name]}


def weights_fact(weights: str) -> str:
    """The name of pretrained weights; of a file also its digest."""
    if weights not in (IMAGENET, NONE) and Path(weights).is_file():
        return f"{Path(weights).name} {sha256_of_file(Path(weights))}"
    return weights


def save_state(run: Run, progress: dict[str, Any], path: Path) -> None:
    """Write all that a run needs to go on, with a digest; `progress` says how far it is, in values of JSON."""
    state = {
        "facts": canonical_json(run.facts),
        "program": canonical_json(program(LIBRARIES)),
        "machine": canonical_json(_machine(run.device)),
        "progress": json.dumps(progress),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
    }
    content = io.BytesIO()  # torch hides the error of a full disk when it writes itself
    torch.save(state, content)
    write_sealed(path, content.getbuffer())


def load_state(run: Run, path: Path) -> dict[str, Any]:
    """Put `run` where `save_state` left it, and return the progress.

    Raises `DataError` when the state is not as it was written, and `UsageError` when it is another run's, of another program, or of
    another kind of device or number of threads.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        sealed = is_sealed(path)
        state = torch.load(path, map_location=run.device, weights_only=True)
        facts, progress = json.loads(state["facts"]), dict(json.loads(state["progress"]))
        by, on = (json.loads(state.get(name, "{}")) for name in ("program", "machine"))
    except Exception as error:  # torch.load raises whatever a damaged archive makes it stumble on
        raise DataError(f"the state of the interrupted run, {path}, is damaged ({first_line(error)}); delete it to start again") from error
    must_be_same({"processes": 1, **facts}, {"processes": 1, **run.facts}, path)
    here = _machine(run.device)
    differences = [f"{name} {on.get(name)} there and {value} here" for name, value in here.items() if on.get(name) != value]
    if found := ", ".join(filter(None, [unlike(by, program(LIBRARIES)), *differences])):
        raise UsageError(
            f"the interrupted run of {path} was begun otherwise: {found}. The parts of such a training do not belong together: "
            f"go on as it was begun, or delete {path.name} to start again"
        )
    if not sealed:
        raise DataError(f"the state of the interrupted run, {path}, is damaged (its digest is missing); delete it to start again")
    run.model.load_state_dict(state["model"], strict=True)
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    return progress


def _machine(device: torch.device) -> dict[str, Any]:
    """What of the machine can change weights: the kind of device, and on the CPU the number of threads."""
    return {"device": device.type, "threads": torch.get_num_threads() if device.type == "cpu" else None}


def finished(out: Path, facts: dict[str, Any]) -> bool:
    """Whether the folder holds the finished run of these facts, whole.

    What a kill or a disk has spoilt is written again, where there is a state to write it from. Raises `UsageError` when the folder holds
    another run, and `DataError` when the checkpoint is damaged and there is no state.
    """
    if not (out / LAST).exists():
        return False
    resumable = (out / STATE).exists()
    try:
        header = read_header(out / LAST)
        training = header["training"]
        must_be_same({name: training.get(name) for name in facts}, facts, out / LAST)
        if training.get("epoch") != facts["recipe"]["epochs"]:
            return False
        read_safetensors(out / LAST)
    except DataError:
        if resumable:
            return False
        raise
    beside = read_beside(out / LAST)
    if {name: beside.get(name) for name in header} != header:
        if resumable:
            return False
        write_beside(out / LAST, header, {})
        beside = {}
    log = (beside.get("run") or {}).get("log_sha256")
    if log is not None and not ((out / LOG).is_file() and sha256_of_file(out / LOG) == log):
        if resumable:
            return False
        note(f"{out / LOG} is missing, or not the log that this run has written; the weights are sound")
    return True


def must_be_finite(means: dict[str, float], method: str, where: str, lr: float) -> None:
    """Raises `UsageError` when the sum of the terms of the loss is no number any more."""
    if not np.isfinite(sum(means.values())):
        terms = ", ".join(f"{name} {value:g}" for name, value in means.items())
        raise UsageError(
            f"the loss of {method!r} is no longer finite: {where} ({terms}). Use a smaller --lr (it is {lr:g}), "
            "or --set recipe.clip_norm=1; the run folder still holds what was saved before"
        )


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision on CUDA, nothing elsewhere."""
    return torch.autocast(device.type, dtype=_half(device), enabled=device.type == "cuda")


def scaler_for(device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients are in float16, nothing elsewhere."""
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and _half(device) == torch.float16)


def _half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16


def mixed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
