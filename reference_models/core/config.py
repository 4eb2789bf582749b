"""Settings of a method: a frozen dataclass, filled from `--set name=value`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from wsolbench.exceptions import UsageError, unknown_name
from wsolbench.ranges import Range, Ranged, check_fields, check_value, describe, format_value, hints_of
from wsolbench.system.json_values import lists_to_tuples, tuples_to_lists

RECIPE_PREFIX = "recipe."
_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Ranged):
    """Settings that every method with a backbone has. A method's own dataclass inherits from this one.

    The type of a field declares its range (`wsolbench.ranges`). A value outside of it raises `UsageError`.
    """

    at_test: ClassVar[frozenset[str]] = frozenset()
    """Settings that do not affect training. Only these can be changed on a trained model."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Settings that were added after records had been written. Those records stand for the defaults."""

    grid: str = "default"
    """Variant of the backbone, for instance `std14` or `stock` (see its file).

    `default`: the method's choice, else the backbone's.
    """
    recipe: str = "default"
    """Name of the training recipe (see `core/recipes.py`).

    `default`: the method's choice for this backbone.
    """

    def __post_init__(self) -> None:
        check_settings(self, "method")


def check_settings(config: Any, kind: str) -> None:
    """Raise `UsageError` for a setting outside its range. The message names the method or post-process."""
    check_fields(config, f"{kind} {owner_of(config)!r}", found="setting {name} of {what} is {value}")


def owner_of(config: Any) -> str:
    """Return the name of the method or post-process that a config belongs to.

    It is that of the file of its class, or that of the folder of a `method.py` or `settings.py`.
    """
    package, _, module = type(config).__module__.rpartition(".")
    return (package.rpartition(".")[2] if module in {"method", "settings"} else module).replace("_", "-")


C = TypeVar("C")
M = TypeVar("M", bound=MethodConfig)


def parse_settings(kind: type[C], settings: Mapping[str, str], *, what: str, start: C | None = None) -> C:
    """Return an instance of the dataclass `kind` with some fields set from text.

    A dataclass may declare variants (`paper`, `official`: differences between published sources) in a class
    variable `variants`, which maps each variant to the values of other fields. The field `variant` then
    chooses the initial values of the other fields.

    Args:
        kind: the dataclass. Fields may be bool, int, float, str, `Literal`, `X | None` and `tuple[X, ...]`,
            also with a `Range`.
        settings: field name -> text. Tuples are written `1,2,3`, None is written `none`.
        what: owner of the settings, for messages ("method 'cam'").
        start: instance that provides the other fields. None: their defaults.

    Raises `UsageError` on an unknown field (with the nearest name) and on text that is not a value of the
    field's type and range.
    """
    hints = hints_of(kind)
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {} if start is None else {name: getattr(start, name) for name in names}
    variants: Mapping[str, Mapping[str, Any]] = getattr(kind, "variants", {})
    if "variant" in settings and variants:
        if settings["variant"] not in variants:
            raise unknown_name(f"variant of {what}", settings["variant"], variants)
        values.update(variants[settings["variant"]])
    for name, text in settings.items():
        if name not in names:
            raise unknown_name(f"setting of {what}", name, names)
        try:
            values[name] = _parse(hints[name], text)
        except _OutOfRangeError as error:
            raise UsageError(
                f"setting {name} of {what} is {format_value(error.value)}; expected {error}"
            ) from error
        except ValueError as error:
            raise UsageError(f"setting {name}={format_value(text)} of {what}: expected {error}") from error
    return kind(**values)


def apply_test_settings(config: M, settings: Mapping[str, str], *, what: str) -> M:
    """Return the config of a trained model with other settings for its use.

    Raises as `parse_settings`, and `UsageError` if a setting changes that is not `at_test`. Setting a field
    to its present value is no change.
    """
    own, recipe = split_settings(settings)
    changed = parse_settings(type(config), own, what=what, start=config)
    different = [
        item.name for item in fields(config) if getattr(changed, item.name) != getattr(config, item.name)
    ]
    if fixed := [
        *(name for name in different if name not in config.at_test),
        *(RECIPE_PREFIX + name for name in recipe),
    ]:
        able = ", ".join(sorted(config.at_test)) or "none"
        raise UsageError(
            f"{what} has been trained: setting {fixed[0]} cannot be changed any more; those that can are: "
            f"{able}"
        )
    return changed


