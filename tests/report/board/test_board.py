"""The board: what shares a table and a row, where a difference is given, papers' tables, and the four
formats."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from wsolbench.cli.leaderboard import command
from wsolbench.exceptions import DataError
from wsolbench.metrics.catalog import metric_info
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, RunRecord
from wsolbench.records.published import Paper, PublishedNumber
from wsolbench.report.board.board import (
    Cell,
    Filters,
    Numbers,
    Table,
    measured_tables,
    published_tables,
)
from wsolbench.report.board.formats import render
from wsolbench.report.board.leaderboard import leaderboard_files
from wsolbench.report.board.paper_tables import paper_tables
from wsolbench.report.board.repetitions import Run, superseded
from wsolbench.report.board.results import current_versions

PAPERS = {
    "p": Paper(key="p", name="P", title="A paper", file="published/p.csv", year=2021),
    "q": Paper(key="q", name="Q", title="B", file=""),
}


def number(**changes: Any) -> PublishedNumber:
    values: dict[str, Any] = {
        "paper": "p",
        "table": "Table 1",
        "row": 1,
        "label": "",
        "dataset": "cub",
        "split": "test",
        "method": "CAM",
        "ours": "cam",
        "backbone": "vgg16",
        "metric": "top1_loc",
        "value": "40.5",
        "unit": "percent",
        "evidence": "own",
        "protocol": "",
        "note": "",
    }
    return PublishedNumber(**{**values, **changes})


def run(
    value: float = 0.5,
    *,
    seed: int = 0,
    images: int = 5794,
    metric: str = "top1_loc",
    version: int = 1,
    **method: Any,
) -> Run:
    description = {
        "name": "cam",
        "backbone": "vgg16",
        "config": {"head": "conv"},
        "training": {"seed": seed, "weights": "imagenet", "recipe": {"epochs": 3}},
        **method,
    }
    measured = MetricValue(
        name=metric,
        value=value,
        n=images,
        low=value - 0.02,
        high=value + 0.04,
        policy="oracle",
        tau=(0.2,),
        version=version,
    )
    data = {
        "name": "cub",
        "split": "test",
        "fingerprint": "ab",
        "images": images,
        "limit": None,
        "transfer_from": None,
    }
    record = RunRecord(
        method=description,
        dataset=data,
        protocol=EvalProtocol(),
        metrics=(measured,),
        provenance={"date": "2024-05-01"},
    )
    return Run(record, f"../measured/{description['name']}-{seed}-{value}.json")


def published(*numbers: PublishedNumber) -> Numbers:
    return Numbers(numbers=numbers, papers=PAPERS)


def texts(table: Table) -> list[dict[str, str]]:
    return [{name: cell.text for name, cell in zip(table.columns, row, strict=True)} for row in table.rows]


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


@pytest.mark.parametrize(
    ("filters", "count"),
    [({"since": 2021}, 1), ({"since": 2022}, 0), ({"method": "cam"}, 1), ({"metric": "pxap"}, 0)],
)
def test_filters_leave_out_published_numbers(filters: dict[str, Any], count: int) -> None:
    assert len(published_tables(published(number()), Filters(**filters))) == count


AWKWARD = Table(
    path=("a|b", "50 %"),
    columns=("method", "x_1", "x_1"),
    rows=((Cell("a_b & 50 % #{~^}\\", "../r.json"), Cell("1†"), Cell("—")),),
    notes=("a_note",),
)


def test_markdown_escapes_and_links() -> None:
    text = render([AWKWARD, replace(AWKWARD, path=("a|b", "60 %"))], "markdown")
    assert text.count("## a\\|b\n") == 1  # a heading that two tables share stands once
    assert "### 50 %" in text
    assert "| [a\\_b &amp; 50 % \\#\\{\\~^\\}\\\\][1] | 1† | — |" in text
    assert text.count("../r.json") == 1  # once, however many tables link to it
    assert text.endswith("\n[1]: ../r.json\n")


def test_latex_is_a_booktabs_table_with_escaped_text() -> None:
    text = render([AWKWARD], "latex")
    assert text.splitlines()[1:4] == [r"\begin{tabular}{lll}", r"\toprule", r"method & x\_1 & x\_1 \\"]
    assert (
        r"a\_b \& 50 \% \#\{\textasciitilde{}\textasciicircum{}\}\textbackslash{} & 1$^\dagger$ & --- \\"
        in text
    )


def test_json_and_csv_hold_the_same_cells() -> None:
    (table,) = json.loads(render([AWKWARD], "json"))
    assert table["path"] == ["a|b", "50 %"]
    assert table["rows"] == [
        {"method": AWKWARD.rows[0][0].text, "x_1": "1†", "x_1 (2)": "—", "link": "../r.json"}
    ]
    header, row = csv.reader(io.StringIO(render([AWKWARD], "csv")))
    assert header == ["table", "method", "x_1", "x_1", "link"]
    assert row == ["a|b / 50 %", AWKWARD.rows[0][0].text, "1†", "—", "../r.json"]


# --- from a folder ------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run on all of CUB's test images, and a paper with the method's number."""
    run(0.425).record.write(tmp_path / "measured")
    (tmp_path / "papers.toml").write_text(
        '[p]\nname = "P"\ntitle = "A paper"\nfile = "published/p.csv"\nyear = 2021\n'
    )
    (tmp_path / "published").mkdir()
    header = "table,row,label,dataset,split,method,ours,backbone,metric,value,unit,evidence,protocol,note"
    row = "Table 1,1,CAM row,cub,test,CAM,cam,vgg16,top1_loc,40.5,percent,own,,"
    (tmp_path / "published/p.csv").write_text(f"{header}\n{row}\n")
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


