"""Errors that the caller can fix.

Every error that invalid input can cause is a `WsolbenchError`. The command line prints its message and
exits with code 2. Any other exception that escapes is a bug in wsolbench and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WsolbenchError(Exception):
    """Base of all errors that the caller can fix. The message says what, found, expected and the fix."""


class UsageError(WsolbenchError):
    """An invalid option, name or combination of settings."""


class DataError(WsolbenchError):
    """A file or folder whose content is missing, invalid or contradictory."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unknown name, with the closest known name as a suggestion.

    >>> str(unknown_name("method", "sap", ["cam", "spa"]))
    "unknown method 'sap'; did you mean 'spa'? Known: cam, spa"
    >>> str(unknown_name("setting of method 'cam'", "wid", ["width"]))
    "unknown setting 'wid' of method 'cam'; did you mean 'width'? Known: width"
    """
    choices = sorted(known)
    begun = [choice for choice in choices if len(name) > 2 and choice.startswith(name.lower())]
    near = begun or difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    noun, of, owner = kind.partition(" of ")
    return UsageError(f"unknown {noun} {name!r}{of}{owner}{hint} Known: {', '.join(choices) or '(none)'}")
