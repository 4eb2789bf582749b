"""From a training request to its recipe and to the metadata that identifies the run; checks of its splits."""

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
from wsolbench.exceptions import DataError
from wsolbench.methods import DetectorRequest, TrainRequest
from wsolbench.system.files import sha256_of_file
from wsolbench.system.json_values import tuples_to_lists
from wsolbench.types import Dataset

R = TypeVar("R", Recipe, DetectionRecipe)


def apply_request(recipe: R, request: TrainRequest | DetectorRequest) -> R:
    """Return the recipe with the changes of the request: epochs, batch size and learning rate."""
    asked: dict[str, Any] = {"epochs": request.epochs, "batch_size": request.batch_size, "lr": request.lr}
    return replace(recipe, **{name: value for name, value in asked.items() if value is not None})


def request_metadata(
    method: type[Model] | type[DetectorModel],
    request: TrainRequest | DetectorRequest,
    recipe: dict[str, Any],
    *,
    what: str,
) -> dict[str, Any]:
    """Return what the weights of any run depend on, except the data and the machine.

    `recipe` is the result of `recipe_metadata`, and `what` names the method in messages.
    """
    return {
        "method": method.method_name,
        "settings": to_json(parse_settings(method.Config, split_settings(request.settings)[0], what=what)),
        "backbone": request.backbone,
        "weights": describe_weights(request.weights),
        "seed": request.seed,
        "recipe": recipe,
        **({"numerics": request.numerics.identity} if request.numerics.identity else {}),
    }


def dataset_metadata(
    dataset: Dataset | InstanceDataset, whole: Dataset | InstanceDataset | None = None
) -> dict[str, Any]:
    """Return which images a run uses.

    If the method has chosen them from a split `whole`, this includes of what they are a part.
    """
    described: dict[str, Any] = {
        "name": dataset.name,
        "split": dataset.split,
        "fingerprint": dataset.fingerprint,
        "images": len(dataset),
    }
    if isinstance(dataset, Dataset) and whole is not None and dataset is not whole:
        described |= {"within": list(dataset.within), "apart": list(dataset.apart)}
    return described


def recipe_metadata(recipe: Recipe | DetectionRecipe) -> dict[str, Any]:
    """Return all fields of a recipe as JSON values.

    A field of `LATER_FIELDS` at its default is omitted, so that older runs count as the same run.
    """
    values = tuples_to_lists(asdict(recipe))
    defaults = {item.name: item.default for item in fields(recipe)}
    return {
        name: value for name, value in values.items() if name not in LATER_FIELDS or value != defaults[name]
    }


def describe_weights(weights: str) -> str:
    """Return the name of pretrained weights. For a file, the digest is appended."""
    if weights not in (IMAGENET, NONE) and Path(weights).is_file():
        return f"{Path(weights).name} {sha256_of_file(Path(weights))}"
    return weights


def check_split(dataset: Dataset, train: Dataset | None = None) -> None:
    """Raise `DataError` on an empty split, on invalid labels, and on classes that differ from `train`."""
    if len(dataset) == 0:
        raise DataError(f"{dataset.name} {dataset.split} has no images")
    names = (train or dataset).class_names
    if dataset.class_names != names:
        raise DataError(
            f"{dataset.name} {dataset.split} has other classes ({len(dataset.class_names)}) than the "
            f"training split ({len(names)})"
        )
    for sample in dataset.samples:
        if not 0 <= sample.label < len(names):
            raise DataError(
                f"image {sample.id!r} of {dataset.name} {dataset.split} has label {sample.label}, expected "
                f"0 to {len(names) - 1}"
            )
