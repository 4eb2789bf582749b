"""The training loop of detectors: images of any size with their objects, in one process.

An interrupted run gives the same result. All randomness of a step is seeded by (seed, step), and the order
and flipping of images by (seed, epoch). So a run can resume in the middle of an epoch. The state is written
after each epoch, and every ten minutes within one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.outputs import as_input
from reference_models.training.detector_data import Examples, TargetReader
from reference_models.training.detector_model import DetectorModel
from reference_models.training.request import (
    apply_request,
    dataset_metadata,
    recipe_metadata,
    request_metadata,
)
from reference_models.training.run_folder import (
    LAST,
    LOG,
    STATE,
    StateWriter,
    load_state,
    run_metadata,
    training_run,
    write_log,
)
from reference_models.training.steps import check_finite, make_optimizer, mix_seeds, scaler_for, take_step
from reference_models.training.watch import epoch_line
from wsolbench.datasets.subsets import limit_dataset
from wsolbench.exceptions import UsageError
from wsolbench.methods import DetectorRequest, Numerics
from wsolbench.methods.device import send
from wsolbench.methods.numerics import COMPILE
from wsolbench.system.distributed import world
from wsolbench.system.files import sha256_of_file
from wsolbench.system.progress import Progress, track

SAVE_SECONDS = 600.0
"""Time between two states within an epoch."""

LOOK_EVERY = 20
"""Steps between two checks of the loss. On a GPU each check waits for the device."""


@dataclass
class Run:
    """A run in progress: the model, its optimiser, and its history."""

    model: DetectorModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    numerics: Numerics
    recipe: DetectionRecipe
    facts: dict[str, Any]
    """Everything that the result depends on. Equal metadata gives equal weights."""
    step: int = 0
    """Completed steps."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sum of each loss term over the images of this epoch: float64 scalars on the device."""
    seconds: float = 0.0
    """Time spent on this epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the log."""

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """The optimiser, as a tuple."""
        return (self.optimizer,)

    @property
    def progress(self) -> dict[str, Any]:
        """Progress as JSON values, for the state file."""
        sums = {name: float(value) for name, value in self.sums.items()}
        return {"step": self.step, "sums": sums, "seconds": self.seconds, "history": self.history}


def fit(method: type[DetectorModel], request: DetectorRequest) -> Path:
    """Train a detector in the folder `request.out` and return the last checkpoint.

    An unfinished run of the same request in this folder is resumed. A finished one is returned unchanged. The
    same request gives the same weights, to the bit on the CPU (with the same number of threads). The folder
    gets `last.safetensors` with its `.json`, `log.csv` (loss terms, learning rate and images per second of
    each epoch), and `state.pt` while the run is unfinished.

    Raises `UsageError` if the folder holds another run, on invalid options, on objects without masks if masks
    are learned, and if the loss is no longer finite. Raises `DataError` on images and masks that cannot be
    read.
    """
    if world().size > 1:
        raise UsageError(
            "detectors are trained in one process; start `wsolbench train-detector` without torchrun"
        )
    recipe = apply_request(method.recipe_for(request.backbone, request.settings), request)
    facts = _run_facts(method, request, recipe)
    with training_run(request.out, facts, request.device, request.numerics, world()) as device:
        if device is not None:
            _train(_start(method, request, recipe, facts, device), request)
    return request.out / LAST


