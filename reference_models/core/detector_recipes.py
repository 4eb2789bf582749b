"""Training recipes of detectors as data.

Every field can be set on the command line: `--set recipe.warmup_steps=100`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from wsolbench.ranges import BatchSize, CountOrZero, Epochs, LearningRate, Ranged, Share, ShareBelow1, Weight


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Ranged):
    """Training recipe of a detector.

    Milestones of the learning rate are fractions of the run; the warm-up is counted in steps.
    """

    source: str
    epochs: Epochs
    batch_size: BatchSize
    lr: LearningRate
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: ShareBelow1 = 0.9
    """SGD's momentum (without Nesterov), or Adam's first beta."""
    weight_decay: Weight = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[Share, ...] = ()
    """`step`: fractions of the run at which the learning rate is multiplied by `gamma`."""
    gamma: Share = 0.1
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate grows linearly."""
    warmup_from: Share = 1.0 / 3.0
    """Learning rate of the first step, relative to the full rate."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    clip_norm: Weight = 0.0
    """Largest norm of the gradient. 0: no clipping."""

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, relative to its base; the run has `steps`.

        >>> recipe = DetectionRecipe(source="", epochs=12, batch_size=1, lr=1.0, milestones=(8 / 12, 11 / 12),
        ...     warmup_steps=500)
        >>> [round(recipe.lr_factor(step, 12000), 3) for step in (0, 250, 500, 7999, 8000, 11000)]
        [0.333, 0.667, 1.0, 1.0, 0.1, 0.01]
        """
        progress = step / steps
        if self.schedule == "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        else:
            factor = self.gamma ** sum(progress >= milestone - 1e-9 for milestone in self.milestones)
        grown = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return factor * (self.warmup_from + (1.0 - self.warmup_from) * grown)
