"""Number formats and kernels: what a run sets in torch, what it leaves to the user, and what it refuses."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wsolbench.exceptions import UsageError
from wsolbench.methods import Numerics
from wsolbench.methods.numerics import COMPILE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def state_of_torch() -> tuple[Any, ...]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    products = (
        (matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)
        if hasattr(cudnn, "conv")
        else (matmul.allow_tf32, cudnn.allow_tf32)
    )
    return (*products, cudnn.deterministic, cudnn.benchmark)


@pytest.fixture
def exact_convolutions():
    """A user's own choice of precision, next to which torch's older flags raise."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    yield
    conv.fp32_precision = before


def fail_inside(numerics: Numerics) -> None:
    with numerics.held():
        assert state_of_torch()[:3] == ("ieee", "ieee", "ieee")
        raise ZeroDivisionError


def test_settings_of_the_user_stay_and_come_back(exact_convolutions: None, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = state_of_torch()
    with Numerics().held():
        assert state_of_torch() == (*before[:-2], True, False)
    with Numerics(deterministic=False, precision="tf32").held():
        assert state_of_torch() == ("tf32", "tf32", "tf32", False, True)
    assert state_of_torch() == before
    with pytest.raises(ZeroDivisionError):
        fail_inside(Numerics(precision="ieee"))
    assert state_of_torch() == before


WHATEVER_THE_USER_HAS_SET = """
import os
import torch
from tests.methods.test_numerics import state_of_torch
from wsolbench.methods import Numerics
from wsolbench.testing.fake_cuda import FakeCuda

for own in (
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = False",
):
    if os.fork():
        assert os.wait()[1] == 0, own
        continue
    exec(own)
    before = state_of_torch()
    for precision in ("auto", "ieee", "tf32"):
        with FakeCuda(), Numerics(precision=precision).held():
            assert precision == "auto" or set(state_of_torch()[:3]) == {precision}
            described = Numerics(precision=precision).describe(torch.device("cuda"))
        assert state_of_torch() == before
    assert (described["matmul"], described["convolution"]) == ("tf32", "tf32")
    break
"""


def test_whatever_the_user_has_set_before_nothing_raises() -> None:
    """In processes of their own: what torch has seen of both interfaces cannot be undone."""
    command = [sys.executable, "-c", WHATEVER_THE_USER_HAS_SET]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torch_before_2_9_is_set_by_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul, cudnn = (
        SimpleNamespace(allow_tf32=False),
        SimpleNamespace(allow_tf32=True, deterministic=False, benchmark=True),
    )
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    before = state_of_torch()
    for precision, flag in (("ieee", False), ("tf32", True)):
        with Numerics(precision=precision).held():
            assert state_of_torch() == (flag, flag, True, False)
        assert state_of_torch() == before
    monkeypatch.setattr("torch.cuda.device", contextlib.nullcontext)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    described = Numerics().describe(CUDA)
    assert (described["matmul"], described["convolution"]) == ("ieee", "tf32")


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_the_best_that_a_gpu_has_and_nothing_on_a_cpu(monkeypatch, native: bool) -> None:
    monkeypatch.setattr("torch.cuda.device", contextlib.nullcontext)
    monkeypatch.setattr(
        "torch.cuda.is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert Numerics().mixed_dtype(CUDA) == (torch.bfloat16 if native else torch.float16)
    assert Numerics().mixed_dtype(CPU) is None
    assert Numerics().for_evaluation().mixed_dtype(CUDA) is None
    assert Numerics(amp="fp16").for_evaluation().mixed_dtype(CUDA) == torch.float16
    assert Numerics(amp="off").mixed_dtype(CUDA) is None
    assert Numerics(amp="bf16").mixed_dtype(CPU) == torch.bfloat16
    with Numerics(amp="bf16").autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with Numerics().autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_only_what_changes_results_identifies_a_run() -> None:
    assert Numerics().identity == {}
    assert Numerics(precision="ieee", compile=True, deterministic=False).identity == {}
    assert Numerics(amp="off", precision="tf32").identity == {"amp": "off", "precision": "tf32"}
    assert Numerics(compile=True).describe(CPU) == {"amp": "off", "compile": True}


def test_what_a_device_lacks_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--amp fp16 needs CUDA.*found device cpu. Use --amp bf16 or"):
        Numerics(amp="fp16").check(CPU)
    with pytest.raises(UsageError, match="--precision tf32 needs CUDA; found device cpu"):
        Numerics(precision="tf32").check(CPU)
    with pytest.raises(UsageError, match="expected one of 'auto', 'bf16', 'fp16', 'off'"):
        Numerics(amp="float16")  # type: ignore[arg-type]
    # torch says yes to emulation, unless it is asked for the format itself.
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.device", contextlib.nullcontext)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Tesla T4")
    with pytest.raises(UsageError, match=r"found Tesla T4. Use --amp fp16"):
        Numerics(amp="bf16").check(CUDA)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no g++\n!")))
    with pytest.raises(UsageError, match=r"torch cannot compile on cpu here \(no g\+\+\).*leave out --comp"):
        Numerics(compile=True).check(CPU)
    assert COMPILE["options"] == {"fallback_random": True}
