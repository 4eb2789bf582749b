"""Corrected intervals at the best threshold cover the true value where the percentile interval misses it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.plain_bootstrap import best_column, naive_rates
from wsolbench.exceptions import DataError
from wsolbench.metrics.best_threshold import best_threshold_interval, best_value
from wsolbench.metrics.confidence import bootstrap_interval


def one_curve(rates: np.ndarray) -> np.ndarray:
    return rates[:, None]


def flat_population(thresholds: int = 60, width: float = 0.3) -> np.ndarray:
    """Hits of 20,000 images at thresholds that are about equally good. Each image is hit in a window of its own."""
    place = np.random.default_rng(5).random(20_000)[:, None]
    return np.abs(place - np.linspace(0, 1, thresholds)) % 1 < width


def test_on_a_flat_curve_the_corrected_interval_holds_the_truth_and_the_percentile_interval_lies_above_it() -> (
    None
):
    population = flat_population()
    truth, rng = population.mean(axis=0).max(), np.random.default_rng(1)
    corrected = percentile = above = 0
    for seed in range(200):
        rows = population[rng.integers(0, len(population), 100)]
        interval = best_threshold_interval(rows, one_curve, n_resamples=300, seed=seed)
        corrected += interval.low <= truth <= interval.high
        plain = bootstrap_interval(rows, best_column, n_resamples=300, seed=seed)
        percentile += plain.low <= truth <= plain.high
        above += plain.low > truth
    assert corrected >= 182  # 190 expected at 95 %, with a standard deviation of 3.1
    assert percentile <= 100
    assert above >= 0.95 * (200 - percentile)


def test_of_three_curves_the_mean_of_their_maxima_is_held_as_often() -> None:
    population = np.concatenate([flat_population(30, width) for width in (0.2, 0.3, 0.4)], axis=1)

    def three(rates: np.ndarray) -> np.ndarray:
        return rates.reshape(len(rates), 3, 30)

    truth, rng = float(best_value(three(population.mean(axis=0)[None]))[0]), np.random.default_rng(2)
    held = 0
    for seed in range(200):
        interval = best_threshold_interval(
            population[rng.integers(0, len(population), 150)], three, n_resamples=300, seed=seed
        )
        held += interval.low <= truth <= interval.high
    assert held >= 182


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 6))
def test_the_interval_equals_the_bounds_of_the_noise_in_a_plain_loop(
    seed: int, curves: int, thresholds: int
) -> None:
    rows = np.random.default_rng(seed).random((11, curves * thresholds)) < 0.6
    interval = best_threshold_interval(
        rows, lambda rates: rates.reshape(len(rates), curves, thresholds), n_resamples=40, seed=seed
    )
    truth, rates = (
        rows.mean(axis=0).reshape(curves, thresholds),
        naive_rates(rows, None, 40, seed).reshape(40, curves, thresholds),
    )
    value, largest, at_best = 0.0, np.zeros(40), np.zeros(40)
    for curve in range(curves):
        best = max(range(thresholds), key=lambda t, c=curve: (truth[c, t], -t))
        value += truth[curve, best] / curves
        noise_of_best = rates[:, curve, best] - truth[curve, best]
        at_best += noise_of_best / curves
        possible = []
        for t in range(thresholds):
            noise = rates[:, curve, t] - truth[curve, t]
            if truth[curve, best] - truth[curve, t] <= 2.5 * np.std(noise - noise_of_best) + 1e-12:
                possible.append(noise)
        largest += np.max(possible, axis=0) / curves
    lowest = min(
        value - max(0, np.quantile(largest, 0.975)), np.quantile(rates.max(axis=2).mean(axis=1), 0.025)
    )
    expected = [lowest, value + max(0, -np.quantile(at_best, 0.025))]
    assert [interval.low, interval.high] == pytest.approx(np.clip(expected, 0, 1).tolist(), abs=1e-9)


def test_thresholds_that_cannot_be_the_best_one_change_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((400, 3)) < [0.6, 0.62, 0.58]
    hopeless = rng.random((400, 5)) < 0.1
    alone = best_threshold_interval(rows, one_curve)
    assert best_threshold_interval(np.concatenate([rows, hopeless], axis=1), one_curve) == alone
    assert best_threshold_interval(np.repeat(rows, 2, axis=1), one_curve) == alone


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_the_interval_holds_the_value_and_stays_within_fractions(seed: int, n: int, share: float) -> None:
    rows = np.random.default_rng(seed).random((n, 4)) < share
    interval = best_threshold_interval(rows, one_curve, n_resamples=30, seed=seed)
    assert 0.0 <= interval.low <= rows.mean(axis=0).max() + 1e-12
    assert rows.mean(axis=0).max() - 1e-12 <= interval.high <= 1.0


def test_a_curve_that_is_undefined_in_a_resample_is_refused() -> None:
    def undefined(rates: np.ndarray) -> np.ndarray:
        return np.where(rates < 0.5, np.nan, rates)[:, None]

    with pytest.raises(DataError, match="undefined in"):
        best_threshold_interval(np.array([[0], [1], [1]]), undefined)
