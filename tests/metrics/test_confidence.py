"""The bootstrap: equal to a plain loop, right by binomial theory, and independent of how it is carried out."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics import confidence
from wsolbench.metrics.confidence import BLOCK, Bootstrap, bootstrap_interval, mean_rates, paired_difference, resampling_weights
from wsolbench.metrics.pxap import average_precision


def first_column(rates: np.ndarray) -> np.ndarray:
    return rates[:, 0]


def best_column(rates: np.ndarray) -> np.ndarray:
    return rates.max(axis=1)


def small_blocks(size: int = 5):
    """Draws in blocks of a few images, so that a few images have several blocks."""
    return mock.patch.object(confidence, "BLOCK", size)


def all_weights(n: int, n_resamples: int, seed: int = 0) -> np.ndarray:
    return np.concatenate(list(resampling_weights(n, n_resamples, seed)), axis=1)


def naive_rates(rows: np.ndarray, groups: np.ndarray | None, n_resamples: int, seed: int) -> np.ndarray:
    """One resample after the other, the images drawn written out as often as they were, plain means of them."""
    rates = []
    for weights in all_weights(len(rows), n_resamples, seed):
        drawn = np.repeat(np.arange(len(rows)), weights)
        members: dict[int, list[int]] = {}
        for image in drawn.tolist():
            members.setdefault(0 if groups is None else int(groups[image]), []).append(image)
        rates.append(np.mean([np.mean(rows[images].astype(float), axis=0) for images in members.values()], axis=0))
    return np.array(rates)


def naive_values(rows: np.ndarray, value, groups: np.ndarray | None, n_resamples: int, seed: int) -> np.ndarray:
    return value(naive_rates(rows, groups, n_resamples, seed))


def cut(tables: list[np.ndarray], lengths: list[int]) -> Iterator[list[np.ndarray]]:
    """The tables in blocks of these many images, and what is left."""
    for start, stop in zip([0, *np.cumsum(lengths)], [*np.cumsum(lengths), len(tables[0])], strict=True):
        yield [table[start:stop] for table in tables]


tables = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.int64, (n, 4), elements=st.integers(-3, 9)), arrays.arrays(np.int64, n, elements=st.integers(0, 3))
    )
)


@settings(max_examples=40)
@given(tables, st.booleans(), st.integers(0, 5))
def test_the_interval_equals_that_of_a_plain_loop_over_the_same_resamples(table, grouped: bool, seed: int) -> None:
    rows, labels = table
    groups = labels if grouped else None
    with small_blocks():
        values = naive_values(rows, best_column, groups, 25, seed)
        interval = bootstrap_interval(rows, best_column, groups=groups, n_resamples=25, seed=seed)
    expected = np.quantile(values, [0.025, 0.975])
    assert [interval.low, interval.high] == pytest.approx(expected.tolist(), abs=1e-10)


@settings(max_examples=40)
@given(tables, st.booleans())
def test_the_paired_difference_equals_that_of_a_plain_loop_over_the_same_resamples(table, grouped: bool) -> None:
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
        # 20,000 draws place the tail to about 0.0011 (one standard error); five of them are allowed.
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
    # 400 trials at 0.95 hold 380, with a standard deviation of 4.4; the percentile interval of a share is a little short.
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
    assert result.high - result.low < 0.5 * (2 * 1.96 * np.sqrt(0.5 / 400))  # what two independent samples would give


def test_the_p_value_is_near_that_of_the_sign_test_and_uniform_where_nothing_differs() -> None:
    rows_a, rows_b = np.zeros((300, 1), bool), np.zeros((300, 1), bool)
    rows_a[:40], rows_b[40:65] = True, True  # 40 images only A gets right, 25 only B
    p_value = paired_difference(rows_a, rows_b, first_column, n_resamples=5000).p_value
    assert p_value == pytest.approx(stats.binomtest(40, 65).pvalue, abs=0.03)
    rng = np.random.default_rng(0)
    p_values = [paired_difference(*(rng.random((2, 120, 1)) < 0.5), first_column, n_resamples=300).p_value for _ in range(200)]
    # Under no difference about 5 % of 200 fall below 0.05 (10, standard deviation 3), and half below 0.5 (100, 7).
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


@pytest.mark.parametrize("rows", [np.array([[7, 2]]), np.full((40, 2), 7), np.full((1, 1), 0.3), np.zeros((9, 1))])
def test_one_image_or_equal_images_leave_no_spread(rows: np.ndarray) -> None:
    interval = bootstrap_interval(rows, first_column)
    assert interval.low == interval.high == pytest.approx(float(rows[0, 0]), rel=1e-10)


def tables_of_all_kinds(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    return [
        rng.random((n, 3)) < 0.5,
        rng.integers(0, 256, (n, 2)).astype(np.uint8),
        rng.integers(0, 50_000, (n, 4)).astype(np.int32) * (rng.random(4) < 0.5).astype(np.int32),
        rng.integers(-(2**40), 2**40, (n, 2)),
        rng.random((n, 1), dtype=np.float32),
        rng.uniform(-1.0, 1.0, (n, 2)),
        rng.random((n, 1)) < 0.9,
    ]


@settings(max_examples=30)
@given(st.integers(1, 40), st.data())
def test_several_tables_at_once_have_the_rates_of_plain_means(n: int, data) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    tables = tables_of_all_kinds(rng, n)
    labels = [rng.integers(0, 4, n) + 7, rng.integers(0, 2, n)]
    groups = [data.draw(st.sampled_from([None, *labels])) for _ in tables]
    with small_blocks():
        rates = Bootstrap(n, n_resamples=12, seed=n).rates([tables], groups)
        expected = [naive_rates(table, group, 12, n) for table, group in zip(tables, groups, strict=True)]
    for table, got, plain in zip(tables, rates, expected, strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, plain, rtol=0, atol=1e-9 * float(np.abs(table.astype(float)).max(initial=1.0)))


@settings(max_examples=30)
@given(st.integers(1, 40), st.lists(st.integers(0, 9), max_size=5), st.booleans(), st.integers(2, 9))
def test_how_the_images_are_cut_into_blocks_changes_no_bit(n: int, lengths: list[int], grouped: bool, size: int) -> None:
    rng = np.random.default_rng(n)
    lengths = [length for length, total in zip(lengths, np.cumsum(lengths), strict=True) if total <= n]
    tables = tables_of_all_kinds(rng, n)
    groups = [rng.integers(0, 3, n) if grouped else None] * len(tables)
    bootstrap = Bootstrap(n, n_resamples=9)
    with small_blocks(size):
        for method in (bootstrap.rates, bootstrap.means):
            whole, parts = method([tables], groups), method(cut(tables, lengths), groups)
            alone = [method([[table]], [group])[0] for table, group in zip(tables, groups, strict=True)]
            for one, two, three in zip(whole, parts, alone, strict=True):
                assert np.array_equal(one, two)
                assert np.array_equal(one, three)


def test_the_number_of_threads_changes_no_bit() -> None:
    program = """
