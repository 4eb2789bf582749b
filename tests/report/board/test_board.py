"""The board: what shares a table and a row, and what filters leave out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.report.board.made_up import published, run, texts
from wsolbench.report.board.board import (
    Filters,
    Numbers,
    measured_tables,
)
from wsolbench.report.board.repetitions import Run, superseded
from wsolbench.report.board.results import current_versions


def test_seeds_share_a_row_that_says_mean_interval_and_range() -> None:
    (table,) = measured_tables([run(0.4, seed=0), run(0.5, seed=1), run(0.6, seed=2)], published(), Filters())
    (row,) = texts(table)
    assert row["measured"] == "50.0 [48.0, 54.0]"
    assert row["runs"] == "3: 40.0 to 60.0"
    assert row["init"] == "imagenet"


def test_runs_with_other_settings_are_rows_that_name_them_from_best_to_worst() -> None:
    runs = [run(0.4), run(0.6, config={"head": "fc"}), run(0.5, name="spa", config={"ram": True})]
    (table,) = measured_tables(runs, published(), Filters())
    assert [(row["method"], row["settings"]) for row in texts(table)] == [
        ("cam", "head=fc"),
        ("spa", ""),
        ("cam", "head=conv"),
    ]


def test_errors_are_sorted_from_low_to_high() -> None:
    (table,) = measured_tables(
        [run(0.4, metric="error_part"), run(0.2, metric="error_part", name="spa")], published(), Filters()
    )
    assert [row["method"] for row in texts(table)] == ["spa", "cam"]


@pytest.mark.parametrize(
    "change", [{"fingerprint": "cd"}, {"transform": "rotate90"}, {"images": 10}, {"split": "val"}]
)
def test_other_images_have_a_table_of_their_own(change: dict[str, Any]) -> None:
    other = run(0.5, seed=1)
    runs = [run(0.4), Run(replace(other.record, dataset={**other.record.dataset, **change}), other.link)]
    assert len(measured_tables(runs, published(), Filters())) == 2


def test_metrics_of_two_versions_are_never_on_one_board() -> None:
    assert current_versions([run(), run(seed=1)])[1] == []
    newer = run(seed=1, version=2)
    kept, (problem,) = current_versions([run(), newer])
    assert kept == [newer]
    assert (
        "has version 1 of top1_loc; expected version 2, which other records of cub have. Evaluate the older run again"
        in problem
    )


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ({}, 1),
        ({"dataset": "ilsvrc"}, 0),
        ({"metric": "gt_known"}, 0),
        ({"method": "spa"}, 0),
        ({"backbone": "vgg16"}, 1),
        ({"since": 2025}, 0),
    ],
)
def test_filters_leave_out_runs(filters: dict[str, Any], count: int) -> None:
    assert len(measured_tables([run()], published(), Filters(**filters))) == count


def test_a_metric_without_a_threshold_has_one_table_whatever_the_policies() -> None:
    measured = run().record
    free = replace(measured.metrics[0], name="top1_cls", policy=None, tau=None)
    other = replace(measured.metrics[0], policy="fixed:0.2")
    record = replace(measured, metrics=(*measured.metrics, other, free))
    found = measured_tables([Run(record, "link")], Numbers(numbers=(), papers={}), Filters())
    assert [table.path[2] for table in found] == [
        "Top-1 Cls",
        "Top-1 Loc, threshold: oracle",
        "Top-1 Loc, threshold: fixed:0.2",
    ]
    assert {(table.metric, table.protocol) for table in found} == {
        ("Top-1 Cls", "wsoleval"),
        ("Top-1 Loc", "wsoleval"),
    }
    assert [table.estimates for table in found] == [(("50.0", "48.0", "54.0"),)] * 3


def test_seeds_that_each_name_a_checkpoint_of_their_own_are_one_row() -> None:
    runs = [
        run(0.5 + 0.1 * seed, seed=seed, config={"classifier": f"{seed}.st", "classifier_sha256": f"{seed}a"})
        for seed in (0, 1)
    ]
    runs.append(run(0.3, config={"classifier": "", "classifier_sha256": ""}))
    (table,) = measured_tables(runs, Numbers(numbers=(), papers={}), Filters())
    assert [(row[1].text, row[6].text) for row in table.rows] == [
        ("classifier=checkpoint", "2: 50.0 to 60.0"),
        ("classifier=none", "1"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet50"},
        {"post": {"name": "scg"}},
        {"image_size": 448},
        {"training": {"seed": 1, "weights": "none", "recipe": {"epochs": 3}}},
        {"training": {"seed": 1, "weights": "imagenet", "recipe": {"epochs": 9}}},
    ],
    ids=str,
)
def test_runs_that_differ_in_more_than_the_seed_are_two_rows(change: dict[str, Any]) -> None:
    (table,) = measured_tables([run(0.4), run(0.6, **change)], published(), Filters())
    assert [row["runs"] for row in texts(table)] == ["1", "1"]


def test_no_clock_decides_which_of_two_records_of_one_seed_is_shown() -> None:
    one, other = run(0.4), run(0.6)
    shown = set()
    for dates in (("1970-01-01", "2024-06-01"), ("2099-01-01", "2024-06-01"), ("", "")):
        dated = [
            Run(replace(each.record, provenance={"date": date}), each.link)
            for each, date in zip((one, other), dates, strict=True)
        ]
        for runs in (dated, dated[::-1]):
            (row,) = texts(measured_tables(runs, published(), Filters())[0])
            assert row["runs"] == "1"
            ((old, new),) = superseded(runs)
            assert {old.link, new.link} == {one.link, other.link}
            shown.add((row["measured"], new.link))
    assert len(shown) == 1


def test_the_record_of_a_later_version_of_the_program_is_shown_whatever_its_digest() -> None:
    def of(value: float, version: str) -> Run:
        return Run(replace(run(value).record, provenance={"versions": {"wsolbench": version}}), f"{value}")

    for old, new in ((0.4, 0.6), (0.6, 0.4)):
        runs = [of(old, "0.9.0"), of(new, "0.10.0")]
        assert [(before.link, after.link) for before, after in superseded(runs)] == [(f"{old}", f"{new}")]


def test_an_interval_of_some_seeds_is_none_of_all() -> None:
    bare = run(0.6, seed=1)
    bare = Run(
        replace(bare.record, metrics=(replace(bare.record.metrics[0], low=None, high=None),)), bare.link
    )
    (table,) = measured_tables([run(0.4), bare], published(), Filters())
    assert table.estimates == (("50.0",),)


def test_thresholds_from_other_splits_have_tables_of_their_own() -> None:
    def of(fingerprint: str, value: float, seed: int) -> Run:
        record = run(value, seed=seed).record
        metrics = (replace(record.metrics[0], policy="transfer"),)
        return Run(
            replace(
                record,
                metrics=metrics,
                dataset={**record.dataset, "transfer_from": {"fingerprint": fingerprint}},
            ),
            fingerprint,
        )

    (table,) = measured_tables([of("aa", 0.4, 0), of("aa", 0.5, 1)], published(), Filters())
    assert table.path[-1] == "Top-1 Loc, threshold: transfer"
    one, other = measured_tables([of("aa", 0.4, 0), of("bb", 0.6, 1)], published(), Filters())
    assert [texts(table)[0]["runs"] for table in (one, other)] == ["1", "1"]
    assert [each.path[-1] for each in (one, other)] == [
        f"Top-1 Loc, threshold: transfer from None (fingerprint {name})" for name in ("aa", "bb")
    ]
