from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from wsolbench.cli.leaderboard import command
from wsolbench.exceptions import UsageError
from wsolbench.protocol import EvalProtocol
from wsolbench.records import MetricValue, read_record
from wsolbench.records.comparison import Comparison
from wsolbench.report.board.leaderboard import check_leaderboard, leaderboard_files, write_leaderboard
from wsolbench.report.board.results import read_results
from wsolbench.report.board.runs_csv import FACTS

Write = Callable[..., Path]


def metric(name: str, value: float | None, policy: str | None = "oracle", **more: Any) -> MetricValue:
    tau = None if policy is None or value is None else (0.2,)
    return MetricValue(name=name, value=value, n=10, policy=policy, tau=tau, **more)


def tables(markdown: str) -> list[list[str]]:
    """Rows of each table of a Markdown text, without the rule below the header."""
    found: list[list[str]] = []
    before = ""
    for line in markdown.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            if not line.startswith("|---"):
                found[-1].append(line)
        before = line
    return found


def rows(results: Path, name: str = "squares") -> list[dict[str, str]]:
    with (results / "leaderboard" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_same_records_give_the_same_bytes_whatever_the_folder_and_the_order_of_writing(
    tmp_path: Path, write_record: Write
) -> None:
    paths = [
        write_record(method={"name": name, "training": {"seed": seed}})
        for name in ("cam", "has")
        for seed in (0, 1)
    ]
    first = leaderboard_files(tmp_path)
    other = tmp_path / "elsewhere"
    for path in reversed(paths):
        target = other / path.relative_to(tmp_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert leaderboard_files(other) == first
    write_leaderboard(other)
    stored = {path.name: path.read_bytes() for path in (other / "leaderboard").iterdir()}
    assert stored == {name: text.encode() for name, text in first.items()}


def test_dates_and_machines_do_not_show_on_the_board(tmp_path: Path, write_record: Write) -> None:
    path = write_record()
    before = leaderboard_files(tmp_path)
    stored = json.loads(path.read_text())
    stored["provenance"] = {"date": "1999-01-01", "device": "abacus"}
    path.write_text(json.dumps(stored))
    assert leaderboard_files(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": EvalProtocol.preset("spa")},
        {"protocol": replace(EvalProtocol(), components="union")},
        {"dataset": {"fingerprint": "cd" * 32}},
        {"dataset": {"split": "val"}},
        {"dataset": {"images": 1}},
        {"metrics": (metric("gt_known", 0.4, "fixed:0.2"),)},
    ],
    ids=["preset", "one protocol field", "annotations", "split", "number of images", "threshold policy"],
)
def test_runs_that_cannot_be_compared_are_in_different_tables(
    tmp_path: Path, write_record: Write, change: dict[str, Any]
) -> None:
    write_record(protocol=EvalProtocol())
    write_record(method={"name": "other"}, **{"protocol": EvalProtocol(), **change})
    found = tables(leaderboard_files(tmp_path)["squares.md"])
    assert [len(table) for table in found] == [2, 2]


def test_runs_that_can_be_compared_share_a_table_from_best_to_worst(
    tmp_path: Path, write_record: Write
) -> None:
    for name, value in (("low", 0.2), ("high", 0.9), ("middle", 0.5)):
        write_record(method={"name": name}, metrics=(metric("gt_known", value),))
    write_record(
        method={"name": "undefined"},
        metrics=(metric("gt_known", None, reason="no image has a true box"), metric("top1_loc", 0.1)),
    )
    (table,) = tables(leaderboard_files(tmp_path)["squares.md"])
    assert [row.split("]")[0] for row in table[1:]] == ["| [high", "| [middle", "| [low", "| [undefined"]


def test_numbers_transferred_from_different_splits_are_in_different_tables(
    tmp_path: Path, write_record: Write
) -> None:
    for fingerprint in ("aa", "bb"):
        write_record(
            method={"name": fingerprint},
            dataset={"transfer_from": {"split": "val", "fingerprint": fingerprint}},
            metrics=(metric("gt_known", 0.5, "oracle"), metric("gt_known", 0.4, "transfer")),
        )
    text = leaderboard_files(tmp_path)["squares.md"]
    assert [len(table) for table in tables(text)] == [
        3,
        2,
        2,
    ]  # one oracle table with both runs, two transfer tables
    assert "transfer from val (fingerprint aa)" in text


def test_a_metric_without_a_threshold_stands_in_the_tables_of_every_policy(
    tmp_path: Path, write_record: Write
) -> None:
    write_record(
        metrics=(
            metric("top1_cls", 0.75, None),
            metric("gt_known", 0.5, "oracle"),
            metric("gt_known", 0.4, "transfer"),
        )
    )
    oracle, transfer = tables(leaderboard_files(tmp_path)["squares.md"])
    assert oracle[1].endswith("| 75.0 | 50.0 |")
    assert transfer[1].endswith("| 75.0 | 40.0 |")


def test_a_recogniser_without_any_threshold_is_on_the_board(tmp_path: Path, write_record: Write) -> None:
    write_record(metrics=(metric("top1_cls", 0.75, None),))
    (table,) = tables(leaderboard_files(tmp_path)["squares.md"])
    assert table[0].endswith("| seed | Top-1 Cls |")


def test_an_undefined_metric_is_shown_with_its_reason(tmp_path: Path, write_record: Write) -> None:
    write_record(metrics=(metric("gt_known", 0.5), metric("pxap", None, None, reason="no image has a mask")))
    write_record(method={"name": "b"}, metrics=(metric("gt_known", 0.4), metric("pxap", 0.7, None)))
    text = leaderboard_files(tmp_path)["squares.md"]
    assert "| 50.0 | — (1) |" in text
    assert "\n(1) no image has a mask\n" in text


def test_the_link_of_a_row_leads_to_its_record(tmp_path: Path, write_record: Write) -> None:
    path = write_record(method={"name": "a b(c)", "backbone": "timm:x"})
    write_leaderboard(tmp_path)
    (link,) = {row["record"] for row in rows(tmp_path)}
    assert f"]({link})" in (tmp_path / "leaderboard" / "squares.md").read_text()
    assert " " not in link
    assert "(" not in link
    from urllib.parse import unquote

    assert (tmp_path / "leaderboard" / unquote(link)).resolve() == path


def test_the_csv_has_a_row_for_each_policy_with_fractions_of_every_metric(
    tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    record = make_run(12, fixed_tau=0.2).record
    record.write(tmp_path / "measured")
    write_leaderboard(tmp_path)
    found = {row["policy"]: row for row in rows(tmp_path)}
    assert set(found) == {metric.policy for metric in record.metrics if metric.policy}
    assert len(found) > 1
    for measured in record.metrics:
        for policy in [measured.policy] if measured.policy else found:
            row = found[policy]
            for end, value in (("", measured.value), ("_low", measured.low), ("_high", measured.high)):
                text = row.get(measured.name + end, "")
                assert (text == "") if value is None else (float(text) == pytest.approx(value, rel=1e-5)), (
                    measured.name,
                    end,
                    policy,
                )
            assert [float(tau) for tau in row.get(f"{measured.name}_tau", "").split()] == pytest.approx(
                measured.tau or (), rel=1e-5
            )
            assert row["seed"] == "0"


def test_the_csv_has_the_columns_of_a_metric_beside_each_other_in_the_order_of_the_catalog(
    tmp_path: Path, write_record: Write
) -> None:
    parts = (metric("max_box_acc_v2@0.5", 0.4), metric("max_box_acc_v2", 0.3))
    write_record(metrics=(*parts, metric("gt_known", 0.5), metric("top1_cls", 0.75, None)))
    header = leaderboard_files(tmp_path)["squares.csv"].splitlines()[0].split(",")
    assert header[: len(FACTS)] == list(FACTS)
    names = [name for name in header[len(FACTS) :] if not name.endswith(("_low", "_high", "_tau"))]
    assert names == ["top1_cls", "gt_known", "max_box_acc_v2", "max_box_acc_v2@0.5"]


def test_runs_of_a_method_are_told_apart_by_the_settings_in_which_they_differ(
    tmp_path: Path, write_record: Write
) -> None:
    for beta in (0.0, 50.0):
        write_record(method={"name": "caam", "config": {"beta": beta, "caam": True}})
    write_record(method={"name": "cam", "config": {"head": "conv"}})
    write_leaderboard(tmp_path)
    assert sorted(row["settings"] for row in rows(tmp_path)) == ["", "beta=0.0", "beta=50.0"]
    (table,) = tables((tmp_path / "leaderboard" / "squares.md").read_text())
    assert sum("| beta=0.0 |" in row for row in table) == sum("| beta=50.0 |" in row for row in table) == 1


def test_the_board_of_a_data_set_leaves_parts_of_metrics_to_the_csv(
    tmp_path: Path, write_record: Write
) -> None:
    write_record(metrics=(metric("max_box_acc_v2", 0.3), metric("max_box_acc_v2@0.5", 0.4)))
    board = leaderboard_files(tmp_path)
    assert "@" not in board["squares.md"] + board["README.md"]
    assert "max_box_acc_v2@0.5" in board["squares.csv"]
    assert (
        "MaxBoxAccV2 @ 0.5"
        in invoke("--results", tmp_path, "--dataset", "squares", "--format", "markdown").output
    )


def test_special_characters_in_names_are_escaped_everywhere(tmp_path: Path, write_record: Write) -> None:
    write_record(method={"name": "<b>|cam|", "backbone": "a*b"}, dataset={"name": "my <data> | [set]"})
    board = leaderboard_files(tmp_path)
    assert set(board) == {"README.md", "my-data-set.md", "my-data-set.csv"}
    assert r"&lt;b&gt;\|cam\|" in board["my-data-set.md"]
    assert r"a\*b" in board["my-data-set.md"]
    assert r"[my &lt;data&gt; \| \[set\]](my-data-set.md)" in board["README.md"]
    assert "<b>" not in board["my-data-set.md"] + board["README.md"]


@pytest.mark.parametrize("name", ["README", "reproduction", "published-cub", "paper-spa"])
def test_a_data_set_never_takes_the_place_of_another_page(
    tmp_path: Path, write_record: Write, name: str
) -> None:
    write_record(dataset={"name": name})
    stem = f"{name.lower()}-data"
    assert set(leaderboard_files(tmp_path)) == {"README.md", f"{stem}.md", f"{stem}.csv"}


def test_the_index_lists_every_data_set(tmp_path: Path, write_record: Write) -> None:
    for name in ("cub", "toybirds"):
        write_record(dataset={"name": name})
    *_, table = tables(leaderboard_files(tmp_path)["README.md"])
    assert [row.split("]")[0] for row in table[1:]] == ["| [cub", "| [toybirds"]


def test_check_lists_stale_missing_and_superfluous_files_and_writing_mends_them(
    tmp_path: Path, write_record: Write
) -> None:
    write_record(dataset={"name": "cub"})
    gone = write_record(dataset={"name": "gone"})
    write_leaderboard(tmp_path)
    assert check_leaderboard(tmp_path) == []
    folder = tmp_path / "leaderboard"
    (folder / "notes.md").write_text("somebody's own notes\n")
    gone.unlink()
    (folder / "cub.csv").unlink()
    with (folder / "cub.md").open("a") as stream:
        stream.write("edited\n")
    found = {(difference.path.name, difference.problem) for difference in check_leaderboard(tmp_path)}
    assert found == {
        ("README.md", "stale"),
        ("cub.md", "stale"),
        ("cub.csv", "missing"),
        ("gone.md", "superfluous"),
        ("gone.csv", "superfluous"),
    }
    write_leaderboard(tmp_path)
    assert check_leaderboard(tmp_path) == []
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "cub.md",
        "cub.csv",
        "notes.md",
    }


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not JSON"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1, "method": {}}', "lacks or misspells"),
        ("[1]", "schema"),
    ],
)
def test_an_invalid_record_is_named_and_the_others_are_on_the_board(
    tmp_path: Path, write_record: Write, content: str, what: str
) -> None:
    write_record()
    before = leaderboard_files(tmp_path)
    (tmp_path / "measured" / "broken.json").write_text(content)
    (problem,) = read_results(tmp_path).problems
    assert "broken.json" in problem
    assert what in problem
    assert leaderboard_files(tmp_path) == before


