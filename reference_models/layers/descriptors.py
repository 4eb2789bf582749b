"""Deep descriptor transforming: the direction in which the descriptors of a set of images vary most.

X.-S. Wei, C.-L. Zhang, J. Wu, C. Shen, Z.-H. Zhou, "Unsupervised object discovery and co-localization by deep
descriptor transformation", Pattern Recognition 2019.

A descriptor is the feature vector of a cell. The images of a set share their object and not their background,
so the strongest direction of variation over all their descriptors is object against background.

x       descriptor         (D,)       of any cell of any image of the set
m       Direction.mean     (D,)       mean of all descriptors
v       Direction.axis     (D,)       unit vector, first eigenvector of their covariance
p       Direction.heat     (B, h, w)  v^T (x - m)

The sign of v is arbitrary. Objects touch the border of images less than backgrounds do. So v has the sign
with which the mean of p over the inner cells of all images is at least that over their outermost cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from reference_models.layers.principal import FLAT, GAP
from wsolbench.exceptions import UsageError


@dataclass(frozen=True, eq=False)
class Direction:
    """Direction of a set of images: `mean` (D,) and `axis` (D,), float64.

    The axis is 0 where it is not defined: where all descriptors are equal up to rounding, or the two largest
    eigenvalues are equal.
    """

    mean: Tensor
    axis: Tensor

    def heat(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b h w"]:
        """Return p, the coordinate of each cell along the axis, in float64."""
        centred = features.double() - self.mean[:, None, None]
        return torch.einsum("bdhw,d->bhw", centred, self.axis)


def pool_descriptors(features: Float[Tensor, "b d H W"], cells: int) -> Float[Tensor, "b d h w"]:
    """Return features on at most `cells` x `cells` cells, in float32. A finer grid is max-pooled."""
    height, width = features.shape[2:]
    pooled: Tensor = F.adaptive_max_pool2d(features.float(), (min(height, cells), min(width, cells)))
    return pooled


def check_inner_cells(features: Float[Tensor, "b d h w"], *, who: str) -> Float[Tensor, "b d h w"]:
    """Return the features.

    Raises `UsageError` with the name of the method if their grid has no inner cells.
    """
    height, width = features.shape[2:]
    if min(height, width) < 3:
        raise UsageError(
            f"method {who!r} compares inner cells with those of the border; the features have "
            f"{height}x{width} cells, expected at least 3x3. Use larger images"
        )
    return features


def border_excess(features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d"]:
    """Return the mean of the outermost cells minus that of the inner ones, for a grid of at least 3x3."""
    inner = features[..., 1:-1, 1:-1]
    cells, inner_cells = features[0, 0].numel(), inner[0, 0].numel()
    total, inner_total = features.sum(dim=(2, 3)), inner.sum(dim=(2, 3))
    return (total - inner_total) / (cells - inner_cells) - inner_total / inner_cells


def principal_direction(batches: Iterable[Float[Tensor, "_ d h w"]]) -> Direction:
    """Return m and v of the images of all batches, whose grids have at least 3x3 cells.

    Sums are in float64 and need D^2 numbers, however many images there are. Raises `ValueError` without
    images.
    """
    count, total, products, excess = 0, None, None, None
    for batch in batches:
        features = batch.double()
        rows = features.movedim(1, 3).flatten(0, 2)  # (B N, D)
        terms = rows.sum(dim=0), rows.mT @ rows, border_excess(features).sum(dim=0)
        if total is None or products is None or excess is None:
            total, products, excess = terms
        else:
            total, products, excess = total + terms[0], products + terms[1], excess + terms[2]
        count += len(rows)
    if total is None or products is None or excess is None:
        raise ValueError("there is no image")
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    largest, axis = values[-1].clamp(min=0), vectors[:, -1]
    axis = torch.where(axis @ excess > 0, -axis, axis)
    is_undefined = largest <= FLAT**2 * products.trace() / count
    if len(values) > 1:
        is_undefined = is_undefined | (largest - values[-2] <= GAP * largest)
    return Direction(mean=mean, axis=axis.masked_fill(is_undefined, 0.0))


def largest_box(heat: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " 4"]:
    """Return the box around the largest 8-connected component of the positive cells.

    It is xyxy in shares of the sides, so its corners are corners of cells. Of equal components the first one
    in row order counts. Without positive cells the box is (0, 0, 0, 0).
    """
    components, count = ndimage.label(heat > 0, structure=np.ones((3, 3)))
    if not count:
        return np.zeros(4)
    chosen = components == np.bincount(components.ravel())[1:].argmax() + 1
    rows, columns = (np.flatnonzero(chosen.any(axis=axis)) for axis in (1, 0))
    height, width = heat.shape
    return np.array(
        [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
    )
