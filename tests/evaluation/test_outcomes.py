"""Outcomes: the small file of per-image scores that gives the same metrics and comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.report.conftest import build_run
from wsolbench.evaluation.compare import compare_records, read_scores
from wsolbench.evaluation.score_table import OUTCOMES, SCORES, ScoreTable, find_scores
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import DataError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import read_record
from wsolbench.records.budget import Budgets

RUN = build_run(12)


def test_a_record_is_compared_from_outcomes_as_from_scores(tmp_path: Path) -> None:
    other = build_run(12, seed=1)
    found = []
    for suffix in (SCORES, OUTCOMES):
        groups = []
        for run in (RUN, other):
            path = run.record.write(tmp_path / suffix)
            run.table.write(
                path.with_suffix(suffix),
                run.record,
                outcomes=run.record.map_protocol if suffix == OUTCOMES else None,
            )
            assert find_scores(path) == path.with_suffix(suffix)
            groups.append({path: read_record(path)})
        budgets = Budgets(record for group in groups for record in group.values())
        found.append(compare_records(*groups, resamples=100, budgets=budgets, allow_unequal_budget=True))
    assert found[0].differences
    assert found[0] == found[1]


@pytest.mark.parametrize("test", [">", ">="])
@pytest.mark.parametrize("deltas", [(0.5,), (0.3, 0.5, 0.7), (0.1, 1.0)], ids=str)
def test_outcomes_give_every_metric_to_the_bit_also_on_the_deltas(
    test: str, deltas: tuple[float, ...]
) -> None:
    protocol = replace(RUN.record.map_protocol, iou_test=test, topk_iou_test=">", deltas=deltas)
    rng = np.random.default_rng(0)
    edges = np.array([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, np.nextafter(0.5, 1), np.nextafter(0.7, 0), 1 + 1e-10])
    rows = [
        np.where(
            rng.random(RUN.scores.best_iou.shape) < 0.5, rng.choice(edges, RUN.scores.best_iou.shape), iou
        )
        for iou in (RUN.scores.best_iou, RUN.scores.single_iou)
    ]
    scores = replace(RUN.scores, best_iou=rows[0], single_iou=rows[1])
    small = scores.outcomes(protocol)
    assert not np.array_equal(small.single_iou, scores.single_iou)
    every, few = (summarize(ScoreTable((each,)), protocol, resamples=100) for each in (scores, small))
    assert every == few


def test_the_file_is_a_small_part_of_that_of_all_scores(tmp_path: Path) -> None:
    # IoUs of 300 images that change at many of 1,000 thresholds, as those of a smooth map do.
    rng = np.random.default_rng(0)
    protocol = replace(EvalProtocol(), taus=tuple(np.linspace(0, 0.999, 1000)))
    iou = np.clip(np.cumsum(rng.normal(0, 0.02, (300, 1000)), axis=1) + rng.random((300, 1)), 0, 1)
    scores = replace(
        RUN.scores.select(np.arange(300) % len(RUN.scores)),
        ids=np.array([f"image {place}" for place in range(300)]),
        best_iou=iou,
        single_iou=iou,
        error_codes=np.zeros((300, 1000), dtype=np.uint8),
    )
    table = ScoreTable((scores,))
    table.write(tmp_path / "all.npz")
    table.write(tmp_path / "small.npz", outcomes=protocol)
    assert 20 * (tmp_path / "small.npz").stat().st_size < (tmp_path / "all.npz").stat().st_size
    read = ScoreTable.read(tmp_path / "small.npz").load()
    assert np.array_equal(read.best_iou, scores.outcomes(protocol).best_iou)


def test_outcomes_of_another_run_are_refused(tmp_path: Path) -> None:
    other = build_run(12, seed=1)
    path = RUN.record.write(tmp_path)
    other.table.write(path.with_suffix(OUTCOMES), other.record, outcomes=other.record.map_protocol)
    with pytest.raises(DataError, match=r"outcomes\.npz has scores of other images or values"):
        read_scores(path, read_record(path))


def test_all_scores_are_read_before_outcomes(tmp_path: Path) -> None:
    path = RUN.record.write(tmp_path)
    assert find_scores(path) == path.with_suffix(SCORES)
    for suffix in (OUTCOMES, SCORES):
        path.with_suffix(suffix).touch()
        assert find_scores(path) == path.with_suffix(suffix)
