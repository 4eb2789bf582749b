"""The site: every page is in the sidebar, every command and module on a page, signatures are short."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from wsolbench.cli import _COMMANDS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def conf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_conf", DOCS / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(page: Path) -> set[Path]:
    """The pages in the toctrees of `page`."""
    found: set[Path] = set()
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        names = [line for line in tree.splitlines() if line and not line.startswith(":")]
        for name in names:
            found |= set(page.parent.glob(f"{name}.md"))
    return found - {page}


def test_every_page_can_be_reached_from_the_sidebar() -> None:
    reached, waiting = {DOCS / "index.md"}, [DOCS / "index.md"]
    while waiting:
        new = listed(waiting.pop()) - reached
        reached |= new
        waiting += new
    pages = {page for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert pages - reached == set()


def test_every_command_has_a_section_under_its_name() -> None:
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    sections = re.findall(r"\.\. click:: wsolbench\.cli\.(\w+):command\n   :prog: wsolbench ([\w-]+)\n", text)
    assert [name for _, name in sections] == list(_COMMANDS)
    assert all(module == name.replace("-", "_") for module, name in sections)


def test_options_keep_their_hyphens(conf: ModuleType) -> None:
    assert not set(conf.smartquotes_action) & set("dDi")


def test_long_signatures_lose_their_fields_or_their_defaults(conf: ModuleType) -> None:
    short = "(a, b=1)"
    assert conf.short_signature(short, "class") == short
    assert conf.short_signature(None, "class") is None
    long = f"(self, maps, *, {', '.join(f'option_{n}=(1, {n})' for n in range(20))}, **more)"
    assert conf.short_signature(long, "class") == "(...)"
    names = ", ".join(f"option_{n}" for n in range(20))
    assert conf.short_signature(long, "function") == f"(self, maps, *, {names}, **more)"
