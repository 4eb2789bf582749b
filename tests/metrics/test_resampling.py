"""Resampled means are exact sums, and independent of blocks, threads and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.metrics.plain_bootstrap import (
    all_weights,
    cut,
    first_column,
    naive_rates,
    naive_values,
    small_blocks,
    tables_of_all_kinds,
)
from wsolbench.exceptions import UsageError
from wsolbench.metrics.confidence import BLOCK, Bootstrap, bootstrap_interval, mean_rates, resampling_weights


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
        np.testing.assert_allclose(
            got, plain, rtol=0, atol=1e-9 * float(np.abs(table.astype(float)).max(initial=1.0))
        )


@settings(max_examples=30)
@given(st.integers(1, 40), st.lists(st.integers(0, 9), max_size=5), st.booleans(), st.integers(2, 9))
def test_how_the_images_are_cut_into_blocks_changes_no_bit(
    n: int, lengths: list[int], grouped: bool, size: int
) -> None:
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
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "OMP_NUM_THREADS": threads,
            },
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
    near = 2**24 // n  # with equal images the sum is 2^24; float32 represents only even numbers above it
    rows = np.array([near - 1, near, near + 1, 2 * near + 1, 2**24 + 1, 3]) + rng.integers(0, 2, (n, 6))
    weights = all_weights(n, 40).astype(np.int64)
    assert np.array_equal(
        Bootstrap(n, n_resamples=40).rates([[rows.astype(kind)]], [None])[0], weights @ rows / n
    )


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
        assert all_weights(10, 2, seed=5).tolist() == [
            [1, 1, 0, 3, 1, 0, 1, 0, 2, 1],
            [0, 1, 0, 3, 1, 2, 1, 1, 0, 1],
        ]


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
