"""What the wheel and the source distribution hold, and that the wheel works without extras."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import wsolbench

ROOT = Path(__file__).parents[2]
PACKAGES = ("wsolbench", "reference_models")
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools replaces it
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""


def files_of(package: str) -> set[str]:
    """The files of a package that git would keep, but for what Python and type checkers leave."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution, built from a copy of all files."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.name in (*PACKAGES, "tests", "docs"):
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
        elif path.is_file():
            shutil.copy(path, source)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of("wsolbench") | files_of("reference_models")
    assert {"wsolbench/literature/papers.toml", "wsolbench/literature/published/spa.csv"} <= names
    assert {"wsolbench/literature/claims.csv", "wsolbench/literature/variants.csv"} <= names


def test_the_source_distribution_holds_no_part_of_the_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith(("tests", "docs", "results", "benchmarks"))]
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "wsolbench/literature/claims.csv",
    } <= names


def test_the_metadata_name_version_addresses_and_a_readme_without_relative_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        found = HeaderParser().parsestr(archive.read(name).decode())
    assert found["Version"] == wsolbench.__version__
    assert found["Author"] == "The wsolbench authors"
    addresses = dict(text.split(", ") for text in found.get_all("Project-URL"))
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= addresses.keys()
    assert any(text == "Typing :: Typed" for text in found.get_all("Classifier"))
    assert not re.search(r"\]\((?!https://)", found.get_payload())


def test_links_of_the_readme_into_the_repository_name_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    home = re.search(r'Homepage = "https://github\.com/(.*)"', (ROOT / "pyproject.toml").read_text())
    assert home is not None
    place = rf"https://(?:github\.com/{home[1]}/blob|raw\.githubusercontent\.com/{home[1]})/main/([^)#]+)"
    paths = re.findall(rf"\]\({place}[^)]*\)", text)
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / unquote(path)).is_file()] == []
    assert len(paths) == len(re.findall(rf"\]\(https://[^)]*{home[1]}", text))


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {wsolbench.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{wsolbench.__version__}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_works_without_extras_in_a_new_environment(wheel: Path) -> None:
    program = Path(__file__).with_name("without_extras.py")
    done = subprocess.run(
        [sys.executable, str(program), str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "works without extras" in done.stdout
