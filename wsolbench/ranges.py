"""Valid ranges of settings, declared once in the type of a dataclass field.

    @dataclass(frozen=True, kw_only=True)
    class Settings(Ranged):
        share: Share = 0.5                                  # a number from 0 to 1
        side: Annotated[int, Range(1, 4096)] = 224          # a whole number from 1 to 4096

A `Ranged` dataclass checks every field when it is constructed. `check_value` checks one value. `range_of`
returns the range of a field; the command line builds its options from it. A field of type int or float
without a `Range` accepts numbers from -1e9 to 1e9.
"""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from wsolbench.exceptions import UsageError


@dataclass(frozen=True)
class Range:
    """An interval of numbers from `low` to `high`; each end can be open. For a tuple, it bounds every item.

    >>> 0.5 in Range(0, 1), 0 in Range(0, 1, open_low=True), float("nan") in Range()
    (True, False, False)
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and not (isinstance(value, float) and not math.isfinite(value))

    def __str__(self) -> str:
        low, high = (f"{end:.10g}" for end in (self.low, self.high))
        if math.isinf(self.low) and math.isinf(self.high):
            return "that is finite"
        if math.isinf(self.high):
            return f"above {low}" if self.open_low else f"of at least {low}"
        if math.isinf(self.low):
            return f"below {high}" if self.open_high else f"of at most {high}"
        return f"in {'(' if self.open_low else '['}{low}, {high}{')' if self.open_high else ']'}"


BROAD = Range(-1e9, 1e9)
"""Range of a number that declares none."""

Share = Annotated[float, Range(0, 1)]
"""A fraction in [0, 1]."""
ShareBelow1 = Annotated[float, Range(0, 1, open_high=True)]
PositiveShare = Annotated[float, Range(0, 1, open_low=True)]
Weight = Annotated[float, Range(0, 1e6)]
"""Factor of a loss term, a learning rate, or a penalty. 0 switches it off."""
Positive = Annotated[float, Range(0, 1e6, open_low=True)]
Count = Annotated[int, Range(1, 1_000_000)]
CountOrZero = Annotated[int, Range(0, 1_000_000)]
"""A count. 0 means none, or that the default is used."""
Channels = Annotated[int, Range(0, 65_536)]
"""Channels of a layer, or another number that memory grows with."""
Order = Annotated[int, Range(1, 64)]
Scales = Annotated[int, Range(1, 99)]
Sigma = Annotated[float, Range(0, 1000)]
"""Standard deviation of a Gaussian, in pixels or cells. 0 disables smoothing."""
Steps = Annotated[int, Range(1, 100_000_000)]
Side = Annotated[int, Range(1, 8192)]
"""Side length in pixels."""
SideOrDefault = Annotated[int, Range(0, 8192)]
"""Side length in pixels. 0 means the default."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
Epochs = Annotated[int, Range(1, 100_000)]
BatchSize = Annotated[int, Range(1, 65_536)]
ImageSide = Annotated[int, Range(32, 4096)]
"""Side length of a network's input, in pixels."""
LearningRate = Annotated[float, Range(0, 1000, open_low=True)]
Workers = Annotated[int, Range(0, 4096)]
Gibibytes = Annotated[float, Range(0, 1_000_000)]
"""Amount of memory."""
Resamples = Annotated[int, Range(1, 1_000_000)]


class Ranged:
    """Base of dataclasses that check their fields at construction.

    Raises `UsageError` naming the field, its value and its range.
    """

    def __post_init__(self) -> None:
        check_fields(self)


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """Return the types of a dataclass's fields with their ranges.

    A type that is imported only for type checkers becomes `Any`.
    """
    return _hints(cast("Hashable", kind))


@functools.lru_cache(maxsize=256)
def _hints(kind: Any) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    names = {item.name for item in fields(kind)}  # excludes class variables
    for base in reversed(kind.__mro__):
        for name, text in vars(base).get("__annotations__", {}).items():
            if name not in names:
                continue
            one = types.SimpleNamespace(__annotations__={name: text})
            try:
                hints[name] = get_type_hints(one, vars(sys.modules[base.__module__]), include_extras=True)[
                    name
                ]
            except NameError:
                hints[name] = Any
    return hints


