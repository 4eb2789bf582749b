"""The device of a network, and normalised input on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsolbench.exceptions import UsageError
from wsolbench.methods.contracts import DEVICE, InputSpec, Method
from wsolbench.system.distributed import world

if TYPE_CHECKING:
    import torch


def normalized(pixels: torch.Tensor, spec: InputSpec, device: torch.device) -> torch.Tensor:
    """Normalise (B, S, S, 3) uint8 to (B, 3, S, S) float32 on the device, channels last in memory."""
    import torch

    values = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        constants(numbers, device, torch.float32)[:, None, None] for numbers in (spec.mean, spec.std)
    )
    return (values - mean) / std


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to the device. It copies from pinned memory, so the host does not wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def place(method: Method, device: torch.device) -> None:
    """Move a method to the device, with the weights of convolutions in the memory format of the images."""
    import torch

    method.to(device)
    if isinstance(method, torch.nn.Module):
        method.to(memory_format=torch.channels_last)


def constants(values: Sequence[float], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(n,) a few numbers as a tensor that is made on the device.

    A tensor that is made of a list on the host is copied, and the host waits until the device has caught up.
    """
    import torch

    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


def pick_device(name: str) -> torch.device:
    """Return the device of this name. `auto` is CUDA if available, else the CPU.

    With several processes of torchrun, each gets the GPU of its LOCAL_RANK. Raises `UsageError` for a device
    that is not available.
    """
    import torch

    # Resolve the name.
    here = world()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(DEVICE, name):
        raise UsageError(f"unknown device {name[:40]!r}; expected auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    # Check that the device is there.
    if device == torch.device("cuda") and here.size > 1:
        device = torch.device("cuda", here.local_rank)
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        way_out = (
            "Use --device cpu."
            if here.size == 1
            else "Use --device cpu, or start one process for each GPU of a machine."
        )
        raise UsageError(
            f"device {str(device)!r} is not available: torch finds {torch.cuda.device_count()} CUDA "
            f"devices. {way_out}"
        )
    return device
