"""The training loop of any `Model`, in one run folder. An interrupted run gives the same result.

The state after each epoch (weights, optimiser, log) is written atomically. All randomness of an epoch is
seeded by (seed, epoch) when it starts. So a resumed run draws the same numbers as an uninterrupted one.

Under torchrun each process takes its share of every batch (`parallel.py`), and draws by (seed, epoch, rank).
Steps, schedule and augmentation are those of one process. Only the first process writes files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from reference_models.core.config import parse_settings, split_settings
from reference_models.core.model import Model
from reference_models.core.objectives import Objective
from reference_models.core.outputs import Batch
from reference_models.core.recipes import Recipe
from reference_models.training.checkpoint import earlier_data, earlier_runs, save_checkpoint
from reference_models.training.device_views import device_views
from reference_models.training.images import (
    ImageReader,
    cache_budget,
    draw_views,
    masks_of,
    normalized_images,
)
from reference_models.training.parallel import (
    broadcast_from_first,
    synchronise_batch_norm,
    synchronised_step,
    take_share,
)
from reference_models.training.request import (
    apply_request,
    check_split,
    dataset_metadata,
    recipe_metadata,
    request_metadata,
)
from reference_models.training.run_folder import (
    BEST,
    LAST,
    LOG,
    STATE,
    StateWriter,
    load_state,
    run_metadata,
    training_run,
    write_log,
)
from reference_models.training.steps import (
    check_finite,
    make_optimizer,
    mix_seeds,
    scaler_for,
    take_step,
)
from reference_models.training.watch import epoch_line, localize_val, started_logs
from wsolbench.exceptions import UsageError
from wsolbench.methods import Numerics, TrainRequest
from wsolbench.methods.numerics import COMPILE
from wsolbench.methods.transfers import uploaded
from wsolbench.system.distributed import World, connected, gathered
from wsolbench.system.files import sha256_of_file
from wsolbench.system.progress import Progress, track
from wsolbench.types import Dataset

M = TypeVar("M", bound=Model)

LOOK_EVERY = 20
"""Steps between two checks of the loss. On a GPU each check waits for the device."""


@dataclass
class Run:
    """A run in progress: the model, its optimisers, and its history."""

    model: Model
    objectives: tuple[Objective, ...]
    optimizers: tuple[torch.optim.Optimizer, ...]
    """One for each objective."""
    scaler: torch.amp.GradScaler
    device: torch.device
    numerics: Numerics
    recipe: Recipe
    facts: dict[str, Any]
    """Everything that the result depends on. Equal metadata gives equal weights."""
    here: World
    """This process among those that train the model."""
    earlier: dict[str, int] | None
    """Images of earlier runs that the weights have seen, by checkpoint (`earlier_runs`)."""
    images: int = 0
    """Images of an epoch, as trained."""
    epoch: int = 0
    """Completed epochs."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the log."""

    @property
    def best_accuracy(self) -> float | None:
        """Highest accuracy on the validation split so far, or None."""
        return max(
            (row["val_accuracy"] for row in self.history if row.get("val_accuracy") is not None), default=None
        )


def fit(method: type[Model], request: TrainRequest) -> Path:
    """Train a model in the folder `request.out` and return the last checkpoint.

    An unfinished run of the same request in this folder is resumed. A finished one is returned unchanged. The
    same request gives the same weights, to the bit on the CPU (with the same number of threads). The folder
    gets:

    - `last.safetensors`, and with a validation split `best.safetensors` (highest accuracy there, the earliest
      of equals), each with a `.json` that describes it;
    - `log.csv`: for each epoch the loss terms, learning rate, accuracy, GT-known on the validation split if
      it is measured, images per second;
    - `state.pt` while the run is unfinished.

    Raises `UsageError` if the folder holds another run, on invalid options, and if the loss is no longer
    finite. Raises `DataError` on labels outside the classes and on images that cannot be read.
    """
    with connected() as here:
        whole, request = request.train, method.choose_images(request)
        check_split(request.train)
        if request.val is not None:
            check_split(request.val, request.train)
        recipe = apply_request(
            method.recipe_for(request.backbone, len(request.train.class_names), request.settings), request
        )
        facts = _run_facts(method, request, recipe, whole)
        with training_run(request.out, facts, request.device, request.numerics, here) as device:
            if device is not None:
                _train(_start(method, request, recipe, facts, device, here), request)
    return request.out / LAST


