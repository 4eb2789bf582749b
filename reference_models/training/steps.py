"""What one step of training needs: seeds, mixed precision, the check that the loss is still finite."""

from __future__ import annotations

import numpy as np
import torch

from wsolbench.exceptions import UsageError


def must_be_finite(means: dict[str, float], method: str, where: str, lr: float) -> None:
    """Raises `UsageError` when the sum of the terms of the loss is no number any more."""
    if not np.isfinite(sum(means.values())):
        terms = ", ".join(f"{name} {value:g}" for name, value in means.items())
        raise UsageError(
            f"the loss of {method!r} is no longer finite: {where} ({terms}). Use a smaller --lr (it is "
            f"{lr:g}), "
            "or --set recipe.clip_norm=1; the run folder still holds what was saved before"
        )


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision on CUDA, nothing elsewhere."""
    return torch.autocast(device.type, dtype=_half(device), enabled=device.type == "cuda")


def scaler_for(device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients are in float16, nothing elsewhere."""
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and _half(device) == torch.float16)


def _half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16


def mixed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
