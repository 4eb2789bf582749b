"""iSQRT-COV: classify the square root of the features' covariance.

P. Li, J. Xie, Q. Wang, Z. Gao, "Towards faster training of global covariance pooling networks by iterative
matrix square root normalization", CVPR 2018; P. Li, J. Xie, Q. Wang, W. Zuo, "Is second-order information
helpful for large-scale visual recognition?", ICCV 2017. Released code: jiangtaoxie/fast-MPN-COV.

Idea. The covariance of the descriptors says which features vary together. Its matrix square root makes large
eigenvalues count less. A few Newton-Schulz steps, products of matrices only, approximate it. Division by the
trace before and multiplication by its root after keep the steps in range and the size of the result.

    paper       name                    shape
    X           reduced                 (B, d, L)       1x1 convolution, batch norm, ReLU; d = 256
    Sigma       covariance              (B, d, d)       centred
    S           root                    (B, d, d)
    Z_N         inverse                 (B, d, d)       divided by sqrt(tr Sigma) here
    q           vector                  (B, F)          F = d (d + 1) / 2
    W, b        classifier              (Y, F), (Y,)

    (1)  Sigma = (1 / L) sum_l (x_l - mu)(x_l - mu)^T
    (2)  A = Sigma / tr Sigma, Y_0 = A, Z_0 = I
    (3)  T = (3 I - Z Y) / 2, Y <- Y T, Z <- T Z, N times
    (4)  S = sqrt(tr Sigma) Y_N
    (5)  q = upper triangle of S; L = CE(W q + b)

There is no signed root and no unit norm. Five steps are the layer of the paper and not a root: with 256 equal
eigenvalues S is 0.45 of the root, since each step multiplies small eigenvalues by at most 2.25.

Maps. S = Sigma Z_N / sqrt(tr Sigma), so with W_c, the symmetric matrix of w_c, M_c(l) = (x_l - mu)^T Z_N W_c
(x_l - mu) / sqrt(tr Sigma). Its mean and b_c are the score.

Departures
    weights    The authors fine-tune ResNet-50 pretrained on ImageNet with this layer. Weights here are
               ordinary ones unless `--weights` names others; their published 88.1 on CUB is not expected
               then. Hawkeye has 88.8 from ordinary weights, in the best epoch on test, with the recipe
               `isqrt_hawkeye`, at 448 pixels by its description and 224 by its configuration.
    crop       The released code keeps the aspect ratio on CUB and cuts the longer side to 448. It crops the
               centre of 512 pixels on Aircraft and nothing on Cars. Here the whole image is a square.
    grid       The last stage has stride 1, as in the released code: 28x28 samples at 448 pixels. The
               authors' VGG-16 keeps its hidden layers; here it has none.
    rate       The 1x1 convolution has five times the rate, as every new layer; in the released code the
               classifier alone.

Control of the grid: `baseline` with `grid=std14` (EfficientNet-Lite0, 14x14 at 224 pixels) has the same
features. A baseline with the default grid has another network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor, nn

from reference_models.base.pooled_recognizer import Features, PooledConfig, PooledRecognizer
from reference_models.core.backbone import Backbone, read_profile
from reference_models.core.config import MethodConfig
from reference_models.core.pooled_recipes import SHORT
from reference_models.layers.second_order import (
    Representation,
    centre,
    from_half_vector,
    half_vector,
    newton_schulz,
    second_moment,
)
from wsolbench.ranges import Range

PAPER = "isqrt-cov"


@dataclass(frozen=True, kw_only=True)
class IsqrtCovConfig(PooledConfig):
    """Settings of `isqrt-cov`. The paper and its released code agree."""

    reduced: Annotated[int, Range(0, 2048)] = 0
    """d, channels after the reduction. 0: 256, or those of a smaller backbone."""
    iterations: Annotated[int, Range(1, 20)] = 5
    """N. More than 20 steps diverge if there are fewer locations than channels."""
    pre: Literal["trace", "frobenius"] = "trace"
    """What divides the covariance before the steps; Improved B-CNN: `frobenius`."""


class IsqrtCov(PooledRecognizer):
    """See the module."""

    method_name = "isqrt-cov"
    Config = IsqrtCovConfig
    config: IsqrtCovConfig
    published_recipe = "isqrt"
    short_stage = replace(SHORT, head_factor=10.0)  # q has no unit norm

    def __init__(self, backbone: Backbone, num_classes: int, config: IsqrtCovConfig) -> None:
        super().__init__(backbone, num_classes, config)
        channels = backbone.channels[-1]
        self.width = config.reduced or min(256, channels)
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, self.width, 1, bias=False), nn.BatchNorm2d(self.width), nn.ReLU()
        )
        self.add_classifier(self.width * (self.width + 1) // 2)

    @classmethod
    def grid_for(cls, backbone: str, config: MethodConfig) -> str:
        """Return the variant whose last stage has stride 1."""
        return read_profile(backbone).grid(config.grid, "small")

    def represent(self, features: Features) -> Representation:
        """Return q, eq. (5), and its maps."""
        centred = centre(self.reduce(features[0]).flatten(2))
        root, inverse = newton_schulz(
            second_moment(centred), self.config.iterations, self.config.pre
        )  # (1) to (4)
        whitened = inverse @ centred  # (B, d, L)

        def maps_of(weights: Float[Tensor, "b k f"]) -> Float[Tensor, "b k h w"]:
            projected = from_half_vector(weights, self.width) @ centred[:, None]  # (B, K, d, L)
            maps: Tensor = (whitened[:, None] * projected).sum(dim=2)
            return maps.view(*maps.shape[:2], *features[0].shape[2:])

        return Representation(half_vector(root), maps_of)
