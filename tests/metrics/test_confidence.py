"""Intervals, differences and p-values equal a plain loop and agree with binomial theory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from tests.metrics.plain_bootstrap import (
    all_weights,
    best_column,
    first_column,
    naive_values,
    small_blocks,
)
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.confidence import Bootstrap, bootstrap_interval, mean_rates, paired_difference
from wsolbench.metrics.pxap import average_precision

tables = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.int64, (n, 4), elements=st.integers(-3, 9)),
        arrays.arrays(np.int64, n, elements=st.integers(0, 3)),
    )
)


@settings(max_examples=40)
@given(tables, st.booleans(), st.integers(0, 5))
def test_the_interval_equals_that_of_a_plain_loop_over_the_same_resamples(
    table, grouped: bool, seed: int
) -> None:
    rows, labels = table
    groups = labels if grouped else None
    with small_blocks():
        values = naive_values(rows, best_column, groups, 25, seed)
        interval = bootstrap_interval(rows, best_column, groups=groups, n_resamples=25, seed=seed)
    expected = np.quantile(values, [0.025, 0.975])
    assert [interval.low, interval.high] == pytest.approx(expected.tolist(), abs=1e-10)


@settings(max_examples=40)
@given(tables, st.booleans())
def test_the_paired_difference_equals_that_of_a_plain_loop_over_the_same_resamples(
    table, grouped: bool
) -> None:
    rows, labels = table
    groups = labels if grouped else None
    other = np.roll(rows, 1, axis=0)[:, ::-1]
    with small_blocks():
        result = paired_difference(rows, other, first_column, groups=groups, n_resamples=25)
        a, b = (naive_values(each, first_column, groups, 25, 0) for each in (rows, other))
    assert [result.low, result.high] == pytest.approx(np.quantile(a - b, [0.025, 0.975]).tolist(), abs=1e-10)


@pytest.mark.parametrize("hits", [0, 7, 60, 150, 200])
def test_the_interval_of_a_share_has_the_quantiles_of_the_binomial_distribution(hits: int) -> None:
    rows = (np.arange(200) < hits)[:, None]
    interval = bootstrap_interval(rows, first_column, n_resamples=20_000)
    # A resampled share of 200 images with 60 hits is Binomial(200, 60 / 200) / 200, exactly.
    exact = stats.binom(200, hits / 200)
    for bound, tail in ((interval.low, 0.025), (interval.high, 0.975)):
        # 20,000 draws locate the tail to about 0.0011 (one standard error); five of them are allowed.
        assert exact.ppf(tail - 0.0055) / 200 <= bound <= exact.ppf(tail + 0.0055) / 200


def test_the_interval_covers_the_truth_as_often_as_its_level_says() -> None:
    rng = np.random.default_rng(1)
    covered, near_wilson = 0, 0
    for seed in range(400):
        rows = rng.random((150, 1)) < 0.4
        interval = bootstrap_interval(rows, first_column, n_resamples=400, seed=seed)
        covered += interval.low <= 0.4 <= interval.high
        wilson = stats.binomtest(int(rows.sum()), 150).proportion_ci(method="wilson")
        near_wilson += abs(interval.low - wilson.low) < 0.025 and abs(interval.high - wilson.high) < 0.025
    # 400 trials at 0.95 cover 380, with a standard deviation of 4.4; the percentile interval of a share is
    # slightly too short.
    assert 363 <= covered <= 394
    assert near_wilson >= 390


def test_the_spread_of_a_paired_difference_is_that_of_the_differences_and_not_of_the_runs() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((400, 1)) < 0.5
    b = a.copy()
    b[:20] = ~b[:20]
    result = paired_difference(a, b, first_column)
    deviation = float((a.astype(float) - b).std() / np.sqrt(400))
    assert (result.high - result.low) / (2 * 1.96 * deviation) == pytest.approx(1.0, abs=0.12)
    assert result.high - result.low < 0.5 * (
        2 * 1.96 * np.sqrt(0.5 / 400)
    )  # what two independent samples would give


def test_the_p_value_is_near_that_of_the_sign_test_and_uniform_where_nothing_differs() -> None:
    rows_a, rows_b = np.zeros((300, 1), bool), np.zeros((300, 1), bool)
    rows_a[:40], rows_b[40:65] = True, True  # 40 images only A gets right, 25 only B
    p_value = paired_difference(rows_a, rows_b, first_column, n_resamples=5000).p_value
    assert p_value == pytest.approx(stats.binomtest(40, 65).pvalue, abs=0.03)
    rng = np.random.default_rng(0)
    p_values = [
        paired_difference(*(rng.random((2, 120, 1)) < 0.5), first_column, n_resamples=300).p_value
        for _ in range(200)
    ]
    # Under no difference about 5 % of 200 fall below 0.05 (10, standard deviation 3), and half below 0.5
    # (100, 7).
    assert 2 <= sum(p < 0.05 for p in p_values) <= 22
    assert 72 <= sum(p < 0.5 for p in p_values) <= 135


@settings(max_examples=40)
@given(tables, st.booleans())
def test_exchanging_the_runs_changes_the_sign_and_nothing_else(table, grouped: bool) -> None:
    rows, labels = table
    groups = labels if grouped else None
    other = rows[::-1] + 1
    forth = paired_difference(rows, other, best_column, groups=groups, n_resamples=50)
    back = paired_difference(other, rows, best_column, groups=groups, n_resamples=50)
    assert back.difference == -forth.difference
    assert [back.low, back.high] == pytest.approx([-forth.high, -forth.low], abs=1e-12)
    assert back.p_value == forth.p_value


def test_a_run_compared_with_itself_differs_by_nothing_with_p_value_one() -> None:
    rows = np.random.default_rng(0).random((50, 3)) < 0.5
    result = paired_difference(rows, rows, best_column)
    assert (result.difference, result.low, result.high, result.p_value, result.n) == (0.0, 0.0, 0.0, 1.0, 50)


def test_a_clear_difference_has_the_smallest_p_value_that_the_resamples_allow() -> None:
    result = paired_difference(np.ones((30, 1), bool), np.zeros((30, 1), bool), first_column, n_resamples=999)
    assert (result.difference, result.low, result.high) == (1.0, 1.0, 1.0)
    assert result.p_value == 2 / 1000


@pytest.mark.parametrize(
    "rows", [np.array([[7, 2]]), np.full((40, 2), 7), np.full((1, 1), 0.3), np.zeros((9, 1))]
)
def test_one_image_or_equal_images_leave_no_spread(rows: np.ndarray) -> None:
    interval = bootstrap_interval(rows, first_column)
    assert interval.low == interval.high == pytest.approx(float(rows[0, 0]), rel=1e-10)


def test_a_class_that_a_resample_misses_is_left_out_of_its_mean() -> None:
    rows, groups = np.array([[1], [0]]), np.array([5, 9])
    values = set()
    for seed in range(20):
        interval = bootstrap_interval(rows, first_column, groups=groups, n_resamples=1, seed=seed)
        values.add(interval.low)
    assert values == {0.0, 0.5, 1.0}  # only the one class, both, only the other


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 99))
def test_classes_weigh_alike_but_for_a_rounding_that_keeps_rates_in_range(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 5, n)
    rows = np.stack([np.ones(n, bool), rng.random(n) < 0.5], axis=1)
    with small_blocks():
        (rates,) = Bootstrap(n, n_resamples=20, seed=seed).rates([[rows]], [groups])
        weights = all_weights(n, 20, seed).tolist()
    assert rates[:, 0].tolist() == [1.0] * 20
    for rate, counts in zip(rates[:, 1].tolist(), weights, strict=True):
        shares = []
        for label in set(groups.tolist()):
            drawn = sum(count for count, group in zip(counts, groups, strict=True) if group == label)
            hits = sum(
                count
                for count, group, row in zip(counts, groups, rows, strict=True)
                if group == label and row[1]
            )
            shares += [Fraction(hits, drawn)] if drawn else []
        assert 0.0 <= rate <= 1.0
        assert abs(Fraction(rate) - sum(shares) / len(shares)) <= Fraction(5 * n, 2**44)


def test_mean_rates_average_images_or_classes() -> None:
    rows, groups = np.array([[1, 4], [1, 0], [0, 2], [0, 2]]), np.array([3, 3, 8, 3])
    assert mean_rates(rows).tolist() == [0.5, 2.0]
    assert mean_rates(rows, groups=groups).tolist() == [(2 / 3 + 0) / 2, (2 + 2) / 2]
    with pytest.raises(UsageError, match="no image"):
        mean_rates(rows[:0])


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    rows = np.random.default_rng(0).random((80, 1))
    first, again, other = (bootstrap_interval(rows, first_column, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_a_metric_of_histograms_has_an_interval_around_its_value() -> None:
    rng = np.random.default_rng(0)
    histograms = rng.poisson([[1, 2, 4, 8], [8, 4, 2, 1]], (120, 2, 4))

    def value(rates: np.ndarray) -> np.ndarray:
        return average_precision(rates.reshape(-1, 2, 4))

    interval = bootstrap_interval(histograms.reshape(120, -1), value, n_resamples=300)
    assert interval.low < float(average_precision(histograms.sum(axis=0))) < interval.high
    assert interval.high - interval.low < 0.2


def test_a_metric_that_is_undefined_in_a_resample_has_no_interval() -> None:
    def nan_where_zero(rates: np.ndarray) -> np.ndarray:
        return np.where(rates[:, 0] > 0, rates[:, 0], np.nan)

    with pytest.raises(DataError, match=r"undefined in \d+ of \d+ resamples"):
        bootstrap_interval(np.array([[1], [0]]), nan_where_zero)
    with pytest.raises(DataError, match="undefined in 1 of 3 resamples"):
        Bootstrap(5).interval(np.array([0.1, np.inf, 0.3]))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (np.zeros((0, 3)), {}, "no image"),
        (np.zeros((3, 0)), {}, "expected one row of numbers"),
        (np.array([[np.nan]]), {}, "NaN or Inf"),
        (np.array([[0.5], [np.inf]]), {}, "NaN or Inf"),
        (np.array([["hit"]]), {}, "expected one row of numbers"),
        (np.zeros((3, 1)), {"seed": -1}, "seed -1"),
        (np.zeros((3, 1)), {"n_resamples": 0}, "0 resamples"),
        (np.zeros((3, 1)), {"level": 1.0}, "level 1.0"),
        (np.zeros((3, 1)), {"groups": np.zeros(2, int)}, r"groups of shape \(2,\) for 3 images"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    unchecked_shapes: None, rows: np.ndarray, settings: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap_interval(rows, first_column, **settings)


def test_runs_on_different_numbers_of_images_cannot_be_paired(unchecked_shapes: None) -> None:
    with pytest.raises(UsageError, match="the same images"):
        paired_difference(np.zeros((3, 1)), np.zeros((4, 1)), first_column)
