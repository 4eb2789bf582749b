"""Data of the page besides the leaderboard: curves, paired comparisons, and runs under several protocols."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from wsolbench.evaluation.compare import compare_records, read_scores
from wsolbench.evaluation.score_table import ScoreTable, find_scores
from wsolbench.exceptions import DataError
from wsolbench.metrics.errors import ERROR_NAMES
from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.protocol import DELTA, EvalProtocol
from wsolbench.records.budget import Budgets
from wsolbench.records.comparison import MetricDifference
from wsolbench.report.board.repetitions import (
    Run,
    data_of,
    different_settings,
    grouped,
    init_text,
    one_of_each_seed,
    settings_of,
)
from wsolbench.report.board.tables import RANKED_BY, describe_protocol, disambiguate
from wsolbench.system.progress import track

POINTS = 101
"""Most points of a curve."""
DIGITS = 7


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a chart. x and y are fractions."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A run, the settings in which it differs from others of its method in its group, and its curves.

    A run without scores has no curves.
    """

    run: Run
    settings: str
    label: str
    """Method, backbone, init, settings and seed. It is unique within the group."""
    scored: bool = False
    gt_known: Curve | None = None
    """Share of images whose single box passes IoU 0.5, over tau."""
    precision_recall: Curve | None = None
    """Precision over recall of pixels."""


@dataclass(frozen=True, kw_only=True)
class Repetitions:
    """Runs that differ only in the seed, sorted by seed. Or one run."""

    runs: tuple[ShownRun, ...]

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.runs[0].run.record.method["name"])

    @property
    def seeds(self) -> list[int | None]:
        """Seeds of the runs."""
        return [shown.run.seed for shown in self.runs]

    @property
    def label(self) -> str:
        """Label of the runs, with all their seeds."""
        if len(self.runs) == 1:
            return self.runs[0].label
        return f"{_label(self.runs[0].run, self.runs[0].settings)} · seeds {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """B minus A: two methods of a group, each with all its seeds."""

    a: Repetitions
    b: Repetitions
    differences: tuple[MetricDifference, ...]
    budget: str = ""
    """Remark on unequal or unknown training budgets, or empty."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs on the same images under the same protocol, best first, and the comparisons of some of them."""

    title: str
    runs: tuple[ShownRun, ...]
    pairs: tuple[Pair, ...]


def groups_of(runs: Sequence[Run], *, methods: int, resamples: int) -> tuple[list[Group], list[str]]:
    """Return the groups of comparable runs, and messages about scores that cannot be used.

    The `methods` best methods of a group are compared, each with each. A method enters with runs that have
    scores, of the settings with the most seeds, and among these with the best mean.
    """
    # Group the runs, and read their scores.
    problems: list[str] = []
    scored = one_of_each_seed(
        [run for run in runs if isinstance(run.record.protocol, EvalProtocol)], of_each_source=False
    )
    curves = {run.link: _curves(run, problems) for run in track(scored, "reading scores", unit="runs")}
    together = grouped(scored, lambda run: [data_of(run), run.record.protocol.to_json()])
    shown = [_shown(members, curves) for members in together]
    # Compare the best methods in pairs.
    wanted = [
        (place, a, b)
        for place, of in enumerate(shown)
        for b, a in itertools.combinations(_compared(of)[:methods], 2)
    ]
    budgets = Budgets(run.record for run in runs)
    pairs: dict[int, list[Pair]] = defaultdict(list)
    for place, a, b in track(wanted, "comparing", unit="pairs"):
        try:
            comparison = compare_records(
                *({each.run.path: each.run.record for each in side.runs} for side in (a, b)),
                resamples=resamples,
                budgets=budgets,
                allow_unequal_budget=True,
            )
        except DataError as error:  # the page is useful without this pair, and shows the message
            problems.append(str(error))
            continue
        pairs[place].append(
            Pair(a=a, b=b, differences=comparison.differences, budget=str(comparison.budget or ""))
        )
    # Give the groups unique titles.
    titles = disambiguate(
        [
            f"{_data_title(members[0])} · {describe_protocol(members[0].record.protocol)}"
            for members in together
        ],
        [f"fingerprint {str(members[0].record.dataset['fingerprint'])[:12]}" for members in together],
    )
    groups = [
        Group(title=titles[place], runs=tuple(of), pairs=tuple(pairs[place]))
        for place, of in enumerate(shown)
    ]
    return groups, list(dict.fromkeys(problems))


