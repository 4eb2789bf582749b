"""Principal patterns of an image's features, and rules for their sign, which no eigenvector has.

R       rows           (.., D, N)     one row for each channel, N = h w pixels
v       pattern        (.., N)        the first right singular vector of R, times its singular value
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reference_models.layers.correlation import resize_to_grid
from wsolbench.exceptions import UsageError

Polarity = Literal["border", "largest", "cam"]
"""Rule for the sign of a map: see `orient`."""

FLAT = 1e-6
"""Smallest relative variation of features. Below it they are equal up to the rounding of float32."""

GAP = 1e-9
"""Smallest relative distance of two eigenvalues. Below it the eigenvectors are arbitrary."""


def principal_pattern(rows: Float[Tensor, "*b d n"], energy: Float[Tensor, "*b"]) -> Float[Tensor, "*b n"]:
    """Return the first right singular vector times its singular value, in float64 and with any sign.

    It is computed from the smaller of both Gram matrices. It is 0 where it is not defined: where its square
    is at most FLAT^2 of `energy`, the sum of squares of the rows before they were centred, or where the two
    largest singular values are equal.
    """
    transposed = rows.shape[-1] > rows.shape[-2]  # fewer channels than pixels
    values, vectors = torch.linalg.eigh(rows @ rows.mT if transposed else rows.mT @ rows)
    largest, vector = values[..., -1].clamp(min=0), vectors[..., -1]
    pattern = (vector[..., None, :] @ rows).squeeze(-2) if transposed else vector * largest.sqrt()[..., None]
    undefined = largest <= FLAT**2 * energy
    if values.shape[-1] > 1:
        undefined = undefined | (largest - values[..., -2] <= GAP * largest)
    found: Tensor = pattern.masked_fill(undefined[..., None], 0.0)
    return found


def check_grid(height: int, width: int, polarity: Polarity, *, who: str) -> None:
    """Raise `UsageError` if a grid has no inner cells and `polarity=border` needs them."""
    if polarity == "border" and min(height, width) < 3:
        raise UsageError(
            f"post-process {who!r} needs inner cells for polarity=border; the features have {height}x{width} "
            f"cells, expected at least 3x3. Use a larger input, or --post-set {who}.polarity=largest"
        )


def orient(
    maps: Float[Tensor, "b k h w"], polarity: Polarity, coarse: Float[Tensor, "b k _ _"] | None = None
) -> Float[Tensor, "b k h w"]:
    """Return the maps with the sign that a rule gives them. It does not depend on the sign they come with.

    Args:
        maps: maps whose sign is arbitrary, on a grid of at least 3x3 cells for `border`.
        polarity: `border`: the mean of the inner cells is at least that of the outermost cells. `largest`:
            the value of greatest magnitude is positive. `cam`: the correlation with `coarse` is positive.
        coarse: the method's own maps, for `cam`.
    """
    if polarity == "border":
        inner = maps[..., 1:-1, 1:-1]
        cells, outer_cells = maps[0, 0].numel(), maps[0, 0].numel() - inner[0, 0].numel()
        outer = (maps.sum(dim=(2, 3)) - inner.sum(dim=(2, 3))) / outer_cells
        is_wrong = outer > inner.sum(dim=(2, 3)) / (cells - outer_cells)
    elif polarity == "largest":
        is_wrong = -maps.amin(dim=(2, 3)) > maps.amax(dim=(2, 3))
    else:
        assert coarse is not None
        known = resize_to_grid(coarse, *maps.shape[2:]).to(maps)
        centred = known - known.mean(dim=(2, 3), keepdim=True)
        is_wrong = (maps * centred).sum(dim=(2, 3)) < 0
    return torch.where(is_wrong[..., None, None], -maps, maps)
