"""Text for terminals and tables, whatever names a user has given."""

from __future__ import annotations

import re
from typing import Any


def one_line(text: Any) -> str:
    """Return text in one line: each run of spaces and line breaks becomes one space.

    Other control characters and marks that change the direction of writing are removed.

    >>> one_line("a\\r\\n b\\x1b\\u202ec")
    'a bc'
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "", " ".join(str(text).split())
    )


def cut(text: str, width: int) -> str:
    """Return at most `width` characters of a text. A text that is cut ends with three dots.

    >>> cut("localization", 8), cut("map", 8)
    ('local...', 'map')
    """
    return text if len(text) <= width else f"{text[: width - 3]}..."
