"""BAS: learn foreground maps that leave no class activation behind.

P. Wu, W. Zhai, Y. Cao, "Background activation suppression for weakly supervised object localization", CVPR
2022. Values and steps are those of the authors' code (wpy1999/BAS), which has one program for CUB and one
for ILSVRC.

Idea. A generator predicts a foreground map. If such a map is trained by the cross-entropy of the masked
image, a part of the object is enough: the loss is then near 0. The activation of the class is not: it rises
until the whole object is in the mask. So the generator is trained to leave little activation in the
background, at a price for its area.

    paper      name                                shape
    F          features in front of the last stage (B, D, h, w)
    G_c        foreground                          (B, C, h, w)    sigmoid(3x3 convolution of F), in [0, 1]
    M          G of the label                      (B, 1, h, w)
    tail       pool, last stage, classifier        F -> O (B, C, h', w'), not negative
    tail'      a copy of the tail without gradient of its parameters
    s          logits                              (B, C)          mean of O over the pixels
    alpha      config.area
    v          config.foreground

    (1)  s = mean of O, O = tail(F)
    (2)  b = mean over the pixels of tail'(F (1 - M)), of the label; F is a constant here
    (3)  r = b / (s_y + 1e-8) with s_y as a constant, but 0 where b > s_y
    (4)  s' = mean of O pool(M)
    (5)  L = CE(s, y) + v CE(s', y) + mean over the images of r + alpha mean of M
    (6)  M_c = G_c (`maps=class`), or the mean of G over the `top` classes with the highest logits
         (`maps=top`)

The numbers of the equations are those of this file. The paper's text was not at hand.

Where the generator reads (`find_tail`). VGG: after conv4_3, in front of its pool. ResNet-50: after layer 3,
whose grid is 28x28. There a 2x2 max pool is inserted in front of layer 4, as the tail of VGG has one. Any
other network (this project): in front of the last stage, with the pool if that stage keeps the grid and its
stride is at most 8. A network whose steps cannot be run (timm, tokens): after the last stage, and the tail is
the classifier alone. The classifier has two 3x3 convolutions of 1024 channels, a 1x1 convolution and a ReLU.

With `maps=top` an image has one map for all classes. It is the default below 500 classes, with 40 % of the
classes on VGG and all of them elsewhere: the program for CUB takes 80 and 200. From 500 classes on the
default is `maps=class`; the program for ILSVRC takes the map of the true class. Evaluate with `--protocol
bas`, which has the ten crops of both programs.

Departures. In the program for CUB r is also 0 where b = s_y (`variant=official_cub`). An empty map then costs
nothing, although all of the activation is left. Here (3) is that of ILSVRC in all cases. In train mode the
copy normalises by the erased batch, as in both programs; its running statistics are discarded. Inception here
has no Mixed_7, which is the last stage of the released one, so the generator reads Mixed_5d. MobileNet is not
available. Networks without a released program have alpha and v of ResNet-50.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from reference_models.base.localizer import Localizer
from reference_models.core.backbone import Backbone
from reference_models.core.config import MethodConfig
from reference_models.core.outputs import Batch, ForwardPass
from reference_models.core.profile import Kin, Stage
from reference_models.core.recipes import MANY_CLASSES, RECIPES
from reference_models.layers.heads import ConvHead, cross_entropy, pick_maps
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, CountOrZero, Weight

PAPER = "bas"

EPSILON = 1e-8
FINEST_STRIDE = 8
"""Largest stride of F with which a pool is inserted into the tail."""
TOP_ON_VGG = 0.4
"""Fraction of the classes whose maps are averaged on VGG: 80 of 200."""

AREA: Mapping[str, Mapping[Kin, float]] = MappingProxyType(
    {
        "cub": {"vgg": 0.7, "inception": 1.0, "resnet": 1.2, "other": 1.2},
        "ilsvrc": {"vgg": 1.0, "inception": 2.5, "resnet": 2.0, "other": 2.0},
    }
)
"""Released values of alpha."""
FOREGROUND: Mapping[str, Mapping[Kin, float]] = MappingProxyType(
    {
        "cub": {"vgg": 0.0, "inception": 0.5, "resnet": 0.5, "other": 0.5},
        "ilsvrc": {"vgg": 0.05, "inception": 1.0, "resnet": 1.0, "other": 1.0},
    }
)
"""Released values of v."""


@dataclass(frozen=True, kw_only=True)
class BasConfig(MethodConfig):
    """Settings of `bas`.

    None, and `default`, stand for the released value for CUB, or for ILSVRC if there are 500 classes or more.
    """

    at_test: ClassVar[frozenset[str]] = frozenset({"maps", "top"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"official": {}, "official_cub": {"equal": "zero"}}
    )

    variant: Literal["official", "official_cub"] = "official"
    """`official`: eq. (3) of the program for ILSVRC. `official_cub`: that of the program for CUB."""
    area: Weight | None = None
    """alpha, the price of the area: both programs (0.7 to 2.5, by network)."""
    foreground: Weight | None = None
    """v, the weight of the cross-entropy of the masked scores: both programs (0 to 1, by network)."""
    equal: Literal["one", "zero"] = "one"
    """Value of r where b = s_y.

    `one`: program for ILSVRC. `zero`: program for CUB, where an empty map has no cost.
    """
    maps: Literal["default", "class", "top"] = "default"
    """Eq. (6). `class`: map of the requested class. `top`: one map for all classes."""
    top: CountOrZero = 0
    """Number of classes of `maps=top`. 0: 40 % of them on VGG, else all, as in the program for CUB."""
    width: Channels = 0
    """Channels of the 3x3 convolutions. 0: 1024 (both programs), or less if the backbone is small."""


def residual(
    left: Float[Tensor, " b"], whole: Float[Tensor, " b"], equal: Literal["one", "zero"] = "one"
) -> Float[Tensor, " b"]:
    """Return r, the share of the activation `whole` that is `left` in the background, eq. (3)."""
    above = left > whole if equal == "one" else left >= whole
    return torch.where(above, 0.0, left / (whole + EPSILON))  # (3)


def masked_scores(
    activation: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 H W"]
) -> Float[Tensor, "b c"]:
    """Return s', the mean of O inside the mask, which is averaged in the cells of O: eq. (4)."""
    height, width = activation.shape[-2:]
    return (activation * F.adaptive_avg_pool2d(mask, (height, width))).mean(dim=(2, 3))  # (4)


