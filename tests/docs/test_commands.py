"""The page of commands: every command under its own name, every example in a block that can be copied."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click
import pytest

from wsolbench.cli import _COMMANDS, group

CONF = Path(__file__).parents[2] / "docs" / "conf.py"


def examples_as_code(lines: list[str]) -> list[str]:
    spec = importlib.util.spec_from_file_location("docs_conf", CONF)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.examples_as_code(lines)
    return found


def command_of(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_its_own_name(name: str) -> None:
    assert command_of(name).name == name


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_example_of_a_help_text_is_a_block_of_code(name: str) -> None:
    text = command_of(name).epilog or ""
    lines = examples_as_code(text.splitlines())
    blocks = [line.strip() for line in lines if line.startswith("   ")]
    assert all(line.startswith(("wsolbench ", "torchrun ")) for line in blocks)
    assert (
        len(blocks)
        == sum(
            f"  {program} " in f"  {line}"
            for line in text.splitlines()
            for program in ("wsolbench", "torchrun")
        )
        > 0
    )
    for block in blocks:
        place = lines.index(f"   {block}")
        assert lines[place - 2 : place] == [".. code-block:: console", ""]
        assert not block.endswith((".", ";", ","))


def test_text_before_an_example_stays_a_paragraph() -> None:
    assert examples_as_code(["Several GPUs:  torchrun --nproc-per-node 4 -m wsolbench train", "An end."]) == [
        "Several GPUs:", "", ".. code-block:: console", "", "   torchrun --nproc-per-node 4 -m wsolbench train", "", "An end.",
    ]  # fmt: skip
