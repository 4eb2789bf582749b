"""Connected components of a region, without a step on the host."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor


def component_of(inside: Bool[Tensor, "b h w"], seed: Int[Tensor, " b"]) -> Bool[Tensor, "b h w"]:
    """Return the 4-connected component of each region that has the seed, a flat index; empty if none has it.

    The component grows by one cell in each step, so h w steps reach every cell of it.
    """
    area = inside.float()[:, None]
    found = torch.zeros_like(area).flatten(1).scatter(1, seed[:, None], 1.0).reshape(area.shape) * area
    for _ in range(area.shape[2] * area.shape[3]):
        down = F.max_pool2d(found, (3, 1), stride=1, padding=(1, 0))
        across = F.max_pool2d(found, (1, 3), stride=1, padding=(0, 1))
        found = torch.maximum(down, across) * area
    return found[:, 0] > 0
