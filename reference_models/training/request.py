"""What the training loops share: recipe and facts of a request, the state of a run on disk, seeds, precision,
the look at the loss.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.recipes import LATER_FIELDS, Recipe
from reference_models.core.weights import IMAGENET, NONE
from wsolbench.methods import DetectorRequest, TrainRequest
from wsolbench.system.files import sha256_of_file
from wsolbench.system.json_values import tuples_to_lists

R = TypeVar("R", Recipe, DetectionRecipe)


def as_asked(recipe: R, request: TrainRequest | DetectorRequest) -> R:
    """The recipe with the request's changes."""
    asked: dict[str, Any] = {"epochs": request.epochs, "batch_size": request.batch_size, "lr": request.lr}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def recipe_facts(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """All fields, as JSON has them. A field of `LATER_FIELDS` at its default is left out, so that runs from
    before it are the same run.
    """
    values = tuples_to_lists(asdict(recipe))
    defaults = {item.name: item.default for item in fields(recipe)}
    return {
        name: value for name, value in values.items() if name not in LATER_FIELDS or value != defaults[name]
    }


def weights_fact(weights: str) -> str:
    """The name of pretrained weights; of a file also its digest."""
    if weights not in (IMAGENET, NONE) and Path(weights).is_file():
        return f"{Path(weights).name} {sha256_of_file(Path(weights))}"
    return weights
