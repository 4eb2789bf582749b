"""Two runs on the same images, or two groups of runs with different seeds: the difference of every metric, with its interval.

All runs are resampled together: a resample draws the same images for each of them. The metric of a group is the mean over its
runs. The interval says what other images would have given, not what other seeds would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from wsolbench.exceptions import DataError
from wsolbench.metrics.confidence import Bootstrap, sign_p_value
from wsolbench.protocol import EvalProtocol
from wsolbench.score_table import ScoreTable
from wsolbench.split_scores import ImageRows, Metric, Rates, SplitScores
from wsolbench.summary import metrics_of


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """Metric of group B minus that of group A.

    Attributes:
        name, policy: the metric, and how its threshold was chosen, for each run by itself.
        a, b: means over the runs of each group.
        low, high: 95 % interval of the difference over images.
        p_value: two-sided, of the difference being 0.
        n: images.
        per_pair: difference of each run of B and the run of A at the same place; None when the groups have different sizes.
    """

    name: str
    policy: str | None
    a: float
    b: float
    low: float
    high: float
    p_value: float
    n: int
    per_pair: tuple[float, ...] | None

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a


def compare(
    a: Sequence[ScoreTable], b: Sequence[ScoreTable], protocol: EvalProtocol, *, resamples: int = 1000, seed: int = 0
) -> list[MetricDifference]:
    """Differences of the metrics that all runs have, in table order; thresholds are oracle thresholds of each run.

    Raises `DataError` when the runs are not of the same images.
    """
    runs = [SplitScores(table) for table in (*a, *b)]
    ids = [table.column(lambda part: part.ids).tolist() for table in (*a, *b)]
    for other in ids[1:]:
        if other != ids[0]:
            raise DataError("the runs have not scored the same images in the same order, so they cannot be compared image by image")
    by_run = [{(m.name, str(m.policy)): m for m in metrics_of(run, protocol, None, None) if isinstance(m, Metric)} for run in runs]
    shared = [key for key in by_run[0] if all(key in metrics for metrics in by_run)]
    images = dict.fromkeys(by_run[0][key].rows.images for key in shared)
    return [
        difference
        for which in images
        for difference in _differences(
            runs, [{key: run[key] for key in shared if run[key].rows.images == which} for run in by_run], len(a), resamples, seed
        )
    ]


def _differences(
    runs: Sequence[SplitScores], by_run: Sequence[dict[tuple[str, str], Metric]], n_a: int, resamples: int, seed: int
) -> Iterator[MetricDifference]:
    """Differences of metrics that are defined on the same images."""
    rows = [list(dict.fromkeys(metric.rows for metric in metrics.values())) for metrics in by_run]
    count = runs[0].count[rows[0][0].images]
    bootstrap = Bootstrap(count, n_resamples=resamples, seed=seed)
    groups = [group for run, tables in zip(runs, rows, strict=True) for group in run.groups(tables)]

    def blocks() -> Iterator[list[Shaped[np.ndarray, "m _"]]]:
        for parts in zip(*(run.blocks(tables) for run, tables in zip(runs, rows, strict=True)), strict=True):
            yield [table for part in parts for table in part]

    resampled = iter(bootstrap.rates(blocks(), groups))
    rates = [{table: next(resampled) for table in tables} for tables in rows]
    means = [run.means(tables) for run, tables in zip(runs, rows, strict=True)]
    for (name, policy), metric in by_run[0].items():
        key = (name, policy)
        values = [_values(run[key], found) for run, found in zip(by_run, rates, strict=True)]
        points = [
            float(_values(run[key], {table: mean[None] for table, mean in found.items()})[0])
            for run, found in zip(by_run, means, strict=True)
        ]
        value_a, value_b = np.mean(values[:n_a], axis=0), np.mean(values[n_a:], axis=0)
        try:
            interval = bootstrap.interval(value_b - value_a)
        except DataError:  # undefined where a resample has drawn no object pixel
            continue
        pairs = zip(points[:n_a], points[n_a:], strict=True) if 2 * n_a == len(points) else None
        yield MetricDifference(
            name=name,
            policy=None if metric.policy is None else policy,
            a=float(np.mean(points[:n_a])),
            b=float(np.mean(points[n_a:])),
            low=interval.low,
            high=interval.high,
            p_value=sign_p_value(value_b - value_a),
            n=count,
            per_pair=None if pairs is None else tuple(right - left for left, right in pairs),
        )


def _values(metric: Metric, rates: dict[ImageRows, Rates]) -> Shaped[np.ndarray, " r"]:
    return metric.value(rates[metric.rows])
