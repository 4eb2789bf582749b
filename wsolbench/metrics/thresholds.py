"""Threshold policies: at which threshold of the grid a metric is read.

`oracle` takes the best threshold on the evaluated split itself. Papers report it; it is an upper bound.
`fixed` takes one threshold that was chosen beforehand. `transfer` takes the thresholds that were best on
another split of the same data set. All three read the same curve (metric against threshold), so every
record can store all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from wsolbench.exceptions import UsageError

# Tolerance at the ends of the grid, for the rounding of `arange` and of decimal text.
_GRID_SLACK = 1e-9


@dataclass(frozen=True)
class ThresholdPolicy:
    """A rule that picks an index of the threshold grid: `oracle()`, `fixed(tau)` or `transfer(taus)`.

    >>> curve, grid = np.array([[0.1, 0.7, 0.7]]), np.array([0.0, 0.5, 0.9])
    >>> policies = (ThresholdPolicy.oracle(), ThresholdPolicy.fixed(0.8))
    >>> [int(policy.pick(curve, grid)[0]) for policy in policies]
    [1, 2]
    """

    kind: Literal["oracle", "fixed", "transfer"]
    taus: tuple[float, ...] = ()
    """Thresholds of the policy.

    `oracle`: empty. `fixed`: one. `transfer`: one per row of the curve (each delta), or one for all rows.
    """

    def __post_init__(self) -> None:
        n = len(self.taus)
        if not {"oracle": n == 0, "fixed": n == 1, "transfer": n >= 1}[self.kind]:
            raise UsageError(
                f"threshold policy {self.kind!r} has {n} thresholds; expected none for oracle, one for "
                "fixed, one per delta for transfer"
            )
        if not all(np.isfinite(tau) for tau in self.taus):
            raise UsageError(
                f"threshold policy {self.kind!r} has thresholds {self.taus}; expected finite numbers"
            )

    @classmethod
    def oracle(cls) -> ThresholdPolicy:
        """The best threshold on the evaluated split, separately for each row of the curve."""
        return cls("oracle")

    @classmethod
    def fixed(cls, tau: float) -> ThresholdPolicy:
        """One threshold that was chosen beforehand."""
        return cls("fixed", (float(tau),))

    @classmethod
    def transfer(cls, taus_per_delta: Iterable[float]) -> ThresholdPolicy:
        """Thresholds that were best on another split: one for each row of the curve, or one for all rows."""
        return cls("transfer", tuple(float(tau) for tau in taus_per_delta))

    def pick(
        self, curve: Num[np.ndarray, "*r d t"], taus: Float[np.ndarray, " t"], *, shared: bool = False
    ) -> Int[np.ndarray, "*r d"]:
        """Return the index into `taus` for each row of `curve`. Leading axes (resamples) are independent.

        `oracle` picks the first maximum of the row. With `shared=True`, it picks the first maximum of the
        mean of the rows, for all rows. `fixed` and `transfer` pick the grid threshold nearest to the
        requested one, the lower of two equally near.

        Raises `UsageError` if a requested threshold is outside the grid, if `transfer` has neither one
        threshold nor one per row, or if the shapes do not match.
        """
        curve, grid = np.asarray(curve), np.asarray(taus, dtype=np.float64)
        if curve.ndim < 2 or grid.shape != curve.shape[-1:]:
            raise UsageError(
                f"curve has shape {curve.shape}; expected (..., rows, {grid.size}) for {grid.size} thresholds"
            )
        if self.kind != "oracle":
            index = self._find_nearest(grid, curve.shape[-2])
        elif shared:
            index = curve.sum(axis=-2, keepdims=True).argmax(axis=-1)
        else:
            index = curve.argmax(axis=-1)
        return np.array(np.broadcast_to(index, curve.shape[:-1]))

    def _find_nearest(self, grid: Float[np.ndarray, " t"], n_rows: int) -> Int[np.ndarray, " d"]:
        wanted = np.array(self.taus)
        if wanted.size not in (1, n_rows):
            raise UsageError(
                f"policy 'transfer' has {wanted.size} thresholds; expected 1 or {n_rows}, one per delta. "
                "Choose them with this protocol's deltas"
            )
        low, high = float(grid[0]), float(grid[-1])
        for tau in self.taus:
            if not low - _GRID_SLACK <= tau <= high + _GRID_SLACK:
                raise UsageError(
                    f"threshold {tau:g} of policy '{self}' is outside the protocol's grid; expected {low:g} "
                    f"to {high:g}"
                )
        return np.asarray(np.abs(grid - wanted[:, None]).argmin(axis=1))

    def __str__(self) -> str:
        """Return the name that records and tables show: `oracle`, `fixed:0.2` or `transfer`."""
        return f"fixed:{self.taus[0]:g}" if self.kind == "fixed" else self.kind


def check_fixed_tau(tau: float | None, taus: Sequence[float]) -> None:
    """Raise `UsageError` if a threshold of the policy `fixed` is outside the grid `taus`. None is valid."""
    if tau is not None:
        ThresholdPolicy.fixed(tau).pick(np.zeros((1, len(taus))), np.array(taus))
