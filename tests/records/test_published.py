"""Published numbers: the files are what the papers print, and a wrong cell is found."""

from __future__ import annotations

import csv
import random
import re
import shutil
from collections import Counter
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import published_number
from oracles.papers import TABLES

from wsolbench.datasets import list_datasets
from wsolbench.exceptions import DataError, UsageError
from wsolbench.methods import list_detectors, list_methods, list_posts
from wsolbench.records.claims import read_claims
from wsolbench.records.published import (
    COLUMNS,
    EVIDENCE,
    LITERATURE,
    Conflict,
    conflicts,
    published_info,
    read_papers,
    read_published,
)

ROOT = Path(__file__).parents[2]
NUMBERS = read_published(LITERATURE)
PAPERS = read_papers(LITERATURE / "papers.toml")

# Rows of each table: own, reproduced, requoted.
COUNTS = {
    ("spa", "Table 1"): (6, 0, 30),
    ("spa", "Table 2"): (6, 0, 28),
    ("spa", "Table 3"): (18, 36, 0),
    ("spa", "Table 4"): (10, 10, 0),
    ("spa", "Table 5"): (18, 6, 0),
    ("spa", "Table 6"): (18, 6, 0),
    ("where-to-look", "Table 1"): (4, 0, 18),
    ("where-to-look", "Table 2"): (4, 0, 19),
    ("where-to-look", "Table 3"): (1, 0, 7),
    ("where-to-look", "Table 4"): (2, 0, 12),
    ("where-to-look", "Table 5"): (8, 0, 0),
    ("where-to-look", "Table 6"): (20, 0, 0),
    ("lio", "Table 1"): (12, 3, 38),
    ("lio", "Table 2"): (6, 0, 2),
    ("lio", "Table 3"): (24, 24, 0),
    ("lio", "Table 4"): (7, 2, 0),
    ("lio", "Table 5"): (6, 0, 0),
    ("ssanet", "Table 1"): (2, 3, 1),
    ("ssanet", "Table 2"): (2, 3, 1),
    ("ssanet", "Table 3"): (5, 1, 0),
    ("ssanet", "Table 4"): (1, 2, 0),
    ("ssanet", "Table 5"): (3, 2, 0),
    ("ssanet", "Table 6"): (2, 0, 9),
    ("ssanet", "Table 7"): (1, 0, 5),
    ("ssanet", "Table 8"): (1, 0, 10),
    ("focus-discriminate", "Table 1"): (3, 0, 17),
    ("focus-discriminate", "Table 2"): (3, 0, 2),
    ("wsolevaluation", "main_table.png"): (21, 54, 0),
    ("ivr", "perf.png"): (54, 162, 0),
    ("bas", "accuracy.png"): (24, 0, 154),
    ("sat", "README"): (6, 0, 0),
    ("sat", "notes"): (1, 0, 0),
    ("sat", "result.png"): (0, 0, 20),
    ("c2am", "README"): (12, 0, 12),
    ("da-wsol", "README"): (26, 0, 0),
    ("bagcams", "README"): (20, 1, 19),
    ("ts-cam", "README"): (25, 0, 0),
    ("scm", "README"): (10, 0, 0),
    ("trt", "README"): (12, 0, 0),
    ("catr", "README"): (4, 0, 0),
    ("genpromp", "README"): (2, 0, 0),
    ("calm", "README"): (6, 0, 0),
    ("cam-back-again", "README"): (4, 4, 0),
    ("tokencut", "README"): (4, 0, 0),
    ("nts-net", "README"): (1, 0, 0),
    ("b-cnn", "README"): (6, 0, 0),
    ("hawkeye", "results.csv"): (0, 16, 16),
    ("acol-pytorch", "README"): (0, 4, 0),
    ("awesome-wsol", "README"): (0, 0, 22),
    ("idc", "README"): (2, 0, 0),
    ("mamc", "notes"): (0, 0, 7),
    ("tasn", "README"): (2, 0, 0),
    ("trilite", "notes"): (4, 0, 2),
    ("unitab", "README"): (3, 0, 11),
}


# The files


def test_every_table_is_complete() -> None:
    found = Counter(((each.paper, each.table), each.evidence) for each in NUMBERS)
    tables = dict.fromkeys(table for table, _ in found)
    assert {table: tuple(found[table, evidence] for evidence in EVIDENCE) for table in tables} == COUNTS
    assert len(NUMBERS) == 1243


