"""C2AM: split images into two kinds of features, without any label.

J. Xie, J. Xiang, J. Chen, X. Hou, X. Zhao, L. Shen, "C2AM: Contrastive learning of class-agnostic activation
map for weakly supervised object localization and semantic segmentation", CVPR 2022. Values and steps are
those of the authors' code (CVI-SZU/CCAM, its folder WSOL, for ResNet-50).

Idea. One map splits each image into two feature vectors, one of each side. Vectors of the same side attract
each other over the images of a batch, and vectors of different sides repel each other. Objects look different
from backgrounds, and backgrounds of several images alike, so one of the sides becomes the object.

    paper      name                                shape
    X          joined stages                       (B, D, h, w)    last two stages, each at its own scale
    P          activation                          (B, h, w)       sigmoid(BN(3x3 convolution of X)), no bias
    v+, v-     split_features                      (B, D)
    S          clip(similarity(u, v))              (B, B)
    alpha      config.alpha
    flipped    flipped                             ()              buffer: whether P is the background

    (1)  v+ = mean over the pixels of P X,  v- = mean of (1 - P) X
    (2)  S(u, v)_ij = cosine of u_i and v_j, clipped to [0.0005, 0.9995]
    (3)  neg = mean over i, j of -log(1 - S(v-, v+)_ij)
    (4)  pos(v) = mean over i, j of -log S(v, v)_ij exp(-alpha rank_ij); rank_ij is the rank of v_j by
         similarity to v_i: -1 for v_i itself, then 0, 1, ...
    (5)  L = pos(v-) + neg + pos(v+)
    (6)  M = P, or 1 - P if flipped; the same map for every class

The numbers of the equations are those of this file. The paper's text was not at hand.

**Polarity.** L is the same for P and 1 - P, so training cannot tell which side is the object. The border of
an image decides: P is the background if it is higher on the border cells than in the image, in the mean over
the images of the first epoch, as they are trained. The decision is a buffer. `polarity=each` decides again
after each epoch. `official` is the released rule: whether more than half of the border of one image of the
last batch of the first epoch has P > 0.5. The rule needs features that distinguish objects: from random
weights, zero padding alone can make the border stand out.

There is no classifier, and labels of images are not used. With ImageNet weights the labels of ImageNet are.
Evaluate GT-known and MaxBoxAcc; the published Top-1 Loc is that of another network. alpha is 0.05 for
supervised weights, and on ILSVRC for all. On CUB, for weights trained without labels, it is 0.75.

Departures from released code (`variant=official` undoes them). By an oversight its momentum is its weight
decay, 0.0001; here it is 0.9. By another one its new layer learns at the base rate, and batch norm has no
learning rate at all; here the layer learns at ten times the rate, as the code intends, and batch norm learns.
Ranks in (4) are of the clipped similarities there, so vectors above the clip have an arbitrary order, and a
vector may rank behind others in its own row.

Further departures. The released program trains a regressor on boxes of the training images, cut at the best
threshold of the test set; that is not here. It is tested on 448 pixels after training on 224, which
`wsolbench eval --checkpoint ... --image-size 448` does. On ILSVRC the pairs of a batch are those of one GPU.
Features that are negative (inner stages of EfficientNet) can give cosines below the clip, which have no
gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from reference_models.core.recipes import Recipe
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Weight

PAPER = "c2am"

LOW, HIGH = 0.0005, 0.9995
"""Bounds of a similarity."""

_CUB = Recipe(
    source="CVI-SZU/CCAM, CUB, with the momentum and the rates that the code intends",
    epochs=20,
    batch_size=16,
    lr=1e-4,
    weight_decay=1e-4,
    schedule="poly",
    power=0.9,
)
_ILSVRC = replace(_CUB, source=_CUB.source.replace("CUB", "ILSVRC"), epochs=5, batch_size=256)


def _as_run(recipe: Recipe, source: str) -> Recipe:
    return replace(recipe, source=source, momentum=1e-4, new_factor=1.0)


@dataclass(frozen=True, kw_only=True)
class C2amConfig(MethodConfig):
    """Settings of `c2am`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "default": {},
            "official": {"polarity": "official", "ranks": "clipped", "train_norms": False},
        }
    )

    variant: Literal["default", "official"] = "default"
    """`official`: as the released code runs. `default`: without its oversights."""
    alpha: Weight = 0.05
    """Decay of a pair's weight with its rank.

    Released commands: 0.05, and 0.75 on CUB from weights that were trained without labels.
    """
    polarity: Literal["first", "each", "official"] = "first"
    """When and how the border decides: after the first epoch, after each one, or by the released rule."""
    ranks: Literal["exact", "clipped"] = "exact"
    """Similarities that are ranked in eq. (4). `clipped`: released code, where ties are arbitrary."""
    train_norms: bool = True
    """Whether batch norm has a learning rate. False: released code."""


