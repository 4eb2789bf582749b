"""Convert tuples of dataclasses to lists for JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tuples_to_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an object and turn its tuples into lists. Nested values stay unchanged.

    >>> tuples_to_lists({"stages": ("7", "14"), "parts": 4})
    {'stages': ['7', '14'], 'parts': 4}
    """
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def lists_to_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `tuples_to_lists`, for arguments of a dataclass.

    >>> lists_to_tuples({"stages": ["7", "14"], "parts": 4})
    {'stages': ('7', '14'), 'parts': 4}
    """
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
