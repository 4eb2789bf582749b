"""The workflows and forms of the repository's host: they can be read, and say what the project says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsolbench.records.published import COLUMNS, EVIDENCE

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def jobs() -> dict[str, dict[str, Any]]:
    return {name: job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job.get("steps", ()) if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_says_when_it_runs_and_what_it_may(path: Path) -> None:
    found = read(path)
    assert found.get("on", found.get(True))  # YAML 1.1 reads the word as a truth value
    assert found["permissions"] == {"contents": "read"}
    for name, job in found["jobs"].items():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file(), name
            continue
        assert job["timeout-minutes"] <= 60, name
        assert all(("run" in step) != ("uses" in step) for step in job["steps"]), name
        for needed in [job["needs"]] if "needs" in job else []:
            assert needed in found["jobs"]
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", action) for action in used), name


def test_the_checks_are_those_of_make() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    block = re.search(r"\ncheck: .*\n((?:\t.*\n)+)", text)
    assert block is not None
    wanted = [line.strip().removeprefix("$(BIN)/") for line in block[1].splitlines()]
    found = [text.partition("uv run --no-sync ")[2] for text in commands(jobs()["check"])]
    assert [text for text in found if text] == wanted
    docs = re.search(r"\ndocs: .*\n\t\$\(BIN\)/(.*)\n", text)
    assert docs is not None
    assert f"uv run --no-sync {docs[1]}" in commands(jobs()["docs"])


def test_every_version_of_python_that_the_package_names_is_tested() -> None:
    named = set(
        re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    )
    assert len(named) >= 4
    for job in ("tests", "wheel"):
        assert named <= set(jobs()[job]["strategy"]["matrix"]["python"])
    lowest = min(named, key=lambda version: int(version.partition(".")[2]))
    steps = jobs()["lowest"]["steps"]
    assert any(step.get("with", {}).get("python-version") == lowest for step in steps)


def test_files_that_the_jobs_name_exist_and_only_publishing_gets_a_token() -> None:
    every = [text for job in jobs().values() for text in commands(job)]
    assert any("tests/packaging/without_extras.py" in text for text in every)
    for text in every:
        assert all((ROOT / name).is_file() for name in re.findall(r"\S+\.py\b", text)), text
    assert [name for name, job in jobs().items() if "permissions" in job] == ["publish"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_can_be_shown(path: Path) -> None:
    form = read(path)
    assert form["name"]
    assert form["description"]
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) >= 3
    for part in form["body"]:
        assert part["type"] in kinds
        assert part["attributes"].get("label") or part["type"] == "markdown"
        assert ("options" in part["attributes"]) == (part["type"] in {"dropdown", "checkboxes"})


def test_the_form_of_a_published_number_asks_for_its_columns() -> None:
    form = {part["id"]: part for part in read(ROOT / ".github/ISSUE_TEMPLATE/published_number.yml")["body"]}
    assert set(form) <= {*COLUMNS, "paper"}
    assert {"paper", "table", "method", "dataset", "backbone", "metric", "value", "evidence"} <= set(form)
    assert form["evidence"]["attributes"]["options"] == list(EVIDENCE)
