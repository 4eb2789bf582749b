"""Metrics of a record from per-image scores: every metric under every threshold policy, with its interval."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer

from wsolbench.evaluation.extra_metrics.base import load_extra_metric
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores
from wsolbench.evaluation.split_scores import ImageRows, Metric, Rates, SplitScores, Summary, ratio
from wsolbench.exceptions import DataError
from wsolbench.maps.sources import PARTS
from wsolbench.metrics.best_threshold import Curves, best_value, correct_for_choice
from wsolbench.metrics.catalog import metric_info, offered_metrics
from wsolbench.metrics.confidence import Bootstrap
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.metrics.keypoints import NEAR, slot_mean
from wsolbench.metrics.max_box_acc import passes
from wsolbench.metrics.peak_iou import pixel_iou
from wsolbench.metrics.pxap import average_precision
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import DELTA, EvalProtocol
from wsolbench.records import MetricValue


def summarize(
    scores: ScoreTable,
    protocol: EvalProtocol,
    *,
    fixed_tau: float | None = None,
    transfer_from: ScoreTable | StatedThresholds | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[MetricValue, ...]:
    """Compute every metric that the scores allow, in table order. Others get the value None and a reason.

    Args:
        scores: scores of the evaluated split.
        protocol: the protocol that they were scored under.
        fixed_tau: threshold of the policy `fixed`. If None, `protocol.fixed_tau`. If that is None, too, the
            policy is not used.
        transfer_from: scores of another split, whose best thresholds the policy `transfer` applies, or these
            thresholds.
        resamples: number of resamples of the bootstrap intervals.
        seed: seed of the bootstrap intervals.
    """
    fixed_tau = protocol.fixed_tau if fixed_tau is None else fixed_tau
    split = SplitScores(scores)
    other = SplitScores(transfer_from) if isinstance(transfer_from, ScoreTable) else transfer_from
    metrics = list(metrics_of(split, protocol, fixed_tau, other))
    rows = list(dict.fromkeys(metric.rows for metric in metrics if isinstance(metric, Metric)))
    points = split.means(rows)
    resampled = split.resample(rows, resamples, seed)
    return tuple(
        metric
        if isinstance(metric, MetricValue)
        else _value(metric, points[metric.rows], *resampled[metric.rows], split)
        for metric in metrics
    )


def _value(
    metric: Metric, means: Float64[np.ndarray, " s"], rates: Rates, bootstrap: Bootstrap, split: SplitScores
) -> MetricValue:
    interval = corrected = None
    with contextlib.suppress(DataError):  # with few object pixels, some resample can have none
        interval = bootstrap.interval(metric.value(rates))
        if metric.curves is not None:
            corrected = correct_for_choice(bootstrap, metric.curves(means[None])[0], metric.curves(rates))
    return MetricValue(
        name=metric.name,
        value=float(metric.value(means[None])[0]),
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        corrected_low=None if corrected is None else corrected.low,
        corrected_high=None if corrected is None else corrected.high,
        n=split.count[metric.rows.images] if metric.n is None else metric.n,
        version=metric_info(metric.name).version,
        policy=None if metric.policy is None else str(metric.policy),
        tau=metric.tau,
    )


@dataclass(frozen=True)
class StatedThresholds:
    """Transferred thresholds that a record states, in place of the scores that they were chosen on.

    `taus` are the thresholds of the policy `transfer` by the name of the metric, one per delta.
    """

    taus: Mapping[str, tuple[float, ...]]

    def rates(self, protocol: EvalProtocol) -> dict[str, Float64[np.ndarray, "d t"]]:
        """Return hit rates by table that are best at the stated thresholds only.

        Raises `DataError` for a threshold that is not on the protocol's grid.
        """
        found = {}
        for name in _HITS.keys() & self.taus.keys():
            rows = len(protocol.deltas) if _HITS[name] == "all boxes" else 1
            taus = self.taus[name]
            if len(taus) != rows or not set(taus) <= set(protocol.taus):
                raise DataError(
                    f"the transferred thresholds of {name} are {taus}; expected {rows} of the protocol's grid"
                )
            found[_HITS[name]] = (np.array(protocol.taus) == np.array(taus)[:, None]).astype(np.float64)
        return found


def metrics_of(
    split: SplitScores,
    protocol: EvalProtocol,
    fixed_tau: float | None,
    other: SplitScores | StatedThresholds | None,
) -> Iterator[Metric | MetricValue]:
    """Yield every metric in table order. Metrics that the scores do not allow are values with a reason.

    Extra metrics need the scores of the other split for transferred thresholds.
    """
    yield from _classification(split)
    if split.count["with boxes"]:
        yield from _boxes(split, protocol, fixed_tau, _other_rates(other, protocol))
    else:
        for name in ("gt_known", "top1_loc", "top5_loc", "max_box_acc", "max_box_acc_v2"):
            yield MetricValue(name=name, value=None, n=0, reason="no image has a true box")
    yield from _masks(split)
    yield from _key_points(split)
    offered = offered_metrics()
    scored = other if isinstance(other, SplitScores) else None
    summary = Summary(split=split, other=scored, protocol=protocol, fixed_tau=fixed_tau)
    for name in split.extra:
        if name in offered:
            yield from load_extra_metric(offered[name]).metrics(summary)


def _in_top(part: ImageScores, k: int) -> Bool[np.ndarray, "m 1"]:
    return np.asarray((part.ranked[:, :k] == part.labels[:, None]).any(axis=1))[:, None]


def _column(rates: Rates, column: int = 0) -> Float64[np.ndarray, " r"]:
    return rates[:, column]


def _classification(split: SplitScores) -> Iterator[Metric | MetricValue]:
    for name, k in (("top1_cls", 1), ("top5_cls", 5)):
        if split.ranks >= k:
            yield Metric(name=name, rows=ImageRows(images="all", of=partial(_in_top, k=k)), value=_column)
        else:
            yield MetricValue(name=name, value=None, n=0, reason=_no_labels(split.ranks, k))
    if split.ranks:
        yield Metric(
            name="mean_class_accuracy",
            rows=ImageRows(images="all", of=partial(_in_top, k=1), by_class=True),
            value=_column,
        )


def _no_labels(ranks: int, k: int) -> str:
    return "no predicted labels" if not ranks else f"only {ranks} predicted labels an image, {k} are needed"


_FARTHEST = 4096.0
"""Longest distance to a key point that is kept; longer ones count as this one, because rates are in [0, 1].

