"""Compare two runs on the same images, or two groups of runs with different seeds, metric by metric.

Each difference has an interval over images. All runs are resampled together: a resample draws the same
images for each of them. The metric of a group is the mean over its runs. Groups of several seeds also have an
interval over images and seeds (`wsolbench.metrics.seed_intervals`).

Groups with unequal training budgets are refused, unless they are asked for (`wsolbench.records.budget`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from wsolbench.evaluation.score_table import ScoreTable, are_scores_of, find_scores
from wsolbench.evaluation.split_scores import ImageRows, Metric, Rates, SplitScores
from wsolbench.evaluation.summary import metrics_of
from wsolbench.exceptions import DataError
from wsolbench.metrics.confidence import Bootstrap, sign_p_value
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.records.budget import Budgets
from wsolbench.records.comparison import SAME, Comparison, MetricDifference


def compare(
    a: Sequence[ScoreTable],
    b: Sequence[ScoreTable],
    protocol: EvalProtocol,
    *,
    resamples: int = 1000,
    seed: int = 0,
    same_seeds: bool = True,
    paired: bool = True,
    only: Collection[str] | None = None,
) -> list[MetricDifference]:
    """Return the differences of the metrics that all runs have, in table order. `only` selects some of them.

    With `same_seeds`, runs at the same position of groups of equal size have the same seed. With `paired` as
    well, they share weights. Thresholds are the oracle thresholds of each run. Raises `DataError` if the runs
    scored different images.
    """
    # Check that the runs are paired.
    runs = [SplitScores(table) for table in (*a, *b)]
    ids = [table.column(lambda part: part.ids).tolist() for table in (*a, *b)]
    for other in ids[1:]:
        if other != ids[0]:
            raise DataError(
                "the runs have scored different images, or in another order; expected the same images, "
                "so that the runs can be compared image by image"
            )
    # Find the metrics that all runs have, and resample those together that share their images.
    by_run = [
        {(m.name, str(m.policy)): m for m in metrics_of(run, protocol, None, None) if isinstance(m, Metric)}
        for run in runs
    ]
    shared = [
        key
        for key in by_run[0]
        if all(key in metrics for metrics in by_run) and (only is None or key[0] in only)
    ]
    images = dict.fromkeys(by_run[0][key].rows.images for key in shared)
    return [
        difference
        for which in images
        for difference in _differences(
            runs,
            [{key: run[key] for key in shared if run[key].rows.images == which} for run in by_run],
            len(a),
            resamples,
            seed,
            same_seeds and len(a) == len(b),
            paired,
        )
    ]


def _differences(
    runs: Sequence[SplitScores],
    by_run: Sequence[dict[tuple[str, str], Metric]],
    n_a: int,
    resamples: int,
    seed: int,
    same_seeds: bool,
    paired: bool,
) -> Iterator[MetricDifference]:
    """Yield the differences of metrics that are defined on the same images."""
    # Resample all tables of all runs with the same draws.
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
    # Read each metric from the means and from the resampled means.
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
        except DataError:  # undefined because some resample drew no object pixel
            continue
        left, right = tuple(points[:n_a]), tuple(points[n_a:])
        yield MetricDifference(
            name=name,
            policy=None if metric.policy is None else policy,
            a=float(np.mean(points[:n_a])),
            b=float(np.mean(points[n_a:])),
            low=interval.low,
            high=interval.high,
            p_value=sign_p_value(value_b - value_a),
            n=count,
            per_pair=tuple(np.subtract(right, left).tolist()) if same_seeds else None,
            per_run=(left, right),
            paired=paired and same_seeds,
        )


def _values(metric: Metric, rates: dict[ImageRows, Rates]) -> Shaped[np.ndarray, " r"]:
    return metric.value(rates[metric.rows])


def read_scores(path: Path, record: RunRecord) -> ScoreTable:
    """Read the per-image scores next to a record.

    Raises `DataError` naming both files if the scores are missing, broken, or of another run. Scores belong
    to a record if they name it. Older files name no record: their scores must give the record's values.
    """
    file, protocol = find_scores(path), record.map_protocol
    images, thresholds = ScoreTable.sizes_in(file)
    for what, found, expected in (
        ("images", images, record.dataset.get("images")),
        ("thresholds", thresholds, len(protocol.taus)),
    ):
        if expected is not None and found != expected:
            raise DataError(f"{file} has scores of {found} {what}; its record {path} has {expected}")
    scores = ScoreTable.read(file)
    if scores.written_with and not are_scores_of(scores, record):
        raise DataError(
            f"{file} has scores of other images or values than its record {path}; evaluate again with "
            "--save-scores"
        )
    if not scores.written_with:
        _check_values(scores, record, f"{file} has scores that do not give the values of its record {path}")
    return scores


def _check_values(scores: ScoreTable, record: RunRecord, what: str) -> None:
    """Raise `DataError` for scores that do not give a record's values. Transferred thresholds are ignored."""
    split = SplitScores(scores)
    metrics = [
        metric for metric in metrics_of(split, record.map_protocol, None, None) if isinstance(metric, Metric)
    ]
    means = split.means(list(dict.fromkeys(metric.rows for metric in metrics)))
    for metric in metrics:
        stored = next(
            (
                m
                for m in record.metrics
                if (m.name, m.policy) == (metric.name, metric.policy and str(metric.policy))
            ),
            None,
        )
        found = float(metric.value(means[metric.rows][None])[0])
        if (
            stored is not None
            and stored.value is not None
            and abs(found - stored.value) > SAME * max(1.0, stored.value)
        ):
            raise DataError(
                f"{what}: {metric.name} is {found:.6g}, the record says {stored.value:.6g}. Evaluate again "
                "with --save-scores"
            )


