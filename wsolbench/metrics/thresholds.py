"""Threshold policies: which threshold of the grid a number is read at.

`oracle` takes the best threshold of the evaluated split itself: what papers report, and an upper bound.
`fixed` takes one threshold that was chosen beforehand. `transfer` takes the thresholds that were best on
another split of the same data set. All three read the same curve (metric against threshold), so they stand
side by side in every record.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from wsolbench.exceptions import UsageError

# How far outside of the grid a threshold may lie: rounding of `arange` and of decimal text, nothing more.
_GRID_SLACK = 1e-9


@dataclass(frozen=True)
class ThresholdPolicy:
    """A rule that picks an index of the threshold grid. Make one with `oracle()`, `fixed(tau)` or
    `transfer(taus)`.

    >>> curve, grid = np.array([[0.1, 0.7, 0.7]]), np.array([0.0, 0.5, 0.9])
    >>> [int(policy.pick(curve, grid)[0]) for policy in (ThresholdPolicy.oracle(),
        ThresholdPolicy.fixed(0.8))]
    [1, 2]
    """

    kind: Literal["oracle", "fixed", "transfer"]
    taus: tuple[float, ...] = ()
    """`fixed`: the threshold. `transfer`: one threshold for each row of the curve (each delta), or one for
    all. `oracle`: empty.
    """

    def __post_init__(self) -> None:
        n = len(self.taus)
        if not {"oracle": n == 0, "fixed": n == 1, "transfer": n >= 1}[self.kind]:
            raise UsageError(
                f"threshold policy {self.kind!r} with {n} thresholds; oracle takes none, fixed one, "
                "transfer one per delta"
            )
        if not all(np.isfinite(tau) for tau in self.taus):
            raise UsageError(f"threshold policy {self.kind!r}: thresholds must be finite, got {self.taus}")

    @classmethod
    def oracle(cls) -> ThresholdPolicy:
        """The best threshold on the evaluated split, separately for each row of the curve."""
        return cls("oracle")

    @classmethod
    def fixed(cls, tau: float) -> ThresholdPolicy:
        """One threshold chosen beforehand."""
        return cls("fixed", (float(tau),))

    @classmethod
    def transfer(cls, taus_per_delta: Iterable[float]) -> ThresholdPolicy:
        """Thresholds that were best on another split: one for each row of the curve, or a single one for all
        rows.
        """
        return cls("transfer", tuple(float(tau) for tau in taus_per_delta))

    def pick(
        self, curve: Num[np.ndarray, "*r d t"], taus: Float[np.ndarray, " t"], *, shared: bool = False
    ) -> Int[np.ndarray, "*r d"]:
        """Index into `taus` for each row of `curve`; leading axes (resamples) are picked for independently.

        Oracle: the first maximum of the row, or with `shared=True` the first maximum of the rows' mean, the
            same for all
        rows. Fixed and transfer: the grid threshold nearest to the wanted one (the lower of two equally
            near).

        Raises `UsageError` when a wanted threshold lies outside of the grid, when `transfer` has neither one
        threshold nor one for each row, or when shapes do not fit.
        """
        curve, grid = np.asarray(curve), np.asarray(taus, dtype=np.float64)
        if curve.ndim < 2 or grid.shape != curve.shape[-1:]:
            raise UsageError(
                f"curve of shape {curve.shape} does not fit {grid.size} thresholds; expected (..., rows, "
                f"{grid.size})"
            )
        if self.kind != "oracle":
            index = self._nearest(grid, curve.shape[-2])
        elif shared:
            index = curve.sum(axis=-2, keepdims=True).argmax(axis=-1)
        else:
            index = curve.argmax(axis=-1)
        return np.array(np.broadcast_to(index, curve.shape[:-1]))

    def _nearest(self, grid: Float[np.ndarray, " t"], n_rows: int) -> Int[np.ndarray, " d"]:
        wanted = np.array(self.taus)
        if wanted.size not in (1, n_rows):
            raise UsageError(
                f"policy 'transfer' has {wanted.size} thresholds for {n_rows} deltas; choose them with "
                "this protocol's deltas"
            )
        low, high = float(grid[0]), float(grid[-1])
        for tau in self.taus:
            if not low - _GRID_SLACK <= tau <= high + _GRID_SLACK:
                raise UsageError(
                    f"threshold {tau:g} of policy '{self}' lies outside of the protocol's grid, {low:g} to "
                    f"{high:g}"
                )
        return np.asarray(np.abs(grid - wanted[:, None]).argmin(axis=1))

    def __str__(self) -> str:
        """The name that records and tables show: `oracle`, `fixed:0.2` or `transfer`."""
        return f"fixed:{self.taus[0]:g}" if self.kind == "fixed" else self.kind


def check_fixed_tau(tau: float | None, taus: Sequence[float]) -> None:
    """Raise `UsageError` for a threshold of the policy `fixed` that lies outside of the grid `taus`; None is
    none.
    """
    if tau is not None:
        ThresholdPolicy.fixed(tau).pick(np.zeros((1, len(taus))), np.array(taus))