def split_settings(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split settings into the method's own and the recipe's (`recipe.lr=0.1`), the latter without prefix."""
    own = {name: text for name, text in settings.items() if not name.startswith(RECIPE_PREFIX)}
    recipe = {
        name.removeprefix(RECIPE_PREFIX): text
        for name, text in settings.items()
        if name.startswith(RECIPE_PREFIX)
    }
    return own, recipe


def to_json(config: Any) -> dict[str, Any]:
    """Return all fields as a dict; tuples become lists.

    A field of `later` at its default is omitted, so that older runs count as the same run.
    """
    defaults = {
        item.name: item.default for item in fields(config) if item.name in getattr(config, "later", ())
    }
    values = asdict(config)
    return tuples_to_lists(
        {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
    )


def from_json(kind: type[C], values: Mapping[str, Any]) -> C:
    """Invert `to_json`.

    Raises `ValueError` on unknown fields and on values outside their ranges.
    """
    if unknown := sorted(set(values) - {item.name for item in fields(kind)}):  # type: ignore[arg-type]
        raise ValueError(f"unknown settings {', '.join(unknown)}")
    try:
        return kind(**lists_to_tuples(values))
    except UsageError as error:
        raise ValueError(str(error)) from error


def _parse(hint: Any, text: str) -> Any:
    """Parse `text` as a value of the type `hint`. The message of the `ValueError` says what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    # A range, a choice, or a union: parse each alternative.
    if origin is Annotated:
        return _parse_in_range(
            arguments[0], next(extra for extra in arguments[1:] if isinstance(extra, Range)), text
        )
    if origin is Literal:
        return _choice(arguments, text)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        expected, none = [], ", or none" if type(None) in arguments else ""
        for inner in arguments:
            if inner is not type(None):
                try:
                    return _parse(inner, text)
                except _OutOfRangeError as error:
                    raise _OutOfRangeError(f"{error}{none}", error.value) from None
                except ValueError as error:
                    expected.append(str(error))
        raise ValueError(" or ".join(expected) + none)
    # Tuples and plain types.
    if origin is tuple:
        return tuple(
            _parse(arguments[0], part.strip()) for part in text.strip("()").split(",") if part.strip()
        )
    if hint is bool:
        if text.lower() not in _TRUTH:
            raise ValueError("true or false")
        return _TRUTH[text.lower()]
    if hint in (int, float):
        try:
            number = hint(text)
        except ValueError:
            raise ValueError("a whole number" if hint is int else "a number") from None
        return _in_range(hint, number)
    return text


class _OutOfRangeError(ValueError):
    """A value of the right type that is outside its range."""

    def __init__(self, message: str, value: Any) -> None:
        super().__init__(message)
        self.value = value


def _parse_in_range(hint: Any, limit: Range, text: str) -> Any:
    """Parse a value that has to lie in the range `limit`; see `_parse`."""
    try:
        value = _parse(hint, text)
    except _OutOfRangeError as error:  # of every number
        raise _OutOfRangeError(describe(hint, limit), error.value) from None
    except ValueError as error:
        raise ValueError(describe(hint, limit) if hint in (int, float) else str(error)) from None
    return _in_range(hint, value, limit)


def _in_range(hint: Any, value: Any, limit: Range | None = None) -> Any:
    try:
        check_value(hint, value, limit)
    except ValueError as error:
        raise _OutOfRangeError(str(error), value) from None
    return value


def _choice(choices: tuple[Any, ...], text: str) -> Any:
    for choice in choices:
        if text == str(choice):
            return choice
    raise ValueError(f"one of {', '.join(map(str, choices))}")
