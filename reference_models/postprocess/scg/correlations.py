"""SCG's correlations within one stage: matrices of all pixels, and those of one pixel without the matrices.

Symbols and equation numbers are those of the module `method`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reference_models.layers.correlation import symmetric_product

EPS_FIRST, EPS_HIGH = 1e-5, 1e-10
"""Added to the sums of columns in (b), (c), and in (d); released code."""


def column_shares_(weights: Float[Tensor, "b n n"], eps: float) -> Float[Tensor, "b n n"]:
    """Divide each column by its sum, in place (colsum). A column of zeros stays zero."""
    return weights.div_(weights.sum(dim=1, keepdim=True) + eps)


def drop_below_(weights: Float[Tensor, "b m n"], threshold: float) -> Float[Tensor, "b m n"]:
    """Set values below the threshold to 0, in place. Equal values stay, as in the released code."""
    return weights.masked_fill_(weights < threshold, 0.0)


def stochastic_correlations(
    pixels: Float[Tensor, "b n d"], *, fo_th: float, so_th: float, order: int
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Return `first` and `high` of the released code, eqs. (a) to (d), for pixels of length 1."""
    t = drop_below_(symmetric_product(pixels, pixels.mT), fo_th)  # (6), (7), (a)
    first = column_shares_(t.clone(), EPS_FIRST)  # (b)
    t.diagonal(dim1=1, dim2=2).zero_()
    sums = t.sum(dim=1, keepdim=True) + EPS_FIRST
    p = high = t / sums  # (c)
    for step in range(order - 1):
        if step:
            high = column_shares_(high @ p, EPS_HIGH)
        else:  # P P is P T divided by `sums`, and P T is symmetric, because T is
            high = symmetric_product(p, t)
            high.div_(high.sum(dim=1, keepdim=True) + EPS_HIGH * sums)
    return first, drop_below_(high, so_th * (1.0 / pixels.shape[1]))  # (d)


def eq8_correlations(pixels: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Return SC1 and SC2 of the paper, eqs. (7) to (9), for pixels of length 1."""
    s = symmetric_product(pixels, pixels.mT)  # (6)
    first = s.relu()  # (7)
    s.diagonal(dim1=1, dim2=2).zero_()
    return first, _stretch_rows(symmetric_product(s, s) / pixels.shape[1])  # (8)


def stochastic_at(
    pixels: Float[Tensor, "b n d"],
    points: Int[Tensor, "b"],
    *,
    fo_th: float,
    so_th: float,
    orders: Sequence[int],
    axis: Literal["column", "row"],
) -> Float[Tensor, "b o n"]:
    """Return one column, or row, of `stochastic_correlations` for each order.

    Order 1 is `first`, another one is `high`.
    """
    index = points[:, None, None]
    if axis == "column" and set(orders) == {1}:  # no other column is needed
        column = drop_below_(pixels.take_along_dim(index, dim=1) @ pixels.mT, fo_th)
        return (column / (column.sum(dim=2, keepdim=True) + EPS_FIRST)).expand(-1, len(orders), -1)
    t = drop_below_(symmetric_product(pixels, pixels.mT), fo_th)  # (6), (7), (a)
    at_point = t.take_along_dim(index, dim=1)  # (B, 1, N); T is symmetric
    totals = t.sum(dim=1, keepdim=True) + EPS_FIRST
    first = at_point / (totals.take_along_dim(index, dim=2) if axis == "column" else totals)  # (b)
    t.diagonal(dim1=1, dim2=2).zero_()
    sums = t.sum(dim=1, keepdim=True) + EPS_FIRST
    at_point = t.take_along_dim(index, dim=1)

    # The sums of the columns that each order is divided by.
    shares, divisors = (sums - EPS_FIRST) / sums, []  # 1 P
    for _ in range(max(orders) - 1):
        products = shares @ t / sums
        divisors.append(products + EPS_HIGH)
        shares = products / divisors[-1]

    def high(order: int) -> Tensor:
        if axis == "row":
            row = at_point / sums
            for divisor in divisors[: order - 1]:
                row = row @ t / sums / divisor
            return row
        *inner, last = divisors[: order - 1]
        column = at_point / (sums * last).take_along_dim(index, dim=2)
        for divisor in reversed(inner):
            column = column / divisor / sums @ t
        return column / sums @ t

    low = so_th * (1.0 / pixels.shape[1])
    return torch.cat([first if order == 1 else drop_below_(high(order), low) for order in orders], dim=1)


def eq8_at(
    pixels: Float[Tensor, "b n d"],
    points: Int[Tensor, "b"],
    *,
    orders: Sequence[int],
    axis: Literal["column", "row"],
) -> Float[Tensor, "b o n"]:
    """Return one column, or row, of SC1 (order 1) and SC2 (order 2) of `eq8_correlations`."""
    index = points[:, None, None]
    s = pixels.take_along_dim(index, dim=1) @ pixels.mT  # (6), (B, 1, N)
    first = s.relu()  # (7)
    if 2 not in orders:
        second = first
    elif axis == "column":  # each of its values is stretched by the range of another row
        second = eq8_correlations(pixels)[1].take_along_dim(index, dim=2).mT
    else:
        z = s.scatter(2, index, 0.0)
        without_diagonal = z @ pixels @ pixels.mT - z * pixels.square().sum(dim=2)[:, None]
        second = _stretch_rows(without_diagonal / pixels.shape[1])  # (8)
    return torch.cat([first if order == 1 else second for order in orders], dim=1)


def _stretch_rows(s2: Float[Tensor, "b m n"]) -> Float[Tensor, "b m n"]:
    """Min-max normalise each row, eqs. (9), (10)."""
    low, high = s2.amin(dim=2, keepdim=True), s2.amax(dim=2, keepdim=True)
    return (s2 - low) / (high - low + 1e-10)