def test_every_table_of_the_five_papers_is_read() -> None:
    assert {(table.paper, table.name) for table in TABLES} == {
        (paper, table) for paper, table in COUNTS if table.startswith("Table ")
    }


def test_names_are_those_of_this_project_where_it_has_one() -> None:
    datasets = {info.name for info in list_datasets()}
    methods = {row.name for row in [*list_methods(), *list_detectors()]}
    posts = {row.name for row in list_posts()}
    for each in NUMBERS:
        method, _, post = each.ours.partition("+")
        assert each.dataset in datasets
        assert not method or method in methods
        assert not post or post in posts
        assert each.backbone.lower() not in {"vgg-16", "resnet-50", "inceptionv3"}


def test_every_number_of_a_conflict_carries_a_note() -> None:
    assert all(each.note for conflict in conflicts(NUMBERS) for each in conflict.numbers)


def test_papers_are_complete() -> None:
    sources = {key: paper for key, paper in PAPERS.items() if paper.file}
    assert all(paper.file == f"published/{key}.csv" for key, paper in sources.items())
    assert all(paper.title for paper in PAPERS.values())
    assert all(re.fullmatch(r"\d{4}\.\d{4,5}", paper.arxiv) for paper in PAPERS.values() if paper.arxiv)
    assert {number.paper for number in NUMBERS} == set(sources)


def test_the_papers_of_the_package_are_read_by_default() -> None:
    assert read_papers() == PAPERS


def test_a_paper_without_a_venue_is_of_arxiv_if_it_is_there() -> None:
    assert PAPERS["cam"].venue_and_year == "CVPR 2016"
    assert PAPERS["sem"].venue_and_year == "arXiv 2020"
    assert PAPERS["idc"].venue_and_year == ""
    assert PAPERS["sem"].address == "https://arxiv.org/abs/2006.05220"


def test_claims_quote_published_numbers() -> None:
    keys = {paper.name: key for key, paper in PAPERS.items()}
    for claim in read_claims(LITERATURE / "claims.csv"):
        place = claim.where.partition(",")[0]
        tables = {f"Table {number}" for number in re.findall(r"[0-9]+", place)} or {place}
        values = {
            f"{value if each.unit == 'level_0_255' else 100 * value:.2f}"
            for each in NUMBERS
            if each.table in tables and (each.paper, each.metric) == (keys[claim.paper], claim.metric)
            for value in (each.as_recorded,)
        }
        printed = [value for value in (claim.published_a, claim.published_b) if value]
        assert bool(printed) == (claim.where != "question"), claim
        assert {f"{float(value):.2f}" for value in printed} <= values, claim


# One number


@pytest.mark.parametrize(
    ("metric", "unit", "value", "recorded", "better"),
    [
        ("top1_loc", "percent_error", "39.73", 0.6027, "higher"),
        ("top1_loc", "percent", "60.27", 0.6027, "higher"),
        ("top1_loc", "fraction", "0.6027", 0.6027, "higher"),
        ("error_part", "percent_error", "21.91", 0.2191, "lower"),
        ("peak_t", "level_0_255", "132", 132.0, "neither"),
        ("box_ap50", "ap", "57.5", 0.575, "higher"),
        ("top1_cls", "percent_error", "0", 1.0, "higher"),
    ],
)
def test_a_printed_value_on_the_scale_of_records(
    metric: str, unit: str, value: str, recorded: float, better: str
) -> None:
    found = published_number(metric=metric, unit=unit, value=value)
    assert (found.as_recorded, found.better, found.value) == (recorded, better, value)


@given(value=st.decimals(0, 100, places=3), decimals=st.integers(0, 2), up=st.booleans())
def test_a_number_agrees_with_itself_rounded(value: Decimal, decimals: int, up: bool) -> None:
    rounded = value.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP if up else ROUND_HALF_EVEN)
    exact, coarse = published_number(value=f"{value:f}"), published_number(value=f"{rounded:f}")
    error = published_number(value=f"{100 - value:f}", unit="percent_error")
    assert exact.agrees_with(coarse)
    assert coarse.agrees_with(error)
    assert error.agrees_with(exact)