def check_fields(settings: Any, what: str = "", *, found: str = "{what} field {name}={value}") -> None:
    """Raise `UsageError` for the first field of a dataclass with an invalid type or range.

    `what` names the dataclass. `found` is the template of the first half of the message.
    """
    hints = hints_of(type(settings))
    for item in fields(settings):
        value = getattr(settings, item.name)
        try:
            check_value(hints[item.name], value)
        except ValueError as error:
            named = found.format(
                what=what or type(settings).__name__, name=item.name, value=format_value(value)
            )
            raise UsageError(f"{named}; expected {error}") from error


def check_value(hint: Any, value: Any, limit: Range | None = None) -> None:
    """Raise `ValueError` unless `value` has the type `hint` and lies in its range.

    The message states only what is expected. Checks bool, int, float, str, `Literal`, `X | None`,
    `tuple[X, ...]` and these inside `Annotated`. Values of other types are not checked.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = next((extra for extra in arguments[1:] if isinstance(extra, Range)), limit)
        check_value(arguments[0], value, found)
    elif origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ValueError(f"one of {', '.join(map(repr, arguments))}")
    elif origin in (Union, types.UnionType):
        _check_union(arguments, value, limit)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError("several values")
        for item in _extremes(arguments[0], value):
            check_value(arguments[0], item, limit)
    elif hint in (int, float):
        if not is_number(value, whole=hint is int) or value not in (limit or BROAD):
            raise ValueError(describe(hint, limit or BROAD))
    elif hint in (bool, str) and not isinstance(value, hint):
        raise ValueError("true or false" if hint is bool else "a text")


def _extremes(hint: Any, items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the smallest and the largest of finite floats, which are in a range if all are.

    Returns all items of another type. A protocol can have 1,000 thresholds, and one check of each is slow.
    """
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if kind is not float or not items or not all(type(item) is float for item in items):
        return items
    return (min(items), max(items)) if all(map(math.isfinite, items)) else items


def _check_union(options: tuple[Any, ...], value: Any, limit: Range | None) -> None:
    if value is None and type(None) in options:
        return
    expected = []
    for option in options:
        if option is not type(None):
            try:
                check_value(option, value, limit)
            except ValueError as error:
                expected.append(str(error))
            else:
                return
    raise ValueError(" or ".join([*expected, *(["none"] if type(None) in options else [])]))


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether a value is a number, or with `whole` an int. A bool is not a number."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def describe(hint: Any, limit: Range | None = None) -> str:
    """Describe which number is expected, for messages.

    >>> describe(int, Range(1, 8)), describe(float)
    ('a whole number in [1, 8]', 'a finite number')
    """
    kind = "whole number" if hint is int else "number"
    if limit is None or (math.isinf(limit.low) and math.isinf(limit.high)):
        return f"a {'finite ' if hint is float else ''}{kind}"
    return f"a {kind} {limit}"


def range_of(kind: type[Any], name: str) -> tuple[type[Any], Range]:
    """Return the number type (int or float) and the range of a field, including fields that may be None.

    Raises `TypeError` if the field is not a number.
    """

    def search(hint: Any, limit: Range) -> tuple[type[Any], Range] | None:
        if get_origin(hint) is Annotated:
            inner, *extras = get_args(hint)
            return search(inner, next((extra for extra in extras if isinstance(extra, Range)), limit))
        if get_origin(hint) in (Union, types.UnionType):
            return next((found for option in get_args(hint) if (found := search(option, limit))), None)
        return (hint, limit) if hint in (int, float) else None

    found = search(hints_of(kind)[name], BROAD)
    if found is None:
        raise TypeError(f"{kind.__name__}.{name} is not a number")
    return found


def format_value(value: object) -> str:
    """Format a value for a message. Long values are cut; a huge int is given as its number of bits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
