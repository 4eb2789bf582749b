"""Pooled products of projected features: bilinear and polynomial pooling of low rank.

J.-H. Kim, K.-W. On, W. Lim, J. Kim, J.-W. Ha, B.-T. Zhang, "Hadamard product for low-rank bilinear pooling",
ICLR 2017. HBP multiplies projections of different layers, HIHCA several projections of the same descriptor.

    x_s         features of a factor    (B, C_s, L)
    U_s, a_s    weight, bias            (D, C_s), (D,)
    phi_l       -                       (B, D)          prod_s (U_s x_s,l + a_s)
    P           pooled_products(..)     (B, D)          mean of phi_l over l

A product of two without bias is P_k = u_1k^T (mean_l x_1,l x_2,l^T) u_2k: a form of rank one. Channels are
processed in chunks, because the projections are D / C times as large as the features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 1024
"""Channels of the products that are computed at a time."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A projected layer: features (B, C, L), weight (D, C), and bias (D,) or None."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def project(self, part: slice) -> Float[Tensor, "b d l"]:
        """Return some channels of U x + a."""
        projected = self.weight[part] @ self.features
        return projected if self.bias is None else projected + self.bias[part, None]


def pooled_products(factors: Sequence[Factor]) -> Float[Tensor, "b d"]:
    """Return the mean over the locations of the elementwise product of all factors."""
    return torch.cat([product.mean(dim=2) for _, product in _products(factors)], dim=1)


def product_maps(weights: Float[Tensor, "b k d"], factors: Sequence[Factor]) -> Float[Tensor, "b k l"]:
    """Return sum_k v_k phi_k(l) for weights v of the channels of the product."""
    maps = [weights[:, :, part] @ product for part, product in _products(factors)]
    return torch.stack(maps).sum(dim=0)


def _products(factors: Sequence[Factor]) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the channels, and the product of the factors, (B, d, L)."""
    for start in range(0, len(factors[0].weight), CHUNK):
        part = slice(start, start + CHUNK)
        yield part, reduce(mul, [factor.project(part) for factor in factors])
