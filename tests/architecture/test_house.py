"""Rules of the house that no linter knows."""

from __future__ import annotations

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
