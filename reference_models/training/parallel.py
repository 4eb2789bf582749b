"""One training in several processes (torchrun): shares of a batch, and synchronisation after each step.

Each process computes the loss of its share of every batch. Gradients are summed with the shares as weights.
For a loss that is a mean over images they equal those of the whole batch, and every process takes the same
step.

Gradients are summed here, after the backward pass, and not by `DistributedDataParallel`. That averages with
equal weights, which is wrong for shares of unequal size. It hooks into `forward`, while methods are trained
by `loss`. It needs each parameter in each backward pass, or a search of the graph in every step, while
methods use parameters conditionally and freeze them between epochs. Its advantage is that it overlaps the sum
with the backward pass. Here one transfer of all gradients (100 MB for ResNet-50) is not overlapped.

Buffers. A buffer that a step changes gets the mean of the changes, weighted as the gradients. An unchanged
buffer keeps its bits. Batch norm on CUDA is converted to its synchronised form, which uses the statistics of
the whole batch, as in one process. The CPU has no such form: each process normalises with the statistics of
its share, and a run of several processes agrees only roughly with one of a single process. A method that
stores values of single images or classes has to exchange its updates itself
(`wsolbench.system.distributed.gathered`). Integer buffers take the values of the first process when a run
starts. With synchronised batch norm, all processes must run the same layers in each step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn

from wsolbench.system.distributed import World, barrier, collective, gathered

M = TypeVar("M", bound=nn.Module)


def take_share(
    batch: Int[np.ndarray, " n"], here: World, group: int = 2
) -> tuple[Int[np.ndarray, " m"], float]:
    """Return this process's images of a batch, and their weight in the batch's mean.

    The weights of all processes sum to 1. Shares are consecutive and consist of whole groups of `group`
    neighbours, at least 2 images. The last group of a batch may be smaller. Batch norm needs two images: if
    there are not enough groups for all processes, there are fewer shares, and equally many processes compute
    each one.
    """
    count, groups = len(batch), -(-len(batch) // group)
    shares = max(
        number
        for number in range(1, here.size + 1)
        if here.size % number == 0 and (number == 1 or group * number <= count)
    )
    mine = here.rank % shares
    start, stop = (min(count, group * (groups * share // shares)) for share in (mine, mine + 1))
    return batch[start:stop], (stop - start) / count * shares / here.size


def synchronise_batch_norm(model: M) -> M:
    """Convert batch norm to its synchronised form, which only CUDA has.

    Parameters and names of tensors do not change.
    """
    # It also converts timm's norms with activations, which torch's function does not.
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: M = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


@contextlib.contextmanager
def synchronised_step(model: nn.Module, weight: float, here: World) -> Iterator[None]:
    """Synchronise the processes after the forward and backward pass of a share, in a `with` statement.

    The loss of the share must be multiplied by its `weight`. Afterwards gradients are the sums over all
    processes, and changes of floating-point buffers are weighted means. A parameter that takes part in the
    loss of any process has a gradient in all.
    """
    if here.size == 1:
        yield
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    before = [buffer.clone() for buffer in buffers]
    yield
    parameters = list(model.parameters())
    reached = gathered(bytes(parameter.grad is not None for parameter in parameters))
    with torch.no_grad():
        for parameter, anywhere in zip(parameters, map(any, zip(*reached, strict=True)), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # Unchanged values have the change 0, even if they are infinite.
        changes = [
            torch.where(new == old, 0.0, new - old) * weight for new, old in zip(buffers, before, strict=True)
        ]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        _run_flat([*gradients, *changes], dist.all_reduce)
        for buffer, old, change in zip(buffers, before, changes, strict=True):
            buffer.copy_(old + change)


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[Tensor], here: World) -> None:
    """Copy the tensors of the first process to all others."""
    if here.size > 1:
        barrier()
        _run_flat(tensors, lambda flat: dist.broadcast(flat, 0))


def all_reduce_sum(tensor: Tensor, here: World) -> None:
    """Replace the tensor in all processes by the sum over the processes."""
    if here.size > 1:
        barrier()
        with collective():
            dist.all_reduce(tensor)


def _run_flat(tensors: Iterable[Tensor], run: Callable[[Tensor], object]) -> None:
    """Run a collective on many tensors in place, with one message for each dtype."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for group in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with collective():
            run(flat)
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))
