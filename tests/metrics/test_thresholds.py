"""Threshold policies pick an index of the grid for each row of a curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsolbench.exceptions import UsageError
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import tau_grid

GRID = np.array(tau_grid(0.1))


@given(st.lists(st.lists(st.integers(0, 5), min_size=10, max_size=10), min_size=1, max_size=4))
def test_the_oracle_takes_the_first_maximum_of_each_row(rows: list[list[int]]) -> None:
    picked = ThresholdPolicy.oracle().pick(np.array(rows), GRID)
    assert picked.tolist() == [row.index(max(row)) for row in rows]


@given(st.lists(st.lists(st.integers(0, 5), min_size=10, max_size=10), min_size=1, max_size=4))
def test_a_shared_oracle_takes_the_first_maximum_of_the_mean_row(rows: list[list[int]]) -> None:
    totals = [sum(column) for column in zip(*rows, strict=True)]
    picked = ThresholdPolicy.oracle().pick(np.array(rows), GRID, shared=True)
    assert picked.tolist() == [totals.index(max(totals))] * len(rows)


def test_resamples_are_picked_for_independently() -> None:
    curves = np.random.default_rng(0).random((5, 3, 10))
    picked = ThresholdPolicy.oracle().pick(curves, GRID)
    assert picked.shape == (5, 3)
    for curve, row in zip(curves, picked, strict=True):
        assert row.tolist() == ThresholdPolicy.oracle().pick(curve, GRID).tolist()


def test_fixed_ignores_the_curve_and_takes_the_nearest_threshold_of_the_grid() -> None:
    curve = np.random.default_rng(0).random((2, 10))
    assert ThresholdPolicy.fixed(0.3).pick(curve, GRID).tolist() == [3, 3]
    assert ThresholdPolicy.fixed(0.27).pick(curve, GRID).tolist() == [3, 3]
    assert ThresholdPolicy.fixed(0.9).pick(-curve, GRID).tolist() == [9, 9]


def test_of_two_equally_near_thresholds_the_lower_is_taken() -> None:
    assert ThresholdPolicy.fixed(0.5).pick(np.zeros((1, 2)), np.array([0.25, 0.75])).tolist() == [0]


def test_transfer_takes_one_threshold_for_each_row_or_one_for_all() -> None:
    curve = np.zeros((3, 10))
    assert ThresholdPolicy.transfer([0.1, 0.5, 0.2]).pick(curve, GRID).tolist() == [1, 5, 2]
    assert ThresholdPolicy.transfer([0.4]).pick(curve, GRID).tolist() == [4, 4, 4]


@pytest.mark.parametrize("step", [0.001, 0.01, 0.05])
def test_every_threshold_of_a_grid_transfers_to_itself(step: float) -> None:
    grid = tau_grid(step)
    assert ThresholdPolicy.transfer(grid).pick(
        np.zeros((len(grid), len(grid))), np.array(grid)
    ).tolist() == list(range(len(grid)))


@pytest.mark.parametrize("tau", [0.0, 0.96, 1.0])
def test_a_threshold_outside_of_the_grid_is_refused_with_the_range(tau: float) -> None:
    with pytest.raises(UsageError, match=r"outside the protocol's grid; expected 0\.1 to 0\.9"):
        ThresholdPolicy.fixed(tau).pick(np.zeros((1, 9)), np.array(tau_grid(0.1, start=0.1)))


def test_transfer_from_another_number_of_deltas_is_refused() -> None:
    with pytest.raises(UsageError, match="2 thresholds; expected 1 or 3"):
        ThresholdPolicy.transfer([0.1, 0.2]).pick(np.zeros((3, 10)), GRID)


def test_a_curve_of_another_length_than_the_grid_is_refused(unchecked_shapes: None) -> None:
    with pytest.raises(UsageError, match="for 10 thresholds"):
        ThresholdPolicy.oracle().pick(np.zeros((3, 9)), GRID)


@pytest.mark.parametrize(
    ("kind", "taus"),
    [("oracle", (0.1,)), ("fixed", ()), ("fixed", (0.1, 0.2)), ("transfer", ()), ("fixed", (np.nan,))],
)
def test_a_policy_with_the_wrong_thresholds_cannot_be_made(kind: str, taus: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="threshold"):
        ThresholdPolicy(kind, taus)  # type: ignore[arg-type]


def test_policies_have_the_names_that_records_show() -> None:
    policies = [
        ThresholdPolicy.oracle(),
        ThresholdPolicy.fixed(0.2),
        ThresholdPolicy.transfer([0.1, 0.2, 0.3]),
    ]
    assert [str(policy) for policy in policies] == ["oracle", "fixed:0.2", "transfer"]