def test_numbers_that_round_to_different_values_disagree() -> None:
    assert published_number(value="27.55").agrees_with(published_number(value="27.5"))
    assert not published_number(value="27.55").agrees_with(published_number(value="27.50"))
    assert not published_number(value="41.06").agrees_with(published_number(value="44.2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "top1_lok"}, "did you mean 'top1_loc'"),
        ({"unit": "procent"}, "did you mean 'percent'"),
        ({"evidence": "copied"}, "unknown evidence 'copied'"),
        ({"value": "44,15"}, "'44,15' is no number"),
        ({"value": "-1"}, "'-1' is no number"),
        ({"value": "nan"}, "'nan' is no number"),
        ({"value": "46.3-50.9"}, "is no number"),
        ({"value": "100.01"}, "out of range; expected 0 to 100"),
        ({"value": "44.15", "unit": "fraction"}, "out of range; expected 0 to 1"),
        ({"metric": "peak_t", "unit": "level_0_255", "value": "256"}, "out of range; expected 0 to 255"),
        ({"metric": "peak_t"}, "does not go with metric peak_t"),
        ({"unit": "level_0_255"}, "does not go with metric top1_loc"),
        ({"row": 0}, "row 0"),
        ({"backbone": ""}, "backbone is empty"),
    ],
)
def test_a_number_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        published_number(**changes)


