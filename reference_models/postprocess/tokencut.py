"""TokenCut: the normalised cut of the graph of similar patches.

Y. Wang, X. Shen, S. X. Hu, Y. Yuan, J. L. Crowley, D. Vaufreydaz, "Self-supervised transformers for
unsupervised object discovery using normalized cut", CVPR 2022. Released code: YangtaoWANG95/TokenCut.

Idea. Patches of one object are alike, and so are those of the background. Patches are the nodes of a graph
whose strong edges join similar ones. The normalised cut divides it where few strong edges are cut. The part
that has the most extreme patch is the object. No class, no map of the method and no training is needed.

    symbol    name            shape
    k         features        (B, N, D)     keys of the last block, without prefix tokens; N = h w
    S         similarity      (B, N, N)     cosines
    E         edges           (B, N, N)
    y         vector          (B, N)        second eigenvector
    F         foreground      (B, N)
    p         seed            (B,)          the most extreme patch

    (1)  S = k k^T for rows of length 1
    (2)  E_ij = 1 where S_ij > t, else 1e-5
    (3)  (D - E) y = lambda D y with D = diag(E 1), for the second smallest lambda. Then z = D^1/2 y is the
         eigenvector of D^-1/2 E D^-1/2 for its second largest eigenvalue 1 - lambda
    (4)  F = {y > mean y}, p = argmax |y|; if p is not in F, y becomes -y and F its complement
    (5)  the object is the 4-connected component of F with p

The map is y after (4). `variant=official` gives the indicator of (5), whose box is that of the released code
at any threshold, up to the resize.

The threshold t. Cosines of non-negative features are higher than those of keys, so t depends on the features.
Released code: 0.2 for discovery and on ImageNet, 0.05 on CUB, all for keys of DINO. Choose it on `val`:
`--post-set tokencut.threshold=0.3`.

Departures. (4) is applied as its equivalent: y has the sign for which its value of greatest magnitude is
positive. Where two such values have opposite signs, the first cell is background. The map is 0 where y is
arbitrary: where all patches are alike (lambda > 1 - 1e-6), and where the second and the third lambda are
equal. Released code scores a padded image of its own aspect ratio; here images are squares, as for every
method. Features default to the last stage if the backbone has no tokens, which the paper does not do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.components import component_of
from reference_models.layers.correlation import TINY, FeatureName, apply_in_chunks, select_default
from reference_models.layers.principal import GAP
from wsolbench.methods import Localization
from wsolbench.ranges import Range

PAPER = "tokencut"

WEAK = 1e-5
"""Weight of the edge between patches that are not similar; released code."""
ALIKE = 1e-6
"""All patches are alike if 1 - lambda of (3) is smaller."""
TIE = 1e-9
"""Largest relative difference of the magnitudes of two extreme values that count as equal."""
LIVE_MATRICES = 5
"""N x N matrices of an image, in float64, that exist at the same time."""


@dataclass(frozen=True, kw_only=True)
class TokencutConfig(PostConfig):
    """Settings of `tokencut`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"soft": MappingProxyType({}), "official": MappingProxyType({"output": "component"})}
    )

    variant: Literal["soft", "official"] = "soft"
    """`soft`: the vector y, for a threshold of the protocol. `official`: the object of the released code."""
    features: FeatureName | None = None
    """Features of the patches; the paper takes `keys`. None: `keys` if there are tokens, else `-1`."""
    threshold: Annotated[float, Range(-1, 1)] = 0.2
    """t, the smallest cosine of similar patches, exclusive; released code. It is 0.05 there on CUB."""
    output: Literal["vector", "component"] = "vector"
    """`vector`: y after eq. (4). `component`: indicator of eq. (5), released code."""


def edges(features: Float[Tensor, "b d n"], threshold: float) -> Float[Tensor, "b n n"]:
    """Return E of features of any length, eqs. (1) and (2), in float64."""
    vectors = features.double()
    unit = vectors / vectors.square().sum(dim=1, keepdim=True).sqrt().clamp(min=TINY)
    similarity = unit.mT @ unit  # (1)
    similarity = torch.maximum(similarity, similarity.mT)  # equal in theory; keeps E symmetric
    return (similarity > threshold).to(similarity) * (1 - WEAK) + WEAK  # (2)


def second_vector(weights: Float[Tensor, "b n n"]) -> Float[Tensor, "b n"]:
    """Return y of a graph, eq. (3), with any sign. It is 0 where it is arbitrary."""
    count = weights.shape[-1]
    if count < 3:  # too few to cut
        return weights.new_zeros(weights.shape[:-1])
    root: Tensor = weights.sum(dim=2).sqrt()  # (B, N), D^1/2
    values, vectors = torch.linalg.eigh(weights / (root[:, :, None] * root[:, None, :]))  # (3)
    alike = values[:, -2] < ALIKE
    arbitrary = values[:, -2] - values[:, -3] <= GAP
    y: Tensor = (vectors[..., -2] / root).masked_fill((alike | arbitrary)[:, None], 0.0)
    return y


def toward_the_extreme(y: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Return y with the sign of eq. (4): its value of greatest magnitude is positive."""
    high, low = y.amax(dim=1), -y.amin(dim=1)
    is_tie = (high - low).abs() <= TIE * torch.maximum(high, low)
    is_wrong = torch.where(is_tie, y[:, 0] > 0, low > high)  # (4)
    return torch.where(is_wrong[:, None], -y, y)


class Tokencut(PostProcess):
    """See the module."""

    method_name = "tokencut"
    Config = TokencutConfig
    map_kind = "signed"
    config: TokencutConfig

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return the map of each image for every class, on the grid of the features."""
        _, features = select_default(result, self.config.features, who=self.method_name)
        cells = features.shape[2] * features.shape[3]
        floats = LIVE_MATRICES * cells**2 + 2 * cells * features.shape[1]
        made = apply_in_chunks(self._map, [features], bytes_per_image=8 * floats)
        return made[:, None].expand(-1, class_ids.shape[1], -1, -1)

    def _map(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
        height, width = features.shape[2:]
        y = toward_the_extreme(second_vector(edges(features.flatten(2), self.config.threshold)))
        if self.config.output == "vector":
            return y.reshape(-1, height, width).float()
        foreground = (y > y.mean(dim=1, keepdim=True)).reshape(-1, height, width)
        return component_of(foreground, y.argmax(dim=1)).float()  # (5)
