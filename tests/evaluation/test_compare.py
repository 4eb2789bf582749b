"""Paired comparison of runs: the same resamples for all, differences of every metric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up import MadeUpSource, box_map, dataset

from wsolbench.evaluation.compare import compare
from wsolbench.evaluation.evaluate import evaluate
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.exceptions import DataError
from wsolbench.metrics.confidence import paired_difference
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOL = EvalProtocol(taus=tau_grid(0.05))


class Shifted(MadeUpSource):
    """Maps that miss the box by some pixels, other ones for other seeds."""

    seed = 0

    def load(self, sample):
        rng = np.random.default_rng([self.seed, int(sample.id[-7:-4])])
        return np.roll(box_map(sample), rng.integers(0, 16, 2), (0, 1))


class ShiftedAgain(Shifted):
    seed = 1


def table(source) -> ScoreTable:
    return evaluate(dataset(40), source, PROTOCOL).scores


def by_name(differences):
    return {(d.name, d.policy): d for d in differences}


def test_a_run_does_not_differ_from_itself():
    good = table(MadeUpSource())
    for difference in compare([good], [good], PROTOCOL, resamples=200):
        assert (difference.difference, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


def test_better_maps_are_better_and_the_sign_is_that_of_b():
    found = by_name(compare([table(Shifted())], [table(MadeUpSource())], PROTOCOL, resamples=200))
    gt_known = found["gt_known", "oracle"]
    assert gt_known.b == 1.0
    assert gt_known.difference == gt_known.b - gt_known.a > 0
    assert 0 < gt_known.low <= gt_known.difference <= gt_known.high
    assert gt_known.p_value < 0.05
    assert gt_known.per_pair == (gt_known.difference,)
    assert found["top1_cls", None].difference == 0


def test_it_is_the_paired_difference_of_the_metric():
    a, b = table(Shifted()), table(ShiftedAgain())
    found = by_name(compare([a], [b], PROTOCOL, resamples=300, seed=4))["gt_known", "oracle"]
    hits = [each.load().single_iou >= 0.5 for each in (b, a)]
    expected = paired_difference(*hits, lambda rates: rates.max(axis=1), n_resamples=300, seed=4)
    assert (found.difference, found.low, found.high, found.p_value) == pytest.approx(
        (expected.difference, expected.low, expected.high, expected.p_value), abs=1e-12
    )


def test_groups_of_seeds_are_averaged():
    a, b, good = table(Shifted()), table(ShiftedAgain()), table(MadeUpSource())
    found = by_name(compare([a, b], [good, good], PROTOCOL, resamples=200))["max_box_acc_v2", "oracle"]
    single = [
        by_name(compare([each], [good], PROTOCOL, resamples=200))["max_box_acc_v2", "oracle"]
        for each in (a, b)
    ]
    assert found.per_pair == tuple(each.difference for each in single)
    assert found.difference == pytest.approx(np.mean(found.per_pair))
    assert by_name(compare([a, b], [good], PROTOCOL, resamples=200))["gt_known", "oracle"].per_pair is None


def test_runs_of_other_images_are_refused():
    good = table(MadeUpSource())
    other = ScoreTable((replace(good.load(), ids=good.load().ids[::-1]),))
    with pytest.raises(DataError, match="scored different images"):
        compare([good], [other], PROTOCOL)


def test_the_interval_of_groups_is_that_of_their_means() -> None:
    one, other = table(Shifted()), table(ShiftedAgain())
    for difference in compare([one, other], [other, one], PROTOCOL, resamples=100):
        assert (difference.difference, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)
