"""What the page shows besides the board: curves and paired comparisons from per-image scores, and runs that differ in protocol."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from wsolbench.compare import MetricDifference, compare
from wsolbench.exceptions import DataError
from wsolbench.files import canonical_json
from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord
from wsolbench.report.tables import describe_protocol
from wsolbench.score_table import ScoreTable

SCORES = ".scores.npz"
POINTS = 101
"""Points of a curve, at most."""
RANKED_BY = ("gt_known", "max_box_acc_v2", "pxap", "top1_cls")
"""The metric that runs are ranked by: the first that the best of them may have."""
DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a chart: x and y are fractions."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A record, and its curves where its scores are beside it."""

    record: RunRecord
    path: Path
    gt_known: Curve | None = None
    """Share of images whose one box passes IoU 0.5, over tau."""
    precision_recall: Curve | None = None
    """Precision over recall of pixels."""

    @property
    def label(self) -> str:
        """Method, backbone, what it started from, seed, and the start of the digest, which no other run has."""
        method, seed = self.record.method, self.record.training.get("seed")
        start = None if self.record.start is None else f"from {self.record.start}"
        parts = [method["name"], method.get("backbone"), start, None if seed is None else f"seed {seed}", self.record.digest[:8]]
        return " · ".join(str(part) for part in parts if part is not None)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """B minus A, two runs of a group."""

    a: ShownRun
    b: ShownRun
    differences: tuple[MetricDifference, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs on the same images under the same protocol, best first, and the comparisons of some of them."""

    title: str
    runs: tuple[ShownRun, ...]
    pairs: tuple[Pair, ...]


def groups_of(records: Sequence[tuple[Path, RunRecord]], *, methods: int, resamples: int) -> tuple[list[Group], list[str]]:
    """Groups of runs that may be compared, and what is wrong with scores that cannot be read.

    Compared are the best runs of the `methods` best methods of a group, each with each, as far as they have scores.
    Raises `DataError` when runs of a group have not scored the same images.
    """
    found: dict[str, list[tuple[Path, RunRecord]]] = defaultdict(list)
    for path, record in records:
        if isinstance(record.protocol, EvalProtocol):
            data = {key: record.dataset.get(key) for key in ("name", "split", "transform", "fingerprint", "images")}
            found[canonical_json([data, record.protocol.to_json()])].append((path, record))
    problems: list[str] = []
    groups = []
    for _, members in sorted(found.items()):
        runs = sorted((_with_curves(path, record, problems) for path, record in members), key=_rank)
        chosen: dict[str, ShownRun] = {}
        for run in runs:
            if run.gt_known is not None or run.precision_recall is not None:
                chosen.setdefault(str(run.record.method["name"]), run)
        pairs = [_pair(b, a, resamples) for a, b in itertools.combinations(list(chosen.values())[:methods], 2)]
        groups.append(Group(title=_title(members[0][1]), runs=tuple(runs), pairs=tuple(pairs)))
    return sorted(groups, key=lambda group: group.title), problems


def same_but_protocol(records: Sequence[tuple[Path, RunRecord]]) -> list[list[RunRecord]]:
    """Runs of one method on one data set under several protocols: the same maps, whole or cut to a crop, counted otherwise."""
    found: dict[str, dict[str, RunRecord]] = defaultdict(dict)
    for _, record in records:
        data = {key: value for key, value in record.dataset.items() if key != "transfer_from"}
        method = {key: value for key, value in record.method.items() if key != "maps"}
        found[canonical_json([method, data])].setdefault(canonical_json(record.protocol.to_json()), record)
    return [sorted(of.values(), key=lambda record: describe_protocol(record.protocol)) for _, of in sorted(found.items()) if len(of) > 1]


def _title(record: RunRecord) -> str:
    data = record.dataset
    parts = [f"{data['name']}/{data['split']}", data.get("transform"), f"{data.get('images')} images", describe_protocol(record.protocol)]
    return " · ".join(str(part) for part in parts if part)


def _rank(run: ShownRun) -> tuple[tuple[float, ...], str]:
    metrics = [run.record.metric(name, "oracle") or run.record.metric(name) for name in RANKED_BY]
    return tuple(-1.0 if metric is None or metric.value is None else -1.0 - metric.value for metric in metrics), run.path.name


def _with_curves(path: Path, record: RunRecord, problems: list[str]) -> ShownRun:
    scores = path.with_suffix(SCORES)
    if not scores.is_file():
        return ShownRun(record=record, path=path)
    try:
        table = ScoreTable.read(scores)
    except DataError as error:  # a page without these curves is of use, and says so
        problems.append(str(error))
        return ShownRun(record=record, path=path)
    return ShownRun(
        record=record,
        path=path,
        gt_known=gt_known_curve(table, record.map_protocol),
        precision_recall=precision_recall_curve(table),
    )


def _pair(a: ShownRun, b: ShownRun, resamples: int) -> Pair:
    left, right = ([ScoreTable.read(run.path.with_suffix(SCORES))] for run in (a, b))
    return Pair(a=a, b=b, differences=tuple(compare(left, right, a.record.map_protocol, resamples=resamples)))


def gt_known_curve(scores: ScoreTable, protocol: EvalProtocol) -> Curve | None:
    """GT-known at thresholds spread over the protocol's, its best one among them; None when no image has a true box."""
    counted = MaxBoxAcc(protocol, deltas=(0.5,))
    for part in scores:
        for index in np.flatnonzero(part.has_boxes):
            counted.update(part.single_iou[index], int(part.labels[index]))
    if not counted.n:
        return None
    rates = counted.curve()[0]
    return _curve(np.array(protocol.taus), rates, _spread(len(rates), int(rates.argmax())))


def precision_recall_curve(scores: ScoreTable) -> Curve | None:
    """Precision at recalls from low to high, pixels pooled over all images; None when no mask has an object pixel."""
    total: Int64[np.ndarray, "2 b"] = sum(part.pixel_histogram.sum(axis=0, dtype=np.int64) for part in scores)
    cumulated = np.cumsum(total[:, ::-1], axis=1)  # selected object and other pixels, from the highest threshold down
    if not cumulated[0, -1]:
        return None
    selected = cumulated.sum(axis=0)
    kept = selected > 0
    recall, precision = cumulated[0, kept] / cumulated[0, -1], cumulated[0, kept] / selected[kept]
    return _curve(recall, precision, np.unique(np.searchsorted(recall, np.linspace(0, 1, POINTS))))


def _spread(n: int, also: int) -> Int64[np.ndarray, " k"]:
    """At most `POINTS` positions in 0 .. n - 1, first, last and `also` among them."""
    every: Int64[np.ndarray, " k"] = np.linspace(0, n - 1, min(POINTS - 1, n)).round().astype(np.int64)
    return np.unique(np.append(every, also))


def _curve(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], at: Int64[np.ndarray, " k"]) -> Curve:
    return Curve(x=tuple(x[at].round(DIGITS).tolist()), y=tuple(y[at].round(DIGITS).tolist()))
