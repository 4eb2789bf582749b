"""Published numbers of the five papers: the tables in their texts, cell by cell, and what their rows are
called."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import published_number
from oracles.papers import FILES, LABEL, MARK, TABLES, Table, named_by, read_texts

from wsolbench.records.published import LITERATURE, read_published

NUMBERS = read_published(LITERATURE)
IDS = [f"{table.paper}-{table.number}" for table in TABLES]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Text of the five papers, by key."""
    folder = os.environ.get("WSOLBENCH_PAPERS")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "WSOLBENCH_PAPERS is not set or no folder: it names a folder with the papers as text files"
        )
    return read_texts(Path(folder))


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_a_table_is_printed_as_in_the_file(table: Table, texts: dict[str, str]) -> None:
    assert table.differences(texts[table.paper], NUMBERS) == []


def changed_digit(value: str) -> str:
    return value[:-1] + str((int(value[-1]) + 1) % 10)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_every_changed_digit_lost_row_and_swap_is_noticed(table: Table, texts: dict[str, str]) -> None:
    text = texts[table.paper]
    mine = [each for each in NUMBERS if (each.paper, each.table) == (table.paper, table.name)]
    for place, each in enumerate(mine):
        before, after = mine[:place], mine[place + 1 :]
        assert table.differences(text, [*before, replace(each, value=changed_digit(each.value)), *after])
        assert table.differences(text, [*before, *after])
        if after:
            assert table.differences(text, [*before, after[0], each, *after[1:]])


def test_a_changed_digit_in_a_file_is_noticed(tmp_path: Path, texts: dict[str, str]) -> None:
    shutil.copytree(LITERATURE / "published", tmp_path / "published")
    shutil.copy(LITERATURE / "papers.toml", tmp_path)
    path = tmp_path / "published/spa.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("61.12", "61.13", 1), encoding="utf-8")
    assert TABLES[0].differences(texts["spa"], read_published(tmp_path)) == [
        "spa, Table 1, row 1, Backprop, VGG16: value is '61.13' in the file, '61.12' in the paper"
    ]


def test_the_reader_of_tables_on_a_made_up_paper() -> None:
    text = (
        "Text.\n\nMethod\tMask\tScores\t\n\t\tTop-1\tGT\nCAM "
        "[43]\t\t<b>10.5</b>\t-\n\t✓\t11\t2.50\n\nTable 1. Made up.\n\n"
        "Table 1 shows this.\n"
    )
    fields = {"Scores / Top-1": {"metric": "top1_loc"}, "Scores / GT": {"metric": "gt_known"}}
    table = Table("spa", 1, 2, {"Method": LABEL, "Mask": MARK, **fields}, {"dataset": "cub"})
    cells = list(table.cells(text))
    assert [(cell.row, cell.label, cell.fields["metric"], cell.value) for cell in cells] == [
        (1, "CAM", "top1_loc", "10.5"),
        (2, "CAM, Mask", "top1_loc", "11"),
        (2, "CAM, Mask", "gt_known", "2.50"),
    ]
    numbers = [
        published_number(
            table="Table 1", row=cell.row, label=cell.label, value=cell.value, metric=cell.fields["metric"]
        )
        for cell in cells
    ]
    assert table.differences(text, numbers) == []
    assert table.differences(text, [replace(numbers[0], value="10.6"), *numbers[1:]])
    assert table.differences(text, [replace(numbers[0], value="10.50"), *numbers[1:]])
    assert table.differences(text, [replace(numbers[0], dataset="ilsvrc"), *numbers[1:]])
    assert table.differences(text, numbers[:-1])
    assert table.differences(text, [*numbers, replace(numbers[0], row=3)])
    with pytest.raises(AssertionError, match="Top-5"):
        table.differences(text.replace("GT\n", "Top-5\n"), numbers)


# What a row is called tells which method it is


def test_the_label_of_a_row_tells_method_and_backbone() -> None:
    for each in NUMBERS:
        if each.paper in FILES and (each.paper, each.table) != ("lio", "Table 5"):  # whose rows are data sets
            method, backbone = named_by(each.paper, each.label)
            assert (each.method, each.backbone) == (method, backbone or each.backbone), each


OURS = {
    "SPA": "spa+scg",
    "SPA[RAM only]": "spa",
    "SPA[SCG only]": "cam+scg",
    "CAM[SPA baseline]": "cam",
    "ADL+SEM": "adl+sem",
    "MEIL": "eil",
    "WhereToLook[patch=16]": "caam",
    "LIO[7x7]": "lio",
    "BAS": "bas",
    "PSOL": "psol",
    "CREAM": "",
}


@pytest.mark.parametrize(("method", "ours"), OURS.items())
def test_the_method_of_this_project(method: str, ours: str) -> None:
    assert {each.ours for each in NUMBERS if each.method == method} == {ours}


@pytest.mark.parametrize("paper", FILES)
def test_rows_are_counted_in_the_five_papers(paper: str) -> None:
    for table in {each.table for each in NUMBERS if each.paper == paper}:
        rows = [each.row for each in NUMBERS if (each.paper, each.table) == (paper, table)]
        assert rows == sorted(rows, key=lambda row: row or 0)
        assert None not in rows
