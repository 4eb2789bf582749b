"""Checks of training that the tests of several methods share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from reference_models.core.model import Model
from reference_models.core.outputs import Batch
from tests.reference_models.conftest import squares, toy_batch
from tests.reference_models.training.test_loop import same_weights
from wsolbench.methods import TrainRequest


def module_of(name: str, lists: Collection[str] = ()) -> str:
    """The module that a parameter belongs to. Those of a list count one by one: `finer.1`."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in lists else 1])


def reached_by(model: Model, loss: Tensor, lists: Collection[str] = ()) -> set[str]:
    """The modules that get a gradient."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        module_of(name, lists)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def check_one_step(model: Model, batch: Batch, learns: set[str], lists: Collection[str] = ()) -> None:
    """All parameters of some modules learn. Whatever else there is stays to the bit, although weights decay."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(model.loss(batch).values()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for name, parameter in model.named_parameters()
        if module_of(name, lists) in learns
    )
    optimizer.step()
    moved = {
        module_of(name, lists)
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == learns


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def check_stopped_run(
    method: type[Model],
    request_of: Callable[[str], TrainRequest],
    stops: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Tensor]:
    """A run that is stopped before each of some epochs, and resumed, ends as an unbroken one: with this."""
    unbroken = method.fit(request_of("unbroken"))
    begin = method.on_epoch
    for stop in stops:

        def stopped(self: Model, epoch: int, epochs: int, stop: int = stop) -> None:
            if epoch == stop:
                raise StoppedError
            begin(self, epoch, epochs)

        with monkeypatch.context() as patch:
            patch.setattr(method, "on_epoch", stopped)
            with pytest.raises(StoppedError):
                method.fit(request_of("broken"))
    broken = method.fit(request_of("broken"))
    assert same_weights(unbroken, broken)
    return load_file(broken)


def losses_on_eight_images(model: Model, steps: int = 40) -> list[dict[str, float]]:
    """The terms of the loss in each step of training on eight images of three classes."""
    samples = squares(8).samples
    images = torch.stack([torch.from_numpy(one.array).permute(2, 0, 1) / 127.5 - 1 for one in samples])
    labels = torch.tensor([sample.label for sample in samples])
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    losses = []
    for seed in range(steps):
        terms = model.loss(replace(toy_batch(8, classes=3, seed=seed), images=images, labels=labels))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append({name: float(term.detach()) for name, term in terms.items()})
    return losses
