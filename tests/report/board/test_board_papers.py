"""Published numbers on the board: next to runs, in tables of their own, and in those of papers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.report.board.made_up import PAPERS, number, published, run, texts
from wsolbench.records import RunRecord
from wsolbench.records.published import PublishedNumber, read_papers
from wsolbench.report.board.board import (
    Filters,
    Numbers,
    measured_tables,
    published_tables,
)
from wsolbench.report.board.paper_tables import paper_tables
from wsolbench.report.board.repetitions import Run


def test_a_difference_is_given_only_on_the_whole_official_split_and_the_same_backbone() -> None:
    numbers = published(number(), number(row=2, backbone="resnet50", value="50.0"))
    whole, part = (
        texts(measured_tables([run(0.425, images=images)], numbers, Filters())[0])[0]
        for images in (5794, 1389)
    )
    assert (whole["published"], whole["paper"], whole["difference"]) == ("40.5 % (vgg16)", "P 2021", "+2.0")
    assert (part["published"], part["difference"]) == ("40.5 % (vgg16)", "")
    (other,) = texts(measured_tables([run(0.425, backbone="tiny")], numbers, Filters())[0])
    assert other["published"] == "40.5 % (vgg16) / 50.0 % (resnet50)"
    assert other["difference"] == ""


def test_a_missing_difference_is_explained_only_next_to_published_numbers() -> None:
    (part,) = measured_tables([run(0.425, images=1389)], published(number()), Filters())
    (alone,) = measured_tables([run(0.425, images=1389)], published(), Filters())
    (whole,) = measured_tables([run(0.425)], published(number()), Filters())
    assert ["official split" in note for note in part.notes] == [True]
    assert alone.notes == whole.notes == ()


def test_a_printed_error_is_compared_as_the_accuracy_that_it_is() -> None:
    numbers = published(number(value="59.5", unit="percent_error"))
    (row,) = texts(measured_tables([run(0.425)], numbers, Filters())[0])
    assert row["difference"] == "+2.0"


def test_only_a_papers_own_full_method_stands_beside_a_run() -> None:
    numbers = published(
        number(evidence="requoted"), number(row=2, method="CAM[small]"), number(row=3, metric="top1_cls")
    )
    (row,) = texts(measured_tables([run()], numbers, Filters())[0])
    assert row["published"] == ""


def test_published_tables_hold_own_numbers_and_mark_what_others_print_otherwise() -> None:
    numbers = published(
        number(),
        number(paper="q", value="44.2", evidence="requoted"),
        number(row=2, method="SPA", ours="spa", value="60"),
    )
    (table,) = published_tables(numbers, Filters())
    assert [(row["method"], row["Top-1 Loc"], row["paper"], row["where"]) for row in texts(table)] == [
        ("SPA", "60 %", "P", "Table 1, row 2"),
        ("CAM", "40.5 %†", "P", "Table 1, row 1"),
    ]
    assert table.notes


def test_a_papers_table_has_its_rows_and_columns_and_runs_beside_what_they_are_of() -> None:
    numbers = published(
        number(label="CAM, VGG16"),
        number(label="CAM, VGG16", metric="gt_known", value="55.1"),
        number(row=2, label="Ours", method="SPA", ours="spa+scg", value="60.27"),
        number(
            row=3,
            label="Ours, ResNet",
            method="SPA",
            ours="spa+scg",
            backbone="resnet50",
            metric="gt_known",
            value="70",
        ),
    )

    def meant(cell: PublishedNumber, record: RunRecord) -> bool:
        return bool(cell.ours == record.method["name"] and cell.backbone == record.method["backbone"])

    runs = [run(0.3), run(0.5, seed=1), run(0.9, images=10), run(0.8, backbone="resnet50")]
    (table,) = paper_tables(PAPERS["p"], runs, numbers, meant)
    assert table.path == ("P", "Table 1")
    assert table.columns == (
        "row",
        "backbone",
        "Top-1 Loc, cub/test",
        "measured",
        "GT-known, cub/test",
        "measured",
    )
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["CAM, VGG16", "vgg16", "40.5", "40.0", "55.1", ""],
        ["Ours", "vgg16", "60.27", "", "", ""],
        ["Ours, ResNet", "resnet50", "", "", "70", ""],
    ]


@pytest.mark.parametrize(
    ("filters", "count"),
    [({"since": 2021}, 1), ({"since": 2022}, 0), ({"method": "cam"}, 1), ({"metric": "pxap"}, 0)],
)
def test_filters_leave_out_published_numbers(filters: dict[str, Any], count: int) -> None:
    assert len(published_tables(published(number()), Filters(**filters))) == count


@pytest.mark.parametrize("split", ["val-masks", "test"])
def test_numbers_of_the_images_with_masks_stand_beside_runs_on_those_alone(split: str) -> None:
    printed = published(number(dataset="ilsvrc", split="val-masks", metric="gt_known"))
    measured = run(0.425, metric="gt_known", images=23151)
    for images in (23151, None):
        data = {**measured.record.dataset, "name": "ilsvrc", "split": split, "images": images}
        each = Run(replace(measured.record, dataset=data), measured.link)
        (row,) = texts(measured_tables([each], printed, Filters())[0])
        assert (row["published"], row["difference"]) == ("40.5 % (vgg16)" if split == "val-masks" else "", "")
        (table,) = paper_tables(PAPERS["p"], [each], printed, lambda *_: True)
        assert texts(table)[0]["measured"] == ""


def test_turned_images_are_not_compared_with_published_numbers() -> None:
    turned = run(0.425)
    turned = Run(
        replace(turned.record, dataset={**turned.record.dataset, "transform": "rotate90"}), turned.link
    )
    (row,) = texts(measured_tables([turned], published(number()), Filters())[0])
    assert (row["published"], row["difference"]) == ("40.5 % (vgg16)", "")


def test_a_row_names_the_papers_of_its_method_and_post_process() -> None:
    papers = {**published().papers, **{key: read_papers()[key] for key in ("cam", "sem", "spa")}}
    numbers = Numbers(numbers=[], papers=papers)
    runs = [run(0.4, name=name) for name in ("cam", "cam+sem", "spa+scg", "lio:oel_7", "mine")]
    rows = texts(measured_tables(runs, numbers, Filters())[0])
    assert {row["method"]: row["paper"] for row in rows} == {
        "cam": "CAM 2016",
        "cam+sem": "CAM 2016 / SEM 2020",
        "spa+scg": "SPA 2021",
        "lio:oel_7": "",
        "mine": "",
    }