def mean_of_top(
    maps: Float[Tensor, "b c h w"], logits: Float[Tensor, "b c"], count: int
) -> Float[Tensor, "b 1 h w"]:
    """Return the mean map of the `count` classes with the highest logits, eq. (6)."""
    return pick_maps(maps, logits.topk(count, dim=1).indices).mean(dim=1, keepdim=True)


def run_frozen(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module with its present parameters as constants, and leave its buffers as they are.

    Only `x` gets a gradient. Batch norm in train mode uses the statistics of `x`.
    """
    constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
    constants |= {name: buffer.clone() for name, buffer in module.named_buffers()}
    output: Tensor = functional_call(module, constants, (x,))
    return output


class Bas(Localizer):
    """See the module."""

    method_name = "bas"
    Config = BasConfig
    config: BasConfig
    map_kind = "unit"
    recipes = MappingProxyType(
        {
            "bas_cub": replace(RECIPES["spa_cub"], source="wpy1999/BAS, CUB", batch_size=32),
            "bas_ilsvrc": replace(
                RECIPES["spa_ilsvrc"],
                source="wpy1999/BAS, ILSVRC",
                epochs=9,
                batch_size=128,
                milestones=(1 / 3, 2 / 3),
            ),
        }
    )

    def __init__(self, backbone: Backbone, num_classes: int, config: BasConfig) -> None:
        if config.top > num_classes:
            raise UsageError(
                f"setting top of method 'bas' is {config.top}; expected at most the number of classes, "
                f"{num_classes}"
            )
        # Unset values are the released ones.
        kin = backbone.profile.kin
        data = "cub" if num_classes < MANY_CLASSES else "ilsvrc"
        area = AREA[data][kin] if config.area is None else config.area
        foreground = FOREGROUND[data][kin] if config.foreground is None else config.foreground
        super().__init__(backbone, num_classes, replace(config, area=area, foreground=foreground))
        self.area, self.foreground = area, foreground
        self.averages = config.maps == "top" or (config.maps == "default" and data == "cub")
        self.top = config.top or (max(1, round(TOP_ON_VGG * num_classes)) if kin == "vgg" else num_classes)
        # Generator and classifier.
        self.step, self.pools, self.tail = find_tail(backbone)
        head = ConvHead(backbone.channels[-1], num_classes, width=config.width or backbone.head_width)
        self.trunk, self.classifier = head.trunk, nn.Sequential(head.classifier, nn.ReLU())
        self.generator = nn.Conv2d(self.step.channels, num_classes, 3, padding=1)
        self._initialise(kin)

    def _initialise(self, kin: Kin) -> None:
        """Give new layers the released initial values: on VGG normal weights, else Xavier's and no bias."""
        for layer in [*self.trunk, *self.classifier, self.generator]:
            if not isinstance(layer, nn.Conv2d):
                continue
            if kin == "vgg":
                layer.reset_parameters()  # of the biases
                nn.init.normal_(layer.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @classmethod
    def recipe_name(cls, backbone: str, num_classes: int) -> str:
        """Return the authors' recipes in place of SPA's."""
        name = super().recipe_name(backbone, num_classes)
        return {"spa_cub": "bas_cub", "spa_ilsvrc": "bas_ilsvrc"}.get(name, name)

    # --- forward pass and loss ------------------------------------------------------------------------------
    def features(self, images: Float[Tensor, "b 3 H W"]) -> tuple[OrderedDict[str, Tensor], Tensor]:
        """Return the stages and F. With an inserted pool, a stage that ends at F is the pooled F."""
        if not self.tail:
            stages = self.backbone.stages(images)
            return stages, next(reversed(stages.values()))
        found: list[Tensor] = []

        def keep(step: str, x: Tensor) -> Tensor:
            if step != self.step.name:
                return x
            found.append(x)
            return self.pool(x)

        return self.backbone.stages(images, keep), found[0]

    def pool(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Halve the grid of F, unless the next step does or the grid is already coarse."""
        return F.max_pool2d(x, 2) if self.pools else x

    def foreground_maps(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
        """Return G."""
        maps: Tensor = self.generator(features).sigmoid()
        return maps

    def activation_left(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Return tail'(features), whose parameters are constants, eq. (2)."""
        x = self.pool(features)
        for step in self.tail:
            x = run_frozen(self.backbone.steps[step], x)
        return run_frozen(self.classifier, run_frozen(self.trunk, x))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> ForwardPass:
        """Return logits and foreground maps, eq. (6)."""
        stages, features = self.features(images)
        penultimate = self.trunk(next(reversed(stages.values())))
        logits = self.classifier(penultimate).mean(dim=(2, 3))  # (1)

        def maps_of(class_ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k h w"]:
            maps = self.foreground_maps(features)
            if not self.averages:
                return pick_maps(maps, class_ids)
            mean: Tensor = mean_of_top(maps, logits, self.top)
            return mean.expand(-1, class_ids.shape[1], -1, -1)

        return ForwardPass(logits=logits, maps_of=maps_of, stages=stages, penultimate=penultimate)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of eq. (5)."""
        own = batch.labels[:, None]
        # Scores of the whole image, and the label's map.
        stages, features = self.features(batch.images)
        activation = self.classifier(self.trunk(next(reversed(stages.values())))).float()  # O (B, C, h', w')
        scores = activation.mean(dim=(2, 3))  # (1)
        mask = pick_maps(self.foreground_maps(features), own)  # M (B, 1, h, w)
        # Activation that the background still has.
        left = pick_maps(self.activation_left(features.detach() * (1 - mask)), own)  # (B, 1, h', w')
        left = left.float().mean(dim=(1, 2, 3))  # (2)
        whole = scores.detach().gather(1, own)[:, 0]  # (B,)
        terms = {
            "cross_entropy": cross_entropy(scores, batch.labels),
            "background": residual(left, whole, self.config.equal).mean(),
            "area": self.area * mask.float().mean(),
        }
        if self.foreground:
            inside = masked_scores(activation, mask.float())
            terms["foreground"] = self.foreground * cross_entropy(inside, batch.labels)
        return terms


def find_tail(backbone: Backbone) -> tuple[Stage, bool, tuple[str, ...]]:
    """Return the step that the generator reads, whether a pool follows it, and the steps after it.

    On a network whose steps cannot be run this is the last stage, and no step follows.
    """
    if "generator" not in backbone.roles:
        return backbone.layout[-1], False, ()
    (step,) = backbone.role("generator", "method 'bas'")
    names = list(backbone.steps)
    pools = step.stride == backbone.layout[-1].stride and step.stride <= FINEST_STRIDE
    return step, pools, tuple(names[names.index(step.name) + 1 :])
