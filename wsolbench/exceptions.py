"""What a caller did wrong, said so that they can put it right.

Every error that bad input can cause is a `WsolbenchError`. The command line prints its message and exits with
code 2; anything else that escapes is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WsolbenchError(Exception):
    """Base of all errors that the caller can mend. The message names the thing, what was expected and what
    came.
    """


class UsageError(WsolbenchError):
    """An option, a name or a combination that cannot work."""


class DataError(WsolbenchError):
    """A file or a folder whose content is missing, broken or contradictory."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list, with the nearest one that is.

    >>> str(unknown_name("method", "sap", ["cam", "spa"]))
    "unknown method 'sap'; did you mean 'spa'? Known: cam, spa"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UsageError(f"unknown {kind} {name!r}{hint} Known: {', '.join(choices) or '(none)'}")
