"""Corrected intervals for a metric at its best threshold, which is biased upwards.

The maximum of many noisy hit rates exceeds the true rate of the best threshold. Each resample again picks
its own best threshold, so the percentile interval is biased twice. On a small split the true value often
lies below it. The correction bounds, simultaneously, the noise of all thresholds that could be the best:

    truth >= best(curve) - noise   unless the largest upward noise among these thresholds exceeds `noise`,
    truth <= best(curve) + noise'  unless the noise at the best threshold of the split is below -`noise'`.

Both tails are estimated from the resamples. Near a rate of 1 the noise is skewed, and the percentile interval
reaches lower than the first bound. The lower of the two ends is used. `benchmarks/interval_coverage.py`
measures the coverage of each kind of interval.

Source: intersection bounds with a preliminary selection of thresholds; Chernozhukov, Lee and Rosen,
"Intersection Bounds: Estimation and Inference", Econometrica 81(2), 2013. They bound a minimum; a maximum is
the same with the sign changed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Integer

from wsolbench.metrics.confidence import Bootstrap, Interval, Rows, scale_to_unit

Curves = Callable[[Float64[np.ndarray, "r s"]], Float64[np.ndarray, "r d t"]]
"""Maps rates to d curves over t thresholds, for each resample.

The metric is the mean over curves of each curve's maximum.
"""

FEW_IMAGES = 500
"""Number of images below which the percentile interval at the best threshold is noticeably too narrow."""

_MARGIN = 2.5
"""Largest distance to the best of the split, in standard errors, of a candidate for the best threshold."""


def best_value(curves: Float64[np.ndarray, "r d t"]) -> Float64[np.ndarray, " r"]:
    """Return the metric: the mean over curves of each curve's maximum over thresholds.

    >>> best_value(np.array([[[0.2, 0.6], [0.4, 0.0]]]))
    array([0.5])
    """
    return np.asarray(curves.max(axis=2).mean(axis=1))


def best_threshold_interval(
    rows: Rows,
    curves: Curves,
    *,
    groups: Integer[np.ndarray, " n"] | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of `best_value(curves(mean of rows over images))`, corrected for the choice of the threshold.

    Where thresholds compete, it covers the true value in at least `level` of all splits, up to the error of
    the bootstrap itself. On typical curves it is up to a third wider than the percentile interval.
    Arguments, errors and resamples are those of `bootstrap_interval`. Curves are fractions, so the interval
    stays in [0, 1].

    >>> hits = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    >>> interval = best_threshold_interval(hits, lambda rates: rates[:, None])
    >>> 0.0 <= interval.low <= 0.6 <= interval.high <= 1.0
    True
    """
    bootstrap = Bootstrap(len(rows), n_resamples=n_resamples, level=level, seed=seed)
    blocks, scale = scale_to_unit(rows)
    (rates,) = bootstrap.rates(blocks, [groups])
    (means,) = bootstrap.means(blocks, [groups])
    return correct_for_choice(bootstrap, curves(means[None] * scale)[0], curves(rates * scale))


def correct_for_choice(
    bootstrap: Bootstrap, curves: Float64[np.ndarray, "d t"], resampled: Float64[np.ndarray, "r d t"]
) -> Interval:
    """Return the corrected interval from the curves of the split and those of its resamples.

    Raises `DataError` if a curve is not finite.
    """
    plain = bootstrap.interval(best_value(resampled))  # raises if a resample is not finite
    value = float(best_value(curves[None])[0])
    noise = resampled - curves  # (r, d, t)
    # For each curve: the noise at the best threshold, and the largest noise among candidates for the best.
    at_best = np.empty(noise.shape[:2])
    largest = np.empty(noise.shape[:2])
    for row, curve in enumerate(curves):
        best = int(curve.argmax())
        at_best[:, row] = noise[:, row, best]
        # Standard error of each threshold's distance to the best one, (t,).
        behind = (noise[:, row] - at_best[:, row, None]).std(axis=0)
        largest[:, row] = noise[:, row, curve[best] - curve <= _MARGIN * behind].max(axis=1)
    # The two bounds of the module's header, each end at least as far out as the plain interval allows.
    below = max(0.0, bootstrap.interval(largest.mean(axis=1)).high)
    above = max(0.0, bootstrap.interval(-at_best.mean(axis=1)).high)
    low, high = max(0.0, min(value - below, plain.low)), min(1.0, value + above)
    return Interval(
        low=low, high=high, level=bootstrap.level, n_resamples=bootstrap.n_resamples, seed=bootstrap.seed
    )
