"""Checkpoints: a model's tensors in one safetensors file, whose header describes the model as JSON.

The header also has a digest of tensors and description, which is checked when the tensors are read. A `.json`
file next to the checkpoint repeats the description for readers and adds machine, time and versions. Only the
header counts, so no half of a pair can be stale, and equal trainings give equal checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from reference_models.core.config import apply_test_settings, from_json, to_json
from reference_models.core.model import Model
from reference_models.core.weights import (
    DIGEST,
    HEADER,
    IMAGENET,
    NONE,
    Weights,
    digest_of_checkpoint,
    load_strictly,
    read_safetensors,
)
from wsolbench.exceptions import DataError
from wsolbench.methods import InputSpec
from wsolbench.records.budget import earlier_checkpoints, own_images
from wsolbench.system.files import atomic_path, canonical_json, sha256_of_file, write_json

FORMAT = 1

M = TypeVar("M", bound=Model)


def save_checkpoint(
    path: Path, model: Model, training: dict[str, Any], run: dict[str, Any] | None = None
) -> None:
    """Write `path` (atomically) and the `.json` file next to it.

    `training` is what the weights depend on. It goes into the checkpoint, so equal trainings give equal
    bytes. `run` (machine, time) is written only to the `.json` file, with the versions.
    """
    facts = {
        "method": model.method_name,
        "config": to_json(model.config),
        "backbone": model.backbone.describe(),
        "input_spec": asdict(model.input_spec),
        "num_classes": model.num_classes,
        "class_names": list(model.class_names),
        "training": training,
    }
    write_checkpoint(path, model, facts, run or {})


def write_checkpoint(path: Path, model: nn.Module, facts: dict[str, Any], run: dict[str, Any]) -> None:
    """Write the tensors of any model with `facts` as header; see `save_checkpoint`."""
    facts = {"format": FORMAT, **facts}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    header = canonical_json(
        {**facts, DIGEST: digest_of_checkpoint(tensors, json.loads(canonical_json(facts)))}
    )
    content = save(tensors, metadata={HEADER: header})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    write_sidecar(path, facts, run)


def write_sidecar(path: Path, facts: dict[str, Any], run: dict[str, Any]) -> None:
    """Write the `.json` file next to a checkpoint."""
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("wsolbench", "torch", "torchvision", "timm")},
    }
    write_json(path.with_suffix(".json"), {**facts, "run": run, "versions": versions})


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the `.json` file next to a checkpoint. Returns an empty dict if it is missing or damaged."""
    try:
        values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def read_header(path: Path) -> dict[str, Any]:
    """Read the description of a checkpoint, without its tensors.

    Raises `DataError` if the file is missing, broken, or not a checkpoint.
    """
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; give the checkpoint in it, for instance {path / 'last.safetensors'}"
        )
    if not path.is_file():
        raise DataError(
            f"no checkpoint {path}; give an existing file, as `wsolbench train` or `train-detector` writes it"
        )
    # Read the header.
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except Exception:
        _, metadata = read_safetensors(path)  # raises the error that names the damage
    try:
        facts = json.loads(metadata[HEADER])
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is a safetensors file, but not a checkpoint of this package: its header has no "
            f"{HEADER!r} entry"
        ) from error
    # Check format and required entries.
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise DataError(
            f"checkpoint {path} has format {facts.get('format') if isinstance(facts, dict) else facts!r}, "
            f"expected {FORMAT}; train again"
        )
    facts.pop(DIGEST, None)
    if not isinstance(facts.get("method"), str) or not isinstance(facts.get("training"), dict):
        raise DataError(
            f"checkpoint {path} has no method or no training metadata; copy the file again, or train again"
        )
    return facts


def read_header_of(path: Path, method: str) -> dict[str, Any]:
    """Read the description of a checkpoint of this method. Raises `DataError` if it is another method's."""
    facts = read_header(path)
    if facts["method"] != method:
        raise DataError(
            f"checkpoint {path} is of method {facts['method']!r}, expected {method!r}; use --method "
            f"{facts['method']}, or another file"
        )
    return facts


def earlier_runs(weights: str, config: object) -> dict[str, int] | None:
    """Return the images that each earlier run has trained on whose weights a new model has.

    Args:
        weights: initial weights as asked for. Only a checkpoint of this package is an earlier run.
        config: settings of the model. A field `NAME_sha256` says that `NAME` is a checkpoint.

    Returns the images by the digest of the checkpoint, or None if a checkpoint does not state them.
    """
    found: dict[str, int] = {}
    for path, header in _earlier_headers(weights, config):
        training, described = header["training"], header["config"]
        own = own_images(training, described)
        if own is None or ("images_seen" not in training and earlier_checkpoints(training, described)):
            return None
        found |= {**training.get("earlier_runs", {}), sha256_of_file(path): own}
    return found


def earlier_data(weights: str, config: object, own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training images of earlier runs, as `dataset_metadata` describes them, each once.

    Those of the run itself, `own`, are left out. The arguments are otherwise those of `earlier_runs`.
    """
    found = {own.get("fingerprint"): dict(own)}
    for _, header in _earlier_headers(weights, config):
        training = header["training"]
        for data in filter(None, (training.get("dataset"), *training.get("earlier_data", []))):
            found.setdefault(data.get("fingerprint"), data)
    return list(found.values())[1:]


def _earlier_headers(weights: str, config: object) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the checkpoints of this package that a new model has weights of, with their descriptions."""
    settings = vars(config)
    paths = [] if weights in (IMAGENET, NONE) or not Path(weights).is_file() else [weights]
    paths += [settings[name.removesuffix("_sha256")] for name in settings if name.endswith("_sha256")]
    for path in map(Path, filter(None, paths)):
        with contextlib.suppress(DataError):  # weights of a backbone alone, which are no run of this package
            yield path, read_header(path)


def load_checkpoint(method: type[M], path: Path, settings: Mapping[str, str] = MappingProxyType({})) -> M:
    """Load the model of a checkpoint on the CPU, in eval mode. `settings` changes some that are `at_test`.

    Raises `DataError` if the file is missing, truncated or pickled, is of another method, or does not fit its
    own description. Raises `UsageError` on settings that cannot be changed.
    """
    facts = read_header_of(path, method.method_name)
    tensors, _ = read_safetensors(path)
    # Settings and description.
    try:
        config = from_json(method.Config, facts["config"])
        spec = from_json(InputSpec, facts["input_spec"])
        described = facts["backbone"]
        num_classes, names = int(facts["num_classes"]), tuple(facts["class_names"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"checkpoint {path} was written by another version of {method.method_name!r} ({error}); train "
            "again"
        ) from error
    config = apply_test_settings(config, settings, what=f"method {method.method_name!r} in {path}")
    # Build the model and load the tensors.
    with torch.random.fork_rng(devices=[]):  # initial values, which the checkpoint replaces
        backbone = method.open_backbone(described["name"], weights=NONE, grid=described["grid"])
        backbone.input_spec = spec
        model = method(backbone, num_classes, config)
    model.fit_buffers(tensors)
    load_strictly(model, tensors, what=f"checkpoint {path}")
    backbone.weights = Weights(**described["weights"])
    model.class_names = names
    model.facts = {**facts["training"], "checkpoint": {"file": path.name, "sha256": sha256_of_file(path)}}
    return model.eval()
