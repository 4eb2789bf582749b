"""Intervals of a metric that is read at its best threshold, and so is biased upwards.

The best of many noisy hit rates is above the rate that the best threshold has in truth. A resample picks its
best threshold once more, so the percentile interval is biased twice, and a small split's truth often lies
below it. The correction here bounds the noise of all thresholds that could be the best one at the same time:

    truth >= best(curve) - noise   unless the largest upward noise among these thresholds exceeds `noise`,
    truth <= best(curve) + noise'  unless the noise at the best threshold of the split is below -`noise'`.

Both tails are read from the resamples. Near a rate of 1 the noise is skewed, and the percentile interval
reaches lower than the first bound: the lower of both ends is taken. `benchmarks/interval_coverage.py`
measures how often each kind of interval holds the truth.

Source: intersection bounds with a preliminary selection of thresholds; Chernozhukov, Lee and Rosen,
"Intersection Bounds: Estimation and Inference", Econometrica 81(2), 2013. They bound a minimum; a maximum is
the same with the sign changed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Integer

from wsolbench.metrics.confidence import Bootstrap, Interval, Rows, within_unit

Curves = Callable[[Float64[np.ndarray, "r s"]], Float64[np.ndarray, "r d t"]]
"""From rates to d curves over t thresholds for each resample; the metric is the mean over curves of each
curve's maximum.
"""

FEW_IMAGES = 500
"""Below this number of images, the percentile interval of a number at its best threshold is noticeably too
narrow.
"""

_MARGIN = 2.5
"""Standard errors by which a threshold may be worse than the best one of the split and still be the best one
in truth.
"""


def best_value(curves: Float64[np.ndarray, "r d t"]) -> Float64[np.ndarray, " r"]:
    """The metric: the mean over curves of each curve's maximum over thresholds.

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

    It holds the truth in at least `level` of all splits where thresholds compete, up to the error of the
    bootstrap itself, and is up to a third wider than the percentile interval on typical curves. Arguments,
    errors and resamples are those of `bootstrap_interval`. Curves are fractions: no end of the interval
    leaves [0, 1].

    >>> hits = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    >>> interval = best_threshold_interval(hits, lambda rates: rates[:, None])
    >>> 0.0 <= interval.low <= 0.6 <= interval.high <= 1.0
    True
    """
    bootstrap = Bootstrap(len(rows), n_resamples=n_resamples, level=level, seed=seed)
    blocks, scale = within_unit(rows)
    (rates,) = bootstrap.rates(blocks, [groups])
    (means,) = bootstrap.means(blocks, [groups])
    return correct_for_choice(bootstrap, curves(means[None] * scale)[0], curves(rates * scale))


def correct_for_choice(
    bootstrap: Bootstrap, curves: Float64[np.ndarray, "d t"], resampled: Float64[np.ndarray, "r d t"]
) -> Interval:
    """The corrected interval, from the curves of the split and those of its resamples. Raises `DataError`
    where a curve is not finite.
    """
    plain = bootstrap.interval(best_value(resampled))  # refuses curves that are undefined in some resample
    value = float(best_value(curves[None])[0])
    noise = resampled - curves  # (r, d, t)
    at_best = np.empty(noise.shape[:2])
    largest = np.empty(noise.shape[:2])
    for row, curve in enumerate(curves):
        best = int(curve.argmax())
        at_best[:, row] = noise[:, row, best]
        behind = (noise[:, row] - at_best[:, row, None]).std(
            axis=0
        )  # (t,) standard error of the distance to the best
        largest[:, row] = noise[:, row, curve[best] - curve <= _MARGIN * behind].max(axis=1)
    below = max(0.0, bootstrap.interval(largest.mean(axis=1)).high)
    above = max(0.0, bootstrap.interval(-at_best.mean(axis=1)).high)
    low, high = max(0.0, min(value - below, plain.low)), min(1.0, value + above)
    return Interval(
        low=low, high=high, level=bootstrap.level, n_resamples=bootstrap.n_resamples, seed=bootstrap.seed
    )
