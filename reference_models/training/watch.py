"""What shows the course of a training and does not change it: lines, GT-known on `val`, other logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from reference_models.core.model import Model
from reference_models.core.recipes import Recipe
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.request import RunOptions
from wsolbench.maps.sources import ModelSource, fitting_batch
from wsolbench.methods import Numerics, TrainRequest
from wsolbench.protocol import EvalProtocol
from wsolbench.system.distributed import World

PROTOCOL = "wsoleval"
"""Protocol of GT-known on the validation split."""
RESAMPLES = 100
"""Bootstrap resamples of its interval, which is not used."""


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """Return the line of an epoch for the terminal, from its row of the log.

    >>> epoch_line({"epoch": 3, "train_loss": 1.25, "lr": 0.01, "val_accuracy": 0.5, "seconds": 9.0}, 12)
    'epoch 3/12  loss 1.25  val Top-1 Cls 50.0 %  lr 0.01  9.0 s'
    """
    parts = [f"epoch {row['epoch']}/{epochs}", f"loss {row['train_loss']:.4g}"]
    if row.get("val_accuracy") is not None:
        parts.append(f"val Top-1 Cls {100 * row['val_accuracy']:.1f} %")
    if row.get("val_gt_known") is not None:
        parts.append(f"val GT-known {100 * row['val_gt_known']:.1f} % at tau {row['val_tau']:g}")
    return "  ".join([*parts, f"lr {row['lr']:.3g}", f"{row['seconds']:.1f} s"])


def localize_val(
    request: TrainRequest,
    epoch: int,
    model: Model,
    recipe: Recipe,
    device: torch.device,
    numerics: Numerics,
    here: World,
) -> dict[str, float]:
    """Return GT-known on the validation split at its best threshold, and the threshold, by column of the log.

    Empty unless it is due after `epoch`, and in all processes except the first. This is an evaluation as
    `wsolbench.evaluate` does it. It leaves weights and random state as they were, and the model in eval mode.
    """
    every = request.val_loc_every
    is_due = every > 0 and (epoch % every == 0 or epoch == recipe.epochs)
    if request.val is None or not is_due or not here.is_first:
        return {}
    size = fitting_batch(2 * recipe.batch_size, request.val)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        source = ModelSource(
            model,  # type: ignore[arg-type]  # every method that is trained is a `Localizer`
            EvalProtocol.preset(PROTOCOL),
            num_classes=model.num_classes,
            device=str(device),
            batch_size=size,
            numerics=replace(numerics, compile=False),  # the model is compiled already
        )
        options = RunOptions(batch_size=size, workers=request.workers, resamples=RESAMPLES)
        found = evaluate(request.val, source, PROTOCOL, options=options, progress=False).metrics["gt_known"]
    assert found.value is not None  # the request has checked that there are boxes
    assert found.tau is not None
    return {"val_gt_known": found.value, "val_tau": found.tau[0]}


@contextlib.contextmanager
def started_logs(
    request: TrainRequest, settings: Mapping[str, Any], done: int, here: World
) -> Iterator[None]:
    """Start the logs of the request, in the first process only, and finish them after the block.

    `settings` and `done` are those of `TrainingLog.start`.
    """
    with contextlib.ExitStack() as stack:
        for log in request.logs if here.is_first else ():
            log.start(request.out, settings, done)
            stack.callback(log.finish)
        yield
