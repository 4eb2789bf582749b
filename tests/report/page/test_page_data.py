from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from wsolbench.evaluation.compare import compare
from wsolbench.evaluation.score_table import SCORES, ScoreTable
from wsolbench.protocol import EvalProtocol, tau_grid
from wsolbench.records import MetricValue, read_record
from wsolbench.report.board.repetitions import Run
from wsolbench.report.page.page_data import (
    Group,
    groups_of,
    gt_known_curve,
    precision_recall_curve,
    same_but_protocol,
)


@pytest.fixture
def write_run(make_run: Callable[..., Any], tmp_path: Path) -> Callable[..., Run]:
    """Write the record of a made-up run with its scores; `maps` is the seed of its maps."""

    def write(
        name: str,
        *,
        maps: int,
        seed: int | None = 0,
        scored: bool = True,
        dataset: dict[str, Any] | None = None,
        **more: Any,
    ) -> Run:
        training = {"training": {} if seed is None else {"seed": seed}}
        made = make_run(
            more.pop("images", 16),
            method={"name": name, **training, **more.pop("method", {})},
            seed=maps,
            **more,
        )
        path = replace(made.record, dataset={**made.record.dataset, **(dataset or {})}).write(tmp_path)
        if scored:
            made.table.write(path.with_suffix(SCORES))
        return Run(read_record(path), path.name, path)

    return write


def groups(*runs: Run, methods: int = 5) -> list[Group]:
    found, problems = groups_of(runs, methods=methods, resamples=100)
    assert problems == []
    return found


def value(run: Run) -> float:
    metric = run.record.metric("gt_known", "oracle")
    assert metric is not None
    assert metric.value is not None
    return metric.value


def test_runs_stand_best_first_with_what_tells_them_apart(write_run: Callable[..., Run]) -> None:
    weak = {"start": {}, "recipe": {"epochs": 8}, "weights": "imagenet"}
    runs = [
        write_run("cam", maps=0),
        write_run("cam", maps=1, seed=1),
        write_run("cam", maps=2, method={"config": {"head": "fc"}, "training": {"seed": 0, **weak}}),
    ]
    (group,) = groups(*runs)
    assert [shown.run.link for shown in group.runs] == [
        run.link for run in sorted(runs, key=lambda run: (-value(run), run.link))
    ]
    labels = {shown.run.link: shown.label for shown in group.runs}
    assert labels[runs[1].link] == "cam · tiny · seed 1"
    assert labels[runs[2].link] == "cam · tiny · from imagenet · head=fc, recipe.epochs=8 · seed 0"
    assert group.title.startswith("squares/test · 16 images · ")


def test_runs_without_a_seed_are_no_repetitions_and_have_their_digest_in_their_label(
    write_run: Callable[..., Run],
) -> None:
    runs = [write_run("mine", maps=maps, seed=None) for maps in (0, 1)]
    copy = replace(runs[0], link="a copy")
    (group,) = groups(*runs, copy, write_run("cam", maps=2))
    labels = {shown.label for shown in group.runs if shown.run.record.method["name"] == "mine"}
    assert labels == {f"mine · tiny · {run.record.digest[:8]}" for run in runs}
    assert len(group.runs) == 3
    (pair,) = group.pairs
    (mine,) = (side for side in (pair.a, pair.b) if side.method == "mine")
    assert [shown.run.record.digest for shown in mine.runs] == [max(runs, key=value).record.digest]


def test_a_seed_counts_once_whatever_its_thresholds_come_from(write_run: Callable[..., Run]) -> None:
    twice = [
        write_run("cam", maps=maps, dataset={"transfer_from": source})
        for maps, source in enumerate((None, {"split": "val"}))
    ]
    (group,) = groups(*twice)
    assert len(group.runs) == 1


def test_equal_titles_of_groups_name_the_fingerprints(write_run: Callable[..., Run]) -> None:
    found = groups(*(write_run("cam", maps=maps, dataset={"fingerprint": str(maps) * 20}) for maps in (0, 1)))
    assert [group.title.rpartition(" · ")[2] for group in found] == [
        "fingerprint 000000000000",
        "fingerprint 111111111111",
    ]
    assert found[0].title != found[1].title