In pixels of an input of 448, or in diagonals.
"""

_HITS = {
    "gt_known": "one box",
    "top1_loc": "top 1",
    "top5_loc": "top 5",
    "max_box_acc": "one box",
    "max_box_acc_v2": "all boxes",
}
"""Box metric -> its table of hits."""


def _hits(split: SplitScores, protocol: EvalProtocol) -> dict[str, ImageRows]:
    """Return the tables of hits at each delta and each distinct threshold.

    Top-k Loc has a table only if at least k labels are predicted.
    """
    first, by_class = split.first, protocol.averaging == "class"

    def one_box(part: ImageScores) -> Bool[np.ndarray, "m u"]:
        return passes(part.single_iou[:, first], DELTA, protocol.iou_test)

    def top_k(part: ImageScores, k: int) -> Bool[np.ndarray, "m u"]:
        return np.asarray(passes(part.single_iou[:, first], DELTA, protocol.topk_iou_test) & _in_top(part, k))

    def all_boxes(part: ImageScores) -> Bool[np.ndarray, "m du"]:
        best = part.best_iou[:, first]
        return np.concatenate([passes(best, delta, protocol.iou_test) for delta in protocol.deltas], axis=1)

    rows = {"one box": one_box, "all boxes": all_boxes}
    rows |= {f"top {k}": partial(top_k, k=k) for k in (1, 5) if split.ranks >= k}
    return {name: ImageRows(images="with boxes", of=of, by_class=by_class) for name, of in rows.items()}


@dataclass(frozen=True, kw_only=True)
class BoxCurves:
    """Hit rates of one table, and how metrics are read from them."""

    rows: ImageRows
    rates: Float64[np.ndarray, "d t"]
    other: Float64[np.ndarray, "d t"] | None
    """The same rates on the split for transferred thresholds, or None."""
    column: Int64[np.ndarray, " t"]

    def policies(
        self, deltas: Sequence[int], protocol: EvalProtocol, fixed_tau: float | None, *, shared: bool
    ) -> Iterator[tuple[ThresholdPolicy, Integer[np.ndarray, " d"]]]:
        """Yield each policy with the index of its threshold for each of these deltas."""
        taus = np.array(protocol.taus)
        policies = [ThresholdPolicy.oracle()]
        if fixed_tau is not None:
            policies.append(ThresholdPolicy.fixed(fixed_tau))
        if self.other is not None:
            index = ThresholdPolicy.oracle().pick(self.other[list(deltas)], taus, shared=shared)
            policies.append(ThresholdPolicy.transfer(protocol.taus[column] for column in index))
        for policy in policies:
            yield policy, policy.pick(self.rates[list(deltas)], taus, shared=shared)

    def of(self, rates: Rates, *, deltas: Sequence[int], shared: bool) -> Float64[np.ndarray, "r d t"]:
        """Return the curves that each have a best threshold: the mean over deltas, or one per delta."""
        curves = rates.reshape(len(rates), len(self.rates), -1)[:, list(deltas)]
        return np.asarray(curves.mean(axis=1, keepdims=True) if shared else curves)

    def at(
        self, rates: Rates, *, deltas: Sequence[int], index: Integer[np.ndarray, " d"]
    ) -> Float64[np.ndarray, " r"]:
        """Return the mean over deltas, each at its threshold."""
        curves = rates.reshape(len(rates), len(self.rates), -1)
        return np.asarray(curves[:, list(deltas), self.column[index]].mean(axis=1))


def _hit_rates(split: SplitScores, hits: Mapping[str, ImageRows]) -> dict[str, Float64[np.ndarray, "d t"]]:
    """Return the hit rates at each delta and threshold of each table, (D, T)."""
    means = split.means(list(hits.values()))
    return {name: split.by_threshold(means[rows]) for name, rows in hits.items()}


def _other_rates(
    other: SplitScores | StatedThresholds | None, protocol: EvalProtocol
) -> dict[str, Float64[np.ndarray, "d t"]]:
    """Return the hit rates that transferred thresholds are chosen by, or none without such thresholds."""
    if isinstance(other, StatedThresholds):
        return other.rates(protocol)
    return {} if other is None or not other.count["with boxes"] else _hit_rates(other, _hits(other, protocol))


def _boxes(
    split: SplitScores,
    protocol: EvalProtocol,
    fixed_tau: float | None,
    others: Mapping[str, Float64[np.ndarray, "d t"]],
) -> Iterator[Metric | MetricValue]:
    hits = _hits(split, protocol)
    rates = _hit_rates(split, hits)
    # Each box metric under each policy.
    shared = protocol.v2_tau == "shared"
    for name, kind in _HITS.items():
        if kind not in hits:
            yield MetricValue(
                name=name, value=None, n=0, reason=_no_labels(split.ranks, 1 if name == "top1_loc" else 5)
            )
            continue
        curves = BoxCurves(rows=hits[kind], rates=rates[kind], other=others.get(kind), column=split.column)
        every = tuple(range(len(curves.rates)))
        yield from _read(
            name, curves, every, protocol, fixed_tau, shared=shared, part_names=kind == "all boxes" and shared
        )
        if kind == "all boxes" and not shared:
            for row in every:
                yield from _read(
                    f"{name}@{protocol.deltas[row]:g}", curves, (row,), protocol, fixed_tau, shared=False
                )
    # The error breakdown, at the threshold of GT-known.
    one_box = BoxCurves(
        rows=hits["one box"], rates=rates["one box"], other=others.get("one box"), column=split.column
    )
    yield from _errors(split, one_box, protocol, fixed_tau)


def box_curves(split: SplitScores, protocol: EvalProtocol, other: SplitScores | None) -> BoxCurves:
    """Return the hit rates of GT-known and MaxBoxAcc: one box per image, IoU 0.5."""
    rows = _hits(split, protocol)["one box"]
    rates = split.by_threshold(split.means([rows])[rows])
    transferred = None
    if other is not None and other.count["with boxes"]:
        others = _hits(other, protocol)["one box"]
        transferred = other.by_threshold(other.means([others])[others])
    return BoxCurves(rows=rows, rates=rates, other=transferred, column=split.column)


def _read(
    name: str,
    curves: BoxCurves,
    deltas: tuple[int, ...],
    protocol: EvalProtocol,
    fixed_tau: float | None,
    *,
    shared: bool,
    part_names: bool = False,
) -> Iterator[Metric]:
    """Yield a box metric under each policy.

    With `part_names`, also its value at each delta, at the threshold of the whole metric.
    """
    for policy, index in curves.policies(deltas, protocol, fixed_tau, shared=shared):
        tau = tuple(protocol.taus[column] for column in index)
        if policy.kind == "oracle":
            yield at_best(name, curves.rows, partial(curves.of, deltas=deltas, shared=shared), policy, tau)
        else:
            value = partial(curves.at, deltas=deltas, index=index)
            yield Metric(name=name, rows=curves.rows, value=value, policy=policy, tau=tau)
        for place, row in enumerate(deltas if part_names else ()):
            part = partial(curves.at, deltas=(row,), index=index[place : place + 1])
            yield Metric(
                name=f"{name}@{protocol.deltas[row]:g}",
                rows=curves.rows,
                value=part,
                policy=policy,
                tau=tau[place : place + 1],
            )


def at_best(
    name: str, rows: ImageRows, curves: Curves, policy: ThresholdPolicy, tau: tuple[float, ...]
) -> Metric:
    """Build a metric that is the mean over curves of each curve's maximum."""
    return Metric(
        name=name,
        rows=rows,
        value=lambda rates: best_value(curves(rates)),
        policy=policy,
        tau=tau,
        curves=curves,
    )


