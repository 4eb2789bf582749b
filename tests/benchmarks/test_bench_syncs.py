"""The training loop itself, on a fake GPU: no step of any method waits for the device."""

from __future__ import annotations

import pytest

from benchmarks.bench_syncs import training
from wsolbench.methods import Numerics, list_methods, load_method
from wsolbench.testing.subject import learns_by_loss, small_backbone

TRAINED = [
    row.name
    for row in list_methods()
    if row.module.startswith("reference_models.")
    and load_method(row.name).trainable
    and learns_by_loss(load_method(row.name))
]


QUICK = {"cam", "dcl", "lio", "mamc", "ra-cnn"}
"""Methods whose loops differ most. The others take minutes together; their losses run in `check_fake_gpu`."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def test_a_step_of_the_training_loop_never_waits_with_a_gradient_scaler(name: str) -> None:
    assert training(name, small_backbone(name), Numerics(amp="fp16")) == []
