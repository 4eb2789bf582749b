"""`--help`: options in sections, sentences that end, lines that fit."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from wsolbench.cli import _COMMANDS, group
from wsolbench.cli.groups import GROUPS, OTHERS, GroupedCommand, GroupedOption, option


def command_of(name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def help_of(command: click.Command) -> str:
    return CliRunner().invoke(command, ["--help"], terminal_width=80).output


def sections_of(text: str) -> dict[str, str]:
    """The text of each section, by title; what stands before and behind the sections is left out."""
    found = {}
    for part in text.split("\n\n"):
        title, colon, below = part.partition(":\n")
        if colon and "\n" not in title:
            found[title] = below
    return found


def options_of(command: click.Command) -> Iterator[GroupedOption]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert isinstance(parameter, GroupedOption), f"{parameter.name} has no section"
            yield parameter


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_option_is_in_its_section(name: str) -> None:
    command = command_of(name)
    assert isinstance(command, GroupedCommand)
    sections = sections_of(help_of(command))
    titles = [title for title in sections if title in (*GROUPS, OTHERS)]
    assert titles == [title for title in (*GROUPS, OTHERS) if title in sections]
    assert "--help" in sections[OTHERS]
    for each in options_of(command):
        holding = [title for title in titles if f"  {each.opts[0]} " in f"{sections[title]} "]
        assert holding == [each.group], each.name


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_help_text_is_sentences(name: str) -> None:
    command = command_of(name)
    assert (command.help or "").strip().endswith((".", "..."))
    for each in options_of(command):
        text = (each.help or "").partition("  [default: ")[0]
        assert text[:1].isupper(), each.name
        assert text.endswith("."), each.name
        assert not any(word in text for word in ("; default", "may be repeated", "one an image"))


def test_required_options_come_first_in_their_section() -> None:
    sections = sections_of(help_of(command_of("score")))
    assert sections["Data"].split()[0] == "--maps"
    assert sections["Data"].index("--dataset") < sections["Data"].index("--data-root")


def test_a_long_list_is_split() -> None:
    text = help_of(command_of("eval"))
    assert list(sections_of(text)) == [*GROUPS, OTHERS]
    assert max(map(len, text.splitlines())) <= 80


def test_only_a_command_for_several_methods_offers_them() -> None:
    assert "cam,has" in sections_of(help_of(command_of("eval")))["Model"]
    assert "cam,has" not in help_of(command_of("train"))


def test_an_option_of_no_section_is_among_the_others() -> None:
    @click.command(cls=GroupedCommand)
    @option("Output", "--out", help="A file.")
    @click.option("--plain", help="No section.")
    @click.option("--secret", hidden=True)
    def command(out: str | None, plain: str | None, secret: str | None) -> None:
        """Do nothing."""

    sections = sections_of(help_of(command))
    assert list(sections) == ["Output", OTHERS]
    assert "--plain" in sections[OTHERS]
    assert "--secret" not in "".join(sections.values())