def _errors(
    split: SplitScores, curves: BoxCurves, protocol: EvalProtocol, fixed_tau: float | None
) -> Iterator[Metric | MetricValue]:
    """Yield the error breakdown at the threshold of GT-known, for each policy.

    The shares are of all images, also if the protocol averages over classes.
    """
    if not split.ranks:
        for name in ERROR_NAMES:
            yield MetricValue(name=f"error_{name}", value=None, n=0, reason="no predicted labels")
        return
    for policy, (index,) in curves.policies((0,), protocol, fixed_tau, shared=False):
        rows = ImageRows(images="with boxes", of=partial(_categories, index=int(index)))
        for code, name in enumerate(ERROR_NAMES):
            yield Metric(
                name=f"error_{name}",
                rows=rows,
                value=partial(_column, column=code),
                policy=policy,
                tau=(protocol.taus[index],),
            )


def _categories(part: ImageScores, index: int) -> Bool[np.ndarray, "m 6"]:
    """Whether an image is in each error category at a threshold, (m, 6)."""
    codes = np.where(_in_top(part, 1)[:, 0], part.error_codes[:, index], ERROR_NAMES.index("cls"))
    return np.asarray(codes[:, None] == np.arange(len(ERROR_NAMES)))


def _masks(split: SplitScores) -> Iterator[Metric | MetricValue]:
    # Without an object pixel, no metric of masks is defined.
    names = ("pxap", "peak_iou", "peak_t", "mean_image_iou")
    if not split.count["with object"]:
        n, reason = split.count["with mask"], "no mask has an object pixel"
        for name in names:
            yield MetricValue(name=name, value=None, n=n, reason=reason if n else "no image has a mask")
        return
    # Tables of pixel counts, and the best levels.
    pixels = ImageRows(images="with mask", of=lambda part: part.pixel_histogram.reshape(len(part), -1))
    levels = ImageRows(images="with mask", of=lambda part: part.level_histogram.reshape(len(part), -1))
    per_image = ImageRows(images="with object", of=lambda part: pixel_iou(part.level_histogram))
    means = split.means([levels, per_image])
    peak, best = int(pixel_iou(means[levels].reshape(2, 256)).argmax()), int(means[per_image].argmax())
    # The metrics, in table order.
    oracle = ThresholdPolicy.oracle()
    yield Metric(
        name="pxap", rows=pixels, value=lambda rates: average_precision(rates.reshape(len(rates), 2, -1))
    )
    yield at_best(
        "peak_iou", levels, lambda rates: pixel_iou(rates.reshape(-1, 2, 256))[:, None], oracle, (peak / 255,)
    )
    yield Metric(name="peak_t", rows=levels, value=_peak_t, policy=oracle, tau=(peak / 255,))
    yield at_best("mean_image_iou", per_image, lambda rates: rates[:, None], oracle, (best / 255,))


