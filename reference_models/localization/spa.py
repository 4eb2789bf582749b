"""SPA: train CAM to be near 1 on the object and near 0 on the background.

X. Pan, Y. Gao, Z. Lin, F. Tang, W. Dong, H. Yuan, F. Huang, C. Xu, "Unveiling the potential of structure
preserving for weakly supervised object localization", CVPR 2021. Released code: Panxjia/SPA_CVPR2021 (VGG-16
only). This file is the first half of the paper, its restricted activation module (RAM), which is a loss and
has no parameters. The second half is the post-process `scg`: `--method spa --post scg`.

Idea. If unbounded scores are averaged, a few very high pixels decide the class. Where the class distribution
of a pixel is confident, the label's score is pushed up. Where it is nearly uniform, the score is pushed down.
The sigmoid bounds what any pixel can gain.

    paper          name                        shape
    F              maps                        (B, C, H, W)    class maps before pooling
    F'_t           bounded                     (B, H, W)       of the label t
    Var            spread                      (B, H, W)
    M_bg, M_obj    background, foreground      (B, H, W)       constants: no gradient goes through them
    tau, sigma     config.tau, config.gap
    alpha          config.alpha

    (1)  L = L_CE + alpha L_RA
    (2)  F'_t = sigmoid(F_t)
    (3)  M_bg = [Var(softmax(F)) < tau]
    (4)  M_obj = [Var(softmax(F)) > tau + sigma]
    (5)  L_RA = mean over the pixels of M_bg F'_t + M_obj (1 - F'_t)

Departures. The paper gives none of the values. They are those of the released scripts: alpha 0.5; on CUB tau
0.1 and sigma 0.2 from epoch 20 of 100 on; on ILSVRC 0.4 and 0.1 from epoch 5 of 20 on. They belong to the
code's Var: the variance over the classes, min-max normalised in each image. The paper says standard
deviation, which is at most 1 / sqrt(C): 0.07 on CUB, below every published tau, so that all pixels would be
background. VGG-16 keeps its 2x2 pools in the code (`std14`). The paper says that it is changed as in ACoL
(`acol28`), and the variant `paper` does that. No values for other backbones are published.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch
from reference_models.core.recipes import MANY_CLASSES
from reference_models.layers.heads import cross_entropy, pick_maps
from reference_models.layers.maps import min_max
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Share, Weight

PAPER = "spa"

Spread = Literal["var_minmax", "var", "std"]

PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "cub": MappingProxyType({"tau": 0.1, "gap": 0.2, "start": 0.2}),
        "ilsvrc": MappingProxyType({"tau": 0.4, "gap": 0.1, "start": 0.25}),
    }
)
"""Settings of the released scripts for VGG-16. `start` is a fraction of the run."""


@dataclass(frozen=True, kw_only=True)
class SpaConfig(HeadConfig):
    """Settings of `spa`.

    None stands for the released value for CUB, or for ILSVRC if there are 500 classes or more.
    """

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"official": MappingProxyType({}), "paper": MappingProxyType({"spread": "std"})}
    )

    variant: Literal["official", "paper"] = "official"
    """`official`: released code. `paper`: the text, which needs `tau` and `gap` (see the module)."""
    ram: bool = True
    """Whether L_RA is added. Without it this is CAM."""
    alpha: Weight = 0.5
    """Weight of L_RA: released scripts (the code's own default is 0.1)."""
    tau: Weight | None = None
    """Spread below which a pixel is background."""
    gap: Weight | None = None
    """The paper's sigma. Pixels with a spread from tau to tau + gap are neither object nor background."""
    start: Share | None = None
    """Fraction of the run after which L_RA is added."""
    spread: Spread = "var_minmax"
    """Definition of Var.

    `var_minmax`: released code. `std`: the paper's text. `var`: the code's before normalisation.
    """


def class_spread(maps: Float[Tensor, "b c h w"], kind: Spread) -> Float[Tensor, "b h w"]:
    """Return Var(softmax(F)) of eqs. (3) and (4), in float32.

    It measures how far the class distribution of each pixel is from uniform.
    """
    with torch.autocast(maps.device.type, enabled=False):
        variance = maps.float().softmax(dim=1).var(dim=1)  # unbiased, as in the released code
        if kind == "std":
            return variance.sqrt()
        return min_max(variance, eps=1e-15) if kind == "var_minmax" else variance


def largest_spread(classes: int, kind: Spread) -> float:
    """Return the largest value of `class_spread`, which a one-hot distribution reaches."""
    return {"var_minmax": 1.0, "var": 1 / classes, "std": 1 / math.sqrt(classes)}[kind]


def pseudo_masks(
    spread: Float[Tensor, "b h w"], tau: float, gap: float
) -> tuple[Bool[Tensor, "b h w"], Bool[Tensor, "b h w"]]:
    """Return M_bg and M_obj, eqs. (3) and (4)."""
    return spread < tau, spread > tau + gap  # (3), (4)


def restricted_activation(
    maps: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    background: Bool[Tensor, "b h w"],
    foreground: Bool[Tensor, "b h w"],
) -> Float[Tensor, ""]:
    """Return L_RA in [0, 1], averaged over the batch, eq. (5). Pixels in neither mask count as 0."""
    bounded = pick_maps(maps, labels[:, None])[:, 0].float().sigmoid()  # (2)
    return (background * bounded + foreground * (1 - bounded)).mean()  # (5)


class Spa(HeadLocalizer):
    """See the module. Maps and logits are those of `head_localizer.py`.

    With `head=fc` a map lacks the bias of its class.
    """

    method_name = "spa"
    Config = SpaConfig
    config: SpaConfig

    def __init__(self, backbone: Backbone, num_classes: int, config: SpaConfig) -> None:
        published = PUBLISHED["cub" if num_classes < MANY_CLASSES else "ilsvrc"]
        tau = published["tau"] if config.tau is None else config.tau
        gap = published["gap"] if config.gap is None else config.gap
        start = published["start"] if config.start is None else config.start
        if config.ram:
            _check(tau, gap, start, config, num_classes)
        super().__init__(backbone, num_classes, replace(config, tau=tau, gap=gap, start=start))
        self.tau, self.gap, self.start = tau, gap, start

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return ACoL's pools on VGG-16 in the variant `paper`."""
        if getattr(config, "variant", None) != "paper":
            return config.grid
        return read_profile(backbone).grid(config.grid, "overlapping-pools")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (1). `restricted_activation` starts at the epoch given by `start`."""
        result = self(batch.images)
        terms = {"cross_entropy": cross_entropy(result.logits, batch.labels)}
        if self.config.ram and batch.epoch >= self.start * batch.epochs - 1e-9:
            every_class = torch.arange(self.num_classes, device=batch.labels.device).expand(
                len(batch.labels), -1
            )
            maps = result.maps_of(every_class)
            masks = pseudo_masks(class_spread(maps.detach(), self.config.spread), self.tau, self.gap)
            terms["restricted_activation"] = self.config.alpha * restricted_activation(
                maps, batch.labels, *masks
            )
        return terms


def _check(tau: float, gap: float, start: float, config: SpaConfig, classes: int) -> None:
    """Raise `UsageError` if L_RA is not defined, or if no pixel could ever be foreground."""
    if classes < 2:
        raise UsageError("method 'spa' compares classes; expected at least 2, got 1. Use ram=false, or cam")
    if not (config.alpha >= 0 and tau >= 0 and gap >= 0 and 0 <= start <= 1):
        raise UsageError(
            f"settings alpha={config.alpha:g}, tau={tau:g}, gap={gap:g}, start={start:g} of method 'spa': "
            "expected none below 0, and start as a part of the run, at most 1"
        )
    reach = largest_spread(classes, config.spread)
    if not tau + gap < reach:
        raise UsageError(
            f"settings tau={tau:g}, gap={gap:g} of method 'spa': with spread={config.spread} and {classes} "
            "classes no pixel "
            f"exceeds {reach:.4g}, so none would be foreground; set tau and gap with a smaller sum"
            + ("" if config.spread == "var_minmax" else " (none are published), or spread=var_minmax")
        )