def _train(run: Run, request: TrainRequest) -> None:
    """Run the remaining epochs and write the checkpoints."""
    # Data that the method needs, then equal weights in all processes.
    run.model.before_training(request.train)
    broadcast_from_first([*run.model.parameters(), *run.model.buffers()], run.here)
    # Readers of both splits, which share the memory for images.
    size, room, shared = run.model.input_spec.size, cache_budget(request.cache), run.recipe.short_side
    with contextlib.ExitStack() as stack:
        reader = ImageReader(
            run.model.training_targets(request.train),
            max(size, round(size * run.recipe.resize)),
            workers=request.workers,
            cache_bytes=room // 2 if shared else room,
            here=run.here,
            masks=run.model.mask_source,
            short_side=run.recipe.short_side,
        )
        stack.callback(reader.close)
        val_reader = None
        if request.val is not None:
            room -= reader.cache_bytes
            val_reader = ImageReader(
                request.val, size, workers=request.workers, cache_bytes=room, here=run.here
            )
            stack.callback(val_reader.close)
        _run_epochs(run, request, reader, val_reader, stack.enter_context(StateWriter()))


def _run_epochs(
    run: Run, request: TrainRequest, reader: ImageReader, val_reader: ImageReader | None, states: StateWriter
) -> None:
    """Run the remaining epochs and write the checkpoints."""
    epochs, here = run.recipe.epochs, run.here
    labels = np.array([sample.label for sample in request.train.samples], dtype=np.int64)
    images = sum(
        map(
            len,
            run.model.batches(
                labels, run.recipe.batch_size, np.random.default_rng((request.seed, run.epoch))
            ),
        )
    )
    run.images = images
    with (
        track(
            description=f"training {run.model.method_name}", total=images * epochs, done=images * run.epoch
        ) as bar,
        started_logs(request, run.facts, run.epoch, here),
    ):
        while run.epoch < epochs:
            # Train and validate one epoch.
            start = time.perf_counter()
            row = _epoch(run, reader, labels, request.seed, bar)
            with torch.no_grad():
                run.model.after_epoch(run.epoch, epochs)
            seconds = time.perf_counter() - start
            accuracy = (
                None if val_reader is None or request.val is None else _accuracy(run, val_reader, request.val)
            )
            best = run.best_accuracy
            run.epoch += 1
            run.history.append(
                {
                    "epoch": run.epoch,
                    **row,
                    "val_accuracy": accuracy,
                    **localize_val(request, run.epoch, run.model, run.recipe, run.device, run.numerics, here),
                    "images_per_second": images / seconds,
                    "seconds": seconds,
                }
            )
            # The first process writes the files.
            if not here.is_first:
                continue
            bar.print_line(epoch_line(run.history[-1], epochs))
            for log in request.logs:
                log.write(run.history[-1])
            if accuracy is not None and (best is None or accuracy > best):
                _save(run, request.out / BEST)
            states.save(
                run,
                {"epoch": run.epoch, "history": run.history},
                request.out / STATE,
                partial(write_log, list(run.history), request.out / LOG),
            )
    states.wait()
    if here.is_first:  # again, if the run was killed between state and log
        write_log(run.history, request.out / LOG)
        _save(run, request.out / LAST, {"log_sha256": sha256_of_file(request.out / LOG)})
        (request.out / STATE).unlink(missing_ok=True)


