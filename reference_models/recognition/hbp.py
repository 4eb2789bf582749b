"""HBP: classify pooled products of three layers in a wide space.

C. Yu, X. Zhao, Q. Zheng, P. Zhang, X. You, "Hierarchical bilinear pooling for fine-grained visual
recognition", ECCV 2018. Released code: ChaojianYu/Hierarchical-Bilinear-Pooling (Caffe).

Idea. Successive layers describe the same parts by different properties. Each one is projected to many
channels. The elementwise product of two projections, pooled over the image, describes how the properties of
one layer go with those of another: a bilinear form of rank one per channel.

    paper               name                    shape
    x_1, x_2, x_3       features                (B, C_i, L)         relu5_1, relu5_2, relu5_3 of VGG-16
    U_i, a_i            projections[i]          (D, C_i), (D,)      D = 8192
    z_ij                pooled                  (B, 3, D)           pairs (1, 2), (1, 3), (2, 3)
    z                   vector                  (B, 3 D)
    W, b                classifier              (Y, 3 D), (Y,)

    (1)  p_i(l) = U_i x_i(l) + a_i
    (2)  z_ij = (1 / L) sum_l p_i(l) o p_j(l)
    (3)  z = [unit(signed_sqrt(z_12)); unit(signed_sqrt(z_13)); unit(signed_sqrt(z_23))]
    (4)  L = CE(W z + b)

Maps. The class map is the secant map (`layers/second_order.py`): with r, the ratio of (3) to (2), M_c(l) =
sum over pairs and channels of w_c r (p_i(l) o p_j(l)). Its mean and b_c are the score. The extra maps
`pair_12`, `pair_13` and `pair_23` are its summands for the predicted class. The extra map `gradient` is a
control.

Backbones. The layers are those of the role `last-layers`: on ResNet-50 the three blocks of the last stage, on
networks with only two such steps one pair. The released code has VGG-16 alone. Networks of timm are refused.

Departures
    (2)        The mean; the released code has the sum, 784 times as large at 448 pixels.
    (3)        Here sqrt(x_+ + eps) - sqrt(x_- + eps), eps = 1e-5. `variant=official`: sum, exact root with
               the slope 0.5 / (|y| + 0.03), and the norm sqrt(|y|^2 + 1e-7).
    sizes      For networks below 128 channels D is 512.
    recipe     `hbp`: the run is shorter, and images are resized to squares of 512 pixels on every data set;
               on CUB the authors resize the shorter side. The released rate is halved once, at a quarter of
               the second stage. Biases have twice the rate in both stages, in the released code in the
               second.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import Features, PooledConfig, PooledRecognizer
from reference_models.core.backbone import Backbone
from reference_models.layers.products import Factor, pooled_products, product_maps
from reference_models.layers.second_order import EPS, Representation, released_sqrt, secant, signed_sqrt, unit
from wsolbench.ranges import Channels

PAPER = "hbp"


@dataclass(frozen=True, kw_only=True)
class HbpConfig(PooledConfig):
    """Settings of `hbp`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"paper": {}, "official": {}})

    variant: Literal["paper", "official"] = "paper"
    """`official`: sums, root and norm of the released code."""
    width: Channels = 0
    """D, channels of the projections. 0: 8192 (released code), or 512 for networks below 128 channels."""


def released_start(layer: nn.Linear) -> nn.Linear:
    """Give a layer the initial weights of the released code, and return it.

    Caffe's filler `xavier` draws from U(-sqrt(3 / n), sqrt(3 / n)) with n the inputs alone.
    """
    bound = (3 / layer.in_features) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


class Hbp(PooledRecognizer):
    """See the module."""

    method_name = "hbp"
    Config = HbpConfig
    config: HbpConfig
    published_recipe = "hbp"

    def __init__(self, backbone: Backbone, num_classes: int, config: HbpConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.layers = backbone.role("last-layers", f"method {self.method_name!r}")
        width = config.width or (8192 if self.layers[-1].channels >= 128 else 512)
        self.projections = nn.ModuleList(
            released_start(nn.Linear(layer.channels, width)) for layer in self.layers
        )
        self.pairs = tuple(combinations(range(len(self.layers)), 2))  # the order of the released code
        self.add_classifier(len(self.pairs) * width)
        released_start(self.classifier)

    def read(self, images: Float[Tensor, "b 3 H W"]) -> tuple[OrderedDict[str, Tensor], Features]:
        """Return the stages, and the features of the last layers."""
        return self.read_steps(images, self.layers)

    def factors(self, features: Features) -> list[list[Factor]]:
        """Return the two factors of each pair, eq. (1)."""
        projected = [
            Factor(x.flatten(2), cast("Tensor", projection.weight), cast("Tensor", projection.bias))
            for x, projection in zip(features, self.projections, strict=True)
        ]
        return [[projected[i], projected[j]] for i, j in self.pairs]

    def represent(self, features: Features) -> Representation:
        """Return z, eq. (3), and the secant maps."""
        factors, (height, width) = self.factors(features), features[0].shape[2:]
        pooled = torch.stack([pooled_products(pair) for pair in factors], dim=1)  # (2): (B, pairs, D)
        official = self.config.variant == "official"
        if official:
            vector = unit(released_sqrt(pooled * (height * width), 0.0, 0.03), 1e-7)
        else:
            vector = unit(signed_sqrt(pooled))

        def project(weights: Float[Tensor, "b k g d"]) -> Float[Tensor, "b k h w"]:
            """Return the maps of weights, in which a pair may have no weight at all."""
            maps = [product_maps(weights[:, :, pair], both) for pair, both in enumerate(factors)]
            return torch.stack(maps).sum(dim=0).view(*weights.shape[:2], height, width)

        return secant(pooled, vector, project, 0.0 if official else EPS)

    def extra_maps(
        self, representation: Representation, weights: Callable[[], Float[Tensor, "b 1 f"]]
    ) -> dict[str, Callable[[], Tensor]]:
        """Return functions that compute the summands of the predicted class's map, and the control."""

        def summand(pair: int) -> Tensor:
            every = weights()
            parts = every.reshape(*every.shape[:2], len(self.pairs), -1)  # (B, 1, pairs, D)
            alone = torch.zeros_like(parts)
            alone[:, :, pair] = parts[:, :, pair]
            return representation.maps_of(alone.flatten(2))[:, 0]

        summands = {f"pair_{i + 1}{j + 1}": partial(summand, at) for at, (i, j) in enumerate(self.pairs)}
        return {**summands, **super().extra_maps(representation, weights)}
