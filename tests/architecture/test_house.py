"""Rules of the house that no linter knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("wsolbench/**/*.py"), *ROOT.glob("reference_models/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_file_is_one_room(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not re.search(r"\.cuda\(\)|os\.chdir|np\.random\.seed|allow_pickle=True|weights_only=False", text)


@pytest.mark.parametrize("path", sorted(ROOT.glob("reference_models/localization/[!_]*.py")), ids=lambda path: path.name)
def test_a_method_file_can_be_read_beside_its_paper(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_the_command_of_a_committed_record_works_elsewhere() -> None:
    """It names data and outputs by relative paths, or leaves them to the environment."""
    records = [path for folder in ("measured", "protocols/measured") for path in ROOT.glob(f"results/{folder}/*/*.json")]
    assert records
    commands = {path.name: json.loads(path.read_text(encoding="utf-8"))["provenance"]["command"] for path in records}
    assert not {name: command for name, command in commands.items() if re.search(r"(?:^|[\s=])[/~]", command)}
