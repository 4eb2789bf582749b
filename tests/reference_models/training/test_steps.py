"""What a step of training may change, and what it leaves to the user."""

from __future__ import annotations

import pytest
import torch

from reference_models.training.steps import autocast, deterministic_cudnn, scaler_for


@pytest.fixture
def exact_convolutions():
    """A user's own choice of precision, beside which torch's context of cuDNN's flags raises."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    yield
    conv.fp32_precision = before


def test_settings_of_the_user_stay_while_training_is_deterministic(
    monkeypatch: pytest.MonkeyPatch, exact_convolutions: None
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    before = cudnn.deterministic
    with deterministic_cudnn():
        assert cudnn.deterministic
        assert not cudnn.benchmark
        assert cudnn.conv.fp32_precision == "ieee"
    assert cudnn.benchmark
    assert cudnn.deterministic == before


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bfloat16_of_its_own_trains_in_float16_with_a_scaler(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr("torch.cuda.is_bf16_supported", is_supported)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(
        "torch.amp.grad_scaler.GradScaler.__init__", lambda self, kind, enabled: setattr(self, "on", enabled)
    )
    device = torch.device("cuda")
    assert autocast(device).fast_dtype == (torch.bfloat16 if native else torch.float16)
    assert scaler_for(device).on is not native