def _peak_t(rates: Rates) -> Float64[np.ndarray, " r"]:
    return np.asarray(pixel_iou(rates.reshape(-1, 2, 256)).argmax(axis=1), dtype=np.float64)


def _key_points(split: SplitScores) -> Iterator[Metric]:
    """Yield distances of proposed parts to key points, or nothing if no parts were proposed.

    Most methods propose none.
    """
    if not split.count["with parts"]:
        return
    for name, column in (("keypoint_distance", "point_norm"), ("keypoint_distance_px", "point_px")):
        rows = ImageRows(images="with parts", of=partial(_distances, column=column))
        yield Metric(name=name, rows=rows, value=lambda rates: _FARTHEST * slot_mean(rates))
        for slot in np.flatnonzero(split.means([rows])[rows][PARTS:]):  # ranks that occur
            yield Metric(
                name=f"{name}@{slot + 1}",
                rows=rows,
                value=partial(ratio, above=int(slot), below=PARTS + int(slot), scale=_FARTHEST),
            )
    hits = ImageRows(
        images="with parts",
        of=lambda part: np.stack([part.point_hit.sum(axis=1), part.point_real.sum(axis=1)], axis=1),
    )
    yield Metric(name="keypoint_hit", rows=hits, value=partial(ratio, above=0, below=1))
    for name, within in (("keypoint_distinct", np.inf), ("keypoint_covered", NEAR)):
        rows = ImageRows(images="with parts", of=partial(_distinct, within=within))
        yield Metric(name=name, rows=rows, value=_column)


def _distances(part: ImageScores, column: str) -> Float64[np.ndarray, "m s"]:
    """Return the distance in each slot, as a fraction of `_FARTHEST`, then whether the slot has one.

    This is the input of `slot_mean`.
    """
    return np.concatenate([np.minimum(getattr(part, column) / _FARTHEST, 1.0), part.point_real], axis=1)


def _distinct(part: ImageScores, within: float) -> Int64[np.ndarray, "m 1"]:
    """Return the number of different nearest points of the real proposals of each image.

    Only points within this distance count, in diagonals of the ground-truth box.
    """
    counted = part.point_real & (part.point_norm <= within)
    nearest = np.sort(np.where(counted, part.point_nearest, -1), axis=1)
    # Sorted, so a value is new if it is above the one before.
    new = np.diff(nearest, axis=1, prepend=-1) > 0
    return np.asarray(new.sum(axis=1, keepdims=True))