def join_stages(
    coarse: Float[Tensor, "b d h w"], fine: Float[Tensor, "b e H W"]
) -> Float[Tensor, "b d_e H W"]:
    """Return X, the channels of both stages. The coarser one is repeated to the grid of the other."""
    if coarse.shape[-2:] != fine.shape[-2:]:
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    return torch.cat([coarse, fine], dim=1)


def split_features(
    features: Float[Tensor, "b d h w"], activation: Float[Tensor, "b h w"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Return v+ and v-, the features of each side, eq. (1)."""
    pixels = activation.shape[-1] * activation.shape[-2]
    inside, outside = (
        torch.einsum("bhw,bdhw->bd", part, features) / pixels for part in (activation, 1 - activation)
    )  # (1)
    return inside, outside


def similarity(one: Float[Tensor, "b d"], two: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    """Return the cosines of all pairs, not clipped. A vector of zeros has the cosine 0 with all others."""
    return F.normalize(one, dim=1) @ F.normalize(two, dim=1).mT


def clip(cosines: Float[Tensor, "b b"]) -> Float[Tensor, "b b"]:
    """Return S, eq. (2)."""
    return cosines.clamp(LOW, HIGH)  # (2)


def repulsion(inside: Float[Tensor, "b d"], outside: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Return neg, the cost of sides that are alike, eq. (3)."""
    return -torch.log1p(-clip(similarity(outside, inside))).mean()  # (3)


def rank_rows(cosines: Float[Tensor, "b b"]) -> Int[Tensor, "b b"]:
    """Return the ranks of eq. (4): in each row -1 for the diagonal, then 0 for the most similar other one."""
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    order = cosines.masked_fill(itself, 2.0).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) - 1


def attraction(
    vectors: Float[Tensor, "b d"], alpha: float, ranks: Literal["exact", "clipped"] = "exact"
) -> Float[Tensor, ""]:
    """Return pos, the cost of vectors of one side that differ, eq. (4)."""
    cosines = similarity(vectors, vectors)
    alike = clip(cosines)
    if ranks == "exact":
        rank = rank_rows(cosines.detach())
    else:
        rank = alike.detach().argsort(dim=1, descending=True).argsort(dim=1) - 1
    return (-alike.log() * torch.exp(-alpha * rank.to(alike.dtype))).mean()  # (4)


def border_cells(activation: Float[Tensor, "b h w"]) -> Float[Tensor, "b n"]:
    """Return the four sides of each map. A corner belongs to two of them."""
    sides = activation[:, 0], activation[:, -1], activation[:, :, 0], activation[:, :, -1]
    return torch.cat(sides, dim=1)


class C2am(Localizer):
    """See the module."""

    method_name = "c2am"
    Config = C2amConfig
    config: C2amConfig
    map_kind = "unit"
    recipes = MappingProxyType(
        {
            "c2am_cub": _CUB,
            "c2am_ilsvrc": _ILSVRC,
            "c2am_cub_official": _as_run(_CUB, "CVI-SZU/CCAM, CUB, as it runs"),
            "c2am_ilsvrc_official": _as_run(_ILSVRC, "CVI-SZU/CCAM, ILSVRC, as it runs"),
        }
    )
    official_recipes = MappingProxyType(
        {"c2am_cub": "c2am_cub_official", "c2am_ilsvrc": "c2am_ilsvrc_official"}
    )
    flipped: Tensor
    border_excess: Tensor
    """Sum over the steps of an epoch of how much higher P is on the border than in the image."""

    def __init__(self, backbone: Backbone, num_classes: int, config: C2amConfig) -> None:
        if len(backbone.layout) < 2:
            raise UsageError(
                f"method 'c2am' joins the last two stages of its backbone, and {backbone.name} has "
                f"{len(backbone.layout)}; use one of `wsolbench list backbones`"
            )
        super().__init__(backbone, num_classes, config)
        self.activation = nn.Sequential(
            nn.Conv2d(sum(backbone.channels[-2:]), 1, 3, padding=1, bias=False), nn.BatchNorm2d(1)
        )
        self.register_buffer("flipped", torch.zeros((), dtype=torch.bool))
        self.register_buffer("border_excess", torch.zeros(()), persistent=False)

    # --- defaults for a backbone ----------------------------------------------------------------------------
    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the grid of the released code: 14x14 at 224."""
        return read_profile(backbone).grid(config.grid, "small")

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the released recipes in place of SPA's."""
        name = super().recipe_name(backbone, num_classes)
        return {"spa_cub": "c2am_cub", "spa_ilsvrc": "c2am_ilsvrc"}.get(name, name)

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the groups of `Model`. Without `train_norms`, batch norm has a group with the rate 0."""
        groups = super().parameter_groups(recipe)
        if self.config.train_norms:
            return groups
        norms = [
            parameter
            for module in self.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for parameter in module.parameters(recurse=False)
        ]
        known = {id(parameter) for parameter in norms}
        for group in groups:
            group["params"] = [each for each in group["params"] if id(each) not in known]
        return [*groups, {"name": "batch norm", "factor": 0.0, "params": norms}]

    # --- forward pass and loss ------------------------------------------------------------------------------
    def split(self, stages: list[Tensor]) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b h w"]]:
        """Return X and P, in float32, of the last two of the stages."""
        features = join_stages(stages[-1], stages[-2])
        return features.float(), self.activation(features)[:, 0].float().sigmoid()

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return the map of the object, eq. (6), and no logits."""
        stages = self.backbone.stages(images)
        features, activation = self.split(list(stages.values()))
        seen = torch.where(self.flipped, 1 - activation, activation)[:, None]  # (6)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            return seen.expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(logits=None, maps_of=maps_of, stages=stages, penultimate=features)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (5), and note where P is high. Labels are not read."""
        stages = self.backbone.stages(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):
            features, activation = self.split([stage.float() for stage in stages.values()])
            inside, outside = split_features(features, activation)
            self._note_border(activation.detach())
            alpha, ranks = self.config.alpha, self.config.ranks
            return {
                "outside": attraction(outside, alpha, ranks),
                "apart": repulsion(inside, outside),
                "inside": attraction(inside, alpha, ranks),
            }

    # --- polarity -------------------------------------------------------------------------------------------
    def _note_border(self, activation: Float[Tensor, "b h w"]) -> None:
        """Add to `border_excess`, or set it for the released rule, which reads the last batch alone."""
        if self.config.polarity == "official":
            self.border_excess.copy_((border_cells(activation[:1]) > 0.5).float().mean() - 0.5)
        else:
            self.border_excess += border_cells(activation).mean() - activation.mean()

    def on_epoch(self, epoch: int, epochs: int) -> None:  # noqa: ARG002 - the hook's form
        """Start a new sum."""
        self.border_excess.zero_()

    def after_epoch(self, epoch: int, epochs: int) -> None:  # noqa: ARG002 - the hook's form
        """Decide which side is the object."""
        if epoch == 0 or self.config.polarity == "each":
            self.flipped.copy_(self.border_excess > 0)
