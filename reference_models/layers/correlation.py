"""Functions for post-processes that compare pixels.

They select features, bring them to one grid, make and multiply unit vectors, and bound the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.methods import Localization

FeatureName = Literal["-3", "-2", "-1", "penultimate", "keys", "queries", "values"]
"""A feature stage counted from the last one, the input of the last linear layer, or a part of the last block.

`keys`, `queries` and `values` are those of a vision transformer's last block, all heads joined.
"""

OF_TOKENS: tuple[FeatureName, ...] = ("keys", "queries", "values")
"""Features that only a backbone with tokens has."""

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
    depth = max((-int(name) for name in names if name.startswith("-")), default=0)
    known: dict[str, Tensor] = {}
    for place, stage in enumerate(last_stages(result, depth, who=who) if depth else [], start=-depth):
        known[str(place)] = stage
    if "penultimate" in names:
        if result.penultimate is None:
            raise UsageError(
                f"post-process {who!r} needs the input of the last linear layer; this method names none, so "
                "use one of its stages"
            )
        known["penultimate"] = result.penultimate
    if any(name in OF_TOKENS for name in names):
        known |= _read_tokens(result, who=who)
    found = [known[name] for name in names]
    if any(features.requires_grad for features in found):
        raise RuntimeError(
            f"post-process {who!r} was given features with a graph: call model.eval() and use what "
            "model.localize() gives"
        )
    return found


def select_default(result: Localization, name: FeatureName | None, *, who: str) -> tuple[FeatureName, Tensor]:
    """Return name and features (B, D, h, w). None: the keys of a vision transformer, else the last stage.

    Raises as `select_features`.
    """
    chosen: FeatureName = name or ("keys" if has_tokens(result) else "-1")
    (features,) = select_features(result, (chosen,), who=who)
    return chosen, features


def has_tokens(result: Localization) -> bool:
    """Return whether a forward pass offers the tokens of a vision transformer."""
    return getattr(result, "tokens", None) is not None


def _read_tokens(result: Localization, *, who: str) -> dict[str, Tensor]:
    """Return queries, keys and values (B, D, h, w). Raises `UsageError` if there are none."""
    if not has_tokens(result):
        raise UsageError(
            f"post-process {who!r} needs the tokens of a vision transformer, and this method gives none; use "
            "a ViT, DeiT or DINO of timm with --set grid=tokens, or one of the method's stages "
            f"(--post-set {who}.features=-1)"
        )
    source: Any = result
    tokens = source.tokens()
    return {name: getattr(tokens, name) for name in OF_TOKENS}


def find_features(result: Localization, name: str | None, *, who: str) -> tuple[str, Tensor]:
    """Return name and features of a stage, of `penultimate`, or of tokens. None: the last stage.

    Raises `UsageError` for a method without stages, and for an unknown name.
    """
    last_stages(result, 1, who=who)
    known = (
        {**result.stages}
        if result.penultimate is None
        else {**result.stages, "penultimate": result.penultimate}
    )
    name = name or next(reversed(result.stages))
    if name in OF_TOKENS and has_tokens(result):
        known |= _read_tokens(result, who=who)
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


def map_chunks(
    compute: Callable[[list[Tensor], Tensor], Tensor],
    features: Sequence[Tensor],
    coarse: Float[Tensor, "b k h w"],
    bytes_per_image: int,
) -> Float[Tensor, "b k gh gw"]:
    """Apply `compute(features, coarse)` to as many images at a time as `CHUNK_BYTES` allows.

    It runs in float32, also under autocast.
    """
    return apply_in_chunks(
        lambda maps, *some: compute(list(some), maps), [coarse, *features], bytes_per_image
    )


@torch.no_grad()
def apply_in_chunks(
    compute: Callable[..., Tensor], tensors: Sequence[Tensor], bytes_per_image: int
) -> Tensor:
    """Apply `compute(*tensors)` to as many images at a time as `CHUNK_BYTES` allows.

    Autocast is off. The first axis of all tensors counts the images.
    """
    kind = tensors[0].device.type
    size = max(1, CHUNK_BYTES.get(kind, 2**28) // bytes_per_image)
    with torch.autocast(kind, enabled=False):
        chunks = zip(*(torch.split(each, size) for each in tensors), strict=True)
        return torch.cat([compute(*some) for some in chunks])


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
