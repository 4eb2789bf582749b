"""Parse settings given as `name=value`: of methods, post-processes and protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.protocol import EvalProtocol, tau_grid


def parse_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, str]:
    """Parse `name=value` strings. Raises `UsageError` for one without `=`, and for a repeated name."""
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} is {shorten(pair)!r}; expected NAME=VALUE")
        if name in settings:
            raise UsageError(
                f"{option} {name} is given twice, {shorten(settings[name])!r} and {shorten(value)!r}; "
                "expected it once"
            )
        settings[name] = value
    return settings


def changes_of_trained(checkpoint: Path | None, model: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that `--set` changes in the model of `--checkpoint`.

    Empty without a checkpoint, because `--set` then selects a run. Raises `UsageError` for other options that
    the training has fixed.
    """
    if checkpoint is None:
        return {}
    for name in ("backbone", "weights", "epochs", "lr"):
        if model.get(name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} has no effect with --checkpoint, which is trained already; "
                "leave out one of them"
            )
    return parse_settings(model["settings"])


def read_protocol(name: str, changes: Sequence[str]) -> EvalProtocol:
    """Return a preset with single fields changed. Its name lists the changes, so leaderboards keep it
    separate.

    Raises `UsageError` for an unknown preset or field, and for a value outside the range of its field.
    """
    protocol = EvalProtocol.preset(name)
    if not changes:
        return protocol
    given = parse_settings(changes, "--protocol-set")
    values: dict[str, Any] = {}
    known = {item.name: getattr(protocol, item.name) for item in fields(protocol) if item.name != "name"}
    for field_name, text in given.items():
        if field_name not in known:
            raise unknown_name("protocol field", field_name, known)
        values[field_name] = _parse(field_name, text, known[field_name])
    suffix = ",".join(f"{field_name}={text}" for field_name, text in sorted(given.items()))
    return replace(protocol, name=f"{name}+{suffix}", **values)


def read_protocols(names: str, changes: Sequence[str]) -> tuple[EvalProtocol, ...]:
    """Return the protocols of `--protocol`: one name, several separated by commas, or `all` presets.

    Raises `UsageError` as `read_protocol`, and for a name that is given twice.
    """
    listed = list(EvalProtocol.presets()) if names == "all" else names.split(",")
    for name in listed:
        if listed.count(name) > 1:
            raise UsageError(f"--protocol names {shorten(name)!r} twice; expected each protocol once")
    return tuple(read_protocol(name, changes) for name in listed)


def _parse(name: str, text: str, current: Any) -> Any:
    """Parse the value of a field. The protocol checks its range."""
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[text.lower()]
        if name == "taus" and "," not in text:
            step = float(text)
        elif isinstance(current, tuple):
            return tuple(float(part) for part in text.split(",") if part.strip())
        elif current is None:
            return None if text.lower() == "none" else float(text)
        else:
            return type(current)(text)
    except (KeyError, ValueError) as error:
        shown = "true or false" if isinstance(current, bool) else f"a value like {current!r}"
        if name == "taus":
            shown = "a step such as 0.01, or thresholds such as 0.1,0.2"
        raise UsageError(f"--protocol-set {name}={shorten(text)}: expected {shown}") from error
    try:
        return tau_grid(step)
    except UsageError as error:
        raise UsageError(f"--protocol-set taus={shorten(text)}: {error}") from error


def shorten(text: str) -> str:
    """A text for a message, cut where it is long."""
    return text if len(text) <= 80 else f"{text[:77]}..."