def same_but_protocol(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Return runs of one method on one data set under several protocols, with a title each.

    They count the same maps, whole or cut to a crop, under different conventions.
    """

    def ignoring_protocol(run: Run) -> list[Any]:
        record = run.record
        data = {key: value for key, value in record.dataset.items() if key != "transfer_from"}
        return [data, {key: value for key, value in record.method.items() if key != "maps"}]

    found, titles = [], []
    for same in grouped(one_of_each_seed(runs, of_each_source=False), ignoring_protocol):
        if len({describe_protocol(run.record.protocol) for run in same}) > 1:
            settings = different_settings(same[0], [run for run in runs if data_of(run) == data_of(same[0])])
            titles.append(f"{_data_title(same[0])} · {_label(same[0], settings, seed=True)}")
            found.append(sorted(same, key=lambda run: (describe_protocol(run.record.protocol), run.link)))
    return list(zip(disambiguate(titles, [same[0].record.digest[:8] for same in found]), found, strict=True))


def _label(run: Run, settings: str, *, seed: bool = False) -> str:
    method, start = run.record.method, run.record.start
    parts = [method["name"], method.get("backbone"), None if start is None else init_text(start), settings]
    parts += [f"seed {run.seed}"] if seed and run.seed is not None else []
    return " · ".join(str(part) for part in parts if part)


def _data_title(run: Run) -> str:
    data = run.record.dataset
    parts = (f"{data['name']}/{data['split']}", data.get("transform"), f"{data.get('images')} images")
    return " · ".join(str(part) for part in parts if part)


def _shown(
    members: Sequence[Run], curves: dict[str, tuple[Curve | None, Curve | None] | None]
) -> list[ShownRun]:
    """Wrap the runs of a group, best first, with unique labels."""
    settings = [different_settings(run, members) for run in members]
    plain = [_label(run, text, seed=True) for run, text in zip(members, settings, strict=True)]
    labels = disambiguate(plain, [run.record.digest[:8] for run in members])
    found = []
    for run, text, label in zip(members, settings, labels, strict=True):
        shown = ShownRun(run=run, settings=text, label=label)
        if (of := curves[run.link]) is not None:
            shown = replace(shown, scored=True, gt_known=of[0], precision_recall=of[1])
        found.append(shown)
    return sorted(found, key=lambda shown: (_rank([shown]), shown.run.link))


def _rank(runs: Sequence[ShownRun]) -> tuple[float, ...]:
    """Return a sort key: the best mean first, runs without a value last."""
    ranks = []
    for name in RANKED_BY:
        metrics = [shown.run.metric(name, "oracle") for shown in runs]
        values = [metric.value for metric in metrics if metric is not None and metric.value is not None]
        ranks.append(-fmean(values) if len(values) == len(runs) else 1.0)
    return tuple(ranks)


def _compared(shown: Sequence[ShownRun]) -> list[Repetitions]:
    """Return for each method the runs to compare, the best method first."""
    scored = {each.run.link: each for each in shown if each.scored}
    repeated = [
        Repetitions(runs=tuple(scored[run.link] for run in sorted(runs, key=lambda run: run.seed or 0)))
        for runs in grouped([each.run for each in scored.values()], settings_of)
    ]
    best: dict[str, Repetitions] = {}
    for each in sorted(repeated, key=lambda each: (-len(each.runs), _rank(each.runs))):
        best.setdefault(each.method, each)
    return sorted(best.values(), key=lambda each: _rank(each.runs))


def _curves(run: Run, problems: list[str]) -> tuple[Curve | None, Curve | None] | None:
    """Return GT-known over tau and precision over recall, or None for a run without usable scores."""
    if not find_scores(run.path).is_file():
        return None
    try:
        table = read_scores(run.path, run.record)
    except DataError as error:  # the page is useful without these curves, and shows the message
        problems.append(str(error))
        return None
    return gt_known_curve(table, run.record.map_protocol), precision_recall_curve(table)


def gt_known_curve(scores: ScoreTable, protocol: EvalProtocol) -> Curve | None:
    """Return GT-known at thresholds spread over the protocol's grid, or None without a ground-truth box.

    The best threshold and all tenths are among them.
    """
    counted = MaxBoxAcc(protocol, deltas=(DELTA,))
    for part in scores:
        for index in np.flatnonzero(part.has_boxes):
            counted.update(part.single_iou[index], int(part.labels[index]))
    if not counted.n:
        return None
    rates, taus = counted.curve()[0], np.array(protocol.taus)
    tenths = np.abs(taus[:, None] - np.linspace(0, 1, 11)).argmin(axis=0)
    return _curve(taus, rates, _spread(len(rates), [int(rates.argmax()), *tenths.tolist()]))


def precision_recall_curve(scores: ScoreTable) -> Curve | None:
    """Return precision over recall, with the pixels of all images pooled, or None without an object pixel.

    Recalls are those that some threshold reaches, in ascending order. PxAP is the area below the steps: each
    step is as high as the precision at its right end.
    """
    total: Int64[np.ndarray, "2 b"] = sum(part.pixel_histogram.sum(axis=0, dtype=np.int64) for part in scores)
    # Object and other pixels at or above each threshold, from the highest threshold down: (2, B).
    cumulated = np.cumsum(total[:, ::-1], axis=1)
    if not cumulated[0, -1]:
        return None
    selected = cumulated.sum(axis=0)
    kept = selected > 0
    recall, precision = cumulated[0, kept] / cumulated[0, -1], cumulated[0, kept] / selected[kept]
    return _curve(recall, precision, np.unique(np.searchsorted(recall, np.linspace(0, 1, POINTS))))


def _spread(n: int, also: Sequence[int]) -> Int64[np.ndarray, " k"]:
    """Return at most `POINTS` positions in 0 .. n - 1, with first, last and `also` among them."""
    every: Int64[np.ndarray, " k"] = (
        np.linspace(0, n - 1, min(POINTS - len(also), n)).round().astype(np.int64)
    )
    return np.unique(np.append(every, also))


def _curve(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], at: Int64[np.ndarray, " k"]) -> Curve:
    return Curve(x=tuple(x[at].round(DIGITS).tolist()), y=tuple(y[at].round(DIGITS).tolist()))


def chart_data(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """Return the data of the charts, by group and run."""
    return [[_chart(run) for run in group.runs] for group in groups]


def _chart(shown: ShownRun) -> dict[str, Any]:
    curves = {"gt_known": shown.gt_known, "pr": shown.precision_recall}
    errors = [shown.run.record.metric(f"error_{name}", "oracle") for name in ERROR_NAMES]
    shares = [[m.value, m.low, m.high] for m in errors if m is not None and m.value is not None]
    return {
        "label": shown.label,
        **{name: [list(curve.x), list(curve.y)] for name, curve in curves.items() if curve is not None},
        **({"errors": shares} if len(shares) == len(ERROR_NAMES) else {}),
    }
