"""LIO: auxiliary losses for the object's extent and its parts' layout.

M. Zhou, Y. Bai, W. Zhang, T. Zhao, T. Mei, "Look-into-Object: Self-supervised structure modeling for object
recognition", CVPR 2020; equations have the paper's numbers. Released code: JDAI-CV/LIO (one stage only).

Idea. Two auxiliary tasks are used in training only. Object-extent learning (OEL): images of one class share
their object, so cells that resemble some cell of other images of the class are object. A 1x1 convolution
learns to predict them. Spatial-context learning (SCL, `layers/polar.py`): each cell has to predict its
position relative to the object's strongest cell.

    paper          name                                    shape
    f(I)           pool_stages, one for each stage         (B, C, N, N)    features averaged to N x N cells
    I'_p           find_positives                          (B, P)          other images of the class
    phi            correlation                             (B, N N)
    M              pseudo_mask                             (B, N, N)
    m'             Structure.extent_map; extra_maps: oel_N (B, N, N)
    R_o            reference                               (B,)            row * N + column
    L_dis, L_ang   Context.distance, .angle                (B,)            (5), (7), (8): `layers/polar.py`

    (1)  L_cls = CE(y, l)
    (2)  phi_u(I, I') = 1/C max over cells v of <f(I)_u, f(I')_v>
    (3)  M = 1/P sum over p of phi(I, I'_p)
    (4)  L_oel = mean over cells (m' - M)^2
    (6)  R_o = argmax m'
    (9), (10)  L = L_cls + sum over stages (alpha L_oel + beta (L_dis + L_ang))

Batches are groups of 1 + P images of one class. Each image leads one group in an epoch. `batch_size` is the
number of leaders (16 in the released code: 64 images). So an epoch has as many steps as the baseline's, of 1
+ P times as many images. Every image is trained on, with the others of its group as positives.

Stages. 7, 14, 28 are the sides N at 448 pixels after 2x2 averaging of ResNet's last three stages: the last
stage, and those of half and a quarter of its stride. Smaller maps keep their size. Tables of the paper:
`stages=7` (default), 14, 28, `7,14,28` (multi-stage; `7,14` on ImageNet); `oel=false`, `scl=false` (both: the
baseline on these batches), `target=mask` (w/ GM); `num_positives=1`, `5`. Backbone and classifier alone are
`plain()`, a model of `baseline`.

Departures from the paper. Sums over images are means. M is a label, without gradient (`detach_target`). m' is
the weight in SCL where it is positive, without gradient. Without OEL there is no m': all cells count, and R_o
is the strongest cell of h. Open readings: the weight of each stage (1); how a ground-truth mask relates to M
(its area in [0, 1], not rescaled). 0.26 million parameters for 28x28 would be 512 channels of h (`c1=512`);
the released code has C/2. ImageNet's recipe, except momentum and size.

The released code (`variant=official`): see the settings. It stacks the images of a batch by role and then
cuts groups (`group_order`), so most groups mix classes. Its recipe, `lio_official`, rotates with
nearest-neighbour sampling. The variant departs from the code in three points. In the code, leaders and
positives pass the network separately, with separate batch statistics. The code's momentum is plain, here it
is Nesterov's. With several processes, groups are cut here within the images of each process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reference_models.base.head_localizer import HeadConfig, HeadLocalizer
from reference_models.base.recognizer import Recognizer
from reference_models.core.backbone import Backbone
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.profile import Stage
from reference_models.core.recipes import FINE_GRAINED, MANY_CLASSES, Recipe
from reference_models.core.weights import drop_prefixes
from reference_models.layers.heads import HeadKind
from reference_models.layers.maps import min_max
from reference_models.layers.polar import PolarConfig, SpatialContext
from reference_models.recognition.lio.class_groups import (
    GroupOrder,
    Reduction,
    draw_class_groups,
    find_positives,
    order_by_role,
    reduce_groups,
)
from wsolbench.exceptions import UsageError
from wsolbench.maps.masks import MaskSource
from wsolbench.ranges import Channels, Weight

PAPER = "lio"

STRIDES = {7: 1, 14: 2, 28: 4}
"""By N: the divisor of the last stage's stride."""
OFFICIAL: Mapping[str, Any] = MappingProxyType(
    {
        "group_order": "interleaved_bug",
        "detach_target": False,
        "scl_weight": "binary",
        "reference": "structure",
        "head_relu": True,
        "gamma_norm": "side",
        "scl_form": "official",
        "ce_reduction": "split",
        "ref_cell": "forced",
        "axis": "row",
        "warmup": "tenth",
    }
)


