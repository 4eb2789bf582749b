"""LOST: grow an object from the patch that is like the fewest others.

O. Siméoni, G. Puy, H. V. Vo, S. Roburin, S. Gidaris, A. Bursuc, P. Pérez, R. Marlet, J. Ponce, "Localizing
objects with self-supervised transformers and no labels", BMVC 2021. Released code: valeoai/LOST.

Idea. Objects cover less of an image than the background. So the patch with the fewest positive correlations
lies on the object. Among the patches of low degree, those that correlate with it lie on the object, too. The
map is the sum of the correlations with all of them. No class, no map of the method and no training is needed.

    symbol    name            shape
    k         features        (B, N, D)     keys of the last block, without prefix tokens; N = h w
    A         similarity      (B, N, N)
    deg       degrees         (B, N)
    s         seed            (B,)
    V, W      chosen          (B, N)        W as 0 and 1
    M         sums            (B, N)

    (1)  A = k k^T, not normalised
    (2)  deg_p = number of q other than p with A_pq > 0
    (3)  s = argmin deg
    (4)  V = the `patches` patches of the lowest degree, W = {q in V: A_sq > 0}
    (5)  M = sum over q in W of A_q
    (6)  the object is the 4-connected component of {M > 0} with s

The map is M. `variant=official` gives the indicator of (6), whose box is that of the released code at any
threshold, up to the resize.

Departures. The degrees say something only if correlations have both signs. Keys have; features of CNNs after
a ReLU have not, so those are centred: their mean over the image is subtracted (`centre`). Of equal degrees
the first patch counts; released code leaves the order to the sort. `patches` is 100 in images of about 1,000
patches in the source; on a smaller grid it is a larger part, and at most all patches. The map of features
that are equal up to rounding is 0. Here images are squares, as for every method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.components import component_of
from reference_models.layers.correlation import OF_TOKENS, FeatureName, apply_in_chunks, select_default
from reference_models.layers.principal import FLAT
from wsolbench.methods import Localization
from wsolbench.ranges import Count

PAPER = "lost"

LIVE_MATRICES = 3
"""N x N matrices of an image, in float64, that exist at the same time."""


@dataclass(frozen=True, kw_only=True)
class LostConfig(PostConfig):
    """Settings of `lost`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"soft": MappingProxyType({}), "official": MappingProxyType({"output": "component"})}
    )

    variant: Literal["soft", "official"] = "soft"
    """`soft`: the sums M, for a threshold of the protocol. `official`: the object of the released code."""
    features: FeatureName | None = None
    """Features of the patches; the paper takes `keys`. None: `keys` if there are tokens, else `-1`."""
    patches: Count = 100
    """Patches of V, at most all; released code."""
    centre: bool | None = None
    """Whether the mean over the image is subtracted from the features. None: unless they are of tokens."""
    output: Literal["sums", "component"] = "sums"
    """`sums`: M, eq. (5). `component`: indicator of eq. (6), released code."""


def centred(features: Float[Tensor, "b d n"]) -> Float[Tensor, "b d n"]:
    """Return features minus their mean over the pixels, and 0 where they are equal up to rounding."""
    moved = features - features.mean(dim=2, keepdim=True)
    flat = moved.square().sum(dim=(1, 2)) <= FLAT**2 * features.square().sum(dim=(1, 2))
    return moved.masked_fill(flat[:, None, None], 0.0)


def find_seed(similarity: Float[Tensor, "b n n"]) -> Int[Tensor, "b n"]:
    """Return all patches in the order of their degree, eqs. (2) and (3); the first one is s."""
    positive = similarity > 0
    degrees = positive.sum(dim=2) - positive.diagonal(dim1=1, dim2=2).long()  # (2)
    return degrees.argsort(dim=1, stable=True)


def grow(similarity: Float[Tensor, "b n n"], order: Int[Tensor, "b n"], patches: int) -> Float[Tensor, "b n"]:
    """Return M, eqs. (4) and (5)."""
    lowest = order[:, :patches]  # V
    to_seed = similarity.take_along_dim(order[:, :1, None], dim=1)[:, 0]  # (B, N), A_s
    chosen = (to_seed.take_along_dim(lowest, dim=1) > 0).to(similarity)  # (4)
    weights = torch.zeros_like(to_seed).scatter(1, lowest, chosen)  # W
    return (weights[:, None] @ similarity)[:, 0]  # (5)


class Lost(PostProcess):
    """See the module."""

    method_name = "lost"
    Config = LostConfig
    map_kind = "signed"
    config: LostConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return the map of each image for every class, on the grid of the features."""
        name, features = select_default(result, self.config.features, who=self.method_name)
        centre = name not in OF_TOKENS if self.config.centre is None else self.config.centre
        cells = features.shape[2] * features.shape[3]
        floats = LIVE_MATRICES * cells**2 + 2 * cells * features.shape[1]

        def compute(some: Tensor) -> Tensor:
            return self._map(some, centre=centre)

        made = apply_in_chunks(compute, [features], bytes_per_image=8 * floats)
        return made[:, None].expand(-1, class_ids.shape[1], -1, -1)

    def _map(self, features: Float[Tensor, "b d h w"], *, centre: bool) -> Float[Tensor, "b h w"]:
        height, width = features.shape[2:]
        vectors = features.double().flatten(2)
        if centre:
            vectors = centred(vectors)
        similarity = vectors.mT @ vectors  # (1)
        order = find_seed(similarity)
        sums = grow(similarity, order, self.config.patches)
        # Equal features give equal sums, up to rounding.
        low, high = sums.amin(dim=1), sums.amax(dim=1)
        flat = high - low <= FLAT * high.abs()
        sums = sums.masked_fill(flat[:, None], 0.0).reshape(-1, height, width)
        if self.config.output == "sums":
            return sums.float()
        return component_of(sums > 0, order[:, 0]).float()  # (6)
