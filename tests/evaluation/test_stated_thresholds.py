"""Transferred thresholds that a record states give the numbers that the other split's scores gave."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from tests.report.conftest import PROTOCOL, build_run
from wsolbench.evaluation.summary import StatedThresholds, summarize
from wsolbench.exceptions import DataError

OTHER = build_run(12, seed=5).table


@pytest.mark.parametrize("v2_tau", ["shared", "per_delta"])
@pytest.mark.parametrize("averaging", ["image", "class"])
@pytest.mark.parametrize("ranks", [0, 1, 5])
def test_stated_thresholds_replace_the_scores_to_the_bit(
    v2_tau: Literal["shared", "per_delta"], averaging: Literal["image", "class"], ranks: int
) -> None:
    protocol = replace(PROTOCOL, v2_tau=v2_tau, averaging=averaging)
    table = build_run(12, ranks=ranks).table
    metrics = summarize(table, protocol, transfer_from=OTHER, resamples=100)
    taus = {metric.name: metric.tau for metric in metrics if metric.policy == "transfer" and metric.tau}
    assert "gt_known" in taus
    stated = StatedThresholds(taus)
    assert summarize(table, protocol, transfer_from=stated, resamples=100) == metrics


@pytest.mark.parametrize("taus", [(0.123,), (0.1, 0.2)], ids=str)
def test_a_threshold_off_the_grid_or_too_many_are_refused(taus: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="expected 1 of the protocol's grid"):
        summarize(OTHER, PROTOCOL, transfer_from=StatedThresholds({"gt_known": taus}), resamples=100)
