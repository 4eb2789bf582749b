"""Interval of a difference over images and seeds, for two groups of runs on the same images.

A difference of two methods varies for two reasons: other test images, and other trainings. Images and seeds
are crossed, because every run scores every image. The bootstrap over images gives the first variance, with
the runs held fixed. The runs of a group give the second. Their sum is the variance of the difference. It
counts the interaction of images and seeds twice, so it is not too small (Owen, "The pigeonhole bootstrap",
Annals of Applied Statistics 1, 2007).

The critical value is the mean of those of both parts, weighted by their variances (Cochran and Cox,
"Experimental Designs", 1957, section 4.14): the normal one for images, Student's t for seeds. So the interval
is wide if it rests on the spread of few runs.

A bootstrap over the seeds themselves is too narrow: it shrinks the variance of K runs by (K - 1) / K and
ignores that K runs estimate it badly. docs/decisions/intervals.md has the measured coverage of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
"""Level of the interval over images that enters, and of the interval that is returned."""

_SMALLEST = 1e-16
"""Smallest p-value that is computed. Quantiles of Student's t are not reliable far below it."""


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """How a difference varies between trainings.

    Attributes:
        sd: standard deviation of the difference of one run of B and one run of A.
        error: standard error of the mean difference, over seeds only.
        degrees: degrees of freedom of both.
    """

    sd: float
    error: float
    degrees: float


@dataclass(frozen=True, kw_only=True)
class CrossedInterval:
    """A 95 % interval over images and seeds, and the two-sided p-value of a difference of 0."""

    low: float
    high: float
    p_value: float


def paired_spread(differences: Sequence[float]) -> SeedSpread | None:
    """Return the spread of the differences of runs with equal seeds, or None for fewer than two.

    >>> paired_spread([0.01, 0.03]).degrees
    1
    """
    if len(differences) < 2:
        return None
    sd = float(np.std(differences, ddof=1))
    return SeedSpread(sd=sd, error=sd / math.sqrt(len(differences)), degrees=len(differences) - 1)


def independent_spread(a: Sequence[float], b: Sequence[float]) -> SeedSpread | None:
    """Return the spread of groups with different seeds, or None if a group has fewer than two runs.

    Source of the degrees of freedom: Welch, Biometrika 34, 1947.
    """
    if min(len(a), len(b)) < 2:
        return None
    variances = [float(np.var(group, ddof=1)) for group in (a, b)]
    errors = [variance / len(group) for variance, group in zip(variances, (a, b), strict=True)]
    below = sum(error**2 / (len(group) - 1) for error, group in zip(errors, (a, b), strict=True))
    return SeedSpread(
        sd=math.sqrt(sum(variances)),
        error=math.sqrt(sum(errors)),
        degrees=sum(errors) ** 2 / below if below else len(a) + len(b) - 2,
    )


def crossed_interval(difference: float, low: float, high: float, *, spread: SeedSpread) -> CrossedInterval:
    """Return the interval of a difference over images and seeds, centred at the difference.

    Args:
        difference: mean of B minus mean of A.
        low: lower end of its 95 % interval over images, with the runs held fixed.
        high: upper end of it.
        spread: how the difference varies between seeds.

    >>> interval = crossed_interval(0.02, 0.0, 0.04, spread=paired_spread([0.02, 0.02, 0.02]))
    >>> round(interval.low, 4) + 0.0, round(interval.high, 4)
    (0.0, 0.04)
    """
    # Squared standard errors over images and over seeds.
    over_images = ((high - low) / (-2 * ndtri((1 - LEVEL) / 2))) ** 2
    over_seeds = spread.error**2
    error = math.sqrt(over_images + over_seeds)
    if error == 0:
        return CrossedInterval(low=difference, high=difference, p_value=float(difference == 0))
    share = over_seeds / (over_images + over_seeds)

    def critical(p_value: float) -> float:
        tail = p_value / 2
        return -float((1 - share) * ndtri(tail) + share * stdtrit(spread.degrees, tail))

    # The p-value is the level at which the interval would end at 0.
    reach, distance = critical(1 - LEVEL) * error, abs(difference) / error
    smallest = critical(_SMALLEST)
    p_value = (
        math.exp(brentq(lambda log_p: critical(math.exp(log_p)) - distance, math.log(_SMALLEST), 0))
        if distance < smallest
        else _SMALLEST
    )
    return CrossedInterval(low=difference - reach, high=difference + reach, p_value=p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for the number of tests, in the given order.

    Rejecting those that are at most alpha keeps the probability of any false rejection at most alpha.
    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