@dataclass(frozen=True, kw_only=True)
class LioConfig(HeadConfig, PolarConfig):
    """Settings of `lio`. If no source is named, the paper does not give the value."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"paper": MappingProxyType({}), "official": OFFICIAL}
    )

    variant: Literal["paper", "official"] = "paper"
    """`official`: as the released code runs, with its recipe on ResNet-50."""
    head: HeadKind = "fc"
    """ResNet's own classifier."""
    stages: tuple[int, ...] = (7,)
    """Stages of the auxiliary tasks: one or several of 7, 14, 28. The paper's default is the last stage."""
    num_positives: Channels = 3
    """P: 3 in the paper. In a class with fewer other images some repeat."""
    oel: bool = True
    """False: no object-extent learning (Table 4, SCL)."""
    scl: bool = True
    """False: no spatial-context learning (Table 4, OEL)."""
    alpha: Weight = 0.1
    """Weight of L_oel: the paper."""
    beta: Weight = 0.1
    """Weight of L_scl: the paper."""
    c1: Channels = 0
    """Channels of h. 0: half of the stage's (released code)."""
    target: Literal["correlation", "mask"] = "correlation"
    """Target of OEL: M of (3), or the ground-truth mask averaged to N x N (Table 4, LIO w/ GM)."""
    positives: Literal["all", "anchor"] = "all"
    """Images that are trained on.

    `all`: all of them (intended by the released code). `anchor`: only leaders, with features of the others
    without gradient.
    """
    group_order: GroupOrder = "correct"
    """`interleaved_bug` is the released code.

    It stacks images by role (leaders, first positives, second ones) and cuts them into consecutive groups,
    which then mix classes.
    """
    detach_target: bool = True
    """Whether M has no gradient: the paper calls it a label; False in the released code."""
    scl_weight: Literal["soft", "binary"] = "soft"
    """Weight of a cell in SCL: max(m', 0), or whether m' is above its mean (released code)."""
    reference: Literal["mask", "structure"] = "mask"
    """R_o: argmax of m' as in (6), or of the mean of h where m' is above its mean (released code)."""
    head_relu: bool = False
    """Whether f passes a ReLU before both convolutions (released code). It affects only negative maps."""
    ce_reduction: Reduction = "mean"
    """Reduction of cross-entropy and SCL.

    `mean`: over all images. `split`: the mean over leaders plus that over positives (released code).
    """
    warmup: Literal["linear", "tenth"] = "linear"
    """Learning rate during the recipe's `warmup`: growing from 0, or a tenth (released code).

    The recipe `lio` has no warm-up.
    """


# --- the equations, in float32 for any input: products of features exceed the range of float16 ------------


def correlation(features: Float[Tensor, "b c n"], others: Float[Tensor, "b c m"]) -> Float[Tensor, "b n"]:
    """Return phi, the highest correlation of each cell with cells of another image, eq. (2)."""
    return torch.bmm(features.mT, others).max(dim=2).values / features.shape[1]


def pseudo_mask(
    features: Float[Tensor, "b c n n"],
    everyone: Float[Tensor, "a c n n"],
    index: Int[Tensor, "b p"],
    counted: Bool[Tensor, "b p"],
) -> Float[Tensor, "b n n"]:
    """Return M of each image, eq. (3). Its positives are `everyone[index]`; 0 if none of them counts."""
    own, cells = features.flatten(2), everyone.flatten(2)
    # One positive at a time: a product has (N N)^2 values for each image.
    each = [correlation(own, cells[index[:, p]]) * counted[:, p, None] for p in range(index.shape[1])]
    mean = torch.stack(each).sum(dim=0) / counted.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.view(len(features), *features.shape[2:])