def compare_records(
    a: Mapping[Path, RunRecord],
    b: Mapping[Path, RunRecord],
    *,
    resamples: int,
    budgets: Budgets,
    allow_unequal_budget: bool = False,
    only: Collection[str] | None = None,
) -> Comparison:
    """Compare group B with group A: records of the same images and protocol, by path, with stored scores.

    `only` selects metrics. None compares all.

    Raises `DataError` naming the files whose scores cannot be used, or that differ in more than the method.
    With `allow_unequal_budget`, budgets may differ; the comparison then states it.
    """
    a, b = (dict(sorted(group.items(), key=lambda item: _seed(item[1]) or 0)) for group in (a, b))
    paths, records = [*a, *b], [*a.values(), *b.values()]
    protocol = records[0].map_protocol
    # Check that only the method differs.
    for path, record in zip(paths, records, strict=True):
        for what, fields in (("data set", ("name", "split", "fingerprint")), ("protocol", None)):
            mine, theirs = (
                each.protocol if fields is None else [each.dataset.get(name) for name in fields]
                for each in (record, records[0])
            )
            if mine != theirs:
                raise DataError(
                    f"{path} has another {what} than {paths[0]}; expected runs on the same images with "
                    "the same protocol"
                )
    gap = budgets.gap(list(a.values()), list(b.values()))
    if gap.is_unequal and not allow_unequal_budget:
        raise DataError(
            f"{paths[len(a)]} and {paths[0]} have an {gap}; expected runs that differ only in the method. "
            "Train one with the other's budget, or state the difference with --allow-unequal-budget"
        )
    # Resample the scores. Runs of the same seed are paired if they share weights.
    scores = [read_scores(path, record) for path, record in zip(paths, records, strict=True)]
    try:
        differences = compare(
            scores[: len(a)],
            scores[len(a) :],
            protocol,
            resamples=resamples,
            same_seeds=len(paths) == 2 or [*map(_seed, a.values())] == [*map(_seed, b.values())],
            paired=budgets.share_weights([*a.values()], [*b.values()]),
            only=only,
        )
    except DataError as error:
        raise DataError(f"{', '.join(map(str, paths))}: {error}") from error
    return Comparison.make(records[: len(a)], records[len(a) :], differences, gap, resamples)


def _seed(record: RunRecord) -> int | None:
    seed: int | None = record.training.get("seed")
    return seed