def _epoch(run: Run, reader: ImageReader, labels: np.ndarray, seed: int, bar: Progress) -> dict[str, float]:
    """Run one epoch. Returns the mean of each loss term, their sum, and the last learning rate."""
    model, recipe, device, here = run.model, run.recipe, run.device, run.here
    # Seed the epoch.
    rank = (here.rank,) if here.size > 1 else ()
    torch.manual_seed(mix_seeds(seed, run.epoch, 0))
    model.train()
    model.on_epoch(run.epoch, recipe.epochs)
    if rank:  # until here all processes draw the same
        torch.manual_seed(mix_seeds(seed, run.epoch, 0, *rank))  # dropout
    generator = torch.Generator(device=device).manual_seed(mix_seeds(seed, run.epoch, 1, *rank))
    # Shares of all batches, and their augmented views.
    batches = model.batches(labels, recipe.batch_size, np.random.default_rng((seed, run.epoch)))
    shares = [take_share(batch, here, model.group_size) for batch in batches]
    sums: dict[str, Tensor] = {}
    seen, on_device = 0, recipe.rotate_on == "device"
    views = reader.views(
        [indices for indices, _ in shares], model.input_spec.size, recipe, seed=seed, epoch=run.epoch
    )
    arriving = uploaded(
        (
            {
                "pixels": torch.from_numpy(squares),
                "labels": torch.from_numpy(labels[indices]),
                "indices": torch.from_numpy(indices),
                **({"draws": draw_views(indices, number, seed=seed, epoch=run.epoch)} if on_device else {}),
            }
            for number, ((indices, _), squares) in enumerate(zip(shares, views, strict=True))
        ),
        device,
    )
    for number, (whole, (_, weight), arrays) in enumerate(zip(batches, shares, arriving, strict=True)):
        done = (run.epoch + (number + 0.5) / len(batches)) / recipe.epochs
        # Set the learning rates, then update.
        for objective, optimizer in zip(run.objectives, run.optimizers, strict=True):
            base = objective.recipe.lr
            for group in optimizer.param_groups:
                group["lr"] = base * model.group_factor(group, objective.recipe, done)
        pixels = arrays["pixels"]
        if on_device:
            pixels = device_views(pixels, arrays["draws"], model.input_spec.size, recipe)
        batch = Batch(
            images=normalized_images(pixels, model.input_spec),
            labels=arrays["labels"],
            indices=arrays["indices"],
            epoch=run.epoch,
            epochs=recipe.epochs,
            step=run.epoch * len(batches) + number,
            generator=generator,
            masks=masks_of(pixels),
        )
        for name, term in _step(run, batch, weight).items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + term * (weight * len(whole))
        seen += len(whole)
        # Check the loss over all processes.
        if number % LOOK_EVERY == 0 or number + 1 == len(batches):
            everywhere = gathered({name: float(value) for name, value in sums.items()})
            means = {name: sum(part[name] for part in everywhere) / seen for name in sums}
            where = f"epoch {run.epoch + 1}, at or before step {number + 1}"
            check_finite(means, model.method_name, where, recipe.lr)
        bar.advance(len(whole), f"epoch {run.epoch + 1}/{recipe.epochs}, loss {sum(means.values()):.3f}")
    return {"train_loss": sum(means.values()), **means, "lr": recipe.lr * model.lr_factor(recipe, done)}


def _step(run: Run, batch: Batch, weight: float) -> dict[str, Tensor]:
    """Update the parameters once for each objective that is due and return the loss terms.

    `weight` is the factor of this share in the mean over all processes.
    """
    found: dict[str, Tensor] = {}
    for objective, optimizer in zip(run.objectives, run.optimizers, strict=True):
        if not objective.is_due(batch):
            continue
        own = {id(parameter) for group in objective.groups for parameter in group["params"]}
        terms = take_step(
            partial(objective.loss, batch),
            optimizer,
            run.scaler,
            [parameter for parameter in run.model.parameters() if id(parameter) in own],
            autocast=run.numerics.autocast(run.device),
            clip_norm=objective.recipe.clip_norm,
            weight=weight,
            around=synchronised_step(run.model, weight, run.here),
        )
        found.update({objective.term_name(name): term for name, term in terms.items()})
    return found


@torch.no_grad()
def _accuracy(run: Run, reader: ImageReader, val: Dataset) -> float | None:
    """Return the top-1 accuracy on the validation split, or None for a method that does not classify."""
    run.model.eval()
    order, here = np.arange(len(val)), run.here
    batches = [
        order[start : start + 2 * run.recipe.batch_size]
        for start in range(0, len(order), 2 * run.recipe.batch_size)
    ]
    batches = batches[here.rank :: here.size]
    labels = torch.tensor([sample.label for sample in val.samples])
    arriving = uploaded(
        (
            {"pixels": torch.from_numpy(squares), "labels": labels[torch.from_numpy(indices)]}
            for indices, squares in zip(batches, reader.squares(batches), strict=True)
        ),
        run.device,
    )
    right, classifies = torch.zeros((), dtype=torch.int64, device=run.device), True
    for arrays in arriving:
        with run.numerics.autocast(run.device):
            logits = run.model(normalized_images(arrays["pixels"], run.model.input_spec)).logits
        if logits is None:
            classifies = False
            break
        right += (logits.argmax(dim=1) == arrays["labels"]).sum()
    counts, classify = zip(*gathered((int(right), classifies)), strict=True)
    return sum(counts) / len(val) if all(classify) else None


