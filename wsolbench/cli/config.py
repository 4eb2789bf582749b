"""`--config FILE`: options of a command in a TOML file, and the file of a run's own options.

    method = "cam"
    dataset = "imagefolder"
    data-root = "animals"
    epochs = 12
    transfer = false                  # --no-transfer
    set = {head = "fc"}               # --set head=fc; or ["head=fc"]

A key is the name of an option without dashes in front. An option on the command line replaces that of the
file. The record of the run states the whole command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from wsolbench.cli.groups import GroupedCommand, option
from wsolbench.exceptions import UsageError, unknown_name

CONFIG = "--config"
FILE = "config.toml"
"""Name of the file with the options of a training, in its run folder."""
_NOT_STORED = ("config", "out", "help", "log", "val_loc_every")
"""Options that a run's own file does not state.

`eval` and `train` mean other folders by `out`. The last two only watch a training, and `eval` without
`--train` refuses them.
"""
_OF_THE_MACHINE = ("workers", "cache")
"""Options that it states only if they were given."""

config_option = option(
    "Execution",
    CONFIG,
    type=click.Path(path_type=Path),
    expose_value=False,
    metavar="FILE",
    help="TOML file with options of this command, by name. Options on the command line come first.",
)


class ConfigurableCommand(GroupedCommand):
    """A command whose options can also come from the file of `--config`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options of the file and of the command line."""
        path, rest = _find_config(args)
        if path is None:
            return super().parse_args(ctx, args)
        expanded = [*_expand(path, self.get_params(ctx), rest), *rest]
        if sys.argv[len(sys.argv) - len(args) :] == args:  # what records state as the command
            sys.argv = [*sys.argv[: len(sys.argv) - len(args)], *expanded]
        return super().parse_args(ctx, expanded)


def _find_config(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the file of `--config`, and the other arguments. Raises `UsageError` for two files."""
    files, rest, waiting = [], [], list(args)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name != CONFIG:
            rest.append(word)
        elif equals or waiting:
            files.append(value if equals else waiting.pop(0))
        else:
            raise UsageError(f"{CONFIG} has no value; expected a TOML file")
    if len(files) > 1:
        raise UsageError(f"{CONFIG} is given {len(files)} times; expected one file")
    return (Path(files[0]) if files else None), rest


def _expand(path: Path, params: Sequence[click.Parameter], given: Sequence[str]) -> Iterator[str]:
    """Yield the options of the file as arguments, without those that are given on the command line.

    Raises `UsageError` for an unknown key, a key that is there twice, and a value of another kind.
    """
    options = {
        name.lstrip("-"): (param, name)
        for param in params
        if isinstance(param, click.Option) and CONFIG not in param.opts
        for name in (*param.opts, *param.secondary_opts)
        if name.startswith("--")
    }
    words = {word.partition("=")[0] for word in given}
    seen: dict[str | None, str] = {}
    for key, value in _read(path).items():
        found = options.get(key.replace("_", "-"))
        if found is None:
            raise unknown_name(f"option of {path}", key, options)
        param, name = found
        if param.name in seen:
            raise UsageError(
                f"{path}: {seen[param.name]} and {key} set the same option; expected one of them"
            )
        seen[param.name] = key
        arguments = list(_arguments(path, key, value, param, name))
        if words.isdisjoint((*param.opts, *param.secondary_opts)):
            yield from arguments


def _read(path: Path) -> dict[str, Any]:
    from wsolbench.system.stored import read_toml

    if not path.is_file():
        raise UsageError(f"{CONFIG} {path}: no such file; expected a TOML file with options")
    return read_toml(path, "config")


def _arguments(path: Path, key: str, value: Any, param: click.Option, name: str) -> Iterator[str]:
    """Yield the arguments that stand for one key of the file."""

    def wrong(expected: str) -> UsageError:
        return UsageError(f"{path}: {key} = {value!r}; expected {expected}")

    # A flag, on or off.
    if param.is_flag:
        if not isinstance(value, bool):
            raise wrong("true or false")
        if value:
            yield name
        elif param.secondary_opts:
            yield from {param.opts[0], param.secondary_opts[0]} - {name}
        return
    # A table of settings, a list, or one value.
    if isinstance(value, Mapping) and param.multiple:
        value = [f"{setting}={_text(each)}" for setting, each in value.items()]
    if isinstance(value, list) and param.multiple:
        for each in value:
            yield from (name, _text(each))
    elif isinstance(value, str | int | float | list):
        yield from (name, _text(value))
    else:
        raise wrong("a text, a number or a list")


def _text(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def write_config(folder: Path, names: Sequence[str], changes: Mapping[str, Any]) -> None:
    """Write the effective options of the running command as `config.toml` into a run folder.

    Args:
        folder: the run folder.
        names: names of the options to write, as in Python.
        changes: values by name that replace those of the command.
    """
    from wsolbench.system.files import write_text

    context = click.get_current_context(silent=True)
    if context is None:
        return
    values = {**context.params, **changes}
    lines = [
        f"# Options of this run. Again: wsolbench train {CONFIG} {folder / FILE}",
        *(
            f"{_key(param)} = {_toml(values[param.name])}"
            for param in context.command.params
            if param.name in names
            and param.name not in _NOT_STORED
            and values.get(param.name) not in (None, ())
            and not (param.name in _OF_THE_MACHINE and _is_default(context, param.name))
        ),
    ]
    write_text(folder / FILE, "\n".join(lines) + "\n")


def _is_default(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


def _key(param: click.Parameter) -> str:
    return param.opts[0].lstrip("-")


def _toml(value: Any) -> str:
    """Return a value in TOML, whose strings are written as in JSON."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)