class Structure(nn.Module):
    """Training-only layers of one stage: the 1x1 convolution of OEL, and SCL."""

    def __init__(self, channels: int, config: LioConfig) -> None:
        super().__init__()
        self.enter = nn.ReLU() if config.head_relu else nn.Identity()
        self.extent = nn.Conv2d(channels, 1, 1) if config.oel else None
        self.context = (
            SpatialContext(channels, config.c1 or max(1, channels // 2), config) if config.scl else None
        )

    def extent_map(self, features: Float[Tensor, "b c n n"]) -> Float[Tensor, "b n n"]:
        """Return m', the predicted extent of the object."""
        assert self.extent is not None
        extent: Tensor = self.extent(self.enter(features))
        return extent[:, 0]


class Lio(Recognizer, HeadLocalizer):
    """See the module. Logits and class maps are those of `head_localizer.py`."""

    method_name = "lio"
    Config = LioConfig
    config: LioConfig
    recipes = MappingProxyType({name: FINE_GRAINED[name] for name in ("lio", "lio_official", "lio_ilsvrc")})
    official_recipes = MappingProxyType({"lio": "lio_official"})

    def __init__(self, backbone: Backbone, num_classes: int, config: LioConfig) -> None:
        _check(config)
        super().__init__(backbone, num_classes, config)
        self.places = {cells: _stage(backbone, cells) for cells in config.stages}
        heads = {str(cells): Structure(stage.channels, config) for cells, stage in self.places.items()}
        self.structure = nn.ModuleDict(heads if config.oel or config.scl else {})
        self.ready = False

    @property
    def mask_source(self) -> MaskSource | None:
        """Ground-truth masks if they are the target (LIO w/ GM), or None."""
        return "mask" if self.config.oel and self.config.target == "mask" else None

    @property
    def group_size(self) -> int:
        """Size of a group: a leader and its positives."""
        return self.config.num_positives + 1

    @classmethod
    def paper_recipe(cls, num_classes: int) -> str:
        """Return the paper's recipe."""
        return "lio" if num_classes < MANY_CLASSES else "lio_ilsvrc"

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Apply the recipe's schedule, with another warm-up (`warmup`)."""
        return (
            0.1 if self.config.warmup == "tenth" and progress < recipe.warmup else recipe.lr_factor(progress)
        )

    def batches(
        self, labels: Int[np.ndarray, " n"], batch_size: int, rng: np.random.Generator
    ) -> list[Int[np.ndarray, " _"]]:
        """Return batches of `batch_size` groups: an image, then P others of its class.

        Every image leads one group.
        """
        return draw_class_groups(labels, batch_size, self.config.num_positives, rng)

    def pool_stages(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return f by stage, in float32."""
        found = {cells: stages[stage.name].float() for cells, stage in self.places.items()}
        return {str(cells): F.adaptive_avg_pool2d(f, min(cells, f.shape[-1])) for cells, f in found.items()}

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the plain network's result, with m' of each stage as extra maps `oel_7`, and so on.

        With several stages, `oel_mean` is the mean of the min-max normalised maps on the finest grid.
        """
        result = super().forward(images)
        if not self.config.oel:
            return result
        with torch.autocast(images.device.type, enabled=False):
            maps = {
                f"oel_{cells}": self.structure[cells].extent_map(f)  # type: ignore[operator]
                for cells, f in self.pool_stages(result.stages).items()
            }
            if len(maps) > 1:
                finest = max(m.shape[-1] for m in maps.values())
                ranges = [
                    F.interpolate(min_max(m)[:, None], size=finest, mode="bilinear")[:, 0]
                    for m in maps.values()
                ]
                maps["oel_mean"] = torch.stack(ranges).mean(dim=0)
        return replace(result, extra_maps=maps)

    def plain(self) -> dict[str, Tensor]:
        """Return the state of a `baseline` with the same head, without the training-only layers."""
        return drop_prefixes(self.state_dict(), "structure.")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, and the weighted L_oel, L_dis and L_ang of each stage, eq. (10)."""
        config, size = self.config, self.group_size
        each = 1 if config.positives == "all" else size  # every one is trained on, or every leader
        result = super().forward(batch.images[::each])
        assert result.logits is not None
        # Classification.
        losses = F.cross_entropy(result.logits.float(), batch.labels[::each], reduction="none")
        terms = {"cross_entropy": reduce_groups(losses, size // each, config.ce_reduction)}
        own = self.pool_stages(result.stages) if len(self.structure) > 0 else {}
        targets = self._targets(own, batch, size, each) if config.oel else {}
        with torch.autocast(batch.images.device.type, enabled=False):
            # OEL and SCL of each stage, f (B, C, N, N).
            for cells, f in own.items():
                head: Structure = self.structure[cells]  # type: ignore[assignment]
                weight = reference = inside = None
                if config.oel:
                    extent, (target, known) = head.extent_map(f), targets[cells]
                    terms[f"oel_{cells}"] = (
                        config.alpha * ((extent - target).square().mean(dim=(1, 2)) * known).mean()
                    )  # (4)
                    mask = extent.detach()
                    inside = mask > mask.mean(dim=(1, 2), keepdim=True)
                    weight = mask.clamp(min=0) if config.scl_weight == "soft" else inside.float()
                    reference = mask.flatten(1).argmax(dim=1) if config.reference == "mask" else None  # (6)
                if head.context is not None:
                    context = head.context(head.enter(f), weight, reference, inside)
                    for name, values in (("distance", context.distance), ("angle", context.angle)):
                        terms[f"{name}_{cells}"] = config.beta * reduce_groups(
                            values, size // each, config.ce_reduction
                        )
        return terms

    def _targets(
        self, own: dict[str, Tensor], batch: Batch, size: int, each: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return M of the trained images by stage, and whether they have one."""
        if self.config.target == "mask":
            if batch.masks is None:
                raise UsageError(
                    "setting target=mask of method 'lio' needs ground-truth masks, and this data set has "
                    "none; use target=correlation"
                )
            masks = batch.masks[::each, None].float()
            return {
                cells: (F.adaptive_avg_pool2d(masks, f.shape[-1])[:, 0], masks.new_ones(len(f)))
                for cells, f in own.items()
            }
        # Features of all images, in batch order.
        everyone = own
        if each > 1:
            turn = order_by_role(len(batch.labels), size, batch.labels.device)
            with torch.no_grad():
                others = self.pool_stages(
                    self.backbone.stages(batch.images[turn[len(batch.images[::each]) :]])
                )
            everyone = {
                cells: torch.cat([f.detach(), others[cells]])[turn.argsort()] for cells, f in own.items()
            }
        index, counted = (
            found[::each] for found in find_positives(batch.labels, size, self.config.group_order)
        )
        with (
            torch.autocast(batch.images.device.type, enabled=False),
            torch.set_grad_enabled(not self.config.detach_target),
        ):
            return {
                cells: (pseudo_mask(f, everyone[cells], index, counted), counted.any(dim=1))
                for cells, f in own.items()
            }


def _stage(backbone: Backbone, cells: int) -> Stage:
    """Return the stage for the tasks with `cells` x `cells`."""
    stages = {stage.stride: stage for stage in backbone.layout}  # of several with one stride the last
    if (wanted := backbone.layout[-1].stride / STRIDES[cells]) in stages:
        return stages[int(wanted)]
    has = f"{backbone.name} ({backbone.grid}) has {', '.join(map(str, stages))}"
    raise UsageError(f"setting stages of method 'lio': {cells} needs a stage of stride {wanted:g}, and {has}")


def _check(config: LioConfig) -> None:
    if (
        not config.stages
        or len(set(config.stages)) < len(config.stages)
        or not set(config.stages) <= set(STRIDES)
    ):
        given = ",".join(map(str, config.stages))
        raise UsageError(
            f"setting stages of method 'lio' is {given!r}; expected one or several of 7, 14 and 28, each once"
        )
    for name, least in (("num_positives", 1), ("alpha", 0), ("beta", 0), ("c1", 0)):
        if not getattr(config, name) >= least:
            raise UsageError(
                f"setting {name} of method 'lio' is {getattr(config, name)}; expected at least {least}"
            )