def test_the_board_of_a_folder_has_a_page_for_the_data_set_and_one_for_the_paper(results: Path) -> None:
    files = leaderboard_files(results)
    assert "| [CAM (CAM row)][1] | vgg16 | P | 2021 | 40.5 |" in files["published-cub.md"]
    assert "| CAM row | vgg16 | 40.5 | [42.5][1] |" in files["paper-p.md"]
    assert "[1]: ../measured/cub/" in files["paper-p.md"]
    assert "(published-cub.md)" in files["README.md"]
    assert "(paper-p.md)" in files["README.md"]


def test_a_variant_file_says_which_settings_a_printed_name_means(results: Path) -> None:
    (results / "variants.csv").write_text("paper,method,ours,settings\np,CAM,cam,head=fc\n")
    assert "| CAM row | vgg16 | 40.5 |  |" in leaderboard_files(results)["paper-p.md"]


def test_the_command_prints_tables_or_writes_them_to_a_file(results: Path) -> None:
    shown = call("--results", results, "--dataset", "cub", "--metric", "top1_loc", "--format", "latex")
    assert shown.exit_code == 0, shown.output
    assert shown.output.count(r"\toprule") == 2
    written = call("--results", results, "--format", "json", "--out", results / "board.json")
    assert written.exit_code == 0, written.output
    assert len(json.loads((results / "board.json").read_text())) == 2
    assert not (results / "leaderboard").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "top1_lok"), "did you mean 'top1_loc'"),
        (("--dataset", "cars"), "no table of the leaderboard matches --dataset cars"),
        (("--check", "--since", "2020"), "--check checks the whole leaderboard"),
    ],
)
def test_questions_without_an_answer_are_explained(
    results: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = call("--results", results, *arguments)
    assert message in str(result.exception)


def test_a_published_value_out_of_range_stops_the_check(results: Path) -> None:
    path = results / "published/p.csv"
    path.write_text(path.read_text().replace("40.5", "140.5"))
    with pytest.raises(DataError, match=r"p\.csv:2 .*out of range"):
        leaderboard_files(results)


def test_metrics_of_two_versions_stop_the_check(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "wsolbench.records.checks.metric_info", lambda name: replace(metric_info(name), version=2)
    )
    run(0.6, seed=1, version=2).record.write(results / "measured")
    assert call("--results", results).exit_code == 0
    checked = call("--results", results, "--check")
    assert checked.exit_code == 1
    assert "Evaluate the older run again" in checked.output
    assert "42.5" not in leaderboard_files(results)["README.md"]


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