def test_the_check_names_broken_records_and_exits_with_1_though_the_board_is_up_to_date(
    tmp_path: Path, write_record: Write
) -> None:
    path = write_record()
    (tmp_path / "measured" / "x.json").mkdir()
    (tmp_path / "measured" / "y.json").write_bytes(b"\xff")
    (tmp_path / "measured" / "z.json").write_bytes(path.read_bytes())
    written = invoke("--results", tmp_path)
    assert written.exit_code == 0
    for name in "xyz":
        assert f"left out: record {tmp_path / 'measured' / name}.json" in written.output
    checked = invoke("--results", tmp_path, "--check")
    assert checked.exit_code == 1
    _, _, named = checked.output.partition(f"The leaderboard lacks 2 broken files of {tmp_path}")
    assert "x.json" in named
    assert "y.json" in named
    assert "z.json" not in named
    (tmp_path / "measured" / "x.json").rmdir()
    (tmp_path / "measured" / "y.json").unlink()
    checked = invoke("--results", tmp_path, "--check")
    assert checked.exit_code == 0
    assert "is a copy of" in checked.output
    assert [row["method"] for row in rows(tmp_path)] == ["cam"]


def test_a_comparison_of_records_that_are_gone_is_left_out(tmp_path: Path, write_record: Write) -> None:
    a, b = (read_record(write_record(method={"name": name})) for name in ("cam", "spa"))
    Comparison.make([a], [b], ()).write(tmp_path / "compared")
    assert len(read_results(tmp_path).comparisons) == 1
    (tmp_path / "measured" / b.path).unlink()
    (tmp_path / "compared" / "x.json").write_text("[]")
    read = read_results(tmp_path)
    assert read.comparisons == []
    assert [
        part in message
        for part, message in zip(("names 1 record that no file has", "x.json"), read.problems, strict=True)
    ] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (("a b", "a-b"), {"a-b", "a-b-2a464367"}),
        (("CUB", "cub"), {"cub", "cub-240d817a"}),
        (("..", "."), None),
        (("con", "NUL.x"), {"con-data", "nul.x-data"}),
        (("x" * 90, "x" * 91), None),
        (("README", "readme-data"), None),
    ],
)
def test_data_sets_never_share_a_page(
    tmp_path: Path, write_record: Write, names: tuple[str, str], files: set[str] | None
) -> None:
    for name in names:
        write_record(dataset={"name": name})
    board = leaderboard_files(tmp_path)
    stems = {name.removesuffix(".csv") for name in board if name.endswith(".csv")}
    assert len(stems) == 2
    assert files is None or stems == files
    assert len({name.casefold() for name in board}) == len(board)
    for stem in stems:
        assert len(list(csv.DictReader(board[f"{stem}.csv"].splitlines()))) == 1
        assert f"({stem}.md)" in board["README.md"]


