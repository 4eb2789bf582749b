"""What a run depends on besides its options: the program, and where it comes from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wsolbench
from wsolbench.records.program import program, unlike

PACKAGE = Path(wsolbench.__file__).parent

ASK = """
import sys
sys.path.insert(0, sys.argv[1])
from wsolbench.records import provenance
print(provenance(seconds={}, device="cpu")["revision"])
"""


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.email=a@b", "-c", "user.name=n")
    return subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with both packages in the folder `site`, nothing of it tracked."""
    git(tmp_path, "init", "-q", ".")
    (tmp_path / "README").write_text("somebody's project")
    git(tmp_path, "add", "README")
    git(tmp_path, "commit", "-qm", "first")
    for name in ("wsolbench", "reference_models"):
        shutil.copytree(
            PACKAGE.parent / name, tmp_path / "site" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


def revision(copy: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(copy / "site")],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("ignored", [True, False])
def test_a_package_that_only_lies_in_a_repository_has_no_revision(copy: Path, ignored: bool) -> None:
    (copy / ".gitignore").write_text("site\n" if ignored else "")
    assert revision(copy) == "None"
    assert revision(copy, GIT_DIR=str(copy / ".git"), GIT_WORK_TREE=str(copy / "site")) == "None"


def test_a_revision_tells_of_changes_in_both_packages_and_of_nothing_else(copy: Path) -> None:
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "the packages")
    head = git(copy, "rev-parse", "HEAD")
    assert revision(copy) == head
    (copy / "README").write_text("changed")
    assert revision(copy) == head
    changed = copy / "site" / "reference_models" / "catalog.py"
    text = changed.read_text()
    changed.write_text(text + "\n")
    assert revision(copy) == f"{head}+changes"
    changed.write_text(text)
    (copy / "site" / "wsolbench" / "new.py").write_text("")
    assert revision(copy) == f"{head}+changes"


def test_no_program_of_a_repository_is_run(copy: Path) -> None:
    git(copy, "add", ".")
    git(copy, "commit", "-qm", "the packages")
    (copy / "monitor").write_text(f"#!/bin/sh\ntouch {copy}/ran\n")
    (copy / "monitor").chmod(0o755)
    git(copy, "config", "core.fsmonitor", str(copy / "monitor"))
    revision(copy)
    assert not (copy / "ran").exists()


def test_the_program_is_named_by_the_source_of_all_that_takes_part() -> None:
    here = program(("torch",))
    assert {"wsolbench", "reference_models"} <= here["source"].keys()
    assert here["versions"].keys() >= {"wsolbench", "numpy", "pillow", "torch"}
    assert program(("torch",)) == here


def test_two_programs_are_told_by_what_differs() -> None:
    here = program()
    source = {**here["source"], "wsolbench": "0" * 64}
    message = unlike({**here, "source": source}, here)
    assert message == (
        f"wsolbench {wsolbench_version()} (source 000000000000) there and "
        f"wsolbench {wsolbench_version()} (source {here['source']['wsolbench'][:12]}) here"
    )
    assert unlike({**here, "versions": {**here["versions"], "numpy": "1.26.4"}}, here).startswith(
        "numpy 1.26.4 there and"
    )
    assert unlike(here, here) == ""
    assert "earlier version" in unlike({}, here)


def wsolbench_version() -> str | None:
    return program()["versions"]["wsolbench"]