def test_methods_are_compared_with_all_their_seeds(write_run: Callable[..., Run]) -> None:
    runs = {
        name: [write_run(name, maps=place * 10 + seed, seed=seed) for seed in (0, 1)]
        for place, name in enumerate(("cam", "spa", "has"))
    }
    (group,) = groups(*itertools.chain(*runs.values()))
    means = {name: fmean(map(value, of)) for name, of in runs.items()}
    assert [(pair.b.method, pair.a.method) for pair in group.pairs] == list(
        itertools.combinations(sorted(means, key=lambda name: -means[name]), 2)
    )
    for pair in group.pairs:
        a, b = (
            [ScoreTable.read(run.path.with_suffix(SCORES)) for run in runs[side.method]]
            for side in (pair.a, pair.b)
        )
        protocol = runs["cam"][0].record.map_protocol  # independent trainings
        assert list(pair.differences) == compare(a, b, protocol, resamples=100, paired=False)
        assert pair.a.seeds == pair.b.seeds == [0, 1]
        assert pair.a.label == f"{pair.a.method} · tiny · seeds 0, 1"
    (fewer,) = groups(*itertools.chain(*runs.values()), methods=2)
    assert [(pair.b.method, pair.a.method) for pair in fewer.pairs] == [
        (group.pairs[0].b.method, group.pairs[0].a.method)
    ]


def test_a_lucky_run_of_other_settings_does_not_stand_for_its_method(write_run: Callable[..., Run]) -> None:
    usual = [write_run("cam", maps=maps, seed=maps) for maps in range(2)]
    lucky = max(
        (write_run("cam", maps=maps, method={"config": {"number": maps}}) for maps in range(2, 9)), key=value
    )
    assert value(lucky) > fmean(map(value, usual))
    (group,) = groups(*usual, lucky, write_run("spa", maps=9))
    (pair,) = group.pairs
    (cam,) = (side for side in (pair.a, pair.b) if side.method == "cam")
    assert [shown.run.link for shown in cam.runs] == [run.link for run in usual]


def test_of_settings_with_equally_many_seeds_the_best_mean_stands_for_a_method(
    write_run: Callable[..., Run],
) -> None:
    found = [write_run("cam", maps=maps, method={"config": {"number": maps}}) for maps in range(4)]
    (group,) = groups(*found, write_run("spa", maps=9))
    (pair,) = group.pairs
    (cam,) = (side for side in (pair.a, pair.b) if side.method == "cam")
    assert value(cam.runs[0].run) == max(map(value, found))


def test_methods_are_ranked_by_their_means_not_by_their_best_runs(write_run: Callable[..., Run]) -> None:
    def found(name: str, seed: int, gt_known: float) -> Run:
        run = write_run(name, maps=seed, seed=seed)
        metrics = [replace(m, value=gt_known) if m.name == "gt_known" else m for m in run.record.metrics]
        fixed = MetricValue(name="gt_known", value=1 - gt_known, n=16, policy="fixed:0.2", tau=(0.2,))
        record, file = replace(run.record, metrics=(fixed, *metrics)), run.path.with_suffix(SCORES)
        ScoreTable.read(file).write(file, record)
        return replace(run, record=record)

    runs = [found("spa", 0, 0.9), found("spa", 1, 0.1), found("has", 0, 0.6), found("has", 1, 0.6)]
    (pair,) = groups(*runs)[0].pairs
    assert (pair.b.method, pair.a.method) == ("has", "spa")


def test_runs_without_scores_are_shown_and_not_compared(write_run: Callable[..., Run]) -> None:
    (group,) = groups(write_run("cam", maps=0), write_run("spa", maps=1, scored=False))
    assert group.pairs == ()
    assert {
        shown.run.record.method["name"]: (shown.scored, shown.gt_known is not None) for shown in group.runs
    } == {
        "cam": (True, True),
        "spa": (False, False),
    }


def test_other_images_and_other_protocols_are_other_groups_plain_images_first(
    write_run: Callable[..., Run],
) -> None:
    other = EvalProtocol(name="other", taus=tau_grid(0.1), frame_size=64, resize_size=80)
    runs = [
        write_run("cam", maps=0, dataset={"transform": "rotate90", "fingerprint": "00"}),
        write_run("spa", maps=1),
        write_run("has", maps=2, dataset={"split": "val"}),
        write_run("acol", maps=3, protocol=other),
    ]
    found = groups(*runs)
    assert [len(group.runs) for group in found] == [1, 1, 1, 1]
    assert all(group.pairs == () for group in found)
    turned = next(place for place, group in enumerate(found) if "rotate90" in group.title)
    assert all(
        found.index(group) < turned
        for group in found
        if group.title.startswith("squares/test") and "rotate90" not in group.title
    )


@pytest.mark.parametrize(
    ("what", "change"),
    [("images", {"n": 12}), ("thresholds", {"protocol": EvalProtocol(taus=tau_grid(0.1))})],
)
def test_scores_of_another_run_are_named_with_their_record_and_left_out(
    write_run: Callable[..., Run], make_run: Callable[..., Any], what: str, change: dict[str, Any]
) -> None:
    run = write_run("cam", maps=0)
    make_run(**{"n": 16, "seed": 0, **change}).table.write(run.path.with_suffix(SCORES))
    found, problems = groups_of(
        [run, write_run("spa", maps=1), write_run("has", maps=2)], methods=5, resamples=100
    )
    (problem,) = problems
    assert str(run.path) in problem
    assert str(run.path.with_suffix(SCORES)) in problem
    assert what in problem
    assert [(pair.b.method, pair.a.method) for group in found for pair in group.pairs] in (
        [("has", "spa")],
        [("spa", "has")],
    )


