"""The folder of a training run: one process at a time, one run, a log."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from reference_models.core.model import Model
from reference_models.core.weights import first_line, read_safetensors
from reference_models.training.checkpoint import read_header, read_sidecar, write_sidecar
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import Numerics
from wsolbench.methods.device import pick_device
from wsolbench.records.plugins import plugin_digests
from wsolbench.records.program import program, unlike
from wsolbench.system.distributed import World, gathered
from wsolbench.system.files import (
    canonical_json,
    is_sealed,
    locked,
    remove_leftovers,
    sha256_of_file,
    write_sealed,
    write_text,
)
from wsolbench.system.progress import note

ELSEWHERE = "--out of `wsolbench train` (then `eval --checkpoint`) or of `train-detector`"


@contextlib.contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Lock a run folder for this process, and create it if it is missing.

    Temporary files of a killed run are removed. Raises `UsageError` if another process uses the folder.
    """
    busy = f"another process is training in {folder}; wait for it, or train into another folder: {ELSEWHERE}"
    with locked(folder / ".lock", busy):
        remove_leftovers(folder)
        yield


def check_same_run(there: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    """Raise `UsageError` with the differences if the metadata of the run at `path` is not `asked`."""
    asked = json.loads(canonical_json(asked))
    if there == asked:
        return
    differences = []
    for name in sorted(asked):
        old, new = there.get(name), asked[name]
        if isinstance(old, dict) and isinstance(new, dict):
            differences += [
                f"{name}.{key} is {old.get(key)!r} there and {new.get(key)!r} here"
                for key in sorted({*old, *new})
                if old.get(key) != new.get(key)
            ]
        elif old != new:
            differences.append(f"{name} is {old!r} there and {new!r} here")
    raise UsageError(
        f"{path} belongs to another run: {'; '.join(differences[:3])}. Delete that one, or train into "
        f"another folder: {ELSEWHERE}"
    )


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """Write the log as CSV, one row per epoch: number, loss and its terms, rate, accuracy, speed."""
    names = {name: None for row in history for name in row}
    first = ["epoch", "train_loss"]
    last = ["lr", "val_accuracy", "val_gt_known", "val_tau", "images_per_second", "seconds"]
    columns = [
        *first,
        *(name for name in names if name not in {*first, *last}),
        *(name for name in last if name in names),
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in history:
        values = [row.get(name) for name in columns]
        writer.writerow(
            [
                "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
                for value in values
            ]
        )
    write_text(path, text.getvalue())


@contextlib.contextmanager
def training_run(
    out: Path, facts: dict[str, Any], device: str, numerics: Numerics, here: World
) -> Iterator[torch.device | None]:
    """Set up a training: lock the folder, choose the device, and apply the numerics.

    Yields the device, or None if the folder holds the finished run with this metadata. The global random
    state and torch's settings are restored afterwards. Raises as `locked_run`, `is_finished`, `pick_device`
    and `Numerics.check`.
    """
    with contextlib.ExitStack() as stack:
        if here.is_first:
            stack.enter_context(locked_run(out))
        if gathered(here.is_first and is_finished(out, facts))[0]:
            if here.is_first:
                (out / STATE).unlink(missing_ok=True)
            yield None
            return
        chosen = pick_device(device)
        numerics.check(chosen)
        if chosen.type == "cuda":
            stack.enter_context(torch.cuda.device(chosen))
        stack.enter_context(torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []))
        stack.enter_context(numerics.held())
        yield chosen


def run_metadata(device: torch.device, numerics: Numerics, seconds: float) -> dict[str, Any]:
    """Return device, numerics, duration and plug-in files of a run, for the `.json` with a checkpoint."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    plugins = {"plugin_files": files} if (files := plugin_digests()) else {}
    return {"device": name, "numerics": numerics.describe(device), "seconds": round(seconds, 1), **plugins}


LAST, BEST, STATE, LOG = "last.safetensors", "best.safetensors", "state.pt", "log.csv"

LIBRARIES = ("torch", "torchvision", "timm")
"""Packages whose versions affect a training, besides those that affect all numbers."""


@runtime_checkable
class Run(Protocol):
    """Parts of a run in progress that are stored on disk."""

    @property
    def model(self) -> nn.Module:
        """The model in training."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Its optimisers."""

    scaler: torch.amp.GradScaler
    device: torch.device
    numerics: Numerics
    facts: dict[str, Any]


class StateWriter:
    """Writes the states of a run in a thread, in a `with` statement. At its end all is written.

    A kill leaves the state before. An error of the thread is raised by the next call, or at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def wait(self) -> None:
        """Wait for the last state."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def save(
        self, run: Run, progress: dict[str, Any], path: Path, then: Callable[[], None] | None = None
    ) -> None:
        """Write everything that a run needs to resume, with a digest, then call `then` if given.

        Waits for the state before. Everything is copied now, so the run can continue. `progress` consists of
        JSON values.
        """
        self.wait()
        state = {
            "facts": canonical_json(run.facts),
            "program": canonical_json(program(LIBRARIES)),
            "machine": canonical_json(_machine(run)),
            "progress": json.dumps(progress),
            "model": _copy_to_host(run.model.state_dict()),
            "optimizers": [_copy_to_host(optimizer.state_dict()) for optimizer in run.optimizers],
            "scaler": _copy_to_host(run.scaler.state_dict()),
        }

        def write() -> None:
            content = io.BytesIO()  # torch.save to a path hides the error of a full disk
            torch.save(state, content)
            write_sealed(path, content.getbuffer())
            if then is not None:
                then()

        self._writing = self._thread.submit(write)


