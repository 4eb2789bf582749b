"""Mean pooling to a fixed number of cells, as matrix products.

The cells are those of torch's adaptive mean pooling. Its backward pass is not deterministic on a GPU; that of
a matrix product is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cell_weights(side: int, cells: int, like: Tensor) -> Float[Tensor, "side cells"]:
    """Return the matrix of adaptive mean pooling along one axis. Columns sum to 1."""
    return F.adaptive_avg_pool1d(torch.eye(side, dtype=like.dtype, device=like.device), cells)


def pool_cells(features: Float[Tensor, "b c h w"], cells: int) -> Float[Tensor, "b c g g"]:
    """Return the means of `cells` x `cells` cells. A smaller map repeats its values."""
    rows, columns = (cell_weights(side, cells, features) for side in features.shape[2:])
    return rows.T @ features @ columns
