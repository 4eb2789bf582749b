"""Copies between host and device for which neither waits. On the CPU nothing is copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]


def uploaded(batches: Iterable[Tensors], device: torch.device) -> Iterator[Tensors]:
    """Yield the batches on the device. The next one is copied while one is in use.

    On CUDA a second stream copies from pinned memory. It is used by the stream that is current when a batch
    is yielded.
    """
    import torch

    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Tensors, torch.cuda.Event] | None = None
    for batch in batches:
        pinned = {name: tensor.pin_memory() for name, tensor in batch.items()}
        with torch.cuda.stream(stream):
            copied = {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}
            event = stream.record_event()
        if waiting is not None:
            yield _received(*waiting, device)
        waiting = copied, event
    if waiting is not None:
        yield _received(*waiting, device)


def _received(batch: Tensors, event: torch.cuda.Event, device: torch.device) -> Tensors:
    """Let the current stream wait for the copies, and keep their memory until it has used them."""
    import torch

    current = torch.cuda.current_stream(device)
    current.wait_event(event)
    for tensor in batch.values():
        tensor.record_stream(current)
    return batch


class Download:
    """Tensors on their way to the host. All are copied at once; the device goes on meanwhile."""

    def __init__(self, tensors: Tensors) -> None:
        import torch

        self._tensors: dict[str, torch.Tensor] = {}
        devices: dict[torch.device, None] = {}
        for name, tensor in tensors.items():
            if tensor.device.type == "cuda":
                host = torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory()
                self._tensors[name] = host.copy_(tensor.detach(), non_blocking=True)
                devices[tensor.device] = None
            else:
                self._tensors[name] = tensor.detach().cpu()
        # A copy runs on the current stream of its tensor's device, which may not be the current device.
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def read(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the values once all have arrived. Other threads run meanwhile."""
        for event in self._events:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}
