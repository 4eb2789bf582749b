"""Inputs of a loss and results of a forward pass: types that methods, layers and training share."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wsolbench.methods.device import send


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Input of `Model.loss`.

    Attributes:
        images: (B, 3, H, W), augmented and normalised.
        labels: (B,) class indices.
        indices: (B,) positions of the images in the training split.
        epoch, epochs: the current epoch, counted from 0, and their number.
        step: optimiser steps before this one, over the whole run.
        masks: (B, H, W) in [0, 1], masks or filled boxes of `Model.training_targets`, transformed with the
            images. None unless the method has a `mask_source`.
        generator: source of all randomness of the method, on the device of the images, seeded by (seed,
            epoch).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    epoch: int
    epochs: int
    step: int
    generator: torch.Generator
    masks: Tensor | None = None


@runtime_checkable
class ImagePasses(Protocol):
    """Callable that makes one pass over the training images, whole and without augmentation."""

    def __call__(self, chosen: Int[np.ndarray, " n"] | None = None) -> Iterator[Batch]:
        """Yield the batches of the images at the `chosen` positions, in this order. None: of all images."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Proposals:
    """Boxes that a method proposes, best first.

    Attributes:
        boxes: (B, M, 4) xyxy in pixels of the input. They may reach beyond it.
        scores: (B, M) in descending order.
        padded: (B, M) True for boxes that were added only to reach the number M. None: no box is padded.
    """

    boxes: Tensor
    scores: Tensor
    padded: Tensor | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """Outputs of a vision transformer besides its feature stages.

    Attributes:
        patches: (B, D, h, w) patch tokens after the final norm.
        prefix: (B, P, D) class token and register tokens after the final norm.
        queries, keys, values: (B, D, h, w) those of the patches in the last block, all heads joined.
        attention: (B, L, h, w) attention of the class token in each block, averaged over heads. None without
            a class token.
    """

    patches: Tensor
    prefix: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    attention: Tensor | None


class LazyMaps(Mapping[str, Tensor]):
    """Maps by name, each computed when it is read. A forward pass does not pay for maps that nobody reads.

    Args:
        functions: compute a map (B, h, w) without a graph.
        known: maps that exist already; they come first.
        context: precision in which the functions run, or None if it does not matter.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[[], Tensor]],
        known: Mapping[str, Tensor] = MappingProxyType({}),
        context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._functions, self._known, self._context = functions, known, context

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        if name in self._known:
            return self._known[name]
        function = self._functions[name]
        with self._context():
            return function()

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter([*self._known, *self._functions])

    def __len__(self) -> int:
        return len(self._known) + len(self._functions)


@dataclass(frozen=True, eq=False, kw_only=True)
class ForwardPass:
    """Result of a forward pass on a batch of images. It can give the maps of any class.

    Attributes:
        logits: (B, C) class scores before softmax. None for a method that does not classify.
        maps_of: (B, K) class indices -> (B, K, h, w) raw maps.
        stages: feature stages by name, for post-processes. The last two have the same grid.
        penultimate: (B, D, h, w) input of the last linear layer, for post-processes that compare pixels.
        weights_of: (B, K) class indices -> (B, K, D) weights of the linear layer that reads `penultimate`,
            for post-processes that weigh its channels. None if there is no such layer.
        propose: returns the proposals of methods that propose parts or the object's box. None: see
            `Localizer.localize`.
        tokens: computes the outputs of a vision transformer besides its stages, for post-processes. None for
            other backbones. `Localizer.localize` sets it.
        rerun: runs the method again, for post-processes that look at changed images. `rerun(change)` is the
            result for `change(images)`, without a graph. None for maps that no network makes.
            `Localizer.localize` sets it.
        extra_maps: further maps by name, (B, h, w), that belong to no class. `wsolbench eval --map NAME`
            scores one of them. `LazyMaps` if they take time.
    """

    logits: Tensor | None
    maps_of: Callable[[Tensor], Tensor]
    stages: OrderedDict[str, Tensor] = field(default_factory=OrderedDict)
    penultimate: Tensor | None = None
    weights_of: Callable[[Tensor], Tensor] | None = None
    tokens: Callable[[], Tokens] | None = None
    rerun: Callable[[Callable[[Tensor], Tensor]], ForwardPass] | None = None
    propose: Callable[[], Proposals] | None = None
    extra_maps: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        features = self.logits if self.logits is not None else self.penultimate
        kind = "cpu" if features is None else features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        object.__setattr__(self, "_mixed", None if dtype is None else (kind, dtype))

    @torch.no_grad()
    def score_maps(self, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return raw float32 maps of the given classes: not normalised, resized or thresholded.

        They are computed in the precision of the forward pass, also outside its autocast block.
        """
        mixed: tuple[str, torch.dtype] | None = getattr(self, "_mixed", None)
        if mixed is None:
            return self.maps_of(class_ids).float()
        with torch.autocast(mixed[0], mixed[1]):
            return self.maps_of(class_ids).float()


Target = dict[str, Tensor]
"""Objects of an image.

`boxes` (R, 4) xyxy, `labels` (R,) from 1, and `masks` (R, h, w) uint8 if there are any.
"""


def as_input(image: Tensor, device: torch.device) -> Tensor:
    """Convert (3, h, w) uint8 to float32 in [0, 1] on the device."""
    return send(image, device).float() / 255
