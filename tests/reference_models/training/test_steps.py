"""What a step of training does on each device."""

from __future__ import annotations

import pytest
import torch

from reference_models.core.recipes import RECIPES
from reference_models.training.steps import make_optimizer, scaler_for, take_step
from wsolbench.methods import Numerics
from wsolbench.methods.device import send
from wsolbench.testing.fake_cuda import FakeCuda

CUDA = torch.device("cuda")


@pytest.mark.parametrize("amp", ["auto", "bf16", "fp16", "off"])
@pytest.mark.parametrize("recipe", ["finetune", "tiny"])
def test_a_step_on_a_gpu_never_waits_whatever_the_precision(recipe: str, amp: str) -> None:
    numerics = Numerics(amp=amp)
    with FakeCuda() as gpu:
        linear = gpu.move(torch.nn.Linear(3, 4))
        parameters = list(linear.parameters())
        optimizer = make_optimizer(parameters, RECIPES[recipe], nesterov=True)
        scaler = scaler_for(CUDA, numerics)
        assert scaler.is_enabled() == (amp == "fp16")
        before = gpu.values(linear.weight).clone()
        terms = take_step(
            lambda: {"mean": linear(send(torch.ones(2, 3), CUDA)).mean()},
            optimizer,
            scaler,
            parameters,
            autocast=numerics.autocast(CUDA),
            clip_norm=1.0,
        )
        assert terms["mean"].dtype == torch.float32
        assert not torch.equal(gpu.values(linear.weight), before)
        assert gpu.events == []


def test_on_a_cpu_the_optimizer_is_not_fused() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    assert not make_optimizer([weight], RECIPES["tiny"], nesterov=True).defaults["fused"]
    assert not scaler_for(torch.device("cpu"), Numerics(amp="bf16")).is_enabled()