import hashlib
import numpy as np
from wsolbench.metrics.confidence import Bootstrap
rng = np.random.default_rng(0)
n = 5000
tables = [rng.random((n, 200)) < 0.5, rng.integers(0, 50_000, (n, 40)), rng.random((n, 30)), rng.random((n, 30)) < 0.5]
rates = Bootstrap(n, n_resamples=200).rates([tables], [None, None, None, rng.integers(0, 50, n)])
print(hashlib.sha256(b"".join(each.tobytes() for each in rates)).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        ).stdout
        for threads in "123"
    }
    assert len(digests) == 1


@pytest.mark.parametrize("kind", [np.uint32, np.int64])
@pytest.mark.parametrize("n", [1, 7, 300])
def test_sums_around_the_limit_of_float32_are_exact(n: int, kind: type) -> None:
    rng = np.random.default_rng(n)
    near = 2**24 // n  # with all images alike the sum is 2^24, and float32 holds only even numbers above
    rows = np.array([near - 1, near, near + 1, 2 * near + 1, 2**24 + 1, 3]) + rng.integers(0, 2, (n, 6))
    weights = all_weights(n, 40).astype(np.int64)
    assert np.array_equal(Bootstrap(n, n_resamples=40).rates([[rows.astype(kind)]], [None])[0], weights @ rows / n)


