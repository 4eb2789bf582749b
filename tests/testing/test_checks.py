"""`check_method` passes a sound method and names what is wrong with others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from reference_models.localization.cam import Cam
from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec, Localization, Method
from wsolbench.testing import CHECKS, check_method, checks_of, run_check, subject


class Contract(Method):
    """A method with the contract alone: no training, no base class of the reference models."""

    method_name = "contract"
    input_spec = InputSpec(size=64)
    num_classes = 3
    trainable = False
    ready = True

    @classmethod
    def create(cls, **_: Any) -> Contract:
        return cls()

    def localize(self, images: torch.Tensor) -> Any:
        return Ramp(len(images))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {"method": "contract", "variant": None, "config": {}, "image_size": 64}


class Ramp(Localization):
    logits = None

    def __init__(self, count: int) -> None:
        self.count = count

    def score_maps(self, class_ids: torch.Tensor) -> torch.Tensor:
        return torch.linspace(0, 1, 64).reshape(1, 1, 8, 8).expand(*class_ids.shape, 8, 8)


class Infinite(Cam):
    def forward(self, images):
        result = super().forward(images)
        return replace(result, maps_of=lambda class_ids: result.maps_of(class_ids) / 0)


class Drawing(Cam):
    def forward(self, images):
        result = super().forward(images)
        noise = torch.rand(1)
        return replace(result, maps_of=lambda class_ids: result.maps_of(class_ids) + noise)


class Mixing(Cam):
    def forward(self, images):
        result = super().forward(images)
        return replace(
            result, maps_of=lambda class_ids: (maps := result.maps_of(class_ids)) - maps.mean(0, keepdim=True)
        )


class Unreached(Cam):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.spare = torch.nn.Parameter(torch.ones(2))


class Misnamed(Cam):
    def describe(self):
        return {**super().describe(), "method": "cma"}


class Forgetful(Cam):
    def loss(self, batch):
        raise KeyError("masks")


def offered(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> None:
    monkeypatch.setattr(subject, "load_method", lambda name: kind)


def test_a_sound_method_passes() -> None:
    check_method("cam")
    check_method("cam", settings={"head": "fc"})


def test_a_method_without_training_has_the_checks_of_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    offered(monkeypatch, Contract)
    assert checks_of("contract") == [
        "maps",
        "independence",
        "determinism",
        "description",
        "evaluation",
        "gpu",
        "fake_gpu",
    ]
    check_method("contract")


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        (Infinite, "maps", "maps hold NaN or Inf"),
        (Drawing, "determinism", "a second call gives other maps"),
        (Mixing, "independence", "Tensor-likes are not close"),
        (Unreached, "gradients", r"the loss does not reach \['spare'\]"),
        (Misnamed, "description", "it describes itself as 'cma'"),
        (Forgetful, "half_precision", "KeyError: 'masks'"),
    ],
)
def test_a_fault_is_named_with_the_method(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], check: str, message: str
) -> None:
    offered(monkeypatch, kind)
    with pytest.raises(AssertionError, match=rf"(?s)method 'cam' fails the check '{check}': .*{message}"):
        run_check("cam", check)


def test_an_unknown_method_is_an_error_of_the_caller() -> None:
    with pytest.raises(UsageError, match="unknown method 'cma'"):
        check_method("cma")


def test_each_check_leaves_the_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    for check in CHECKS:
        run_check("cam", check)
    assert torch.equal(before, torch.get_rng_state())
