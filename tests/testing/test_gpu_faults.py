"""Faults that only a GPU shows are found without one, and named with the method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from reference_models.base.post import PostProcess
from reference_models.localization.cam import Cam
from wsolbench.methods import MethodInfo
from wsolbench.testing import run_check, subject


class Forward(Cam):
    """CAM whose logits pass `change`, which is not on the device that it should be on."""

    def change(self, logits: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, images):
        result = super().forward(images)
        return replace(result, logits=self.change(result.logits))


class Range(Forward):
    def change(self, logits):
        return logits + torch.arange(logits.shape[1])


class Attribute(Forward):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.scale = torch.ones(3)  # a buffer that is not registered stays where it is made

    def change(self, logits):
        return logits * self.scale


class Identity(Forward):
    def change(self, logits):
        return logits @ torch.eye(logits.shape[1])


class Item(Forward):
    def change(self, logits):
        return logits / max(logits.abs().max().item(), 1.0)


class Assert(Forward):
    def change(self, logits):
        assert not torch.isnan(logits).any()
        return logits


class Mask(Cam):
    def loss(self, batch):
        logits = self(batch.images).logits
        return {"hard": logits[logits > 0].sum()}


class Generator(Cam):
    def loss(self, batch):
        noise = torch.rand(
            len(batch.labels), generator=torch.Generator().manual_seed(0), device=batch.images.device
        )
        return {"loss": (self(batch.images).logits.mean(1) * noise).mean()}


class HostPost(PostProcess):
    method_name = "host"

    def maps(self, result, class_ids):
        return result.score_maps(class_ids).cpu()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            Range,
            r"DeviceMismatchError: aten::add has tensors of the GPU and, of the CPU, those of shape \(3,\)",
        ),
        (Attribute, "DeviceMismatchError: aten::mul"),
        (Identity, "DeviceMismatchError: aten::mm"),
        (Item, "on a GPU, maps need a read by _local_scalar_dense in testing/test_gpu_faults.py"),
        (Assert, "on a GPU, maps need a read by _local_scalar_dense"),
        (Mask, "on a GPU, a training step needs a read by index"),
        (Generator, "on a GPU, a training step needs a generator by rand"),
    ],
)
def test_a_fault_of_a_method_is_found(monkeypatch: pytest.MonkeyPatch, kind: type[Any], message: str) -> None:
    monkeypatch.setattr(subject, "load_method", lambda name: kind)
    with pytest.raises(AssertionError, match=f"(?s)method 'cam' fails the check 'fake_gpu': .*{message}"):
        run_check("cam", "fake_gpu")


def test_a_post_process_that_goes_to_the_host_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    row = MethodInfo(name="host", summary="", task="post-process", module="")
    monkeypatch.setattr("wsolbench.methods.list_posts", lambda: [row])
    monkeypatch.setattr("wsolbench.methods.load_post", lambda name: HostPost)
    with pytest.raises(AssertionError, match="maps of host are on cpu; expected the GPU"):
        run_check("cam", "fake_gpu")
