"""The Python in the README and the docs runs; the commands there, which need data or hours, are called with
options that exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from wsolbench.cli import group
from wsolbench.methods import list_detectors, list_methods

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_DATA = {"grad_cam.md"}
"""Pages whose blocks need data and each other. Tests of their own run them."""
BLOCKS = [
    (page, number, code)
    for page in PAGES
    if page.name not in WITH_DATA
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]
MADE_UP = {"top-fifth"}
"""Methods that a page shows how to write."""


def commands() -> list[str]:
    """The commands of this project in indented blocks; with torchrun, what it starts."""
    found = []
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            called = re.match(r"    .*?((?:wsolbench [a-z]|python (?:docs|benchmarks)/\w+\.py )[^`]*)$", line)
            if called:
                text = re.split(r"\s+(?:&|;|\||&&)(?:\s|$)|\s# ", called[1])[0]
                text = re.sub(
                    r"\$\(\(.*?\)\)", "0", text
                )  # the shell's arithmetic, and below its variables that say which shard
                found.append(re.sub(r"\$\w+/\$?\w+", "1/2", text))
    return list(dict.fromkeys(found))


def called(text: str) -> click.Context:
    """The command with its options parsed; it does not run."""
    program, *words = shlex.split(text)
    if program == "python":
        command = importlib.import_module(words[0].removesuffix(".py").replace("/", ".")).main
    else:
        command = group.get_command(click.Context(group), words[0])
    assert isinstance(command, click.Command), f"no command {words[0]!r}"
    context: click.Context = command.make_context(words[0], words[1:])
    return context


@pytest.mark.parametrize("text", commands())
def test_a_command_has_the_options_that_it_is_called_with(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (ROOT / "benchmarks", ROOT / "docs", ROOT):  # a script finds those of its own folder
        monkeypatch.syspath_prepend(str(folder))
    try:
        context = called(text)
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # files that the reader has
            raise
        return
    asked = context.params.get("method") or ()
    assert (
        set(asked.split(",") if isinstance(asked, str) else asked)
        <= {row.name for row in [*list_methods(), *list_detectors()]} | MADE_UP
    )


def test_commands_are_found_and_a_wrong_option_is_noticed() -> None:
    assert len(commands()) > 60
    with pytest.raises(click.NoSuchOption):
        called("wsolbench eval --no-such-option")


@pytest.mark.parametrize(
    ("page", "number", "code"), BLOCKS, ids=[f"{page.name}-{number}" for page, number, _ in BLOCKS]
)
def test_a_python_block_runs(page: Path, number: int, code: str) -> None:
    exec(compile(code, f"{page.name} block {number}", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pages_of_the_methods_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from make_methods import DOCS, pages

    made = pages(new=False)  # a method that was just added may wait for its page
    assert set((DOCS / "methods").glob("*.md")) == set(made)
    stale = [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run python docs/make_methods.py: {stale}"
