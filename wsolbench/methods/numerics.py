"""`Numerics`: the number formats and the kernels that a network is trained and evaluated with."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from wsolbench.exceptions import UsageError
from wsolbench.ranges import Ranged

if TYPE_CHECKING:
    import torch

R = TypeVar("R")

COMPILE: Mapping[str, Any] = MappingProxyType({"options": {"fallback_random": True}})
"""Arguments of torch.compile. Random numbers are those of the program that is not compiled."""


@dataclass(frozen=True, kw_only=True)
class Numerics(Ranged):
    """Number formats and kernels of a run, as the options of the same names set them.

    A method of another package that has its own training loop uses `held` and `autocast` there.
    """

    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision. `auto`: in training on CUDA, bfloat16 if the GPU has it, else float16."""
    precision: Literal["auto", "ieee", "tf32"] = "auto"
    """Float32 products outside of mixed precision on CUDA. `auto`: as torch is set."""
    compile: bool = False
    """Whether torch.compile compiles the network. It changes the last bits of all results."""
    deterministic: bool = True
    """Whether cuDNN chooses deterministic algorithms. Otherwise it tries several and takes the fastest."""

    @property
    def identity(self) -> dict[str, str]:
        """The fields that change results by more than the last bits, if they are not at their defaults.

        They are part of what identifies a training run and a record.
        """
        return {
            **({} if self.amp == "auto" else {"amp": self.amp}),
            **({"precision": "tf32"} if self.precision == "tf32" else {}),
        }

    def for_evaluation(self) -> Numerics:
        """Return the same with `amp=off` in place of `auto`: maps are not computed in mixed precision unless
        asked for.
        """
        return replace(self, amp="off") if self.amp == "auto" else self

    def mixed_dtype(self, device: torch.device) -> torch.dtype | None:
        """Return the type of mixed precision on this device, or None if it is off.

        Raises `UsageError` for a type that the device does not have.
        """
        import torch

        on_cuda = device.type == "cuda"
        if self.amp == "off" or (self.amp == "auto" and not on_cuda):
            return None
        if self.amp == "auto":
            return torch.bfloat16 if _has_bfloat16(device) else torch.float16
        if self.amp == "fp16" and not on_cuda:
            raise UsageError(
                f"--amp fp16 needs CUDA, because float16 needs a GPU's loss scaling; found device {device}. "
                "Use --amp bf16 or --amp off"
            )
        if self.amp == "bf16" and on_cuda and not _has_bfloat16(device):
            raise UsageError(
                f"--amp bf16 needs a GPU with bfloat16; found {torch.cuda.get_device_name(device)}. Use "
                "--amp fp16 or --amp off"
            )
        return torch.float16 if self.amp == "fp16" else torch.bfloat16

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context of mixed precision for forward passes on this device."""
        import torch

        dtype = self.mixed_dtype(device)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def check(self, device: torch.device) -> None:
        """Raise `UsageError` if the device lacks a format, or if torch cannot compile for it."""
        self.mixed_dtype(device)
        if self.precision == "tf32" and device.type != "cuda":
            raise UsageError(f"--precision tf32 needs CUDA; found device {device}. Leave it out")
        if self.compile:
            _check_compiler(device)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Apply `precision` and `deterministic` to torch in a `with` statement, then restore its settings."""
        import torch

        cudnn = torch.backends.cudnn
        wanted: list[tuple[Any, str, Any]] = [
            (cudnn, "deterministic", self.deterministic),
            (cudnn, "benchmark", not self.deterministic),
        ]
        if self.precision != "auto":
            wanted += [(*place, _of_torch(place, self.precision)) for place in _products()]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
        try:
            for owner, name, value in wanted:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def describe(self, device: torch.device) -> dict[str, Any]:
        """Return what holds inside of `held`, for the metadata of a run. JSON values only.

        Float32 products and cuDNN are stated on CUDA only, because they do not concern the CPU.
        """
        dtype = self.mixed_dtype(device)
        described: dict[str, Any] = {
            "amp": "off" if dtype is None else str(dtype).removeprefix("torch."),
            "compile": self.compile,
        }
        if device.type != "cuda":
            return described
        matmul, convolution, *_ = (
            _to_text(getattr(owner, name)) if self.precision == "auto" else self.precision
            for owner, name in _products()
        )
        return {
            **described,
            "matmul": matmul,
            "convolution": convolution,
            "deterministic": self.deterministic,
        }


def with_numerics(work: Callable[..., R]) -> Callable[..., R]:
    """Let a method of an object with `numerics` and `device` run with these numerics."""

    @functools.wraps(work)
    def computed(self: Any, *arguments: Any) -> R:
        with self.numerics.held(), self.numerics.autocast(self.device):
            return work(self, *arguments)

    return computed


def _products() -> list[tuple[Any, str]]:
    """Return where torch keeps the precision of float32 products: matrix products, convolutions, the rest.

    Torch 2.9 has a text for each. It raises `RuntimeError` if its older flags are used next to these.
    """
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return [(each, "fp32_precision") for each in (matmul, cudnn.conv, cudnn.rnn)]
    return [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]


def _of_torch(place: tuple[Any, str], precision: str) -> Any:
    return precision if place[1] == "fp32_precision" else precision == "tf32"


def _to_text(value: Any) -> str:
    """Return a setting of torch as a text. Torch calls its default for matrix products `none`: IEEE."""
    return "tf32" if value in (True, "tf32") else "ieee"


def _has_bfloat16(device: torch.device) -> bool:
    """Whether this GPU itself computes in bfloat16. Emulation is slower than float16."""
    import torch

    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_has_bfloat16() -> bool:
    """Whether torch has fast kernels for bfloat16 on this processor. Otherwise convolutions are emulated."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _check_compiler(device: torch.device) -> None:
    """Raise `UsageError` with torch's reason if it cannot compile for this device."""
    import torch

    try:
        torch.compile(torch.neg, **COMPILE)(torch.zeros(2, device=device))
    except Exception as error:  # torch raises errors of many types if a compiler is missing
        reason = str(error).strip().partition("\n")[0][:200]
        raise UsageError(
            f"--compile: torch cannot compile on {device} here ({reason}); expected a C++ compiler, and "
            "triton for CUDA. Install it, or leave out --compile"
        ) from error
