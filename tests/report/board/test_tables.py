from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.report.conftest import make_dataset, make_record
from wsolbench.exceptions import UsageError
from wsolbench.methods.supervision import Supervision, UsedFor
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.report.board.tables import (
    describe_protocol,
    escape_markdown,
    format_value,
    metrics_markdown,
    metrics_table,
    place_of,
    sort_policies,
    value_note,
)


def shown(record: RunRecord, width: int = 120) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(metrics_table(record))
    return stream.getvalue()


def cells(markdown: str, metric: str) -> list[str]:
    (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {metric} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_fraction_is_shown_in_percent_with_its_interval() -> None:
    assert (
        format_value(MetricValue(name="gt_known", value=0.6342, low=0.61, high=0.6578, n=9))
        == "63.4 [61.0, 65.8]"
    )


def test_peak_t_is_shown_as_a_level_and_not_in_percent() -> None:
    assert (
        format_value(MetricValue(name="peak_t", value=127.0, low=120.0, high=133.0, n=9)) == "127 [120, 133]"
    )


def test_a_metric_without_an_interval_is_shown_as_the_number_alone() -> None:
    assert format_value(MetricValue(name="pxap", value=1.0, n=9)) == "100.0"


@pytest.mark.parametrize(
    ("name", "policy", "note"),
    [
        ("peak_t", None, "Peak-T is a level"),
        ("keypoint_distance_px", None, "px: pixels"),
        ("pxap", "oracle", "upper bound"),
    ],
)
def test_a_unit_or_policy_is_explained_only_where_it_occurs(name: str, policy: str | None, note: str) -> None:
    metric = MetricValue(name=name, value=0.5, policy=policy, n=9)
    plain = MetricValue(name="top1_cls", value=0.5, n=9)
    assert note in value_note([plain, metric])
    assert note not in value_note([plain, replace(metric, value=None, reason="no image")])


def test_each_threshold_policy_has_its_column_in_the_order_oracle_fixed_transfer(run: Any) -> None:
    header = metrics_markdown(run.record).splitlines()[2]
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "metric",
        "no threshold",
        "oracle",
        "fixed:0.2",
        "transfer",
    ]
    terminal = shown(run.record)
    assert (
        terminal.index("no threshold")
        < terminal.index("oracle")
        < terminal.index("fixed:0.2")
        < terminal.index("transfer")
    )


def test_a_cell_holds_value_interval_and_threshold_of_its_policy(run: Any) -> None:
    found = cells(metrics_markdown(run.record), "GT-known")
    for cell, policy in zip(found[1:], ("oracle", "fixed:0.2", "transfer"), strict=True):
        metric = run.record.metric("gt_known", policy)
        assert cell == f"{format_value(metric)}, tau {metric.tau[0]:g}"
    assert found[0] == ""


def test_max_box_acc_v2_shows_one_threshold_for_each_delta(run: Any) -> None:
    metric = run.record.metric("max_box_acc_v2", "oracle")
    assert len(metric.tau) == 3
    assert cells(metrics_markdown(run.record), "MaxBoxAccV2")[1].endswith(
        "tau " + " ".join(f"{round(tau, 3):g}" for tau in metric.tau)
    )


def test_groups_and_rows_are_in_the_order_of_the_catalog(run: Any) -> None:
    record = replace(run.record, metrics=tuple(reversed(run.record.metrics)))
    text = metrics_markdown(record)
    titles = [
        "Classification",
        "Top-1 Cls",
        "Boxes",
        "GT-known",
        "Top-1 Loc",
        "MaxBoxAccV2 @ 0.3",
        "MaxBoxAccV2 @ 0.7",
        "Masks",
        "PxAP",
    ]
    titles += ["Error breakdown", "Right", "Part", "Other"]
    places = [
        text.index(f"| **{title}**" if f"| **{title}**" in text else f"| {title} |") for title in titles
    ]
    assert places == sorted(places)


def test_an_undefined_metric_is_a_dash_with_its_reason_as_a_footnote(run: Any) -> None:
    assert cells(metrics_markdown(run.record), "PxAP")[0] == "— (1)"
    assert "\n(1) no image has a mask\n" in metrics_markdown(run.record)
    assert "— (1)" in shown(run.record)
    assert "(1) no image has a mask" in shown(run.record)