# Reading


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the files to be broken."""
    shutil.copy(LITERATURE / "papers.toml", tmp_path)
    shutil.copytree(LITERATURE / "published", tmp_path / "published")
    return tmp_path


def rewrite(path: Path, line: int, column: str, text: str) -> None:
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    rows[line - 1][COLUMNS.index(column)] = text
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("metric", "top1"),
        ("unit", "%"),
        ("evidence", "mine"),
        ("value", "x"),
        ("value", "1e1"),
        ("value", "200"),
        ("row", "one"),
        ("split", ""),
    ],
)
def test_a_broken_cell_is_named_by_file_and_line(results: Path, column: str, text: str) -> None:
    rewrite(results / "published/spa.csv", 7, column, text)
    with pytest.raises(DataError, match=r"spa\.csv:7 is no published number"):
        read_published(results)


def test_a_cell_has_one_row(results: Path) -> None:
    path = results / "published/lio.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[4]]), encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"lio\.csv:{len(lines) + 1} is a cell that is there already, line 5"
    ):
        read_published(results)


def test_too_few_and_too_many_cells(results: Path) -> None:
    path = results / "published/lio.csv"
    text = path.read_text(encoding="utf-8")
    for broken in (text + "Table 1,1\n", text + "," * len(COLUMNS) + "\n"):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=rf"lio\.csv:{len(text.splitlines()) + 1} is no published number"):
            read_published(results)


def test_other_columns_are_refused(results: Path) -> None:
    rewrite(results / "published/spa.csv", 1, "value", "number")
    with pytest.raises(DataError, match=r"spa\.csv:1 has the columns"):
        read_published(results)


def test_files_and_papers_belong_together(results: Path) -> None:
    (results / "published/spa.csv").rename(results / "published/space.csv")
    with pytest.raises(DataError, match=r"space\.csv is of no paper"):
        read_published(results)
    (results / "published/space.csv").unlink()
    with pytest.raises(DataError, match=r"no file .*spa\.csv, which papers\.toml names for 'spa'"):
        read_published(results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[spa", "is not TOML"),
        ('[spa]\nname = "SPA"\n', "section 'spa' lacks or misspells a field"),
        (
            '[spa]\nname = "SPA"\ntitle = "t"\nfile = "published/spa.csv"\nyaer = 2021\n',
            "section 'spa' lacks or misspells a field",
        ),
        ('spa = "SPA"\n', "section 'spa' lacks or misspells a field"),
        (
            '[a]\nname="a"\ntitle="a"\nfile="published/spa.csv"\n[b]\nname="b"\ntitle="b"\nfile="published/spa.csv"\n',
            "name one file",
        ),
    ],
)
def test_a_broken_list_of_papers(results: Path, text: str, message: str) -> None:
    (results / "papers.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_published(results)


def test_a_missing_list_of_papers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*papers\.toml"):
        read_published(tmp_path)


# Conflicts


def values(conflict: Conflict) -> set[str]:
    return {f"{100 * each.as_recorded:.2f}" for each in conflict.numbers}


def find(dataset: str, method: str, backbone: str, metric: str) -> Conflict | None:
    keys = (dataset, method, backbone, metric)
    return next(
        (
            each
            for each in conflicts(NUMBERS)
            if (each.dataset, each.method, each.backbone, each.metric) == keys
        ),
        None,
    )


@pytest.mark.parametrize(
    ("dataset", "method", "backbone", "metric", "expected"),
    [
        ("cub", "CAM", "vgg16", "top1_loc", {"34.41", "41.06", "44.15", "44.20"}),
        ("cub", "CAM", "vgg16", "top1_cls", {"67.55", "76.60"}),
        ("cub", "SPA", "vgg16", "top5_loc", {"72.45", "72.50"}),
        ("cub", "ResNet-50", "resnet50", "top1_cls", {"81.70", "84.50", "85.50"}),
        (
            "cub",
            "CAM",
            "vgg16",
            "max_box_acc_v2",
            {"71.10", "63.70", "63.71"},
        ),  # Where-to-Look's column against wsolevaluation's
        ("openimages", "ACoL", "inception_v3", "pxap", {"57.02", "57.20"}),
        ("cars", "DFL-CNN", "vgg16", "top1_cls", {"93.10", "93.80"}),  # one of them names no backbone
    ],
)
def test_known_conflicts_are_found_with_all_their_values(
    dataset: str, method: str, backbone: str, metric: str, expected: set[str]
) -> None:
    conflict = find(dataset, method, backbone, metric)
    assert conflict is not None
    assert values(conflict) == expected


def test_what_rounding_explains_is_no_conflict() -> None:
    assert find("ilsvrc", "CAM", "resnet50", "max_box_acc_v2") is None  # 63.7 and 63.65
    assert find("cub", "CAM", "resnet50", "top5_loc") is None


def test_a_table_does_not_contradict_itself() -> None:
    assert not conflicts([published_number(row=1), published_number(row=2, value="50")])
    assert conflicts([published_number(), published_number(table="Table 6", value="50")])


def test_other_data_splits_metrics_and_variants_are_no_conflict() -> None:
    here = published_number()
    for changes in (
        {"dataset": "ilsvrc"},
        {"split": "val"},
        {"metric": "top5_loc"},
        {"method": "CAM[a]"},
        {"backbone": "resnet50"},
    ):
        assert not conflicts([here, published_number(table="Table 6", value="50", **changes)])


def test_a_number_without_backbone_is_compared_with_those_that_have_one() -> None:
    loose = published_number(table="Table 6", value="50", backbone="unspecified")
    assert [each.backbone for each in conflicts([published_number(), loose])] == ["vgg16"]
    assert not conflicts([published_number(), published_number(backbone="resnet50", value="50"), loose])


def test_the_order_of_the_numbers_does_not_matter() -> None:
    shuffled = list(NUMBERS)
    random.Random(0).shuffle(shuffled)
    assert [(each.method, sorted(values(each))) for each in conflicts(shuffled)] == [
        (each.method, sorted(values(each))) for each in conflicts(NUMBERS)
    ]


def test_the_docs_list_every_conflict() -> None:
    def line(conflict: Conflict) -> str:
        sources: dict[str, list[str]] = {}
        for each in conflict.numbers:
            accuracy = str(100 - Decimal(each.value)) if each.unit == "percent_error" else each.value
            kind = ", re-run" if each.evidence == "reproduced" else ""
            sources.setdefault(accuracy, []).append(f"{PAPERS[each.paper].name} {each.table}{kind}")
        printed = "; ".join(
            f"{value} ({', '.join(sources[value])})" for value in sorted(sources, key=Decimal)
        )
        title = published_info(conflict.metric).title
        return f"| {conflict.dataset} | {conflict.method} | {conflict.backbone} | {title} | {printed} |"

    page = (ROOT / "docs/published.md").read_text(encoding="utf-8")
    table = page.partition("| data | method | backbone | metric | values |\n|---|---|---|---|---|\n")[
        2
    ].partition("\n\n")[0]
    assert table.splitlines() == [line(conflict) for conflict in conflicts(NUMBERS)]