def test_of_two_records_of_one_seed_the_one_that_is_not_shown_is_named(
    tmp_path: Path, write_record: Write
) -> None:
    paths = [write_record(metrics=(metric("gt_known", value),)) for value in (0.4, 0.6)]
    result = invoke("--results", tmp_path)
    assert result.exit_code == 0
    assert "is not shown" in result.output
    index = leaderboard_files(tmp_path)["README.md"]
    assert all(path.stem in index for path in paths)
    assert invoke("--results", tmp_path, "--check").exit_code == 0


@pytest.mark.parametrize(
    "change",
    [
        {"name": "gt_knwon"},
        {"value": 63.4},
        {"value": None},
        {"value": "0.5"},
        {"tau": 0.2},
        {"surprise": 1},
    ],
    ids=lambda change: f"{next(iter(change))}={next(iter(change.values()))}",
)
def test_an_invalid_metric_in_a_record_is_an_error_that_names_the_file(
    tmp_path: Path, write_record: Write, change: dict[str, Any]
) -> None:
    path = write_record()
    stored = json.loads(path.read_text())
    stored["metrics"][0] |= change
    path.write_text(json.dumps(stored))
    (problem,) = read_results(tmp_path).problems
    assert path.name in problem


def test_a_protocol_of_another_version_is_an_error_that_names_the_file(
    tmp_path: Path, write_record: Write
) -> None:
    path = write_record()
    stored = json.loads(path.read_text())
    stored["protocol"]["componets"] = "all"
    path.write_text(json.dumps(stored))
    (problem,) = read_results(tmp_path).problems
    assert re.search(f"{path.name}.*did you mean 'components'", problem)