def test_different_reasons_have_different_footnotes(make_run: Callable[..., Any]) -> None:
    text = metrics_markdown(make_run(8, boxes=False, ranks=0).record)
    assert "no predicted labels" in text
    assert "no image has a true box" in text
    assert cells(text, "Top-1 Cls")[0] != cells(text, "GT-known")[0]


def test_a_record_in_which_everything_is_undefined_has_a_table_too(make_run: Callable[..., Any]) -> None:
    record = make_run(8, boxes=False, ranks=0).record
    assert all(metric.value is None for metric in record.metrics)
    assert "GT-known" in shown(record)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_keeps_intervals_in_one_piece_at_any_usual_width(run: Any, width: int) -> None:
    text = shown(run.record, width)
    metric = run.record.metric("gt_known", "oracle")
    assert f"[{100 * metric.low:.1f}, {100 * metric.high:.1f}]" in text
    assert max(map(len, text.splitlines())) <= width


def test_terminal_markup_in_a_name_is_shown_and_not_obeyed(run: Any) -> None:
    record = replace(run.record, method={"name": "cam[/bold][red]", "backbone": "[link=x]y"})
    assert "cam[/bold][red] · [link=x]y" in shown(record, 200)


def test_markdown_and_html_in_names_are_escaped(run: Any) -> None:
    record = replace(run.record, method={"name": "a|b", "backbone": "<script>*x*_y_`z`</script>"})
    title = metrics_markdown(record).splitlines()[0]
    assert r"a\|b" in title
    assert r"&lt;script&gt;\*x\*\_y\_\`z\`&lt;/script&gt;" in title


@given(st.text())
def test_escaped_text_is_one_line_without_html_or_open_table_cell(text: str) -> None:
    escaped = escape_markdown(text)
    assert not set("<>\n\r") & set(escaped)
    assert escaped.count("|") == escaped.count(r"\|")


def test_a_protocol_is_described_by_its_preset_and_what_it_changes() -> None:
    spa = EvalProtocol.preset("spa")
    assert describe_protocol(spa) == "spa"
    assert describe_protocol(replace(spa, components="largest")) == "spa, components='largest'"
    assert (
        describe_protocol(replace(EvalProtocol(), name="mine", frame_size=32))
        == "mine (wsoleval, frame_size=32)"
    )


@pytest.mark.parametrize("preset", EvalProtocol.presets())
def test_every_rule_of_normalisation_is_described_by_its_name(preset: str) -> None:
    for rule in get_args(get_type_hints(EvalProtocol)["normalize"]):
        protocol = replace(EvalProtocol.preset(preset), normalize=rule)
        changed = rule != EvalProtocol.preset(preset).normalize
        assert describe_protocol(protocol) == (f"{preset}, normalize={rule!r}" if changed else preset)


def test_fixed_thresholds_are_sorted_as_numbers() -> None:
    assert sort_policies(["transfer", "fixed:0.15", "oracle", "fixed:0.2", "fixed:0.05", "oracle"]) == [
        "oracle",
        "fixed:0.05",
        "fixed:0.15",
        "fixed:0.2",
        "transfer",
    ]


def test_a_metric_that_is_not_in_the_catalog_is_an_error_with_the_nearest_name(run: Any) -> None:
    record = replace(run.record, metrics=(MetricValue(name="gt_knwon", value=0.5, n=3),))
    with pytest.raises(UsageError, match="gt_known"):
        metrics_table(record)


@pytest.mark.parametrize(
    ("name", "used_for", "place"),
    [
        ("center-box", None, 0),
        ("cam", None, 1),
        ("coseq", "training", 1),
        ("coseq", "prediction", 2),  # its objects are the ground-truth boxes of the evaluated images
        ("oracle", "prediction", 2),
    ],
)
def test_methods_that_read_the_truth_of_evaluated_images_are_ceilings(
    name: str, used_for: UsedFor | None, place: int
) -> None:
    method: dict[str, Any] = {"name": name}
    if used_for is not None:
        method["supervision"] = Supervision(boxes=True, used_for=used_for).to_json()
    assert place_of(make_record(make_dataset(3), EvalProtocol(), (), method=method)) == place
