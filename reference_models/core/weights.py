"""Pretrained weights: source, content, and what to do if a file is missing.

Every file is read without executing its content (`weights_only=True`, safetensors) and loaded strictly: an
additional or missing tensor, or one of another shape, is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from wsolbench.exceptions import DataError, UsageError
from wsolbench.system.files import make_folder, sha256_of_file, sha256_of_json
from wsolbench.system.progress import note
from wsolbench.system.regular_files import name_content

IMAGENET, NONE = "imagenet", "none"
WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts store the state_dict next to their optimiser and epoch."""
HEADER, DIGEST = "wsolbench", "sha256"
"""Key of the description in a checkpoint's metadata, and key of the digest in that description."""


@dataclass(frozen=True)
class Weights:
    """Source of a backbone's weights.

    `sha256` is the digest of the file, or of the tensors if a library hides the file. None for `none`.
    """

    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class WeightsFile:
    """Tensors of a file and its digest.

    `metadata` is None unless the file is a checkpoint of this package.
    """

    tensors: dict[str, Tensor]
    sha256: str
    metadata: Mapping[str, str] | None = None


def read_weights(path: Path) -> WeightsFile:
    """Read all tensors of a `.safetensors` file, or of a PyTorch file that contains only tensors.

    Raises `DataError` if the file is missing, truncated, or contains pickled objects.
    """
    if not path.is_file():
        raise DataError(f"no weights file {path}; give an existing file, or --weights imagenet or none")
    # A safetensors file.
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return WeightsFile(tensors, sha256_of_file(path), metadata if HEADER in metadata else None)
    # A PyTorch file, without executing pickled objects.
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of any type on damage
        raise DataError(
            f"weights file {path} is truncated, or contains more than tensors; save a plain state_dict "
            f"({first_line(error)})"
        ) from error
    # Unwrap and check the state_dict.
    if isinstance(state, dict):
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise DataError(
            f"weights file {path} holds {_name_content(state)}; expected a state_dict: names and tensors, "
            f"alone or under one of {', '.join(WRAPPERS)}"
        )
    return WeightsFile(
        {name.removeprefix("module."): value for name, value in state.items()}, sha256_of_file(path)
    )


def _name_content(state: object) -> str:
    """Name what a file holds instead of a state_dict, for messages."""
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    keys = ", ".join(str(key)[:40] for key in list(state)[:5])
    return f"a dict of {keys or 'nothing'}{' and more' if len(state) > 5 else ''}"


def _check_archive(path: Path) -> None:
    """Raise `ValueError` if a checksum of a zip archive does not match. Torch does not check them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} in it differs")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and header of a safetensors file.

    Raises `DataError` if it is not one, is truncated, or is a checkpoint whose digest differs.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # A copy: the tensors would otherwise be views of the mapped file, which the caller may replace.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = dict(file.metadata() or {})
    except Exception as error:  # safetensors raises errors of any type on damage
        if _is_pickle(path):
            raise DataError(
                f"{path} is a pickled PyTorch file, which could run code when it is read; expected a "
                "safetensors file"
            ) from error
        if what := name_content(path):
            raise DataError(f"{path} is not a safetensors file{what}") from error
        raise DataError(
            f"{path} is truncated or not a safetensors file ({first_line(error)}); train again, or copy the "
            "file again"
        ) from error
    if HEADER in metadata:
        _check_digest(path, tensors, metadata[HEADER])
    return tensors, metadata


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
    except OSError:
        return False
    return start == b"PK" or start[:1] == b"\x80"


def _check_digest(path: Path, tensors: Mapping[str, Tensor], header: str) -> None:
    """Raise `DataError` if tensors and description do not match the header's digest."""
    try:
        facts = json.loads(header)
        written = facts.pop(DIGEST, None)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged: its header does not describe a checkpoint; copy the file again, or "
            "train again"
        ) from error
    if written is None:
        note(
            f"{path} has no digest, because an earlier version wrote it. Its content is not checked for "
            "damage"
        )
    elif digest_of_checkpoint(tensors, facts) != written:
        raise DataError(
            f"{path} is damaged: its SHA-256 is not the one in its header; copy the file again, or delete "
            "it and train again"
        )


def digest_of_checkpoint(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a checkpoint's tensors and description."""
    return sha256_of_json([dict(facts), sha256_of_tensors(tensors)])


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copy `tensors` into `module`.

    Raises `DataError` with the first difference if names, shapes or kinds of numbers do not match.
    Floating-point numbers of another precision are converted. Integers and complex numbers are rejected.
    """
    expected = module.state_dict()
    # Old files lack the counters of batch norm, which are not used with a fixed momentum.
    missing = sorted(
        name for name in expected.keys() - tensors.keys() if not name.endswith("num_batches_tracked")
    )
    surplus = sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        parts = [f"lacks {len(missing)} tensors (the first is {missing[0]})"] if missing else []
        parts += [f"has {len(surplus)} that are not expected (the first is {surplus[0]})"] if surplus else []
        raise DataError(f"{what} {' and '.join(parts)}; it belongs to another network")
    # Shapes and kinds of numbers must match.
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise DataError(
                f"{what}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}; "
                "it belongs to another network"
            )
        if (
            tensor.dtype.is_floating_point != expected[name].dtype.is_floating_point
            or tensor.is_complex()
            or tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.is_meta
        ):
            found = (
                "no values"
                if tensor.is_meta
                else f"{'dense' if tensor.layout == torch.strided else 'sparse'} {tensor.dtype} values"
            )
            raise DataError(
                f"{what}: {name} has {found}, expected {expected[name].dtype}; save the weights as "
                "floating-point numbers"
            )
    module.load_state_dict({**expected, **tensors}, strict=True)


def digest_of_setting(path: str, *, setting: str, example: str) -> str:
    """Return the sha256 of the checkpoint that a setting names.

    Raises `UsageError` if the file is missing.
    """
    if not Path(path).is_file():
        raise UsageError(f"setting {setting}: no file {path}; give a checkpoint, for instance of {example}")
    return sha256_of_file(Path(path))


def load_parts(model: nn.Module, path: Path, parts: Iterable[str], *, what: str) -> None:
    """Copy these submodules of a checkpoint into the model. Raises `DataError` if one does not fit."""
    tensors = read_weights(path).tensors
    for part in parts:
        own = {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{part}.")
        }
        load_strictly(model.get_submodule(part), own, what=f"{what}, {part} of {path}")


def drop_prefixes(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with none of the prefixes.

    It drops parts of the original network that a backbone does not have.
    """
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def torchvision_file(url: str, backbone: str) -> Path:
    """Return torchvision's weights file in the cache of `torch.hub`, downloading it if needed.

    Raises `UsageError`, saying which file to put where, if it cannot be downloaded, and `DataError` if it is
    damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if not path.is_file():
        make_folder(path.parent)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest and digest[1], progress=False)
        except (
            OSError,
            RuntimeError,
        ) as error:  # URLError and HTTPError are OSErrors; a wrong digest is a RuntimeError
            raise UsageError(
                f"cannot download the weights of {backbone} ({first_line(error)}). "
                f"Offline: download {url} elsewhere and put it at {path}, or use --weights PATH or "
                "--weights none"
            ) from error
    if digest and not sha256_of_file(path).startswith(digest[1]):
        raise DataError(
            f"{path} is damaged: its SHA-256 does not start with {digest[1]}; delete it and run again"
        )
    return path


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the start of an error's message, for use inside another message."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
