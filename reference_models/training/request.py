"""What a request for a training stands for: its recipe, and the metadata that two equal runs share."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from reference_models.core.config import parse_settings, split_settings, to_json
from reference_models.core.detector_recipes import DetectionRecipe
from reference_models.core.model import Model
from reference_models.core.recipes import LATER_FIELDS, Recipe
from reference_models.core.weights import IMAGENET, NONE
from reference_models.training.detector_model import DetectorModel
from wsolbench.datasets.coco import InstanceDataset
from wsolbench.methods import DetectorRequest, TrainRequest
from wsolbench.system.files import sha256_of_file
from wsolbench.system.json_values import tuples_to_lists
from wsolbench.types import Dataset

R = TypeVar("R", Recipe, DetectionRecipe)


def as_asked(recipe: R, request: TrainRequest | DetectorRequest) -> R:
    """The recipe with the request's changes."""
    asked: dict[str, Any] = {"epochs": request.epochs, "batch_size": request.batch_size, "lr": request.lr}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def run_facts(
    method: type[Model] | type[DetectorModel],
    request: TrainRequest | DetectorRequest,
    recipe: dict[str, Any],
    *,
    what: str,
) -> dict[str, Any]:
    """What the weights of any run depend on, except for the data and the machine.

    `recipe` is that of `recipe_facts`, and `what` the method in messages.
    """
    return {
        "method": method.method_name,
        "settings": to_json(parse_settings(method.Config, split_settings(request.settings)[0], what=what)),
        "backbone": request.backbone,
        "weights": weights_fact(request.weights),
        "seed": request.seed,
        "recipe": recipe,
    }


def dataset_facts(dataset: Dataset | InstanceDataset) -> dict[str, Any]:
    """Which images a run uses."""
    return {
        "name": dataset.name,
        "split": dataset.split,
        "fingerprint": dataset.fingerprint,
        "images": len(dataset),
    }


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
