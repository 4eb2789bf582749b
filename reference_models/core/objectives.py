"""Training objectives: one loss for all parameters, or several, each with its own optimiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reference_models.core.outputs import Batch
from reference_models.core.recipes import Recipe


def always(batch: Batch) -> bool:  # noqa: ARG001 - of the form that `Objective.is_due` has
    """Return True for every step."""
    return True


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """A loss, the parameters that minimise it, and their recipe.

    A step goes through the objectives of a model in order. Each one that is due computes its loss on the
    same batch and updates its own parameters before the next one is computed.
    """

    loss: Callable[[Batch], dict[str, Tensor]]
    """Returns named scalar terms, already weighted. Their sum is minimised."""
    groups: Sequence[dict[str, Any]]
    """Parameter groups, each with its `name`, `params` and `factor` of the base learning rate."""
    recipe: Recipe
    """Optimiser, learning rate, weight decay, schedule and clipping.

    Epochs, batches and augmentation are those of the run.
    """
    name: str = ""
    """Prefix of the terms in the log, to distinguish several objectives."""
    is_due: Callable[[Batch], bool] = always
    """Whether it takes part in the step of this batch, given `batch.epoch` and `batch.step`."""

    def term_name(self, term: str) -> str:
        """Return the name of a term in the log."""
        return f"{self.name}.{term}" if self.name else term
