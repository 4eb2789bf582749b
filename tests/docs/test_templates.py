"""The templates of a method and its test, rendered into a package outside of this repository, work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "docs/templates"
PLACE = "fresh_package.methods"


def render(text: str) -> str:
    """A template with the name of a method, as docs/templates/README.md says."""
    spellings = {"my_method": "fresh_idea", "my-method": "fresh-idea", "MyMethod": "FreshIdea"}
    for old, new in spellings.items():
        text = text.replace(old, new)
    return text.replace("reference_models.localization", PLACE)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with an installed package that offers the method, and its test."""
    methods, info = tmp_path / "fresh_package/methods", tmp_path / "fresh_package-1.0.dist-info"
    methods.mkdir(parents=True)
    info.mkdir()
    (methods / "__init__.py").write_text("")
    (methods.parent / "__init__.py").write_text(
        "from wsolbench.methods import methods_in\n\n\n"
        f"def offered():\n    return methods_in({PLACE!r}, 'localization')\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fresh-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wsolbench.methods]\nfresh = fresh_package:offered\n")
    for template, path in (("method", methods / "fresh_idea"), ("test_method", tmp_path / "test_fresh_idea")):
        text = (TEMPLATES / f"{template}.py").read_text(encoding="utf-8")
        path.with_suffix(".py").write_text(render(text), encoding="utf-8")
    return tmp_path


def test_the_templates_pass_their_own_tests_and_the_checks_of_every_method(package: Path) -> None:
    with (package / "test_fresh_idea.py").open("a", encoding="utf-8") as stream:
        stream.write(
            "\n\ndef test_every_check() -> None:\n    from wsolbench.testing import check_method\n\n"
            '    check_method("fresh-idea")\n'
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_fresh_idea.py"],
        cwd=package,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_name_is_in_the_templates_in_the_three_spellings_that_are_replaced() -> None:
    for template in ("method", "test_method"):
        text = render((TEMPLATES / f"{template}.py").read_text(encoding="utf-8"))
        assert "my" not in text.lower().replace("my method:", "").split()
        assert "FreshIdea" in text
        assert "fresh-idea" in text
