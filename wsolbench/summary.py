"""From per-image scores to the metrics of a record: every metric, under every threshold policy, with its interval.

A metric is a table of per-image integers (`rows`) and a function of their means over images (`value`): hits at each
threshold and the best of their means, pixel histograms and their average precision. The same function gives the number
and, over resampled means, its bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, Shaped

from wsolbench.exceptions import DataError
from wsolbench.metrics.confidence import Interval, bootstrap_interval, mean_rates
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.metrics.max_box_acc import passes
from wsolbench.metrics.peak_iou import pixel_iou
from wsolbench.metrics.pxap import average_precision
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue
from wsolbench.scores import ImageScores

Rates = Float64[np.ndarray, "r s"]
"""Means over images of each column of a table, one row for each resample."""

_ONE_BOX_DELTA = 0.5
"""IoU threshold of GT-known, Top-k Loc and MaxBoxAcc (V1)."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A metric: `value(means of rows) -> (r,)` over the images that it is defined on."""

    name: str
    rows: Shaped[np.ndarray, "n s"]
    value: Callable[[Rates], Float64[np.ndarray, " r"]]
    groups: Int64[np.ndarray, " n"] | None = None
    policy: ThresholdPolicy | None = None
    tau: tuple[float, ...] | None = None


def summarize(
    scores: ImageScores,
    protocol: EvalProtocol,
    *,
    fixed_tau: float | None = None,
    transfer_from: ImageScores | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[MetricValue, ...]:
    """Every metric that the scores allow, in table order; the others with value None and the reason.

    Args:
        scores: of the evaluated split.
        protocol: the one that they were scored under.
        fixed_tau: threshold of the policy `fixed`; default `protocol.fixed_tau`; None: no such policy.
        transfer_from: scores of another split, whose best thresholds the policy `transfer` applies.
        resamples, seed: of the bootstrap intervals.
    """
    fixed_tau = protocol.fixed_tau if fixed_tau is None else fixed_tau
    metrics: list[MetricValue] = []
    for table in _tables(scores, protocol, fixed_tau, transfer_from):
        if isinstance(table, MetricValue):
            metrics.append(table)
            continue
        point = float(table.value(mean_rates(table.rows, groups=table.groups)[None])[0])
        interval = _interval(table, resamples, seed)
        metrics.append(
            MetricValue(
                name=table.name,
                value=point,
                low=None if interval is None else interval.low,
                high=None if interval is None else interval.high,
                n=len(table.rows),
                policy=None if table.policy is None else str(table.policy),
                tau=table.tau,
            )
        )
    return tuple(metrics)


def _interval(table: _Table, resamples: int, seed: int) -> Interval | None:
    """None where some resample leaves the metric undefined: so few images have an object pixel that one may draw none."""
    try:
        return bootstrap_interval(table.rows, table.value, groups=table.groups, n_resamples=resamples, seed=seed)
    except DataError:
        return None


def _tables(
    scores: ImageScores, protocol: EvalProtocol, fixed_tau: float | None, other: ImageScores | None
) -> Iterator[_Table | MetricValue]:
    yield from _classification(scores)
    if scores.has_boxes.any():
        boxed = _select(scores, scores.has_boxes)
        boxed_other = None if other is None or not other.has_boxes.any() else _select(other, other.has_boxes)
        yield from _boxes(boxed, protocol, fixed_tau, boxed_other)
        yield from _errors(boxed, protocol, fixed_tau, boxed_other)
    else:
        for name in ("gt_known", "top1_loc", "top5_loc", "max_box_acc", "max_box_acc_v2"):
            yield MetricValue(name=name, value=None, n=0, reason="no image has a true box")
    if scores.has_mask.any():
        yield from _masks(_select(scores, scores.has_mask))
    else:
        for name in ("pxap", "peak_iou", "peak_t", "mean_image_iou"):
            yield MetricValue(name=name, value=None, n=0, reason="no image has a mask")


def _select(scores: ImageScores, chosen: Bool[np.ndarray, " n"]) -> ImageScores:
    return replace(scores, **{name: getattr(scores, name)[chosen] for name in scores.__dataclass_fields__})


def _in_top(scores: ImageScores, k: int) -> Bool[np.ndarray, " n"]:
    return np.asarray((scores.ranked[:, :k] == scores.labels[:, None]).any(axis=1))


def _first_column(rates: Rates) -> Float64[np.ndarray, " r"]:
    return rates[:, 0]


def _classification(scores: ImageScores) -> Iterator[_Table | MetricValue]:
    ranks = scores.ranked.shape[1]
    for name, k in (("top1_cls", 1), ("top5_cls", 5)):
        if ranks >= k:
            yield _Table(name=name, rows=_in_top(scores, k)[:, None], value=_first_column)
        else:
            yield MetricValue(name=name, value=None, n=0, reason=_no_labels(ranks, k))
    if ranks:
        yield _Table(name="mean_class_accuracy", rows=_in_top(scores, 1)[:, None], value=_first_column, groups=scores.labels)


def _no_labels(ranks: int, k: int) -> str:
    return "no predicted labels" if not ranks else f"only {ranks} predicted labels an image, {k} are needed"


def _boxes(
    scores: ImageScores, protocol: EvalProtocol, fixed_tau: float | None, other: ImageScores | None
) -> Iterator[_Table | MetricValue]:
    for name, hits in _box_metrics(protocol):
        found = hits(scores)
        if found is None:
            ranks, k = scores.ranked.shape[1], 1 if name == "top1_loc" else 5
            yield MetricValue(name=name, value=None, n=0, reason=_no_labels(ranks, k))
            continue
        groups = scores.labels if protocol.averaging == "class" else None
        rows = found.reshape(len(found), -1)
        curve = mean_rates(rows, groups=groups).reshape(found.shape[1:])
        shared = protocol.v2_tau == "shared"
        for policy in _policies(hits, protocol, fixed_tau, other):
            index = policy.pick(curve, np.array(protocol.taus), shared=shared)
            tau = tuple(protocol.taus[column] for column in index)
            table = _Table(name=name, rows=rows, value=_first_column, groups=groups, policy=policy, tau=tau)
            if policy.kind == "oracle":
                yield replace(table, value=partial(_best, shape=found.shape[1:], shared=shared))
            else:
                yield replace(table, rows=_at(found, index), value=_mean_of_columns)
            if name == "max_box_acc_v2" and shared:
                for row, delta in enumerate(protocol.deltas):
                    part = _at(found, index)[:, row : row + 1]
                    yield replace(table, name=f"{name}@{delta:g}", rows=part, value=_first_column, tau=tau[row : row + 1])


def _at(hits: Bool[np.ndarray, "n d t"], index: Integer[np.ndarray, " d"]) -> Bool[np.ndarray, "n d"]:
    """Hits of each delta at its threshold."""
    return np.asarray(np.take_along_axis(hits, index[None, :, None], axis=2)[:, :, 0])


Hits = Callable[[ImageScores], Bool[np.ndarray, "n d t"] | None]


def _box_metrics(protocol: EvalProtocol) -> Iterator[tuple[str, Hits]]:
    """Name and hits at each delta and threshold; None where there are too few predicted labels."""

    def one_box(scores: ImageScores) -> Bool[np.ndarray, "n 1 t"]:
        return passes(scores.single_iou[:, None], _ONE_BOX_DELTA, protocol.iou_test)

    def top_k(scores: ImageScores, k: int) -> Bool[np.ndarray, "n 1 t"] | None:
        if scores.ranked.shape[1] < k:
            return None
        return np.asarray(passes(scores.single_iou[:, None], _ONE_BOX_DELTA, protocol.topk_iou_test) & _in_top(scores, k)[:, None, None])

    def at(scores: ImageScores, deltas: tuple[float, ...]) -> Bool[np.ndarray, "n d t"]:
        return np.stack([passes(scores.best_iou, delta, protocol.iou_test) for delta in deltas], axis=1)

    yield "gt_known", one_box
    yield "top1_loc", partial(top_k, k=1)
    yield "top5_loc", partial(top_k, k=5)
    yield "max_box_acc", one_box
    yield "max_box_acc_v2", partial(at, deltas=protocol.deltas)
    if protocol.v2_tau == "per_delta":  # with a shared threshold the parts are read at that of the whole
        for delta in protocol.deltas:
            yield f"max_box_acc_v2@{delta:g}", partial(at, deltas=(delta,))


def _policies(hits: Hits, protocol: EvalProtocol, fixed_tau: float | None, other: ImageScores | None) -> Iterator[ThresholdPolicy]:
    yield ThresholdPolicy.oracle()
    if fixed_tau is not None:
        yield ThresholdPolicy.fixed(fixed_tau)
    found = None if other is None else hits(other)
    if other is not None and found is not None:
        groups = other.labels if protocol.averaging == "class" else None
        curve = mean_rates(found.reshape(len(found), -1), groups=groups).reshape(found.shape[1:])
        index = ThresholdPolicy.oracle().pick(curve, np.array(protocol.taus), shared=protocol.v2_tau == "shared")
        yield ThresholdPolicy.transfer(protocol.taus[column] for column in index)


def _best(rates: Rates, *, shape: tuple[int, int], shared: bool) -> Float64[np.ndarray, " r"]:
    curves = rates.reshape(-1, *shape)  # (r, d, t)
    return np.asarray(curves.mean(axis=1).max(axis=1) if shared else curves.max(axis=2).mean(axis=1))


def _mean_of_columns(rates: Rates) -> Float64[np.ndarray, " r"]:
    return np.asarray(rates.mean(axis=1))


def _errors(
    scores: ImageScores, protocol: EvalProtocol, fixed_tau: float | None, other: ImageScores | None
) -> Iterator[_Table | MetricValue]:
    """The error breakdown at the threshold that GT-known is read at, for each policy; shares of all images, whatever is averaged."""
    if not scores.ranked.shape[1]:
        for name in ERROR_NAMES:
            yield MetricValue(name=f"error_{name}", value=None, n=0, reason="no predicted labels")
        return
    hits = next(iter(_box_metrics(protocol)))[1]
    found = hits(scores)
    assert found is not None
    groups = scores.labels if protocol.averaging == "class" else None
    curve = mean_rates(found.reshape(len(found), -1), groups=groups).reshape(found.shape[1:])
    for policy in _policies(hits, protocol, fixed_tau, other):
        index = int(policy.pick(curve, np.array(protocol.taus))[0])
        codes = np.where(_in_top(scores, 1), scores.error_codes[:, index], ERROR_NAMES.index("cls"))
        for code, name in enumerate(ERROR_NAMES):
            yield _Table(
                name=f"error_{name}", rows=(codes == code)[:, None], value=_first_column, policy=policy, tau=(protocol.taus[index],)
            )


def _masks(scores: ImageScores) -> Iterator[_Table | MetricValue]:
    n = len(scores)
    if not scores.pixel_histogram[:, 0].any():
        for name in ("pxap", "peak_iou", "peak_t", "mean_image_iou"):
            yield MetricValue(name=name, value=None, n=n, reason="no mask has an object pixel")
        return
    bins = scores.pixel_histogram.shape[2]
    yield _Table(name="pxap", rows=scores.pixel_histogram.reshape(n, -1), value=lambda rates: average_precision(rates.reshape(-1, 2, bins)))
    levels = scores.level_histogram.reshape(n, -1)
    oracle = ThresholdPolicy.oracle()
    peak = int(pixel_iou(scores.level_histogram.sum(axis=0)).argmax())
    for name, value in (("peak_iou", _peak_iou), ("peak_t", _peak_t)):
        yield _Table(name=name, rows=levels, value=value, policy=oracle, tau=(peak / 255,))
    per_image = pixel_iou(scores.level_histogram[scores.level_histogram[:, 0].any(axis=1)])
    best = int(per_image.mean(axis=0).argmax())
    yield _Table(name="mean_image_iou", rows=per_image, value=lambda rates: np.asarray(rates.max(axis=1)), policy=oracle, tau=(best / 255,))


def _peak_iou(rates: Rates) -> Float64[np.ndarray, " r"]:
    return np.asarray(pixel_iou(rates.reshape(-1, 2, 256)).max(axis=1))


def _peak_t(rates: Rates) -> Float64[np.ndarray, " r"]:
    return np.asarray(pixel_iou(rates.reshape(-1, 2, 256)).argmax(axis=1), dtype=np.float64)
