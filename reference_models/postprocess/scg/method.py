"""SCG: correlation with object seeds minus that with background seeds.

X. Pan, Y. Gao, Z. Lin, F. Tang, W. Dong, H. Yuan, F. Huang, C. Xu, "Unveiling the potential of structure
preserving for weakly supervised object localization", CVPR 2021 (self-correlation map generating). Released
code: Panxjia/SPA_CVPR2021 (VGG-16 only).

Idea. Two pixels of one object can look different and still be similar to the same third pixels. The
second-order correlation then joins them although the first-order one does not. A method's coarse map only
gives seeds. The correlations of its high pixels show the object, those of its low pixels the background. The
map is the positive part of their difference.

    paper          name                    shape
    f              features, pixels        (B, D, h, w), (B, N, D) of length 1; N = h w = the paper's HW
    S              s                       (B, N, N)
    SC1, SC2       first, high             (B, N, N)
    HSC            hsc                     (B, N, N)      here the column j belongs to the seed j
    M_cam          m_cam                   (B, K, h, w)   min-max of the positive part of the method's raw
                                                          maps
    d_h, d_l       delta_h, delta_l
    M_obj, M_bg    m_obj, m_bg             (B, K, h, w)

Paper (`variant=paper`), the equations' numbers those of the paper:

    (6)   S_ij = cos(f_i, f_j)                               (7)   SC1 = max(S, 0)
    (8)   S2_ij = 1/N sum of S_ik S_kj over k other than i, j: with Z = S without its diagonal, Z Z / N
    (9)   SC2_ij = min-max of S2_ij over the row i           (11)  HSC = max(SC1, SC2), summed over two stages
    (12)  seeds: M_cam > d_h; M_cam < d_l                    (13)  M_obj = mean over the seeds i of HSC_i.;
                                                                   M_bg alike
    (14)  map = max(M_obj - M_bg, 0)

Released code (`variant=official`, the default, because only its thresholds are published); colsum: each
column divided by its sum:

    (a)   T = SC1, and 0 where below fo_th                   (b)   first = colsum(T)
    (c)   P = colsum(T without its diagonal)                 (d)   high = colsum(P P), and 0 where below so_th
                                                                   / N
    (e)   hsc = colsum(max(first, so_weight high)), summed over the stages, then min-max of each column
    (f)   seeds: M_cam >= d_h; M_cam <= d_l                  (g)   M_obj, M_bg = min-max of the sums of the
                                                                   seeds' columns
    (h)   map = min-max of max(M_obj - M_bg, 0)

The order 3 is colsum(colsum(P P) P), and so on. The paper leaves orders above 2 to a supplement that was not
at hand.

Departures. The paper's (13) is a mean and its Algorithm 1 a sum. With sums, the background has more pixels
and cancels the object, so the variant `paper` takes the mean. Its M_cam, d_h and d_l are not defined; those
of the code are used. "Summed over the stages" is a mean here: a constant factor, which keeps the map in [0,
1]. A column that varies by less than 1e-6 of its greatest value is constant up to rounding and becomes 0. The
code resizes M_cam to the image and back to the grid; here it stays on its own grid. `across_stages=max` takes
the maximum on the grid too, not in the image, because a post-process does not know the image. The code's
features are stages 4 and 5 of VGG-16; the paper's feat4 and feat5 of Inception-V3 are not released. Here both
are the last two stages (Mixed_5d and Mixed_6e).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.base.post import PostConfig, PostProcess
from reference_models.core.recipes import MANY_CLASSES
from reference_models.layers.correlation import (
    FeatureName,
    find_features,
    map_chunks,
    pool_to_one_grid,
    resize_to_grid,
    select_features,
    unit_pixels,
)
from reference_models.layers.maps import min_max
from reference_models.postprocess.scg.correlations import (
    EPS_HIGH,
    column_shares_,
    eq8_at,
    eq8_correlations,
    stochastic_at,
    stochastic_correlations,
)
from wsolbench.exceptions import UsageError
from wsolbench.methods import Localization
from wsolbench.methods.device import constants
from wsolbench.ranges import Order, Range, Share, Weight

PAPER = "spa"

PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "cub": MappingProxyType({"fo_th": 0.1, "so_th": 0.5, "so_weight": 2.0}),
        "ilsvrc": MappingProxyType({"fo_th": 0.2, "so_th": 0.2, "so_weight": 1.0}),
    }
)
"""Settings of the released scripts for VGG-16."""

FLAT = 1e-6
"""Smallest relative variation of a column. Below, it is constant up to the rounding of float32."""

LIVE_MATRICES = 6
"""N x N matrices of an image that exist at the same time."""


@dataclass(frozen=True, kw_only=True)
class ScgConfig(PostConfig):
    """Settings of `scg`.

    None stands for the released value for CUB, or for ILSVRC if the method has 500 classes or more.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "official": MappingProxyType({}),
            "paper": MappingProxyType(
                {
                    "correlation": "eq8",
                    "so_weight": 1.0,
                    "inclusive": False,
                    "seed_axis": "row",
                    "stretch_seeds": False,
                    "aggregate": "mean",
                    "stretch_sums": False,
                    "stretch_map": False,
                }
            ),
        }
    )

    variant: Literal["official", "paper"] = "official"
    """`official`: released code; `paper`: (6) to (14)."""
    features: tuple[FeatureName, ...] = ("-2", "-1")
    """Stages of the backbone, counted from the last; both sources take two.

    `-1,penultimate` is the other reading of feat4, feat5.
    """
    order: Order = 2
    """Order of `high`; 1 is P itself. Both sources: 2."""
    delta_h: Annotated[float, Range(-1, 2)] = 0.1
    """Smallest value of M_cam of an object seed; released scripts."""
    delta_l: Annotated[float, Range(-1, 2)] = 0.05
    """Largest value of M_cam of a background seed; released scripts."""
    fo_th: Share | None = None
    """Released code only: first-order correlations below it count as 0."""
    so_th: Weight | None = None
    """Released code only: higher-order correlations below so_th / N count as 0.

    A file name in its repository says 0.2 for CUB.
    """
    so_weight: Weight | None = None
    """Factor of the higher order in the maximum; the paper has none."""
    combine: Literal["max", "first", "high"] = "max"
    """Both sources: `max`. The released code can also take one of the two alone, as in (b) or (d).

    (e) applies to `max`.
    """
    across_stages: Literal["sum", "max"] = "sum"
    """`sum`: of the correlations (both sources). `max`: of the maps, an option of the released code."""
    correlation: Literal["stochastic", "eq8"] = "stochastic"
    """`stochastic`: (a) to (d), released code; `eq8`: (7) to (9), paper."""
    inclusive: bool = True
    """Whether delta_h and delta_l themselves count: (f), released code. They do not in (12)."""
    seed_axis: Literal["column", "row"] = "column"
    """Part of HSC that belongs to a seed: its column (released code) or its row (paper)."""
    stretch_seeds: bool = True
    """Whether the correlations of each seed are min-max normalised before they are summed; released code."""
    aggregate: Literal["mean", "sum"] = "sum"
    """Reduction over the seeds: `sum` (released code, equal if `stretch_sums`) or `mean` (paper)."""
    stretch_sums: bool = True
    """Whether M_obj and M_bg are min-max normalised before their difference; released code."""
    stretch_map: bool = True
    """Whether the map is min-max normalised; released code."""

    def published(self, classes: int | None) -> ScgConfig:
        """Replace None by released values, for a method with this many classes (None: unknown)."""
        values = PUBLISHED["cub" if classes is None or classes < MANY_CLASSES else "ilsvrc"]
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})  # type: ignore[arg-type]


