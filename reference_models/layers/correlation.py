"""Functions for post-processes that compare pixels.

They select features, bring them to one grid, make and multiply unit vectors, and bound the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.methods import Localization

FeatureName = Literal["-3", "-2", "-1", "penultimate"]
"""A feature stage counted from the last one, or the input of the last linear layer."""

CHUNK_BYTES: Mapping[str, int] = MappingProxyType({"cpu": 2**25, "cuda": 2**30})
"""Memory limit for the intermediate results of one chunk of images, by device type.

On the CPU, large blocks are slow to allocate.
"""

TINY = 1e-12
"""Smallest length that a vector is divided by."""

BLOCK_ROWS = 112
"""Rows of a block of a symmetric product. With fewer, matrix products are slow; with more, less is saved."""


def select_features(result: Localization, names: Sequence[FeatureName], *, who: str) -> list[Tensor]:
    """Return the named features (B, D, h, w) of a forward pass, in the order of the names.

    Raises `UsageError` for a method without such features, and `RuntimeError` for features with a graph,
    which are not from `localize()`. Features of `model(images)` in train mode without a graph cannot be
    detected.
    """
    depth = max((-int(name) for name in names if name != "penultimate"), default=0)
    stages = last_stages(result, depth, who=who) if depth else []
    if "penultimate" in names and result.penultimate is None:
        raise UsageError(
            f"post-process {who!r} needs the input of the last linear layer; this method names none, so "
            "use one of its stages"
        )
    found = [result.penultimate if name == "penultimate" else stages[int(name)] for name in names]
    if any(features is not None and features.requires_grad for features in found):
        raise RuntimeError(
            f"post-process {who!r} was given features with a graph: call model.eval() and use what "
            "model.localize() gives"
        )
    return [features for features in found if features is not None]


def find_features(result: Localization, name: str | None, *, who: str) -> tuple[str, Tensor]:
    """Return name and features of a stage, or of `penultimate`. None: the last stage.

    Raises `UsageError` for a method without stages, and for an unknown name.
    """
    last_stages(result, 1, who=who)
    known = (
        {**result.stages}
        if result.penultimate is None
        else {**result.stages, "penultimate": result.penultimate}
    )
    name = name or next(reversed(result.stages))
    if name not in known:
        raise unknown_name("feature stage", name, known)
    return name, known[name]


def pool_to_one_grid(features: Sequence[Tensor]) -> list[Tensor]:
    """Average features (B, D, h, w) down to the coarsest grid among them."""
    height, width = (min(each.shape[axis] for each in features) for axis in (2, 3))
    return [
        each if each.shape[2:] == (height, width) else F.adaptive_avg_pool2d(each.float(), (height, width))
        for each in features
    ]


def resize_to_grid(maps: Float[Tensor, "b k h w"], height: int, width: int) -> Float[Tensor, "b k gh gw"]:
    """Resize maps to another grid by a bilinear filter with antialiasing."""
    if maps.shape[2:] == (height, width):
        return maps
    return F.interpolate(maps.float(), (height, width), mode="bilinear", antialias=True)


def unit_pixels(features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
    """Normalise each pixel's feature vector to length 1, in float32, row by row. Zero vectors stay zero."""
    vectors = features.float().flatten(2)
    return (vectors / pixel_lengths(vectors).clamp(min=TINY)).mT


def pixel_lengths(vectors: Float[Tensor, "b d n"]) -> Float[Tensor, "b 1 n"]:
    """Return the length of each pixel's feature vector."""
    return vectors.square().sum(dim=1, keepdim=True).sqrt()  # several times as fast as torch's norm here


def symmetric_product(left: Float[Tensor, "b n d"], right: Float[Tensor, "b d n"]) -> Float[Tensor, "b n n"]:
    """Return `left @ right`, which the caller knows to be symmetric.

    On the CPU, only blocks on and above the diagonal are computed, and the others are copied.
    """
    count = left.shape[1]
    if left.device.type != "cpu" or count <= 2 * BLOCK_ROWS:
        return left @ right
    product = left.new_empty(len(left), count, count)
    for start in range(0, count, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, count)
        product[:, start:stop, start:] = left[:, start:stop] @ right[:, :, start:]
        product[:, stop:, start:stop] = product[:, start:stop, stop:].mT
    return product


@torch.no_grad()
def map_chunks(
    compute: Callable[[list[Tensor], Tensor], Tensor],
    features: Sequence[Tensor],
    coarse: Float[Tensor, "b k h w"],
    bytes_per_image: int,
) -> Float[Tensor, "b k gh gw"]:
    """Apply `compute(features, coarse)` to as many images at a time as `CHUNK_BYTES` allows.

    It runs in float32, also under autocast.
    """
    size = max(1, CHUNK_BYTES.get(coarse.device.type, 2**28) // bytes_per_image)
    with torch.autocast(coarse.device.type, enabled=False):
        chunks = zip(*(torch.split(each, size) for each in (coarse, *features)), strict=True)
        return torch.cat([compute(list(some), maps) for maps, *some in chunks])


def last_stages(result: Localization, count: int, *, who: str) -> list[Tensor]:
    """Return the last `count` feature stages (B, D, h, w).

    Raises `UsageError` for a method that has fewer.
    """
    stages = list(result.stages.values())[-count:]
    if len(stages) < count:
        raise UsageError(
            f"post-process {who!r} needs {count} feature stages; this method has {len(stages)}, so it "
            "cannot be used with it"
        )
    return stages