def test_hidden_files_of_a_running_evaluation_are_not_records(tmp_path: Path, write_record: Write) -> None:
    path = write_record()
    (path.parent / ".half-written.json").write_text("{")
    (tmp_path / "measured" / ".work").mkdir()
    (tmp_path / "measured" / ".work" / "state.json").write_text("{}")
    assert len(leaderboard_files(tmp_path)) == 3


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_writes_the_board_and_check_then_passes(tmp_path: Path, write_record: Write) -> None:
    write_record()
    written = invoke("--results", tmp_path)
    assert written.exit_code == 0
    assert str(tmp_path / "leaderboard" / "squares.md") in written.output.splitlines()
    assert invoke("--results", tmp_path, "--check").exit_code == 0


def test_the_check_exits_with_1_and_lists_the_files_without_writing(
    tmp_path: Path, write_record: Write
) -> None:
    write_record()
    result = invoke("--results", tmp_path, "--check")
    assert result.exit_code == 1
    assert f"missing: {tmp_path / 'leaderboard' / 'squares.csv'}" in result.output
    assert not (tmp_path / "leaderboard").exists()


def test_a_results_folder_without_any_record_yet_has_an_index(tmp_path: Path) -> None:
    (tmp_path / "measured").mkdir()
    assert invoke("--results", tmp_path).exit_code == 0
    assert "no record yet" in (tmp_path / "leaderboard" / "README.md").read_text()


def test_a_folder_that_is_no_results_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--results"):
        write_leaderboard(tmp_path / "resutls")
    assert isinstance(invoke("--results", tmp_path / "resutls").exception, UsageError)
    assert not (tmp_path / "resutls").exists()


def test_the_help_of_the_command_shows_an_example() -> None:
    assert "Example:" in invoke("--help").output


def test_notes_of_the_results_are_in_the_index_and_small_splits_have_a_warning(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    write_record(dataset={"images": 499})
    (tmp_path / "notes.md").write_text("Some records are old.\n")
    files = leaderboard_files(tmp_path)
    assert "\nSome records are old.\n" in files["README.md"]
    assert "Fewer than 500 images: intervals of oracle numbers are too narrow" in files["squares.md"]
    (tmp_path / "notes.md").unlink()
    write_record(dataset={"images": 500, "split": "many", "fingerprint": "cd" * 32})
    files = leaderboard_files(tmp_path)
    assert "records are old" not in files["README.md"]
    assert files["squares.md"].count("Fewer than 500 images") == 1
