"""Training without gradients: a model fills its buffers from passes over the training images.

A pass is short, so an interrupted one starts again. The same request gives the same file.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from reference_models.core.model import Model
from reference_models.training.checkpoint import save_checkpoint
from reference_models.training.loop import new_model
from reference_models.training.passes import BATCH_SIZE, Passes
from reference_models.training.request import check_split, dataset_metadata, request_metadata
from reference_models.training.run_folder import LAST, run_metadata, training_run
from wsolbench.exceptions import UsageError
from wsolbench.methods import TrainRequest
from wsolbench.system.distributed import world


def fit_statistics(method: type[Model], request: TrainRequest) -> Path:
    """Fill the buffers of a model (`Model.measure`) and return its checkpoint in the folder `request.out`.

    A finished run of the same request is returned unchanged.

    Raises `UsageError` if the folder holds another run, in several processes, and on options of training by
    gradients. Raises `DataError` on labels outside the classes and on images that cannot be read.
    """
    if world().size > 1:
        raise UsageError(f"method {method.method_name!r} is fitted in one process; start it without torchrun")
    # Options of training by gradients are errors.
    given = [f"--{name}" for name in ("epochs", "lr") if getattr(request, name) is not None]
    if given:
        raise UsageError(
            f"method {method.method_name!r} is not trained by gradients and takes no {' and '.join(given)}; "
            "leave it out"
        )
    if request.val_loc_every or request.logs:
        name = "val-loc-every" if request.val_loc_every else "log"
        raise UsageError(f"method {method.method_name!r} has no epochs and takes no --{name}; leave it out")
    check_split(request.train)
    # Fill the buffers and save them.
    facts, numerics = _facts(method, request), request.numerics.for_evaluation()
    with training_run(request.out, facts, request.device, numerics, world()) as device:
        if device is not None:
            start = perf_counter()
            model = new_model(method, request, device)
            passes = Passes(
                train=request.train,
                model=model,
                device=device,
                batch_size=request.batch_size or BATCH_SIZE,
                workers=request.workers,
                seed=request.seed,
                cache=request.cache,
            )
            with torch.no_grad(), numerics.autocast(device):
                model.measure(request.train, passes)
            done = {**facts, "epoch": 1, "val_accuracy": None, "train_loss": None}
            run = run_metadata(device, numerics, perf_counter() - start)
            save_checkpoint(request.out / LAST, model, done, run)
    return request.out / LAST


def _facts(method: type[Model], request: TrainRequest) -> dict[str, Any]:
    """Return everything that the buffers depend on, except the machine."""
    recipe = {
        "source": "statistics of the training images",
        "epochs": 1,
        "batch_size": request.batch_size or BATCH_SIZE,
    }
    facts = request_metadata(method, request, recipe, what=f"method {method.method_name!r}")
    if not method.needs_backbone:
        facts.update(backbone="none", weights="none")
    return {
        **facts,
        "image_size": request.image_size,
        "dataset": dataset_metadata(request.train),
        "val": None,
    }
