"""One training in several processes (torchrun): shares of a batch, and what makes the processes one again
after each step.

Each process computes the loss of its share of every batch. Gradients are summed with the shares as weights,
so that for a loss that is a mean over images they are those of the whole batch; every process then takes the
same step.

Gradients are summed here, after the backward pass, and not by `DistributedDataParallel`. That averages with
equal weights, which is wrong for shares of unequal size; it hooks into `forward`, while methods are trained
by `loss`; and it needs each parameter in each backward pass, or a search of the graph in every step, while
methods use parameters conditionally and freeze them between epochs. It would hide the sum behind the backward
pass: the price is one pass of the gradients over the network of the machines (100 MB for ResNet-50).

Buffers. A buffer that a step changes gets the mean of the changes, weighted as the gradients; one that it
leaves alone keeps its bits. Batch norm on CUDA is converted to its synchronised form: the statistics are
those of the whole batch, as in one process. On the CPU there is no such form: each process normalises with
the statistics of its share, and a run of several processes agrees with one of a single process only roughly.
A method that keeps a memory of single images or classes has to exchange its updates itself
(`wsolbench.system.distributed.gathered`); integer buffers become those of the first process after each epoch.
With synchronised batch norm, all processes must go through the same layers in each step.
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


def share_of(
    batch: Int[np.ndarray, " n"], here: World, group: int = 2
) -> tuple[Int[np.ndarray, " m"], float]:
    """This process's images of a batch, and what they weigh in the batch's mean; the weights of all processes
    have the sum 1.

    Shares are consecutive and made of whole groups of neighbours (`group`, at least 2 images; the last one of
    a batch may be smaller). Batch norm needs two images: where there are not enough groups for all, the batch
    is cut into fewer shares, and each of them is computed by equally many processes.
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


def with_synchronised_batch_norm(model: M) -> M:
    """The model with batch norm over all processes, which only CUDA has. Parameters and names of tensors
    stay.
    """
    # It knows timm's norms with activations, too, which torch's function would lose.
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: M = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


@contextlib.contextmanager
def one_step(model: nn.Module, weight: float, here: World) -> Iterator[None]:
    """Around the forward and backward pass of a share whose loss was multiplied by its `weight`.

    Afterwards gradients are the sums over all processes and floating-point buffers the weighted means of what
    the processes have made of them. A parameter that had a part in the loss of any process has a gradient in
    all.
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
        # Where nothing has changed the change is 0, also where the value is infinite.
        changes = [
            torch.where(new == old, 0.0, new - old) * weight for new, old in zip(buffers, before, strict=True)
        ]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        _in_one([*gradients, *changes], dist.all_reduce)
        for buffer, old, change in zip(buffers, before, changes, strict=True):
            buffer.copy_(old + change)


@torch.no_grad()
def make_equal(tensors: Iterable[Tensor], here: World) -> None:
    """Give the tensors of all processes the values of the first one's."""
    if here.size > 1:
        barrier()
        _in_one(tensors, lambda flat: dist.broadcast(flat, 0))


def add_up(tensor: Tensor, here: World) -> None:
    """Give the tensor in all processes the sum of all."""
    if here.size > 1:
        barrier()
        with collective():
            dist.all_reduce(tensor)


def _in_one(tensors: Iterable[Tensor], run: Callable[[Tensor], object]) -> None:
    """A collective on many tensors in place, in one message for each dtype."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for group in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        with collective():
            run(flat)
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))
