"""What `wsolbench list` shows: read from the text of the methods' files, without importing them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsolbench.cli.list import command
from wsolbench.exceptions import UsageError
from wsolbench.methods import (
    MethodInfo,
    list_backbones,
    list_detectors,
    list_methods,
    list_posts,
    methods_in,
)
from wsolbench.methods.registry import group_of
from wsolbench.records.published import read_papers

ROWS = {
    row.name: row
    for row in (*list_methods(), *list_posts(), *list_detectors(), *list_backbones())
    if row.module.startswith("reference_models.")
}
WITH_PAPERS = [row for row in ROWS.values() if row.task != "backbone"]


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_summary_is_one_short_line(row: MethodInfo) -> None:
    assert 20 <= len(row.summary) <= 70
    assert not row.summary.endswith((".", ",", ";"))


@pytest.mark.parametrize("row", WITH_PAPERS, ids=lambda row: row.name)
def test_the_paper_of_a_method_is_a_section_of_the_papers(row: MethodInfo) -> None:
    paper = read_papers()[row.paper]
    text = " ".join((importlib.import_module(row.module).__doc__ or "").split())
    assert paper.year is not None
    assert f"{paper.year}" in text
    assert paper.title.partition(":")[0].lower() in text.lower()


def test_released_code_that_a_method_names_is_that_of_its_paper() -> None:
    papers = read_papers()
    for row in WITH_PAPERS:
        text = " ".join((importlib.import_module(row.module).__doc__ or "").split())
        _, found, after = text.partition("Released code: ")
        if found:
            address = after.split()[0].rstrip(".,;")
            assert papers[row.paper].code == f"https://github.com/{address}"


def test_the_paper_is_read_from_the_text_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name, text in (
        ("with_paper", '"""A method."""\nPAPER = "cam"\nraise RuntimeError\n'),
        ("without", '"""Another one."""\ndef f():\n    PAPER = "cam"\n'),
        ("__init__", ""),
    ):
        (tmp_path / "elsewhere" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = methods_in("elsewhere", "localization")
    assert [(row.name, row.paper) for row in rows] == [("with-paper", "cam"), ("without", "")]
    assert "elsewhere.with_paper" not in sys.modules


@pytest.mark.parametrize("what", ["methods", "posts", "detectors", "backbones"])
def test_a_row_of_a_list_has_at_most_two_lines_of_80_columns(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(command, [what]).output.splitlines()
    assert max(map(len, lines)) <= 80
    below = 0
    for line in lines[3:]:
        below = below + 1 if line[2:].startswith(" ") and line.strip() else 0
        assert below <= 1, line
    shown = " ".join(" ".join(lines).split())
    for row in ROWS.values():
        if what == "methods" and row.task in ("localization", "recognition"):
            assert f" {row.name} " in shown
            assert f" {row.group} " in shown


def test_groups_are_those_of_the_file_or_of_the_folder() -> None:
    groups = {name: row.group for name, row in ROWS.items() if row.task in ("localization", "recognition")}
    assert {groups[name] for name in ("prior", "center-box")} == {"floor"}
    assert groups["oracle"] == "ceiling"
    assert groups["cam"] == "class activation"
    assert groups["spa"] == "trained localizer"
    assert groups["lio"] == "fine-grained"
    assert group_of("cam+scg") == group_of("cam") == "class activation"
    assert group_of("lio:oel_7") == "fine-grained"
    assert group_of("of-nobody") == ""


def test_an_unknown_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ungrouped").mkdir()
    (tmp_path / "ungrouped" / "mine.py").write_text('"""Mine."""\nGROUP = "best"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="GROUP = 'best'; expected one of floor"):
        methods_in("ungrouped", "localization")


def test_a_list_shows_an_unknown_key_of_a_paper_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    row = MethodInfo(name="mine", summary="A method", task="localization", module="mine", paper="mine-2026")
    monkeypatch.setattr("wsolbench.methods.list_methods", lambda: [row])
    assert "mine-2026" in CliRunner().invoke(command, ["methods"]).output