def test_runs_that_scored_other_images_are_named_and_not_compared(write_run: Callable[..., Run]) -> None:
    runs = [write_run(name, maps=maps) for maps, name in enumerate(("cam", "spa"))]
    scores = runs[0].path.with_suffix(SCORES)
    part = ScoreTable.read(scores).load()
    ScoreTable((part.select(np.arange(len(part))[::-1]),)).write(scores)
    (group,), problems = groups_of(runs, methods=5, resamples=100)
    assert group.pairs == ()
    (problem,) = problems
    assert all(str(run.path) in problem for run in runs)


def test_runs_under_several_protocols_stand_side_by_side(write_run: Callable[..., Run]) -> None:
    other = EvalProtocol(name="other", taus=tau_grid(0.1), frame_size=64, resize_size=80)
    whole = write_run("cam", maps=0, method={"maps": "stored"})
    cut = write_run(
        "cam", maps=0, method={"maps": "stored, of the whole image, cut to the centre crop"}, protocol=other
    )
    seed = write_run("cam", maps=1, seed=1, protocol=other)
    alone = write_run("spa", maps=0)
    ((title, found),) = same_but_protocol([whole, seed, cut, alone])
    assert title == "squares/test · 16 images · cam · tiny · seed 0"
    assert {run.link for run in found} == {whole.link, cut.link}


def test_no_run_without_a_seed_is_lost_among_protocols_and_titles_differ(
    write_run: Callable[..., Run],
) -> None:
    other = EvalProtocol(name="other", taus=tau_grid(0.1), frame_size=64, resize_size=80)
    runs = [write_run("cam", maps=maps, seed=None, method={"weights": str(maps)}) for maps in (0, 1)]
    runs += [
        write_run("cam", maps=maps, seed=None, method={"weights": str(maps)}, protocol=other)
        for maps in (0, 1)
    ]
    runs.append(write_run("cam", maps=2, seed=None, method={"weights": "0"}, protocol=other))
    found = same_but_protocol(runs)
    assert sorted(len(of) for _, of in found) == [2, 3]
    assert len({title for title, _ in found}) == 2


def test_curves_pass_through_the_metrics(make_run: Callable[..., Any], tmp_path: Path) -> None:
    fine = EvalProtocol(taus=tau_grid(0.001), frame_size=64, resize_size=80)
    run = make_run(20, masks=tmp_path, protocol=fine)
    curve = gt_known_curve(run.table, run.record.protocol)
    metric = run.record.metric("gt_known", "oracle")
    assert curve is not None
    assert max(curve.y) == pytest.approx(metric.value, abs=1e-4)
    assert curve.x[int(np.argmax(curve.y))] == pytest.approx(metric.tau[0], abs=1e-4)
    assert (curve.x[0], curve.x[-1]) == (fine.taus[0], pytest.approx(fine.taus[-1]))
    scores = run.table.load()
    rates = (scores.single_iou[scores.has_boxes] >= 0.5).mean(axis=0)
    for tau, rate in zip(curve.x, curve.y, strict=True):
        assert rate == pytest.approx(rates[np.abs(np.array(fine.taus) - tau).argmin()], abs=1e-4)
    line = precision_recall_curve(run.table)
    assert line is not None
    assert line.x[-1] == 1.0
    assert list(line.x) == sorted(line.x)
    area = float(np.sum(np.diff((0.0, *line.x)) * np.array(line.y)))  # below the steps
    assert area == pytest.approx(run.record.metric("pxap").value, abs=0.01)


def test_the_best_threshold_is_among_the_points_of_its_curve(make_run: Callable[..., Any]) -> None:
    fine = EvalProtocol(taus=tau_grid(0.001), frame_size=64, resize_size=80)
    scores = make_run(4, protocol=fine).table.load()
    iou = np.zeros_like(scores.single_iou)
    iou[:, 333] = 0.9
    curve = gt_known_curve(ScoreTable((replace(scores, single_iou=iou),)), fine)
    assert curve is not None
    assert [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if y > 0] == [(0.333, 1.0)]
    assert len(curve.x) <= 101
    assert {tenth / 10 for tenth in range(10)} <= set(curve.x)  # what the chart's table reads


def test_runs_without_boxes_or_masks_have_no_such_curve(make_run: Callable[..., Any], run: Any) -> None:
    assert precision_recall_curve(run.table) is None
    bare = make_run(8, boxes=False)
    assert gt_known_curve(bare.table, bare.record.protocol) is None
