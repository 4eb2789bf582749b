"""NL-CCAM: add maps of likely classes and subtract maps of unlikely ones.

S. Yang, Y. Kim, Y. Kim, C. Kim, "Combinational class activation maps for weakly supervised object
localization", WACV 2020. Values and steps are those of the authors' code (Yangseung/NL-CCAM), which is for
VGG-16 and CUB.

Idea. The map of the best class shows the part that distinguishes it from its relatives, whose maps show other
parts of the object. The maps of the most unlikely classes show the background. Added and subtracted by rank,
they show the object. Non-local blocks in the backbone let every pixel attend to every other.

    paper      name                                    shape
    x          input of a block                        (B, D, h, w), N = h w pixels
    q, k, v    query, key, value                       (B, N, D / 8), (B, N, D / 8), (B, N, D)
    W_c        head.classifier.weight                  (C, D)
    f          penultimate, the last stage             (B, D, h, w)
    M_c        map of the class c: sum_d W_cd f_d      (B, h, w)
    r(c)       rank_classes                            (B, C)   0: the class with the highest logit
    g          rank_weights                            (C,)
    T          config.top                              ranks whose maps are added

    (1)  o_i = sum_j softmax_j(q_i . k_j) v_j
    (2)  y = x + BN(o W_o); BN starts with weight 0, so a new block is the identity
    (3)  L = CE(S, y) with S = W mean_xy f + b
    (4)  CCAM = sum_c g(r(c)) M_c

    g (`rank_weights`)
    (5)  t1b0       1, 0, ..., 0
    (6)  t1b1       1, 0, ..., 0, -1
    (7)  linear     C values in equal steps, 1 to -1
    (8)  quadratic  T values in equal steps, 1 to 0, squared; then the negative mirror image of the same with
                    C - T values

(4) is computed as sum_d (sum_c g(r(c)) W_cd) f_d, without computing the maps of the classes.

The map of `quadratic`, the default, and of `linear` does not depend on the requested class: an image has one
map for Top-1, Top-5 and GT-known, as in the authors' code. With `class_conditioned`, and always with t1b0
(which is CAM) and t1b1, that class has rank 0, and the classes that were before it move back by one.

Insertion points (`find_insertion_points`). VGG: after pools 2, 3, 4 and conv5_3, with leaky ReLUs in the
whole backbone. Any other network (this project): after the last three stages, with unchanged activations; its
steps must be editable.

Departures. The paper's text was not at hand; equations are numbered here. T is 100 of CUB's 200 classes in
the authors' code, here half of the classes, rounded down. The authors' code ranks by a centre crop and maps
the whole image without its aspect ratio; here one view does both. It makes boxes by its own rules (values
below 0.12 of the maximum are 0, foreground is above the mean, the largest region counts); here the
evaluation's thresholds do. Attention is not scaled by the root of its width, as in the authors' code, and
runs in float32.

As in the authors' code, all projections of a block have biases, and blocks and classifier keep PyTorch's
initialisation. Adam has no weight decay, the rate falls from one epoch to the next, and images keep their
aspect ratio: crops of 224 from a shorter side of 224.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.recipes import Recipe
from reference_models.layers.heads import FcHead, cross_entropy, make_head
from wsolbench.exceptions import UsageError
from wsolbench.ranges import ShareBelow1

PAPER = "nl-ccam"

RankWeights = Literal["quadratic", "linear", "t1b1", "t1b0"]


@dataclass(frozen=True, kw_only=True)
class NlCcamConfig(MethodConfig):
    """Settings of `nl-ccam`."""

    at_test: ClassVar[frozenset[str]] = frozenset({"g", "top", "class_conditioned"})

    g: RankWeights = "quadratic"
    """Weights of the ranks, (5) to (8); `quadratic` is the default of the authors' code."""
    top: int = 0
    """T of `quadratic`. 0: half of the classes (the authors' code: 100 of 200)."""
    class_conditioned: bool = False
    """Whether the requested class has rank 0: this project. The authors have one map for all classes."""
    leaky: ShareBelow1 = 0.2
    """Negative slope of VGG's activations: authors' code. 0: ReLU."""


def find_insertion_points(backbone: Backbone) -> dict[str, int]:
    """Return the steps of the backbone with a block after them, and their channels."""
    return {stage.name: stage.channels for stage in backbone.role("attend", "method 'nl-ccam'")}


class NonLocalBlock(nn.Module):
    """Attention between all pixels of a grid, added to the features, eqs. (1) and (2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key, self.value, self.out = (
            nn.Conv2d(channels, outputs, 1) for outputs in (inner, inner, channels, channels)
        )
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Add to each pixel's features those that it attends to."""
        q, k, v = (
            layer(x).float().flatten(2).mT for layer in (self.query, self.key, self.value)
        )  # (B, N, D_i)
        with torch.autocast(x.device.type, enabled=False):  # unscaled products can leave the range of float16
            seen = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)[:, 0]  # (1)
        y: Tensor = x + self.norm(self.out(seen.mT.reshape(x.shape)))  # (2)
        return y