def _train(run: Run, request: DetectorRequest) -> None:
    """Run the remaining steps and write the checkpoint."""
    reader = TargetReader(
        limit_dataset(request.train, request.limit), masks=run.model.wants_masks, workers=request.workers
    )
    # Number of steps, and images already done.
    size, count, epochs = run.recipe.batch_size, len(reader), run.recipe.epochs
    per_epoch = -(-count // size)
    steps = per_epoch * epochs
    run.model.train()
    done = run.step // per_epoch * count + run.step % per_epoch * size
    with (
        StateWriter() as states,
        track(description=f"training {run.model.method_name}", total=count * epochs, done=done) as bar,
    ):
        while run.step < steps:
            _epoch(run, reader, request, steps, bar, states)
            bar.print_line(epoch_line(run.history[-1], epochs))
            run.seconds, run.sums = 0.0, {}
            write = partial(write_log, list(run.history), request.out / LOG)
            states.save(run, run.progress, request.out / STATE, write)
    # Write the result.
    write_log(run.history, request.out / LOG)  # again, if the run was killed between state and log
    seconds = sum(row["seconds"] for row in run.history)
    run.model.save(
        request.out / LAST,
        {**run.facts, "epoch": epochs, "train_loss": run.history[-1]["train_loss"]},
        {**run_metadata(run.device, run.numerics, seconds), "log_sha256": sha256_of_file(request.out / LOG)},
    )
    (request.out / STATE).unlink(missing_ok=True)


def _epoch(
    run: Run, reader: TargetReader, request: DetectorRequest, steps: int, bar: Progress, states: StateWriter
) -> None:
    """Run the rest of an epoch and add its row to the log."""
    recipe, count = run.recipe, len(reader)
    epoch, first = divmod(run.step, steps // recipe.epochs)
    # Batches of this epoch; a resumed one starts at `first`.
    batches = _batches(count, recipe.batch_size, np.random.default_rng((request.seed, epoch)))
    seen, before, saved = first * recipe.batch_size, run.seconds, time.perf_counter()
    start = saved
    means: dict[str, float] = {}
    for examples in reader.batches(batches[first:], flip=recipe.flip, seed=request.seed, epoch=epoch):
        # Update the parameters.
        torch.manual_seed(mix_seeds(request.seed, run.step, 2))
        factor = recipe.lr_factor(run.step, steps)
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.lr * factor
        for name, term in _step(run, examples).items():
            run.sums[name] = run.sums.get(name, 0.0) + term.double() * len(examples)
        seen += len(examples)
        run.step += 1
        # Check the loss, and save, from time to time.
        save = time.perf_counter() - saved >= SAVE_SECONDS and seen < count
        if save or not means or run.step % LOOK_EVERY == 0 or seen == count:
            means = {name: float(value) / seen for name, value in run.sums.items()}
            where = f"epoch {epoch + 1}, at or before step {run.step}"
            check_finite(means, run.model.method_name, where, recipe.lr)
        now = time.perf_counter()
        run.seconds = before + now - start
        if save:
            states.save(run, run.progress, request.out / STATE)
            saved = now
        bar.advance(len(examples), f"epoch {epoch + 1}/{recipe.epochs}, loss {sum(means.values()):.3f}")
    row = {"epoch": epoch + 1, "train_loss": sum(means.values()), **means, "lr": recipe.lr * factor}
    run.history.append({**row, "images_per_second": count / run.seconds, "seconds": run.seconds})


def _step(run: Run, examples: Examples) -> dict[str, Tensor]:
    """Update the parameters once and return the loss terms."""
    images = [as_input(image, run.device) for image, _ in examples]
    targets = [{name: send(tensor, run.device) for name, tensor in target.items()} for _, target in examples]
    return take_step(
        lambda: run.model.loss(images, targets),
        run.optimizer,
        run.scaler,
        run.model.parameters(),
        autocast=run.numerics.autocast(run.device),
        clip_norm=run.recipe.clip_norm,
    )


def _batches(count: int, size: int, rng: np.random.Generator) -> list[Int[np.ndarray, " _"]]:
    order = rng.permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


# --- metadata and start of a run ----------------------------------------------------------------------------


def _run_facts(
    method: type[DetectorModel], request: DetectorRequest, recipe: DetectionRecipe
) -> dict[str, Any]:
    """Return everything that the weights depend on, except the machine."""
    what = f"detector {method.method_name!r}"
    return {
        **request_metadata(method, request, recipe_metadata(recipe), what=what),
        "dataset": {**dataset_metadata(request.train), "limit": request.limit},
    }


def _start(
    method: type[DetectorModel],
    request: DetectorRequest,
    recipe: DetectionRecipe,
    facts: dict[str, Any],
    device: torch.device,
) -> Run:
    """Return a new run, or the one that the folder's state holds."""
    torch.manual_seed(mix_seeds(request.seed))
    model = method.create(
        backbone=request.backbone,
        class_names=request.train.class_names,
        weights=request.weights,
        settings=request.settings,
    ).to(device)
    numerics = request.numerics
    if numerics.compile:  # the heads after it have sizes that depend on the data
        getattr(model.network, "backbone", model.network).compile(**COMPILE)
    scaler = scaler_for(device, numerics)
    run = Run(model, build_optimizer(model, recipe), scaler, device, numerics, recipe, facts)
    if (request.out / STATE).exists():
        progress = load_state(run, request.out / STATE)
        for name, value in progress.items():
            setattr(run, name, value)
        run.sums = {
            name: torch.full((), value, dtype=torch.float64, device=device)
            for name, value in progress["sums"].items()
        }
    return run


def build_optimizer(model: DetectorModel, recipe: DetectionRecipe) -> torch.optim.Optimizer:
    """Build the optimiser of the parameters that require gradients."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return make_optimizer(learnt, recipe, nesterov=False)
