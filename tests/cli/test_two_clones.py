"""A submission goes from one clone, by a pull request, through the check of the workflow, to another clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run
from tests.submissions import edit, reseal, scores_of
from wsolbench.records.submission import MAX_OUTCOMES, OUTCOMES

ROOT = Path(__file__).parents[2]
METADATA = """\
authors = ["Ada Lovelace"]
paper = "unpublished"
backbone = "tiny"
training_data = "train split, image labels"
extra_data = "none"
licence = "CC BY 4.0"
"""


def git(folder: Path, *arguments: str) -> str:
    names = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    outside = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(
        ["git", "-c", "init.defaultBranch=main", *arguments],
        cwd=folder,
        env={**os.environ, **names, **outside},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def workflow_step() -> str:
    """Return the command by which the workflow checks the submissions of a pull request."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/check.yml").read_text(encoding="utf-8"))["jobs"]
    (step,) = (each for each in jobs["submissions"]["steps"] if each.get("name") == "changed submissions")
    return str(step["run"])


class Clones:
    """The clone of a submitter, and that of the workflow."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.a, self.b, self.run = folder / "a", folder / "b", run
        (folder / "origin/results/submitted").mkdir(parents=True)
        for name in ("README.md", "badges.json"):
            shutil.copy(ROOT / "results/submitted" / name, folder / "origin/results/submitted")
        # A run of a complete official split, as the submitter scored it.
        scores = min((ROOT / "results/measured/toybirds-v2").glob(f"cam_*{OUTCOMES}"))
        self.record = folder / f"mine/{scores.name.removesuffix(OUTCOMES)}.json"
        self.record.parent.mkdir()
        for file in (scores, scores.with_name(self.record.name)):
            shutil.copy(file, self.record.parent)
        (folder / "mine.toml").write_text(METADATA)
        self.metadata = folder / "mine.toml"
        git(folder / "origin", "init", "-q")
        git(folder / "origin", "add", ".")
        git(folder / "origin", "commit", "-qm", "start")
        self.base = git(folder / "origin", "rev-parse", "HEAD").strip()
        for clone in (self.a, self.b):
            git(folder, "clone", "-q", "origin", clone.name)
        git(self.a, "switch", "-qc", "mine")
        # The workflow calls the program by uv.
        (folder / "bin").mkdir()
        (folder / "bin/uv").write_text(f'#!/bin/sh\nshift 3\nexec "{sys.executable}" -m wsolbench "$@"\n')
        (folder / "bin/uv").chmod(0o755)
        self.programs = folder / "bin"

    def submit(self, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
        """Submit in the first clone, and return the JSON file."""
        monkeypatch.chdir(self.a)
        result = self.run("submit", self.record, "--metadata", self.metadata, *options)
        assert result.code == 0, result.err
        assert "next     wsolbench leaderboard --results results; then commit results" in result.out
        (path,) = (self.a / "results/submitted").glob("*/*.json")
        return path

    def request(self) -> subprocess.CompletedProcess[str]:
        """Commit everything in the first clone, fetch it in the other one, and check it like the workflow."""
        git(self.a, "add", "-A")
        git(self.a, "commit", "-qm", "change")
        git(self.b, "fetch", "-q", str(self.a), "mine")
        git(self.b, "checkout", "-q", "FETCH_HEAD")
        return subprocess.run(
            ["bash", "-c", workflow_step()],
            cwd=self.b,
            env={
                **os.environ,
                "BASE": self.base,
                "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def clones(tmp_path: Path, run: Run) -> Clones:
    return Clones(tmp_path, run)


def test_a_submission_is_checked_in_another_clone_and_replaced_by_a_newer_one(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = clones.submit(monkeypatch)
    assert clones.run("leaderboard", "--results", "results").code == 0
    checked = clones.request()
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == f"valid    {first.stem}  toybirds-v2/test  wsoleval  reported\n"
    # The other clone shows the row, and its leaderboard is up to date.
    monkeypatch.chdir(clones.b)
    assert clones.run("leaderboard", "--check").code == 0
    board = clones.b / "results/leaderboard/README.md"
    (row,) = (line for line in board.read_text(encoding="utf-8").splitlines() if first.name in line)
    assert "| reported |" in row
    # The same submission is refused in any clone. Another title replaces it.
    same = clones.run("submit", clones.record, "--metadata", clones.metadata)
    assert same.code == 2
    assert "is this submission already; nothing was written" in same.err
    second = clones.submit(monkeypatch, "--paper", "A better title")
    assert second != first
    assert clones.run("leaderboard", "--results", "results").code == 0
    checked = clones.request()
    assert checked.returncode == 0, checked.stderr
    assert [line.split()[1] for line in checked.stdout.splitlines()] == [second.stem]
    names = sorted(path.name for path in (clones.b / "results/submitted/toybirds-v2").iterdir())
    assert names == [second.name, scores_of(second).name]
    # Without the scores, or with them alone, the folder is broken.
    monkeypatch.chdir(clones.b)
    file = Path("results/submitted/toybirds-v2", second.name)
    file.unlink()
    alone = clones.run("leaderboard", "--check")
    assert alone.code == 1
    assert f"{scores_of(file)} belong to no submission; expected {file.name}" in alone.err
    refused = clones.run("verify-submission", "results/submitted")
    assert refused.code == 2
    assert "does not exist, but its per-image scores do" in refused.err


def set_value(path: Path) -> None:
    def change(values: dict) -> None:
        values["record"]["metrics"][0]["value"] = 0.6

    edit(path, change)


def copy_as_other_authors(path: Path) -> None:
    kept = [file.read_bytes() for file in (path, scores_of(path))]
    reseal(path, lambda values: values["metadata"].update(authors=["Somebody Else"]))
    path.write_bytes(kept[0])
    scores_of(path).write_bytes(kept[1])


def enlarge(path: Path) -> None:
    with scores_of(path).open("r+b") as stream:
        stream.truncate(MAX_OUTCOMES + 1)


def put_strange_name(path: Path) -> None:
    path.with_name('--help\n"$(touch ran).json').write_text("{}")


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed number": (set_value, "it was changed after it was written. Submit again"),
    "a changed number with a new id": (
        lambda path: reseal(path, lambda values: values["record"]["metrics"][0].update(value=0.6)),
        "the per-image scores give",
    ),
    "another split": (
        lambda path: reseal(path, lambda values: values["record"]["dataset"].update(split="val")),
        "toybirds-v2/val is not the official test split",
    ),
    "a copy of other authors": (copy_as_other_authors, "expected each record once"),
    "a script in a name": (
        lambda path: edit(path, lambda values: values["record"]["method"].update(name="<script>")),
        "expected printable characters without < and >",
    ),
    "a path that climbs": (
        lambda path: edit(path, lambda values: values["record"]["method"].update(name="../../x")),
        "expected no '/', '\\' and '..'",
    ),
    "a huge file": (enlarge, f"expected at most {MAX_OUTCOMES:,}"),
    "a link": (lambda path: path.with_name("link.json").symlink_to(path), "is a symbolic link; expected"),
    "a file with a strange name": (put_strange_name, "is not a submission of schema 1"),
    "another file": (
        lambda path: path.with_name("run.sh").write_text("touch ran"),
        "run.sh is no file of a submission; expected .json and .outcomes.npz",
    ),
    "badges in the folder of a data set": (
        lambda path: path.with_name("badges.json").write_text(json.dumps({path.stem: "trained here"})),
        "badges.json: it is not a submission of schema 1",
    ),
    "a page in the folder of a data set": (
        lambda path: path.with_name("README.md").write_text("text"),
        "README.md is no file of a submission",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_changed_submission_is_refused_in_another_clone(
    clones: Clones, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = clones.submit(monkeypatch)
    change, text = ATTACKS[name]
    change(path)
    # In the other clone, by the workflow: xargs says that the program failed.
    checked = clones.request()
    assert checked.returncode == 123, checked.stdout
    assert text in checked.stderr
    assert "Traceback" not in checked.stderr
    assert not (clones.b / "ran").exists()


def test_a_record_among_the_runs_of_the_project_is_named(
    clones: Clones, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clones.a)
    shutil.copytree(clones.record.parent, "results/measured/toybirds-v2")
    record = Path("results/measured/toybirds-v2", clones.record.name)
    result = clones.run("submit", record, "--metadata", clones.metadata)
    assert result.code == 0, result.err
    assert f"{record} is where the leaderboard finds runs of this project; move it" in result.err
