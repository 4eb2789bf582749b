"""B-CNN: classify the mean outer product of the features.

T.-Y. Lin, A. RoyChowdhury, S. Maji, "Bilinear CNN models for fine-grained visual recognition", ICCV 2015;
"Improved bilinear pooling with CNNs", BMVC 2017 (`sqrtm`). Released code: cvl-umass/bilinear-cnn
(an earlier one is in MATLAB).

Idea. Fine-grained classes differ in combinations, such as a red spot on a black wing. The mean over the image
of the outer product of two descriptors says which features occur together at a location, wherever that is.
With one network for both descriptors it is their uncentred covariance.

    paper       name                    shape
    f(l)        features                (B, C, L)           after `reduce`; L = h w locations
    Phi         pooled                  (B, 1, C C)
    z           vector                  (B, C C)
    W, b        classifier              (Y, C C), (Y,)

    (1)  Phi = (1 / L) sum_l f(l) f(l)^T
    (2)  y = sign(Phi) sqrt(|Phi|)
    (3)  z = y / |y|
    (4)  L = CE(W z + b)

Improved B-CNN (`sqrtm=5`) takes the root of the matrix before (2), by Newton-Schulz steps from Phi divided by
its Frobenius norm: Phi F, where F tends to the inverse root.

Maps. The class map is the secant map: M_c(l) = f(l)^T (W_c o R) f(l), where R = z / Phi is treated as a
constant of the image (`layers/second_order.py`). Its mean and b_c are the score. With `sqrtm` the last f(l)
is F f(l). The extra map `gradient` is a control; with `sqrtm` there is none, since F depends on f, too.

Departures
    networks   The published [D,M] has two networks, VGG-16 and VGG-M; this is [D,D], one network for both.
               Published rows mix them: 84.1 on CUB and 91.3 on Cars are of two networks, [D,D] has 84.0 and
               90.6.
    (1)        The mean, not the sum: (3) removes the scale, except for eps in (2).
    (2)        sqrt(x_+ + eps) - sqrt(x_- + eps) with eps = 1e-5, as in cvl-umass. The exact root has no
               finite slope at 0.
    classifier The softmax layer, where the paper trains support vector machines on z at the end.
    reduce     Networks with more than 512 channels get a 1x1 convolution to 256. The paper's VGG-16 needs
               none.
    recipe     `bcnn` is a re-implementation's (HaoMood), with fixed steps of the rate and squares as images;
               `variant=official` is cvl-umass's, with one optimiser for both stages. See
               `core/pooled_recipes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from reference_models.base.pooled_recognizer import Features, PooledConfig, PooledRecognizer, reduce_channels
from reference_models.core.backbone import Backbone
from reference_models.layers.second_order import (
    Representation,
    newton_schulz,
    secant,
    second_moment,
    signed_sqrt,
    unit,
)
from wsolbench.ranges import Range

PAPER = "b-cnn"


@dataclass(frozen=True, kw_only=True)
class BCnnConfig(PooledConfig):
    """Settings of `b-cnn`."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"paper": {}, "official": {}})

    variant: Literal["paper", "official"] = "paper"
    """`official`: the recipe of cvl-umass/bilinear-cnn on VGG-16 and ResNet-50."""
    reduce: Annotated[int, Range(0, 2048)] = 0
    """Channels after a 1x1 convolution without bias.

    0: none for up to 512 channels, else 256. This default is ours.
    """
    sqrtm: Annotated[int, Range(0, 20)] = 0
    """Newton-Schulz steps of Improved B-CNN, which has 5. 0: no root of the matrix."""


def outer_product_maps(
    weights: Float[Tensor, "b k c c"], left: Float[Tensor, "b c h w"], right: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b k h w"]:
    """Return sum_ij v_ij left_i(l) right_j(l), without the outer products of all locations."""
    projected = weights @ right.flatten(2)[:, None]  # (B, K, C, L)
    maps = (left.flatten(2)[:, None] * projected).sum(dim=2)
    return maps.view(*maps.shape[:2], *left.shape[2:])


class BCnn(PooledRecognizer):
    """See the module."""

    method_name = "b-cnn"
    Config = BCnnConfig
    config: BCnnConfig
    published_recipe = "bcnn"
    official_recipes = MappingProxyType({"bcnn": "bcnn_umass"})

    def __init__(self, backbone: Backbone, num_classes: int, config: BCnnConfig) -> None:
        super().__init__(backbone, num_classes, config)
        self.reduce, width = reduce_channels(backbone.channels[-1], config.reduce)
        self.add_classifier(width * width)

    def represent(self, features: Features) -> Representation:
        """Return z, eq. (3), and the secant maps."""
        left = right = self.reduce(features[0])
        pooled = second_moment(left.flatten(2))  # (1)
        if self.config.sqrtm:
            pooled, inverse = newton_schulz(pooled, self.config.sqrtm, "frobenius")
            right = (inverse @ left.flatten(2)).view_as(left)
        pooled = pooled.flatten(1)[:, None]  # (B, 1, C C)
        side = left.shape[1]

        def project(weights: Float[Tensor, "b k 1 f"]) -> Float[Tensor, "b k h w"]:
            matrices = weights.reshape(*weights.shape[:2], side, side)
            return outer_product_maps(matrices, left, right)

        found = secant(pooled, unit(signed_sqrt(pooled)), project)  # (2), (3)
        return replace(found, gradient_maps_of=None) if self.config.sqrtm else found