def rank_weights(kind: RankWeights, count: int, top: int) -> Float[Tensor, " {count}"]:
    """Return g of the ranks 0 to `count` - 1, eqs. (5) to (8). `top` is T.

    >>> rank_weights("quadratic", 6, 3).tolist()
    [1.0, 0.25, 0.0, -0.0, -0.25, -1.0]
    """
    if kind == "linear":
        return torch.linspace(1, -1, count)  # (7)
    if kind == "quadratic":
        return torch.cat(
            [torch.linspace(1, 0, top) ** 2, -(torch.linspace(1, 0, count - top) ** 2).flip(0)]
        )  # (8)
    g = torch.zeros(count)
    g[-1] = -1.0 if kind == "t1b1" else 0.0  # (6)
    g[0] = 1.0  # (5)
    return g


def rank_classes(logits: Float[Tensor, "b c"]) -> Int[Tensor, "b c"]:
    """Return r, the rank of each class by its logit, from 0. Ties are broken by class order."""
    return logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def put_first(rank: Int[Tensor, "b c"], class_ids: Int[Tensor, "b k"]) -> Int[Tensor, "b k c"]:
    """Return for each requested class the ranks with that class first and the others in their order."""
    moved = rank[:, None, :] + (rank[:, None, :] < rank.gather(1, class_ids)[:, :, None])
    return moved.scatter(2, class_ids[:, :, None], 0)


def combined_map(
    features: Float[Tensor, "b d h w"],
    weight: Float[Tensor, "c d"],
    g: Float[Tensor, " c"],
    rank: Int[Tensor, "b k c"],
) -> Float[Tensor, "b k h w"]:
    """Return the weighted sum of the class maps for each of K rankings, float32, eq. (4)."""
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bkd,bdhw->bkhw", g[rank] @ weight.float(), features.float())


class NlCcam(Localizer):
    """See the module."""

    method_name = "nl-ccam"
    Config = NlCcamConfig
    config: NlCcamConfig
    recipes = MappingProxyType(
        {
            "nl_ccam_cub": Recipe(
                source="Yangseung/NL-CCAM",
                epochs=100,
                batch_size=16,
                lr=5e-5,
                optimizer="adam",
                weight_decay=0.0,
                schedule="poly",
                power=0.9,
                new_factor=10.0,  # 5e-4 for the classifier in the authors' code
                bias_factor=1.0,
                resize=1.0,
                short_side=True,
            )
        }
    )
    g: Tensor

    def __init__(self, backbone: Backbone, num_classes: int, config: NlCcamConfig) -> None:
        if not 0 <= config.top <= num_classes:
            raise UsageError(
                f"setting top of method 'nl-ccam' is {config.top}; expected at most the number of classes, "
                f"{num_classes}"
            )
        if not 0 <= config.leaky < 1:
            raise UsageError(
                f"setting leaky of method 'nl-ccam' is {config.leaky}; expected a slope from 0 to below 1"
            )
        super().__init__(backbone, num_classes, config)
        # Blocks and classifier, with PyTorch's initialisation.
        places = find_insertion_points(backbone)
        self.blocks = nn.ModuleDict({place: NonLocalBlock(channels) for place, channels in places.items()})
        without_hidden = backbone.profile.convolution_before_linear
        self.head = (
            FcHead(backbone.channels[-1], num_classes)
            if without_hidden
            else make_head("fc", backbone, num_classes)
        )
        if not self.head.pretrained:
            self.head.classifier.reset_parameters()
        # Leaky ReLUs in VGG, and the weights of the ranks.
        if backbone.profile.kin == "vgg" and config.leaky > 0:
            for name in [name for name, step in backbone.steps.items() if isinstance(step, nn.ReLU)]:
                backbone.steps[name] = nn.LeakyReLU(config.leaky)
        g = rank_weights(config.g, num_classes, config.top or max(1, num_classes // 2))
        self.register_buffer("g", g, persistent=False)

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the authors' recipe in place of SPA's for CUB. They released none for ILSVRC."""
        name = super().recipe_name(backbone, num_classes)
        return "nl_ccam_cub" if name == "spa_cub" else name

    def is_new(self, name: str, recipe: Recipe) -> bool:
        """Only the classifier is new. The blocks learn at the backbone's rate, as in the authors' code."""
        return super().is_new(name, recipe) and not name.startswith("blocks.")

    def lr_factor(self, recipe: Recipe, progress: float) -> float:
        """Keep a polynomial rate constant within an epoch, as in the authors' code."""
        if recipe.schedule == "poly":
            progress = math.floor(progress * recipe.epochs + 1e-9) / recipe.epochs
        return recipe.lr_factor(progress)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits, and the combined map from the same pass."""

        def block(place: str, features: Tensor) -> Tensor:
            return self.blocks[place](features) if place in self.blocks else features

        stages = self.backbone.stages(images, edit=block)
        head = self.head(next(reversed(stages.values())))
        conditioned = self.config.class_conditioned or self.config.g in ("t1b0", "t1b1")

        def maps_of(class_ids: Tensor) -> Tensor:
            rank = rank_classes(head.logits)
            orders = put_first(rank, class_ids) if conditioned else rank[:, None]
            maps = combined_map(head.penultimate, self.head.classifier.weight, self.g, orders)
            return maps.expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(
            logits=head.logits,
            maps_of=maps_of,
            stages=stages,
            penultimate=head.penultimate,
            weights_of=head.weights_of,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the classifier, eq. (3)."""
        return {"cross_entropy": cross_entropy(self(batch.images).logits, batch.labels)}
