"""What a training minimises: one loss for all parameters, or several with an optimiser of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reference_models.core.outputs import Batch
from reference_models.core.recipes import Recipe


def always(batch: Batch) -> bool:  # noqa: ARG001 - of the form that `Objective.is_due` has
    """Every step."""
    return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """A loss, the parameters that minimise it, and their recipe.

    A step goes through the objectives of a model in order. Each one that is due computes its loss on the
    same batch and updates its own parameters before the next one is computed.
    """

    loss: Callable[[Batch], dict[str, Tensor]]
    """Named scalar terms, already weighted; their sum is minimised."""
    groups: Sequence[dict[str, Any]]
    """Parameter groups, each with its `name`, `params` and `factor` of the base learning rate."""
    recipe: Recipe
    """Optimiser, learning rate, weight decay, schedule and clipping. Epochs, batches and augmentation are
    those of the run.
    """
    name: str = ""
    """Prefix of the terms in the log, which tells several objectives apart."""
    is_due: Callable[[Batch], bool] = always
    """Whether it takes part in the step of this batch: `batch.epoch` and `batch.step` say which it is."""

    def term_name(self, term: str) -> str:
        """Name of a term in the log."""
        return f"{self.name}.{term}" if self.name else term