def correlations(
    pixels: Float[Tensor, "b n d"], config: ScgConfig
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Return `first` and `high`.

    Each column (`seed_axis=row`: each row) has the correlations of all pixels with one pixel.
    """
    if config.correlation == "eq8":
        return eq8_correlations(pixels)
    fo_th, so_th = _thresholds(config)
    return stochastic_correlations(pixels, fo_th=fo_th, so_th=so_th, order=config.order)


def _thresholds(config: ScgConfig) -> tuple[float, float]:
    assert config.fo_th is not None
    assert config.so_th is not None
    return config.fo_th, config.so_th


def combined(
    first: Float[Tensor, "b n n"], high: Float[Tensor, "b n n"], config: ScgConfig
) -> Float[Tensor, "b n n"]:
    """Combine both orders to HSC of one stage, eqs. (11), (e)."""
    if config.combine != "max":
        return first if config.combine == "first" else high
    assert config.so_weight is not None
    hsc = torch.maximum(first, config.so_weight * high)  # (11)
    return column_shares_(hsc, EPS_HIGH) if config.correlation == "stochastic" else hsc  # (e)


def map_of(
    hsc: Float[Tensor, "b n n"], m_cam: Float[Tensor, "b k h w"], config: ScgConfig
) -> Float[Tensor, "b k h w"]:
    """Compute the map from HSC and M_cam on the grid of the features, eqs. (12) to (14) or (f) to (h)."""
    m = m_cam.flatten(2)
    seeds = hsc if config.seed_axis == "column" else hsc.mT
    if config.stretch_seeds:
        low, high = seeds.amin(dim=1, keepdim=True), seeds.amax(dim=1, keepdim=True)
        span = (high - low + 1e-10).masked_fill(high - low <= FLAT * high, torch.inf)
        seeds = (seeds - low).div_(span)  # (e)
    is_object = m >= config.delta_h if config.inclusive else m > config.delta_h  # (12), (f)
    is_background = m <= config.delta_l if config.inclusive else m < config.delta_l
    chosen = torch.cat([is_object, is_background], dim=1).to(seeds.dtype)  # (B, 2K, N)
    sums = chosen @ seeds.mT  # (B, 2K, N); no seed: 0
    if config.aggregate == "mean":
        sums = sums / chosen.sum(dim=2, keepdim=True).clamp(min=1)  # (13)
    sums = sums.reshape(len(sums), -1, *m_cam.shape[2:])
    m_obj, m_bg = (min_max(sums) if config.stretch_sums else sums).chunk(2, dim=1)  # (g)
    difference = (m_obj - m_bg).relu()  # (14)
    return min_max(difference) if config.stretch_map else difference  # (h)


@torch.no_grad()
def point_correlations(
    features: Float[Tensor, "b d h w"],
    points: Int[Tensor, "b 2"],
    config: ScgConfig,
    orders: Sequence[int] = (1, 2),
) -> Float[Tensor, "b o h w"]:
    """Return the correlation of every pixel with one pixel of each image, one map per order.

    These are the pictures of the paper's Fig. 1. Values are those of the definition, not normalised.

    Args:
        features: one stage.
        points: row and column of the pixel on the grid of the features.
        config: definition and thresholds (None: those for CUB).
        orders: 1 is `first`, another one is `high` of that order. `correlation=eq8` has 1 and 2.

    Raises `UsageError` on an order that the definition does not have.
    """
    height, width = features.shape[2:]
    settings = config.published(None)
    for order in orders:
        check(replace(settings, order=2 if order == 1 else order))
    flat = points[:, 0] * width + points[:, 1]
    with torch.autocast(features.device.type, enabled=False):
        pixels = unit_pixels(features)
        if settings.correlation == "eq8":
            maps = eq8_at(pixels, flat, orders=orders, axis=settings.seed_axis)
        else:
            fo_th, so_th = _thresholds(settings)
            maps = stochastic_at(
                pixels, flat, fo_th=fo_th, so_th=so_th, orders=orders, axis=settings.seed_axis
            )
    return maps.reshape(len(features), len(orders), height, width)


def check(config: ScgConfig) -> ScgConfig:
    """Return the settings. Raises `UsageError` on invalid values."""
    # Ranges.
    given = [value for value in (config.fo_th, config.so_th, config.so_weight) if value is not None]
    deltas = 0 <= config.delta_l <= config.delta_h <= 1
    if not (config.features and config.order >= 1 and deltas and all(value >= 0 for value in given)):
        raise UsageError(
            f"settings features={','.join(config.features)}, order={config.order}, "
            f"delta_l={config.delta_l}, delta_h={config.delta_h}, "
            f"fo_th={config.fo_th}, so_th={config.so_th}, so_weight={config.so_weight} of post-process "
            "'scg': expected a feature, "
            "an order from 1 on, 0 <= delta_l <= delta_h <= 1, and no threshold or weight below 0"
        )
    if config.correlation == "eq8" and config.order != 2:
        raise UsageError(
            f"setting order={config.order} of post-process 'scg': (8) is of order 2; use "
            "correlation=stochastic for others"
        )
    # Maps must stay in [0, 1].
    unit = config.correlation == "stochastic" or config.so_weight is None or config.so_weight <= 1
    in_range = (
        config.stretch_map
        or config.stretch_sums
        or (config.aggregate == "mean" and (config.stretch_seeds or unit))
    )
    if not in_range:
        raise UsageError(
            "these settings of post-process 'scg' give maps beyond 1; set stretch_map=true, or "
            "aggregate=mean and so_weight=1"
        )
    return config


class Scg(PostProcess):
    """See the module."""

    method_name = "scg"
    Config = ScgConfig
    config: ScgConfig

    def __init__(self, config: ScgConfig) -> None:
        super().__init__(check(config))

    def maps(self, result: Localization, class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
        """Return maps of the given classes, on the coarsest grid of the features."""
        features = pool_to_one_grid(select_features(result, self.config.features, who=self.method_name))
        settings = self._settings(result)
        cells = features[0].shape[2] * features[0].shape[3]
        compute: Callable[[list[Tensor], Tensor], Tensor] = partial(_maps, settings=settings)
        return map_chunks(
            compute, features, result.score_maps(class_ids), bytes_per_image=LIVE_MATRICES * 4 * cells**2
        )

    def correlations(
        self,
        result: Localization,
        points: Float[Tensor, "b 2"],
        *,
        orders: Sequence[int],
        stage: str | None = None,
    ) -> tuple[str, Float[Tensor, "b o h w"]]:
        """Return feature similarities; see `wsolbench.methods.contracts.PointCorrelator`.

        `stage` can also be `penultimate`.
        """
        name, features = find_features(result, stage, who=self.method_name)
        grid = constants(features.shape[2:], points.device, torch.int64)
        rows_columns = (points.flip(1) * grid).long().minimum(grid - 1)  # 1 - 1e-9 is 1 in float32
        return name, point_correlations(features, rows_columns, self._settings(result), orders)

    def _settings(self, result: Localization) -> ScgConfig:
        return self.config.published(None if result.logits is None else result.logits.shape[1])


def _maps(
    features: list[Tensor], coarse: Float[Tensor, "b k h w"], *, settings: ScgConfig
) -> Float[Tensor, "b k gh gw"]:
    height, width = features[0].shape[2:]
    m_cam = resize_to_grid(min_max(coarse.relu()), height, width)
    stages = (combined(*correlations(unit_pixels(each), settings), settings) for each in features)
    if settings.across_stages == "max":
        return reduce(torch.maximum, (map_of(hsc, m_cam, settings) for hsc in stages))
    return map_of(reduce(torch.add, stages) / len(features), m_cam, settings)
