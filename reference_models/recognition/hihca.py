"""HIHCA: classify pooled products of projections of stacked layers.

S. Cai, W. Zuo, L. Zhang, "Higher-order integration of hierarchical convolutional activations for fine-grained
visual categorization", ICCV 2017. Released code: cssjcai/hihca (MATLAB).

Idea. A polynomial of the descriptor describes which features occur together. Its coefficients, a tensor for
each degree, are written as sums of terms of rank one. Each term is a product of learnt 1x1 convolutions.
Descriptors of several layers are stacked with learnt weights, so products of degree two mix layers.

    paper           name                    shape
    x^(1) .. x^(n)  features                (B, C_i, L)             relu5_2, relu5_3 of VGG-16
    eta_i           scales                  (n,)                    initially 0.5, 1
    x               stacked                 (B, sum C_i, L)
    u_r,s           factors[r][s]           (D, sum C_i)            s = 1 .. r; D = 8192, no bias
    z_r             pooled                  (B, 1, D)               degree r
    W, b            classifier              (Y, F), (Y,)

    (1)  z_r = (1 / L) sum_l prod_s (u_r,s x_l)
    (2)  z = z_2, or the concatenation of several degrees; degree 1 is the mean of x
    (3)  L = CE(W unit(signed_sqrt(z)) + b)

Maps. The class map is the secant map (`layers/second_order.py`): its mean and b_c are the score. The extra
map `gradient` is a control.

Backbones. The layers are the last of the role `last-layers`: of VGG-16 those of the released code, of
ResNet-50 the last blocks. Networks of timm are refused.

Published numbers. The released code's default data are CUB images cropped to their ground-truth boxes.
Whether the published 85.3 on CUB has boxes cannot be seen. So it must not stand next to results without boxes
unmarked.

Departures and open readings
    layers     The released script has two; the paper, as recalled, three: `layers=3`.
    degrees    The released script has degree 2 alone: `degrees=1,2,3` for all.
    init       Signs, plus or minus D^(-1/2) for each factor (released code). The inner product of two z_r is
               then D^(1-r) (x.y)^r on average. With several degrees plus or minus D^(-1/(2r)), for which it
               is (x.y)^r; otherwise high degrees start at almost 0.
    (1)        The mean. `variant=official`: the sum, and in (3) the exact root with the slope 0.5 / sqrt(|x|
               + 1e-8) and the norm sqrt(|y|^2 + 1e-10). Otherwise sqrt(x_+ + eps) - sqrt(x_- + eps), eps =
               1e-5.
    fusion     Only stacked layers. The released code also has one head per layer.
    recipe     `hihca`: a stage with a frozen backbone in place of logistic regression, and no support vector
               machine at the end. In this stage the factors learn, too. The scales have ten times the base
               rate with SGD, as released, in both stages.
    sizes      For networks below 128 channels D is 512.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import Features, PooledConfig, PooledRecognizer, take_out
from reference_models.core.backbone import Backbone
from reference_models.core.recipes import Recipe
from reference_models.layers.products import Factor, pooled_products, product_maps
from reference_models.layers.second_order import EPS, Representation, released_sqrt, secant, signed_sqrt, unit
from wsolbench.exceptions import UsageError
from wsolbench.ranges import Channels, Range

PAPER = "hihca"

FIRST_SCALE = 0.5
SCALE_FACTOR = 10.0
"""Factor of the rate of the scales with SGD (released code)."""


@dataclass(frozen=True, kw_only=True)
class HihcaConfig(PooledConfig):
    """Settings of `hihca`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"paper": {}, "official": {}})

    variant: Literal["paper", "official"] = "paper"
    """`official`: sums, root and norm of the released code."""
    layers: Literal[1, 2, 3] = 2
    """n, stacked layers: released code."""
    degrees: tuple[Annotated[int, Range(1, 8)], ...] = (2,)
    """Degrees of the polynomial, ascending: released code."""
    width: Channels = 0
    """D, terms of each degree. 0: 8192 (released code), or 512 for networks below 128 channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.degrees or list(self.degrees) != sorted(set(self.degrees)):
            raise UsageError(
                f"setting degrees of method 'hihca' is {','.join(map(str, self.degrees)) or 'empty'}; "
                "expected different degrees in ascending order, such as degrees=1,2,3"
            )


def random_signs(degree: int, width: int, channels: int, *, alone: bool) -> Float[Tensor, "r d c"]:
    """Return the initial factors of a degree. `alone`: the scale of the released code."""
    signs = torch.randint(2, (degree, width, channels)) * 2.0 - 1.0
    scale: float = width ** (-0.5 if alone else -0.5 / degree)
    return signs * scale


class Hihca(PooledRecognizer):
    """See the module."""

    method_name = "hihca"
    Config = HihcaConfig
    config: HihcaConfig
    published_recipe = "hihca"

    def __init__(self, backbone: Backbone, num_classes: int, config: HihcaConfig) -> None:
        super().__init__(backbone, num_classes, config)
        who = f"method {self.method_name!r}"
        self.layers = backbone.role("last-layers", who)[-config.layers :]
        if len(self.layers) < config.layers:
            raise UsageError(
                f"setting layers={config.layers} of {who}: {backbone.name} has {len(self.layers)} layers of "
                f"the role 'last-layers'; expected at most {len(self.layers)}"
            )
        channels = sum(layer.channels for layer in self.layers)
        width = config.width or (8192 if self.layers[-1].channels >= 128 else 512)
        first = [FIRST_SCALE] * (len(self.layers) - 1)
        self.scales = nn.Parameter(torch.tensor([*first, 1.0]))
        alone = len(config.degrees) == 1 or config.variant == "official"
        self.factors = nn.ParameterDict(
            {
                str(degree): nn.Parameter(random_signs(degree, width, channels, alone=alone))
                for degree in config.degrees
                if degree > 1
            }
        )
        self.add_classifier(sum(width if degree > 1 else channels for degree in config.degrees))

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the groups of the base, and the scales at ten times the rate with SGD (released code)."""
        groups = super().parameter_groups(recipe)
        factor = SCALE_FACTOR if recipe.optimizer == "sgd" else self.new_factor(recipe)
        take_out(groups, "scales", [self.scales], factor=factor, steady=True, **self.decay)
        return groups

    def read(self, images: Float[Tensor, "b 3 H W"]) -> tuple[OrderedDict[str, Tensor], Features]:
        """Return the stages, and the features of the last layers."""
        return self.read_steps(images, self.layers)

    def stack(self, features: Features) -> Float[Tensor, "b c l"]:
        """Return the stacked descriptors of all layers, each with its scale."""
        scaled = [eta * x.flatten(2) for eta, x in zip(self.scales, features, strict=True)]
        return torch.cat(scaled, dim=1)

    def represent(self, features: Features) -> Representation:
        """Return the normalised z, eq. (3), and the secant maps."""
        x, (height, width) = self.stack(features), features[0].shape[2:]
        terms = {
            degree: [Factor(x, weight) for weight in self.factors[str(degree)]] if degree > 1 else []
            for degree in self.config.degrees
        }
        official = self.config.variant == "official"
        total = height * width if official else 1  # the released code sums products, and averages degree 1
        sums = [total * pooled_products(each) if each else x.mean(dim=2) for each in terms.values()]
        pooled = torch.cat(sums, dim=1)[:, None]  # (1), (2)
        vector = unit(released_sqrt(pooled, 1e-8, 0.0), 1e-10) if official else unit(signed_sqrt(pooled))
        lengths = [each.shape[1] for each in sums]

        def project(weights: Float[Tensor, "b k 1 f"]) -> Float[Tensor, "b k h w"]:
            parts = zip(torch.split(weights[:, :, 0], lengths, dim=2), terms.values(), strict=True)
            maps = [total * product_maps(part, each) if each else part @ x for part, each in parts]
            return torch.stack(maps).sum(dim=0).view(*weights.shape[:2], height, width)

        return secant(pooled, vector, project, 0.0 if official else EPS)
