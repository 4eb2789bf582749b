"""Options that are listed in sections of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

Group = Literal["Data", "Model", "Training", "Protocol", "Output", "Execution"]
GROUPS: tuple[Group, ...] = ("Data", "Model", "Training", "Protocol", "Output", "Execution")
"""Titles of the sections, in the order of `--help`."""
OTHERS = "Other"
"""Title of the section of options without a group, such as `--help` itself."""


class GroupedOption(click.Option):
    """An option of one section of `--help`."""

    def __init__(self, *arguments: Any, group: Group, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


def option(group: Group, *names: str, **settings: Any) -> Callable[[F], F]:
    """Add an option to a command, as `click.option` does, in a section of `--help`."""
    return click.option(*names, cls=GroupedOption, group=group, **settings)


class GroupedCommand(click.Command):
    """A command whose `--help` lists options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per group with options. Required options come first in it."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*GROUPS, OTHERS)}
        for parameter in sorted(self.get_params(ctx), key=lambda parameter: not parameter.required):
            record = parameter.get_help_record(ctx)
            if record is not None and record[1]:  # arguments have no text of their own
                title = parameter.group if isinstance(parameter, GroupedOption) else OTHERS
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
