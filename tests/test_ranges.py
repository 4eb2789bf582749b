"""Ranges of settings: what is checked, and the message for a value outside its range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsolbench.exceptions import UsageError
from wsolbench.ranges import Range, Ranged, Share, check_value, range_of


@dataclass(frozen=True, kw_only=True)
class Settings(Ranged):
    share: Share = 0.5
    side: Annotated[int, Range(1, 8)] = 2
    free: float = 0.0
    parts: tuple[Share, ...] = (0.1, 0.2)
    maybe: Annotated[float, Range(0, open_low=True)] | None = None
    kind: Literal["a", 3] = "a"
    flag: bool = False


@given(st.floats() | st.integers())
def test_a_value_is_in_a_range_when_both_of_its_comparisons_hold(value: float) -> None:
    inside = math.isfinite(value) if isinstance(value, float) else True
    assert (value in Range(-2, 3)) == (inside and -2 <= value <= 3)
    assert (value in Range(-2, 3, open_low=True, open_high=True)) == (inside and -2 < value < 3)
    assert (value in Range()) == inside


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, r"Settings field share=1.5; expected a number in \[0, 1\]"),
        ({"share": math.nan}, "share=nan; expected a number in"),
        ({"share": True}, "share=True; expected a number in"),
        ({"share": "0.5"}, "share='0.5'; expected a number in"),
        ({"side": 0}, r"side=0; expected a whole number in \[1, 8\]"),
        ({"side": 2.0}, "side=2.0; expected a whole number"),
        ({"side": 10**5000}, "side=a number of 16610 bits; expected a whole number"),
        ({"free": math.inf}, "free=inf; expected a number in"),
        ({"free": 1e308}, r"free=1e\+308; expected a number in \[-1000000000, 1000000000\]"),
        ({"parts": (0.5, 2.0)}, r"parts=\(0.5, 2.0\); expected a number in"),
        ({"parts": (0.5, 0.6, -0.1, 0.7)}, r"parts=\(0.5, 0.6, -0.1, 0.7\); expected a number in"),
        ({"parts": (0.5, math.nan, 0.7)}, "parts=.*nan.*; expected a number in"),
        ({"parts": (0.5, math.inf, 0.7)}, "parts=.*inf.*; expected a number in"),
        ({"parts": (0.5, True, 0.7)}, "parts=.*True.*; expected a number in"),
        ({"parts": (0.5, "0.6")}, "parts=.*'0.6'.*; expected a number in"),
        ({"parts": 0.5}, "parts=0.5; expected several values"),
        ({"maybe": 0.0}, "maybe=0.0; expected a number above 0 or none"),
        ({"kind": "b"}, "kind='b'; expected one of 'a', 3"),
        ({"flag": 1}, "flag=1; expected true or false"),
    ],
)
def test_a_value_outside_its_range_is_named_with_what_was_expected(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**changes)


def test_the_range_of_a_field_is_found_inside_optional_types() -> None:
    assert range_of(Settings, "side") == (int, Range(1, 8))
    assert range_of(Settings, "maybe") == (float, Range(0, open_low=True))
    assert range_of(Settings, "free") == (float, Range(-1e9, 1e9))
    with pytest.raises(TypeError):
        range_of(Settings, "flag")


def test_a_type_without_a_rule_takes_everything() -> None:
    check_value(dict, 3)
