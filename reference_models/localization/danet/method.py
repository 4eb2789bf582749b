"""DANet: classify at three levels of a hierarchy, with divergent maps.

H. Xue, C. Liu, F. Wan, J. Jiao, X. Ji, Q. Ye, "DANet: Divergent activation for weakly supervised object
localization", ICCV 2019. Released code: xuehaolan/DANet.

Idea. The head is enough to distinguish a bird from its relatives; to distinguish birds of prey from songbirds
takes more of the body. So coarser classes are learned as well, at shallower stages (hierarchical divergence).
Each class has K maps whose mean classifies, pushed apart by a cosine loss (discrepant divergence). The map of
a class is the sum over the levels.

    paper           name                                  shape
    levels          levels                                heads of root, parent, child: R orders, P families,
                                                          C classes
    F^l_(c,k)       maps of a level l                     (B, K, h_l, w_l) for one class c
    pi(c), rho(c)   lookup                                (3, C): root, parent and class itself of each class
    S^l             logits                                (B, C), (B, P), (B, R): mean over k, x, y
    n               samples                               maps in the cosine loss, of the 3K of the label and
                                                          its ancestors; one draw for a batch
    lambda          config.cosine_weight

    (1)  L_cos = |sum_(i<j) cos(a_i, a_j)| / (n (n - 1) / 2)     mean over the images; a: n maps drawn from
                                                                 3K, on the finest grid
    (2)  L = ce_weight (CE_root + CE_parent + CE_child) + lambda L_cos
    (3)  M_c = up(mean_k relu F^child_c) + up(mean_k relu F^parent_pi(c)) + up(mean_k relu F^root_rho(c))

The numbers of the equations are those of this file. The paper's text was not at hand, and values are those of
the released code.

Insertion points. Root, parent and child read the last three stages: on VGG-16 after pools 3, 4 and conv 5
(`grid=acol28`: the code's `DA_p`), on Inception-V3 pool 2, Mixed_5d and Mixed_6e. There, strides are
torchvision's and the first convolution has padding 1 (grid `padded`). Each level is two 3x3 convolutions and
a 1x1. For ResNet-50 (layers 2 to 4) and other backbones nothing is published: the widths and K are those of
VGG-16.

Tree. CUB has 11 orders and 37 families; the tree for ILSVRC was never released. `hierarchy=FILE.csv` names a
tree, which DANet is designed for. The default (this project) groups consecutive classes and needs no file. In
CUB's list, which is nearly alphabetical by kind, relatives are neighbours: parents are like families with
wrong borders, and roots are arbitrary. In lists of another order both are arbitrary. `none` has one level,
without any tree.

Post-processes also start from the sum (3), resized from the finest grid to that of their features, and not
from the child's map alone. `penultimate` is the input of the last layer of the child level.

Departure from released code (`variant=official` undoes it). In (3) a class has the maps of its own ancestors,
also if the network ranks other families and orders first. The released evaluation adds the maps of the best
family and the best order to that of a given class, such as the true one (`ancestors=best`). To that of its
own i-th prediction it adds the maps of the i-th best ones (`ancestors=rank`). The two differ in Top-5 Loc and
agree for the first prediction.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.layers.heads import ConvHead, HeadOutput, cross_entropy
from reference_models.localization.danet.class_tree import ClassTree, consecutive_groups, read_tree
from wsolbench.exceptions import DataError, UsageError
from wsolbench.ranges import Channels, Count, Positive, Weight

PAPER = "danet"

GROUPS, NO_TREE = "groups", "none"


@dataclass(frozen=True, kw_only=True)
class DanetConfig(MethodConfig):
    """Settings of `danet`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"ancestors"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"default": MappingProxyType({}), "official": MappingProxyType({"ancestors": "best"})}
    )

    variant: Literal["default", "official"] = "default"
    """`official`: the map of the released code."""
    hierarchy: str = GROUPS
    """Path of a CSV file (see `class_tree.py`), `groups` or `none`.

    `groups`: consecutive classes, related or not. `none`: one level, without a tree.
    """
    group: Count = 5
    """Classes per parent and parents per root with `hierarchy=groups`, close to CUB's 200 : 37 : 11."""
    parents: tuple[int, ...] = ()
    """Parent of each class, counted from 0. Read from the file, so that a checkpoint does not need it."""
    roots: tuple[int, ...] = ()
    """Root of each class, likewise."""
    maps_per_class: Channels = 0
    """K. 0: 8, and 4 on Inception-V3 (released code)."""
    widths: tuple[Channels, ...] = ()
    """Hidden channels of root, parent and child.

    Empty: 512, 1024, 1024, and on Inception-V3 256, 384, 1024 (released code).
    """
    ce_weight: Weight = 0.5
    """Weight of each cross-entropy: released code."""
    cosine_weight: Weight = 0.01
    """lambda: released script; the default of its program is 0.2."""
    sample: Positive = 1.5
    """n / K, rounded down: released code."""
    absolute: Literal["sum", "pairs"] = "sum"
    """Absolute value in (1): of the sum (released code), or of each cosine."""
    ancestors: Literal["tree", "best", "rank"] = "tree"
    """Parent and root of a class in (3).

    `tree`: its ancestors. `best`: the highest-scoring ones, released code for a given class. `rank`: those
    with the same rank as the class, released code for its predictions.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hierarchy not in (GROUPS, NO_TREE) and not self.parents:
            if not Path(self.hierarchy).is_file():
                raise UsageError(
                    f"setting hierarchy={self.hierarchy!r} of method 'danet': expected {GROUPS}, {NO_TREE} "
                    "or a CSV file"
                )
            tree = read_tree(Path(self.hierarchy))
            object.__setattr__(self, "parents", tree.parents)
            object.__setattr__(self, "roots", tree.roots)


def cosine_loss(maps: Float[Tensor, "b n h w"], absolute: Literal["sum", "pairs"]) -> Float[Tensor, ""]:
    """Return the mean cosine between maps, in float32, eq. (1). It is 0 for fewer than two maps.

    A map that is 0 everywhere has cosine 0 with all others.
    """
    n = maps.shape[1]
    with torch.autocast(maps.device.type, enabled=False):
        vectors = maps.float().flatten(2)
        length = vectors.norm(dim=2, keepdim=True)
        # Divided by infinity, a map without length has no cosine and no gradient either.
        unit = vectors / length.masked_fill(length < 1e-8, torch.inf)
        cosines = (unit @ unit.mT).triu(diagonal=1)  # (B, n, n)
        totals = cosines.sum(dim=(1, 2)).abs() if absolute == "sum" else cosines.abs().sum(dim=(1, 2))
        loss: Tensor = totals.mean() / max(1.0, n * (n - 1) / 2)
        return loss


def gather_class_maps(
    head: HeadOutput, class_ids: Int[Tensor, "b c"], per_class: int
) -> Float[Tensor, "b c {per_class} h w"]:
    """Return F^l of the classes: channel c * K + k of the head is map k of class c."""
    channels = class_ids[:, :, None] * per_class + torch.arange(per_class, device=class_ids.device)
    maps = head.maps_of(channels.flatten(1))
    return maps.reshape(*class_ids.shape, per_class, *maps.shape[-2:])


def upsample(maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c hh ww"]:
    """Resize maps bilinearly with aligned corners, in float32."""
    return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=True)


def find_by_rank(
    child: Float[Tensor, "b c"], level: Float[Tensor, "b l"], class_ids: Int[Tensor, "b k"]
) -> Int[Tensor, "b k"]:
    """Return for each class the class of a level that has the same rank.

    It is the last one if the level has fewer classes.
    """
    better = (child[:, None, :] > child.gather(1, class_ids)[:, :, None]).sum(dim=2)
    return level.argsort(dim=1, descending=True, stable=True).gather(1, better.clamp(max=level.shape[1] - 1))


def class_lookup(config: DanetConfig, classes: int) -> Int[Tensor, "levels {classes}"]:
    """Return each class's index on each level, the coarsest first: rho, pi and the class itself.

    Raises `DataError` on a tree with another number of classes.
    """
    own = tuple(range(classes))
    if config.hierarchy == NO_TREE:
        return torch.tensor([own])
    tree = (
        ClassTree(config.parents, config.roots)
        if config.parents
        else consecutive_groups(classes, config.group)
    )
    if len(tree.parents) != classes:
        raise DataError(
            f"the class tree {config.hierarchy} has {len(tree.parents)} classes, the data set has "
            f"{classes}; expected the same"
        )
    return torch.tensor([tree.roots, tree.parents, own])


class Danet(Localizer):
    """See the module."""

    method_name = "danet"
    Config = DanetConfig
    map_kind = "nonneg"
    config: DanetConfig
    lookup: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: DanetConfig) -> None:
        super().__init__(backbone, num_classes, config)
        # Widths and maps per class: those of the settings, or the published ones.
        wide, inception = backbone.head_width, backbone.profile.kin == "inception"
        self.per_class = config.maps_per_class or (4 if inception else 8)
        widths = config.widths or ((wide // 4, wide * 3 // 8, wide) if inception else (wide // 2, wide, wide))
        if (
            self.per_class < 1
            or len(widths) != 3
            or min(widths) < 1
            or config.group < 1
            or not config.sample > 0
        ):
            raise UsageError(
                f"settings maps_per_class={config.maps_per_class}, widths={config.widths}, "
                f"group={config.group}, sample={config.sample} "
                "of method 'danet': expected numbers greater than 0, three of them as widths; or 0 maps, "
                "or no widths, for those published"
            )
        # One head per level, on the last stages.
        lookup = class_lookup(config, num_classes)
        self.register_buffer("lookup", lookup, persistent=False)
        stages = backbone.layout[-len(lookup) :]
        if len(stages) < len(lookup):
            raise UsageError(
                f"method 'danet' needs {len(lookup)} stages, {backbone.name} has {len(stages)}; use --set "
                "hierarchy=none"
            )
        self.places = [stage.name for stage in stages]
        self.levels = nn.ModuleList(
            ConvHead(stage.channels, int(row.max() + 1) * self.per_class, width=width)
            for stage, row, width in zip(stages, lookup, widths[-len(lookup) :], strict=True)
        )
        self.samples = min(int(config.sample * self.per_class), len(lookup) * self.per_class)

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return torchvision's strides and a padded first convolution on Inception-V3 (released code)."""
        return read_profile(backbone).grid(config.grid, "padded")

    def _levels(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[OrderedDict[str, Tensor], list[HeadOutput], list[Tensor]]:
        """Return the backbone's stages, and each level's head output and logits, the coarsest first."""
        stages = self.backbone.stages(images)
        heads: list[HeadOutput] = [
            level(stages[place]) for level, place in zip(self.levels, self.places, strict=True)
        ]
        return (
            stages,
            heads,
            [head.logits.reshape(len(images), -1, self.per_class).mean(dim=2) for head in heads],
        )

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits of the classes, and maps on the finest grid of the levels."""
        stages, heads, logits = self._levels(images)
        grid = (stages[self.places[0]].shape[-2], stages[self.places[0]].shape[-1])

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            # Class of each level for each requested class.
            if self.config.ancestors == "tree":
                asked = list(self.lookup[:, class_ids])
            elif self.config.ancestors == "best":
                asked = [
                    *(level.argmax(dim=1, keepdim=True).expand_as(class_ids) for level in logits[:-1]),
                    class_ids,
                ]
            else:
                asked = [*(find_by_rank(logits[-1], level, class_ids) for level in logits[:-1]), class_ids]
            # Mean over the K maps of a class, summed over the levels.
            maps = [
                gather_class_maps(head, ids, self.per_class).relu().mean(dim=2)
                for head, ids in zip(heads, asked, strict=True)
            ]
            return torch.stack([upsample(level, grid) for level in maps]).sum(dim=0)  # (3)

        return ForwardPass(
            logits=logits[-1], maps_of=maps_of, stages=stages, penultimate=heads[-1].penultimate
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of each level and the cosine loss, weighted, eq. (2)."""
        stages, heads, logits = self._levels(batch.images)
        labels = list(self.lookup[:, batch.labels])
        names = ("root", "parent", "cross_entropy")[-len(labels) :]
        terms = {
            name: self.config.ce_weight * cross_entropy(scores, truth)
            for name, scores, truth in zip(names, logits, labels, strict=True)
        }
        grid = (stages[self.places[0]].shape[-2], stages[self.places[0]].shape[-1])
        own = [
            gather_class_maps(head, truth[:, None], self.per_class)[:, 0]
            for head, truth in zip(heads, labels, strict=True)
        ]
        maps = torch.cat([upsample(level, grid) for level in own], dim=1)  # (B, 3K, h, w)
        drawn = torch.randperm(maps.shape[1], generator=batch.generator, device=maps.device)[: self.samples]
        return {
            **terms,
            "cosine": self.config.cosine_weight * cosine_loss(maps[:, drawn], self.config.absolute),
        }
