"""One step of training: seeds, mixed precision, the optimiser, and the check that the loss is finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.recipes import Recipe
from wsolbench.exceptions import UsageError
from wsolbench.methods import Numerics


def make_optimizer(
    parameters: Sequence[Tensor] | Sequence[dict[str, Any]],
    recipe: Recipe | DetectionRecipe,
    *,
    nesterov: bool,
) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe. `nesterov` selects Nesterov's momentum for SGD.

    On CUDA it is fused: its few kernels also apply the gradient scaler's check, for which the host would wait
    otherwise. On the CPU it is not: a fused Adam differs in the last bits, and a step gains nothing.
    """
    tensors = [one for each in parameters for one in (each["params"] if isinstance(each, dict) else [each])]
    fused = any(tensor.device.type == "cuda" for tensor in tensors) or None
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=nesterov and recipe.momentum > 0,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=recipe.lr,
        betas=(recipe.momentum, 0.999),
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def take_step(
    loss: Callable[[], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    parameters: Iterable[Tensor],
    *,
    autocast: contextlib.AbstractContextManager[Any],
    clip_norm: float,
    weight: float = 1.0,
    around: contextlib.AbstractContextManager[None] | None = None,
) -> dict[str, Tensor]:
    """Update the parameters once and return the loss terms, float32 without a graph.

    Args:
        loss: computes the named terms, whose sum is minimised.
        optimizer: its gradients are cleared first.
        scaler: scales the loss if gradients are float16.
        parameters: the optimiser's parameters, whose gradient norm `clip_norm` limits.
        autocast: context of mixed precision, in which the loss is computed.
        clip_norm: largest norm of the gradient. 0: no clipping.
        weight: factor of the loss, for a share of a batch.
        around: context of the forward and the backward pass.
    """
    optimizer.zero_grad(set_to_none=True)
    with around or contextlib.nullcontext():
        with autocast:
            terms = loss()
        total = torch.stack([term.float() for term in terms.values()]).sum()
        # Scaled gradients are summed before the scaler checks them, so all processes agree.
        scaler.scale(total * weight).backward()  # type: ignore[no-untyped-call]
    if clip_norm > 0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return {name: term.detach().float() for name, term in terms.items()}


def check_finite(means: dict[str, float], method: str, where: str, lr: float) -> None:
    """Raise `UsageError` if the sum of the loss terms is not finite."""
    if not np.isfinite(sum(means.values())):
        terms = ", ".join(f"{name} {value:g}" for name, value in means.items())
        raise UsageError(
            f"the loss of {method!r} is no longer finite: {where} ({terms}). Use a smaller --lr (it is "
            f"{lr:g}), "
            "or --set recipe.clip_norm=1; the run folder still holds what was saved before"
        )


def scaler_for(device: torch.device, numerics: Numerics) -> torch.amp.GradScaler:
    """Return the gradient scaler, which is active only for float16."""
    return torch.amp.GradScaler(device.type, enabled=numerics.mixed_dtype(device) == torch.float16)


def mix_seeds(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