def _copy_to_host(value: Any) -> Any:
    """Copy a state dict with its tensors to the host."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # with the attributes of torch's dicts
        copied.update((name, _copy_to_host(item)) for name, item in value.items())
        return copied
    return [_copy_to_host(item) for item in value] if isinstance(value, list) else value


def load_state(run: Run, path: Path) -> dict[str, Any]:
    """Restore `run` to the state that `StateWriter` wrote, and return the progress.

    Raises `DataError` if the file is damaged. Raises `UsageError` if the state belongs to another run or
    program, or to another kind of device or number of threads.
    """
    # Read the file.
    try:
        if not path.is_file():
            raise ValueError("it is not a file")
        sealed = is_sealed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # step counters stay there
        facts, progress = json.loads(state["facts"]), dict(json.loads(state["progress"]))
        by, on = (json.loads(state.get(name, "{}")) for name in ("program", "machine"))
    except Exception as error:  # torch.load raises errors of any type on damage
        raise DataError(
            f"the state of the interrupted run, {path}, is damaged ({first_line(error)}); delete it to "
            "start again"
        ) from error
    # It must be the same run, program and machine.
    defaults: dict[str, Any] = {"processes": 1, "numerics": {}}
    check_same_run({**defaults, **facts}, {**defaults, **run.facts}, path)
    here = _machine(run)
    differences = [
        f"{name} {on.get(name)} there and {value} here"
        for name, value in here.items()
        if on.get(name) != value
    ]
    if found := ", ".join(filter(None, [unlike(by, program(LIBRARIES)), *differences])):
        raise UsageError(
            f"the interrupted run of {path} was started differently: {found}. Expected the same program and "
            f"machine for the whole run: resume it as it was started, or delete {path.name} to start again"
        )
    if not sealed:
        raise DataError(
            f"the state of the interrupted run, {path}, is damaged (its digest is missing); delete it to "
            "start again"
        )
    # Restore.
    if isinstance(run.model, Model):
        run.model.fit_buffers(state["model"])
    run.model.load_state_dict(state["model"], strict=True)
    for optimizer, kept in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    run.scaler.load_state_dict(state["scaler"])
    return progress


def _machine(run: Run) -> dict[str, Any]:
    """Return what can change weights besides the request: device, numerics, and threads of the CPU."""
    on_cpu = run.device.type == "cpu"
    return {
        "device": run.device.type,
        "threads": torch.get_num_threads() if on_cpu else None,
        **run.numerics.describe(run.device),
    }


def is_finished(out: Path, facts: dict[str, Any]) -> bool:
    """Return whether the folder holds the complete run with this metadata.

    False if a file is damaged but a state exists, from which it can be written again. A damaged `.json` file
    is rewritten. Raises `UsageError` if the folder holds another run, and `DataError` if the checkpoint is
    damaged and there is no state.
    """
    if not (out / LAST).exists():
        return False
    # The checkpoint: same run, all epochs, undamaged.
    resumable = (out / STATE).exists()
    try:
        header = read_header(out / LAST)
        training = header["training"]
        asked = {"numerics": {}, **facts}
        there = {"numerics": {}, **training}
        check_same_run({name: there.get(name) for name in asked}, asked, out / LAST)
        if training.get("epoch") != facts["recipe"]["epochs"]:
            return False
        read_safetensors(out / LAST)
    except DataError:
        if resumable:
            return False
        raise
    # The `.json` file.
    beside = read_sidecar(out / LAST)
    if {name: beside.get(name) for name in header} != header:
        if resumable:
            return False
        write_sidecar(out / LAST, header, {})
        beside = {}
    # The log.
    log = (beside.get("run") or {}).get("log_sha256")
    if log is not None and not ((out / LOG).is_file() and sha256_of_file(out / LOG) == log):
        if resumable:
            return False
        note(f"{out / LOG} is missing, or not the log of this run; the weights are not affected")
    return True
