"""Small data sets and a small backbone, so that everything here runs in seconds on one core."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch
from reference_models.core.profile import Stage
from wsolbench.methods import InputSpec
from wsolbench.testing import squares
from wsolbench.types import Dataset


def toy_backbone(size: int = 32) -> Backbone:
    """Three stages; the last two share a grid of 8x8 at 32."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    steps = OrderedDict(one=block(3, 8, 2), two=block(8, 12, 2), three=block(12, 16, 1))
    layout = [Stage("one", 2, 8), Stage("two", 4, 12), Stage("three", 4, 16)]
    return Backbone("toy", steps, layout, grid="std", input_spec=InputSpec(size=size), head_width=16)


def toy_batch(count: int, *, classes: int, seed: int = 0) -> Batch:
    """Noise for `toy_backbone`, always the same; `seed` is that of the method's draws."""
    return Batch(
        images=torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
        labels=torch.arange(count) % classes,
        indices=torch.arange(count),
        epoch=0,
        epochs=1,
        step=0,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Also for what fixtures of a module train: sums of several threads have other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh_seed():
    torch.set_num_threads(1)  # a command that the test before has run may have set it
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def train_set() -> Dataset:
    return squares()


@pytest.fixture
def val_set() -> Dataset:
    return squares(9, seed=1, split="val")
