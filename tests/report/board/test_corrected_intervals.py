"""Which numbers of a record carry an interval that is corrected for the choice of the threshold."""

from __future__ import annotations

import re

import numpy as np
import pytest

from wsolbench.evaluation.summary import summarize
from wsolbench.metrics import EvalProtocol, best_threshold_interval
from wsolbench.records import MetricValue, RunRecord
from wsolbench.report.board.tables import metrics_markdown


def of(metrics: tuple[MetricValue, ...], name: str, policy: str = "oracle") -> MetricValue:
    return next(metric for metric in metrics if metric.name == name and metric.policy == policy)


@pytest.fixture(scope="module")
def metrics(run) -> tuple[MetricValue, ...]:
    return summarize(
        run.table, run.record.map_protocol, fixed_tau=0.2, transfer_from=run.table, resamples=200
    )


def test_numbers_at_their_best_threshold_have_a_corrected_interval_and_no_others(metrics) -> None:
    corrected = {(metric.name, metric.policy) for metric in metrics if metric.corrected_low is not None}
    at_best = {"gt_known", "top1_loc", "top5_loc", "max_box_acc", "max_box_acc_v2"}
    at_best |= {f"max_box_acc_v2@{delta}" for delta in (0.3, 0.5, 0.7)}
    assert corrected == {(name, "oracle") for name in at_best}


def test_it_is_the_interval_of_the_hits_at_every_threshold(run, metrics) -> None:
    scores, protocol = run.table.load(), run.record.map_protocol
    hits = scores.single_iou >= 0.5
    expected = best_threshold_interval(hits, lambda rates: rates[:, None], n_resamples=200)
    gt_known = of(metrics, "gt_known")
    assert (gt_known.corrected_low, gt_known.corrected_high) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )
    every = np.concatenate([scores.best_iou >= delta for delta in protocol.deltas], axis=1)
    expected = best_threshold_interval(every, lambda rates: rates.reshape(len(rates), 3, -1), n_resamples=200)
    v2 = of(metrics, "max_box_acc_v2")
    assert (v2.corrected_low, v2.corrected_high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_with_a_shared_threshold_there_is_one_curve(run) -> None:
    protocol = EvalProtocol(taus=run.record.map_protocol.taus, v2_tau="shared")
    scores = run.table.load()
    v2 = of(summarize(run.table, protocol, resamples=200), "max_box_acc_v2")
    mean = np.mean([scores.best_iou >= delta for delta in protocol.deltas], axis=0)
    expected = best_threshold_interval(mean, lambda rates: rates[:, None], n_resamples=200)
    assert (v2.corrected_low, v2.corrected_high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_tables_warn_below_500_images_and_print_the_corrected_intervals(run, metrics) -> None:
    record = RunRecord(
        method=run.record.method,
        dataset=run.record.dataset,
        protocol=run.record.protocol,
        metrics=metrics,
        provenance={},
    )
    text = metrics_markdown(record)
    assert "Fewer than 500 images: intervals of oracle numbers are too narrow." in text
    gt_known = of(metrics, "gt_known")
    assert f"GT-known [{100 * gt_known.corrected_low:.1f}, {100 * gt_known.corrected_high:.1f}]" in text
    many = tuple(MetricValue(**{**vars(metric), "n": 500}) for metric in metrics)
    record = RunRecord(
        method=record.method, dataset=record.dataset, protocol=record.protocol, metrics=many, provenance={}
    )
    assert not re.search("Fewer than", metrics_markdown(record))
