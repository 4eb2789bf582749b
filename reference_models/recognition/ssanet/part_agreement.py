"""SSANET's Morphological Alignment Constraints (MAC): the j-th parts of all images agree.

L. Gao, H. Xu, C. Sun, J. Liu, Y.-W. Tai, "Spatial-Scale Aligned Network for Fine-Grained Recognition",
arXiv:2001.01211, 2020, section 3.1; equations have the paper's numbers.

    S           similarities                (B, B, K, K)        cosines of the parts of two images
    (2)         L_m = mean_j log(1 + sum_{m != j} exp(S_jm - S_jj))        the cross-entropy of softmax(S_j)
                                                                           with target j

A departure. As printed, (2) has no S_jj, and nothing attracts. Its derivatives (4) and (5) show the intended
form. They lack 1/K. (4) also lacks its sign and has a sum of reciprocals in place of the reciprocal of a sum.
The index of a part is its rank.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["mean", "sum"]


def pair_loss(similarities: Float[Tensor, "*pairs k k"]) -> Float[Tensor, "*pairs"]:
    """Return L_m of each pair of images, eq. (2)."""
    return -similarities.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def mac_loss(parts: Float[Tensor, "b k d"], *, with_self: bool, reduction: Reduction) -> Float[Tensor, ""]:
    """Return L_m over all ordered pairs of images of any classes, in float32. 0 for a single image."""
    (images, count, _), device = parts.shape, parts.device
    with torch.autocast(device.type, enabled=False):
        unit = F.normalize(parts.float().flatten(0, 1), dim=1, eps=1e-8)
        pairs = pair_loss((unit @ unit.mT).view(images, count, images, count).transpose(1, 2))  # (B, B)
    counted = torch.ones_like(pairs) if with_self else 1 - torch.eye(images, device=device)
    total = (pairs * counted).sum()
    return total / counted.sum().clamp(min=1) if reduction == "mean" else total