# --- metadata, start and checkpoint of a run ----------------------------------------------------------------


def _run_facts(method: type[Model], request: TrainRequest, recipe: Recipe, whole: Dataset) -> dict[str, Any]:
    """Return everything that the weights depend on, except the machine."""
    what, own = f"method {method.method_name!r}", dataset_metadata(request.train, whole)
    config = parse_settings(method.Config, split_settings(request.settings)[0], what=what)
    earlier = earlier_data(request.weights, config, own)
    return {
        **request_metadata(method, request, recipe_metadata(recipe), what=what),
        "image_size": request.image_size,
        "dataset": own,
        "val": None if request.val is None else dataset_metadata(request.val),
        **({"earlier_data": earlier} if earlier else {}),
    }


def _save(run: Run, path: Path, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write a checkpoint with its metadata, accuracy and loss, and machine and time in the `.json` file."""
    last = run.history[-1]
    training = {
        **run.facts,
        "epoch": run.epoch,
        "val_accuracy": last["val_accuracy"],
        "train_loss": last["train_loss"],
    }
    if run.earlier is not None:
        training["images_seen"] = run.epoch * run.images + sum(run.earlier.values())
        training |= {"earlier_runs": run.earlier} if run.earlier else {}
    seconds = sum(row["seconds"] for row in run.history)
    save_checkpoint(path, run.model, training, {**run_metadata(run.device, run.numerics, seconds), **more})


def _start(
    method: type[Model],
    request: TrainRequest,
    recipe: Recipe,
    facts: dict[str, Any],
    device: torch.device,
    here: World,
) -> Run:
    """Return a new run, or the one that the folder's state holds.

    Several processes must start from the same state.
    """
    if here.size > 1:
        facts = {**facts, "processes": here.size}
    # Model, objectives and optimisers.
    model = new_model(method, request, device)
    model.backbone.freeze(recipe.frozen_stages)
    model.backbone.set_drop_path(recipe.drop_path)
    if device.type == "cuda" and here.size > 1:
        model = synchronise_batch_norm(model)
    run = prepare_run(
        model,
        recipe,
        device,
        request.numerics,
        facts=facts,
        here=here,
        earlier=earlier_runs(request.weights, model.config),
    )
    # Resume, with the same epoch in all processes.
    state = request.out / STATE
    if state.exists():
        progress = load_state(run, state)
        run.epoch, run.history = progress["epoch"], progress["history"]
    starts = gathered((device.type, run.epoch))
    if len(set(starts)) > 1:
        raise UsageError(
            "the processes start with different devices or epochs: "
            f"{', '.join(f'{kind} after {epoch}' for kind, epoch in starts)}; "
            f"expected one kind of device, and {request.out} on a file system that all of them see"
        )
    return run


def prepare_run(
    model: Model,
    recipe: Recipe,
    device: torch.device,
    numerics: Numerics,
    *,
    facts: Mapping[str, Any] = MappingProxyType({}),
    here: World = World(),  # noqa: B008 - immutable
    earlier: dict[str, int] | None = None,
) -> Run:
    """Return a run before its first epoch: objectives, optimisers and scaler of a model on its device."""
    objectives = tuple(model.objectives(recipe))
    if numerics.compile:
        objectives = tuple(replace(each, loss=torch.compile(each.loss, **COMPILE)) for each in objectives)
        model.compile(**COMPILE)  # for the validation
    return Run(
        model=model,
        objectives=objectives,
        optimizers=tuple(map(build_optimizer, objectives)),
        scaler=scaler_for(device, numerics),
        device=device,
        numerics=numerics,
        recipe=recipe,
        facts=dict(facts),
        here=here,
        earlier=earlier,
    )


def new_model(method: type[M], request: TrainRequest, device: torch.device) -> M:
    """Create the model of a request on the device, seeded by the request."""
    torch.manual_seed(mix_seeds(request.seed))
    model = method.create(
        backbone=request.backbone,
        num_classes=len(request.train.class_names),
        weights=request.weights,
        settings=request.settings,
        image_size=request.image_size,
    )
    model.class_names = request.train.class_names
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_optimizer(objective: Objective) -> torch.optim.Optimizer:
    """Build the optimiser of an objective. Each group of parameters has its own rate."""
    recipe = objective.recipe
    groups = [{**group, "lr": recipe.lr * group["factor"]} for group in objective.groups]
    return make_optimizer(groups, recipe, nesterov=True)
