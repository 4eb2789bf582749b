"""Settings of a method or post-process as a table: names, types, ranges, defaults and their sources.

They are read from the dataclass `Config` of its class: the fields, their types, and the string below each
field.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from wsolbench.ranges import Range, describe, hints_of


@dataclass(frozen=True, kw_only=True)
class SettingInfo:
    """A setting: `--set name=value`.

    Attributes:
        name: name of the field.
        allowed: type and range, in words.
        default: default as text, as `--set` takes it.
        text: what it does and where its default comes from, in one line.
        at_test: whether it can be changed on a trained model.
    """

    name: str
    allowed: str
    default: str
    text: str
    at_test: bool


def list_settings(kind: type[Any]) -> list[SettingInfo]:
    """Return the settings of a dataclass in the order of its fields, those of its bases first."""
    docs, hints = attribute_docs(kind), hints_of(kind)
    at_test: frozenset[str] = getattr(kind, "at_test", frozenset())
    return [
        SettingInfo(
            name=item.name,
            allowed=describe_type(hints[item.name]),
            default="" if item.default is MISSING else format_default(item.default),
            text=docs.get(item.name, ""),
            at_test=item.name in at_test,
        )
        for item in fields(kind)
    ]


def attribute_docs(kind: type[Any]) -> dict[str, str]:
    """Return the string under each field of a dataclass and its bases, by name, in one line.

    A class whose source is not available has none.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(inspect.getsource(base).lstrip()).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        if isinstance(body, ast.ClassDef):
            found |= dict(_documented(body))
    return found


def _documented(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement, after in zip(body.body, body.body[1:], strict=False):
        match statement, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())


def format_default(value: object) -> str:
    """Return a default as `--set` takes it.

    >>> [format_default(value) for value in (None, True, (1, 2), 0.5)]
    ['none', 'true', '1,2', '0.5']
    """
    if isinstance(value, tuple):
        return ",".join(map(format_default, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def describe_type(hint: Any, limit: Range | None = None) -> str:
    """Describe the values of a type in words.

    >>> describe_type(Annotated[float, Range(0, 1)] | None)
    'a number in [0, 1], or none'
    >>> describe_type(Literal["paper", "official"])
    'paper or official'
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [extra for extra in arguments[1:] if isinstance(extra, Range)]
        return describe_type(arguments[0], limits[0] if limits else limit)
    if origin is Literal:
        *others, last = map(format_default, arguments)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (Union, types.UnionType):
        options = [describe_type(option, limit) for option in arguments if option is not type(None)]
        return " or ".join(options) + (", or none" if type(None) in arguments else "")
    if origin is tuple:
        return f"several, separated by commas, each {describe_type(arguments[0], limit)}"
    if hint in (int, float):
        return describe(hint, limit)
    return {bool: "true or false", str: "a text"}.get(hint, getattr(hint, "__name__", "a value"))
