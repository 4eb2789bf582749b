"""The short table: what it shows, in which order, and that it fits a terminal of 80 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.conftest import make_dataset, make_record
from wsolbench.evaluation.short_table import WIDTH, describe_missing, short_table
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord


def value(name: str, number: float | None, policy: str | None = None, *taus: float) -> MetricValue:
    if number is None:
        return MetricValue(name=name, value=None, n=0, reason="no data")
    return MetricValue(
        name=name, value=number, low=number - 0.02, high=number + 0.02, n=5, policy=policy, tau=taus or None
    )


def record(*metrics: MetricValue, **method: object) -> RunRecord:
    protocol = EvalProtocol.preset("wsoleval")
    return make_record(
        make_dataset(5), protocol, metrics, method={"name": "cam", "backbone": "none", **method}
    )


ORACLE = (
    value("top1_cls", 0.7),
    value("gt_known", 0.6, "oracle", 0.21),
    value("top1_loc", 0.5, "oracle", 0.21),
    value("max_box_acc_v2", 0.55, "oracle", 0.15, 0.21, 0.3),
    value("pxap", 0.4),
)
TRANSFER = tuple(
    value(name, number, "transfer", *[0.1] * count)
    for name, number, count in (("gt_known", 0.59, 1), ("top1_loc", 0.49, 1), ("max_box_acc_v2", 0.54, 3))
)


def test_a_title_and_the_four_most_important_metrics_with_threshold() -> None:
    assert short_table(record(*reversed(ORACLE), backbone="resnet50")).splitlines() == [
        "cam (resnet50) on squares test: 5 images, protocol wsoleval",
        "  Top-1 Cls            70.0 % [68.0, 72.0]",
        "  GT-known     oracle  60.0 % [58.0, 62.0] tau 0.21",
        "  Top-1 Loc    oracle  50.0 % [48.0, 52.0] tau 0.21",
        "  MaxBoxAccV2  oracle  55.0 % [53.0, 57.0] tau 0.15, 0.21, 0.3",
    ]


def test_transferred_thresholds_stand_next_to_the_oracle() -> None:
    lines = short_table(record(*ORACLE, *TRANSFER)).splitlines()
    assert lines[2] == "  GT-known     oracle  60.0 % [58.0, 62.0]  transfer  59.0 % [57.0, 61.0]"
    first = short_table(record(*ORACLE, *TRANSFER), "transfer").splitlines()[2]
    assert first.index("transfer") < first.index("oracle")


def test_pxap_takes_the_place_of_a_metric_without_a_value() -> None:
    gaps = [value(metric.name, None) if metric.name.startswith("top1") else metric for metric in ORACLE]
    names = [line.split()[0] for line in short_table(record(*gaps)).splitlines()[1:]]
    assert names == ["GT-known", "MaxBoxAccV2", "PxAP"]
    assert short_table(record(value("box_ap", 0.3), value("box_ap50", 0.5))).count("\n") == 2
    assert short_table(record(value("gt_known", None))).count("\n") == 0


@pytest.mark.parametrize("number", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("policies", [1, 2, 3, 5])
def test_every_line_fits_80_columns_and_keeps_every_value_that_has_room(number: float, policies: int) -> None:
    kinds = ("oracle", "transfer", "fixed:0.125", "fixed:0.25", "fixed:0.375")[:policies]
    metrics = [
        replace(value(metric.name, number, kind, *(metric.tau or ())), high=1.0)
        for metric in ORACLE[1:4]
        for kind in kinds
    ]
    long = record(*metrics, name="a" * 70, backbone="b" * 50)
    lines = short_table(long).splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= WIDTH
    assert ("tau" in lines[3]) == (policies == 1)
    if policies <= 3:
        assert all(line.count("%") == policies for line in lines[1:])


def test_a_changed_protocol_and_unsafe_names_are_visible() -> None:
    made = record(*ORACLE, name="a\x1b[31m\nb")
    title = short_table(replace(made, protocol=replace(made.map_protocol, components="union"))).split("\n")[0]
    assert title == "a[31m b on squares test: 5 images, protocol wsoleval (changed)"


def test_reasons_of_missing_metrics_are_named_unless_another_policy_has_a_value() -> None:
    assert describe_missing(record(*ORACLE)) == ""
    other = value("gt_known", None, "transfer")
    assert describe_missing(record(*ORACLE, replace(other, policy="transfer"))) == ""
    without = [replace(value(name, None), reason="no box") for name in ("gt_known", "top1_loc", "pxap")]
    labels = replace(value("top1_cls", None), reason="no labels")
    assert describe_missing(record(labels, *without)) == (
        "metrics without a value: Top-1 Cls: no labels; GT-known, Top-1 Loc: no box. --full shows all"
    )
