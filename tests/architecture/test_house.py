"""Rules of the house that no linter knows."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("wsolbench/**/*.py"), *ROOT.glob("reference_models/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_file_is_one_room(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    assert not re.search(r"\.cuda\(\)|os\.chdir|np\.random\.seed|allow_pickle=True|weights_only=False", text)


MODELS = ROOT / "reference_models"
TASKS = ("localization", "recognition", "postprocess", "detection")


@pytest.mark.parametrize(
    "path",
    sorted(path for task in TASKS for path in (MODELS / task).rglob("[!_]*.py")),
    ids=lambda path: path.name,
)
def test_a_method_file_can_be_read_beside_its_paper(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 380


@cache
def models_by_file() -> dict[Path, str]:
    """The text of each file of the reference models."""
    return {path: path.read_text(encoding="utf-8") for path in MODELS.rglob("*.py")}


@pytest.mark.parametrize("path", sorted((MODELS / "layers").glob("[!_]*.py")), ids=lambda path: path.name)
def test_a_layer_is_used_by_two_methods_or_more(path: Path) -> None:
    """What one method alone uses lies in the method's folder."""
    name = f"reference_models.layers.{path.stem}"
    users = {
        source.relative_to(MODELS).parts[:2]
        for source, text in models_by_file().items()
        if f"from {name} import" in text
    }
    shared = {"layers", "base", "training"}
    assert len({user for user in users if user[0] in TASKS}) >= 2 or any(
        user[0] in shared for user in users
    ), users


def test_the_modules_whose_shapes_are_not_checked_are_known() -> None:
    """A module that annotates shapes is checked in the tests, whatever it is called, or is listed with a
    reason."""
    from tests.conftest import UNCHECKED, checked_modules

    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in SOURCES
        if not path.name.startswith("_")
    }
    assert all(name in names or (ROOT / name.replace(".", "/")).is_dir() for name in UNCHECKED)
    left_out = {
        name for name, path in names.items() if "jaxtyping" in path.read_text(encoding="utf-8")
    } - set(checked_modules())
    assert all(any(f"{name}.".startswith(f"{known}.") for known in UNCHECKED) for name in left_out)
    assert {
        "wsolbench.maps.frame",
        "wsolbench.evaluation.scores",
        "reference_models.localization.cam",
    } <= set(checked_modules())


def test_the_command_of_a_committed_record_works_elsewhere() -> None:
    """It names data and outputs by relative paths, or leaves them to the environment."""
    records = [
        path
        for folder in ("measured", "protocols/measured")
        for path in ROOT.glob(f"results/{folder}/*/*.json")
    ]
    assert records
    commands = {
        path.name: json.loads(path.read_text(encoding="utf-8"))["provenance"]["command"] for path in records
    }
    assert not {name: command for name, command in commands.items() if re.search(r"(?:^|[\s=])[/~]", command)}