def test_numbers_of_both_signs_that_cancel_are_added_exactly() -> None:
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((200, 3)) < 0.5, 2**25 + 1, -(2**25))
    weights = all_weights(200, 30).astype(np.int64)
    assert np.array_equal(Bootstrap(200, n_resamples=30).rates([[rows]], [None])[0], weights @ rows / 200)


def test_large_counts_are_added_exactly() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(2**40, 2**41, (200, 2))
    (weights,) = all_weights(200, 1, seed=3)
    expected = sum(int(count) * int(row) for count, row in zip(weights, rows[:, 0], strict=True)) / 200
    interval = bootstrap_interval(rows, first_column, n_resamples=1, seed=3)
    assert interval.low == interval.high == expected


@pytest.mark.parametrize("size", [0.001, 1.0, 300.0])
def test_floats_of_any_size_are_rounded_in_proportion_to_the_largest(size: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((500, 1)) * size
    interval = bootstrap_interval(rows, first_column, n_resamples=50)
    expected = np.quantile(naive_values(rows, first_column, None, 50, 0), [0.025, 0.975])
    assert [interval.low, interval.high] == pytest.approx(expected.tolist(), rel=1e-12)
    assert mean_rates(rows)[0] == pytest.approx(rows.mean(), rel=1e-12)
    scaled = bootstrap_interval(rows * 1024, first_column, n_resamples=50)
    assert (scaled.low, scaled.high) == (interval.low * 1024, interval.high * 1024)


def test_counts_too_large_to_add_exactly_are_refused() -> None:
    with pytest.raises(UsageError, match="too large to add exactly"):
        bootstrap_interval(np.full((10, 1), 2**52), first_column)


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
            hits = sum(count for count, group, row in zip(counts, groups, rows, strict=True) if group == label and row[1])
            shares += [Fraction(hits, drawn)] if drawn else []
        assert 0.0 <= rate <= 1.0
        assert abs(Fraction(rate) - sum(shares) / len(shares)) <= Fraction(5 * n, 2**44)


def test_mean_rates_average_images_or_classes() -> None:
    rows, groups = np.array([[1, 4], [1, 0], [0, 2], [0, 2]]), np.array([3, 3, 8, 3])
    assert mean_rates(rows).tolist() == [0.5, 2.0]
    assert mean_rates(rows, groups=groups).tolist() == [(2 / 3 + 0) / 2, (2 + 2) / 2]
    with pytest.raises(UsageError, match="no image"):
        mean_rates(rows[:0])


@pytest.mark.parametrize("grouped", [False, True])
def test_means_of_blocks_are_the_means_of_all_rows(grouped: bool) -> None:
    rng = np.random.default_rng(0)
    tables = [table for table in tables_of_all_kinds(rng, 700) if table.dtype.kind in "bui"]
    groups = rng.integers(0, 9, 700) if grouped else None
    means = Bootstrap(700).means(cut(tables, [300, 0, 1]), [groups] * len(tables))
    for table, mean in zip(tables, means, strict=True):
        classes = [table] if groups is None else [table[groups == label] for label in range(9)]
        assert mean.tolist() == np.mean([rows.mean(axis=0) for rows in classes], axis=0).tolist()
        assert np.array_equal(mean, mean_rates(table, groups=groups))


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    rows = np.random.default_rng(0).random((80, 1))
    first, again, other = (bootstrap_interval(rows, first_column, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


@pytest.mark.parametrize("n", [1, 40, BLOCK, 2 * BLOCK + 7])
def test_resamples_draw_as_many_images_as_there_are(n: int) -> None:
    blocks = list(resampling_weights(n, 30))
    assert [block.shape[1] for block in blocks] == [BLOCK] * (n // BLOCK) + ([n % BLOCK] if n % BLOCK else [])
    assert all(len(block) == 30 for block in blocks)
    assert np.concatenate(blocks, axis=1).sum(axis=1).tolist() == [n] * 30


@pytest.mark.parametrize("size", [3, 4, 100])
def test_counts_are_multinomial_within_and_across_blocks(size: int) -> None:
    with small_blocks(size):
        weights = all_weights(10, 40_000).astype(float)
    # Mean 1, variance 1 - 1/10 and covariance -1/10, to five standard errors of 40,000 draws.
    assert weights.mean(axis=0) == pytest.approx(np.ones(10), abs=5 * np.sqrt(0.9 / 40_000))
    assert np.cov(weights.T) == pytest.approx(np.eye(10) - 0.1, abs=0.035)
    for image in (0, 9):
        observed = np.bincount(weights[:, image].astype(int), minlength=11)[:5]
        expected = 40_000 * stats.binom(10, 0.1).pmf(np.arange(5))
        assert np.abs(observed - expected).max() < 5 * np.sqrt(40_000 * 0.25)


def test_more_resamples_keep_the_first_ones() -> None:
    with small_blocks():
        assert np.array_equal(all_weights(23, 50)[:20], all_weights(23, 20))


def test_draws_of_a_seed_never_change() -> None:
    with small_blocks(4):
        assert all_weights(10, 2, seed=5).tolist() == [[1, 1, 0, 3, 1, 0, 1, 0, 2, 1], [0, 1, 0, 3, 1, 2, 1, 1, 0, 1]]


def test_memory_does_not_grow_with_the_images() -> None:
    def peak(n: int) -> int:
        rng = np.random.default_rng(0)
        blocks = ([rng.random((min(500, n - start), 40)) < 0.5] * 2 for start in range(0, n, 500))
        groups = [None, rng.integers(0, 20, n)]
        tracemalloc.start()
        Bootstrap(n, n_resamples=50).rates(blocks, groups)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8 * BLOCK) < 1.25 * peak(2 * BLOCK)


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
def test_settings_that_mean_nothing_are_refused(unchecked_shapes: None, rows: np.ndarray, settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bootstrap_interval(rows, first_column, **settings)


def test_runs_on_different_numbers_of_images_cannot_be_paired(unchecked_shapes: None) -> None:
    with pytest.raises(UsageError, match="the same images"):
        paired_difference(np.zeros((3, 1)), np.zeros((4, 1)), first_column)


ONES = np.ones((3, 2), bool)


@pytest.mark.parametrize(
    ("blocks", "groups", "message"),
    [
        ([[ONES]], [None], "blocks hold 3 images; expected 5"),
        ([[ONES], [ONES]], [None], "blocks hold more images; expected 5"),
        ([], [None], "blocks hold 0 images; expected 5"),
        ([[ONES, ONES]], [None], "expected 1 tables"),
        ([[ONES, ONES[:2]]], [None, None], "tables of 3, 2 rows"),
        ([[]], [], "no rows"),
        ([[ONES], [ONES[:2, :1]]], [None], "expected the same in every block"),
        ([[ONES], [ONES[:2].astype(float)]], [None], "expected the same in every block"),
        ([[np.full((5, 1), 1.5)]], [None], r"floats from 1.5 to 1.5; divide them .* into \[-1, 1\]"),
        ([[np.zeros((5, 1))]], [np.zeros(4, int)], r"groups of shape \(4,\) for 5 images"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(unchecked_shapes: None, blocks, groups, message: str) -> None:
    for method in (Bootstrap(5).rates, Bootstrap(5).means):
        with pytest.raises(UsageError, match=message):
            method(iter(blocks), groups)
