"""SEM: feature similarity of each pixel to the peaks of the map.

X. Zhang, Y. Wei, Y. Yang, F. Wu, "Rethinking localization map: towards accurate object perception with
self-enhancement maps", arXiv 2006.05220, 2020. The training of that paper (boundary network, hard negatives)
is not included.

Idea. A class's map is highest on a few parts of the object, and those are reliable. The other pixels of the
object have similar features. So the greatest similarity to any of those seeds covers more of the object than
the map.

    symbol     name            shape
    M          coarse          (B, K, h, w)      the method's raw maps on the grid of the features; N = h w
    phi        pixels          (B, N, D)         features of length 1
    Omega      seeds           (B, K, S)         the S pixels where M is highest; of equal ones the first
    s          similarity      (B, K, N)

    (1)  s_i = max_{j in Omega} cos(phi_i, phi_j)
    (2)  map = min-max of s over the pixels

No equations of the paper were read. This is the algorithm of the released code (xiaomengyc/SEM: Inception-V3
at 28x28 pixels for an input of 224, features of 1024 channels, the input of the last 1x1 convolution). Its 60
seeds are a constant on any grid. They are the default here too (`variant=official`), and a grid with fewer
pixels is an error, as it is there. The result of SEM depends on this number: on a small grid, few seeds can
raise the Peak-IoU of a fine-tuned CAM and 60 lower it. `variant=scaled`, this project's, takes 60 of 784
pixels and as many in proportion on other grids.

Departures. A seed's similarity to itself is exactly 1 (0 if its features are all 0), so that rounding does
not appear as structure. A map whose similarities differ by less than 1e-6 is constant. So is the map of a
class whose coarse map is constant, because it has no highest pixels. Constant maps are 0; the code divides 0
by 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.layers.correlation import (
    TINY,
    FeatureName,
    map_chunks,
    pixel_lengths,
    resize_to_grid,
    select_features,
)
from reference_models.layers.maps import min_max
from wsolbench.exceptions import UsageError
from wsolbench.methods import Localization
from wsolbench.ranges import Count, CountOrZero

PAPER = "sem"

FLAT = 1e-6
"""Similarities that differ by less are equal up to the rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class SemConfig(PostConfig):
    """Settings of `sem`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"official": MappingProxyType({}), "scaled": MappingProxyType({"seeds_of": 784})}
    )

    variant: Literal["official", "scaled"] = "official"
    """`official`: released code, one number of seeds for all grids.

    `scaled`: in proportion to the pixels (this project).
    """
    seeds: Count = 60
    """Seeds of a class's map, at most the number of pixels of the features; released code."""
    seeds_of: CountOrZero = 0
    """0: `seeds` on every grid.

    Another number: `seeds` on a grid of that many pixels, in proportion on others, at least 1.
    """
    features: FeatureName = "penultimate"
    """`penultimate` (released code), the input of the last layer, or a stage of the backbone.

    `-1`, `-2`, `-3`: a stage, counted from the last.
    """
    aggregate: Literal["max", "mean"] = "max"
    """Reduction over the seeds; `max`: released code."""


def pick_seeds(coarse: Float[Tensor, "b k h w"], count: int) -> Int[Tensor, "b k s"]:
    """Return Omega: the `count` highest pixels, row by row, the first of equal ones on every device."""
    return coarse.flatten(2).argsort(dim=2, descending=True, stable=True)[..., :count]


def seed_similarity(
    phi: Float[Tensor, "b d h w"], seeds: Int[Tensor, "b k s"], aggregate: Literal["max", "mean"]
) -> Float[Tensor, "b k n"]:
    """Return s, the similarity of each pixel to the seeds, eq. (1), for features of any length.

    The seeds get length 1 before the product. The pixels' lengths divide the reduced result, which is smaller
    than the features.
    """
    vectors = phi.float().flatten(2)  # (B, D, N)
    lengths = pixel_lengths(vectors)  # (B, 1, N)
    index = seeds.flatten(1)[:, None]  # (B, 1, K S)
    of_seeds = lengths.take_along_dim(index, dim=2)
    chosen = vectors.gather(2, index.expand(-1, vectors.shape[1], -1)) / of_seeds.clamp(min=TINY)
    products = (chosen.mT @ vectors).reshape(*seeds.shape, -1)  # (B, K, S, N): cosines times lengths
    products.scatter_(3, seeds[..., None], of_seeds.reshape(*seeds.shape, 1))
    reduced = torch.amax(products, dim=2) if aggregate == "max" else torch.mean(products, dim=2)
    return reduced / lengths.clamp(min=TINY)


class Sem(PostProcess):
    """See the module."""

    method_name = "sem"
    Config = SemConfig
    config: SemConfig

    def __init__(self, config: SemConfig) -> None:
        if config.seeds < 1 or config.seeds_of < 0 or 0 < config.seeds_of < config.seeds:
            raise UsageError(
                f"settings seeds={config.seeds}, seeds_of={config.seeds_of} of post-process 'sem': "
                "expected at least one seed, and "
                "seeds_of=0 or no more seeds than the pixels they are taken of"
            )
        super().__init__(config)

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the grid of the features."""
        (features,) = select_features(result, (self.config.features,), who=self.method_name)
        channels, cells = features.shape[1], features.shape[2] * features.shape[3]
        count = self.count_seeds(cells)
        rows = class_ids.shape[1] * count
        floats = 2 * cells * channels + rows * (2 * channels + cells)  # pixels, squared; seeds; similarities
        compute: Callable[[list[Tensor], Tensor], Tensor] = partial(self._maps, count=count)
        return map_chunks(compute, [features], result.score_maps(class_ids), bytes_per_image=4 * floats)

    def count_seeds(self, cells: int) -> int:
        """Return the number of seeds on features of that many pixels.

        Raises `UsageError` if there are fewer pixels than seeds.
        """
        seeds, of = self.config.seeds, self.config.seeds_of
        count = max(1, round(seeds * cells / of)) if of else seeds
        if count > cells:
            raise UsageError(
                f"setting seeds={seeds} of post-process 'sem': the features have {cells} pixels; expected "
                "no more seeds than pixels. Use a "
                "larger input, fewer seeds (--post-set sem.seeds=N), or a number in proportion to the grid "
                "(--post-set sem.variant=scaled)"
            )
        return count

    def _maps(
        self, features: list[Tensor], coarse: Float[Tensor, "b k h w"], *, count: int
    ) -> Float[Tensor, "b k gh gw"]:
        (phi,) = features
        height, width = phi.shape[2:]
        constant = coarse.amax(dim=(2, 3)) == coarse.amin(dim=(2, 3))
        seeds = pick_seeds(resize_to_grid(coarse, height, width), count)
        s = seed_similarity(phi, seeds, self.config.aggregate)
        flat = constant | (s.amax(dim=2) - s.amin(dim=2) < FLAT)
        return min_max(s.masked_fill(flat[..., None], 0.0).reshape(*coarse.shape[:2], height, width))  # (2)
