"""Intervals over images and seeds, and the correction of Holm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_ind, ttest_rel

from wsolbench.metrics.seed_intervals import crossed_interval, holm, independent_spread, paired_spread

A, B = [0.50, 0.53, 0.49, 0.55], [0.56, 0.55, 0.57, 0.58]
Z = float(norm.isf(0.025))


def interval(difference: float, over_images: float, differences: list[float]):
    """An interval whose half width over images is `over_images` standard errors."""
    spread = paired_spread(differences)
    assert spread is not None
    ends = difference - Z * over_images, difference + Z * over_images
    return crossed_interval(difference, *ends, spread=spread)


def test_without_noise_of_images_it_is_students_test_of_the_seeds() -> None:
    differences = np.subtract(B, A)
    found = interval(float(differences.mean()), 0, differences.tolist())
    expected = ttest_rel(B, A)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    spread = independent_spread(A, B)
    assert spread is not None
    mean = float(np.mean(B) - np.mean(A))
    welch = ttest_ind(B, A, equal_var=False)
    found = crossed_interval(mean, mean, mean, spread=spread)
    assert found.p_value == pytest.approx(welch.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval(0.95)))


def test_with_equal_seeds_it_is_the_interval_over_images() -> None:
    found = interval(0.03, 0.01, [0.03, 0.03, 0.03])
    assert (found.low, found.high) == pytest.approx((0.03 - Z * 0.01, 0.03 + Z * 0.01))
    assert found.p_value == pytest.approx(2 * norm.sf(3), rel=1e-6)


@pytest.mark.parametrize("over_images", [0.001, 0.01, 0.03])
@pytest.mark.parametrize("differences", [[0.01, 0.05], [0.01, 0.02, 0.04], [0.01, 0.02, 0.02, 0.03, 0.02]])
def test_it_is_between_both_kinds_and_its_p_value_is_the_level_at_which_it_ends_at_zero(
    over_images: float, differences: list[float]
) -> None:
    mean = float(np.mean(differences))
    found = interval(mean, over_images, differences)
    error = math.hypot(over_images, np.std(differences, ddof=1) / math.sqrt(len(differences)))
    assert Z * error <= found.high - mean <= t.isf(0.025, len(differences) - 1) * error
    assert mean - found.low == pytest.approx(found.high - mean)
    assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    # Move the difference so that the interval just ends at 0: its p-value is 5 %.
    reach = found.high - mean
    shifted = [value + reach - mean for value in differences]
    assert interval(reach, over_images, shifted).p_value == pytest.approx(0.05, rel=1e-6)


def test_nothing_that_varies_leaves_no_doubt() -> None:
    assert interval(0, 0, [0, 0]).p_value == 1
    assert interval(0.1, 0, [0.1, 0.1]).p_value == 0
    assert 0 < interval(0.9, 1e-9, [0.9, 0.9]).p_value < 1e-15


def test_one_run_has_no_spread() -> None:
    assert paired_spread([0.1]) is None
    assert independent_spread([0.1], [0.1, 0.2]) is None


def test_a_p_value_exists_for_any_degrees_of_freedom() -> None:
    rng = np.random.default_rng(2)
    for a, b in zip(rng.random((300, 3)), rng.random((300, 3)), strict=True):
        spread = independent_spread(a.tolist(), b.tolist())
        assert spread is not None
        assert 0 < crossed_interval(float(a.mean()), 0.1, 0.2, spread=spread).p_value <= 1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for ratio in (0.0, 0.5, 3.0):  # error over seeds, relative to that over images
        seeds = rng.normal(0, ratio * math.sqrt(3), (600, 3))
        means = seeds.mean(axis=1) + rng.normal(0, 1, 600)
        found = [interval(mean, 1, row.tolist()) for mean, row in zip(means, seeds, strict=True)]
        assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.93


def test_holm_rejects_what_closed_testing_of_bonferroni_rejects() -> None:
    """A hypothesis is rejected if Bonferroni rejects every set of hypotheses that contains it."""
    rng = np.random.default_rng(1)
    for p_values in rng.beta(0.4, 2, (30, 5)):
        for test, corrected in enumerate(holm(p_values.tolist())):
            sets = [
                members
                for count in range(1, 6)
                for members in itertools.combinations(range(5), count)
                if test in members
            ]
            closed = max(min(1.0, len(members) * min(p_values[list(members)])) for members in sets)
            assert corrected == pytest.approx(closed)
    assert holm([]) == []
