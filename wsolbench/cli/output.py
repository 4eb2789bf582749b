"""Output that cannot stop a command, whatever the encoding, and even if a pipe or stream is closed.

What the stream's encoding lacks is written in ASCII. After the reader of a pipe has closed it, output is
dropped and the command finishes its work.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TextIO

_ERRORS = "wsolbench.ascii"
_PLAIN_ASCII = "wsolbench_ascii"
"""ASCII under another name: click takes an ASCII stream for misconfigured, and writes UTF-8 instead."""
_ASCII = {
    "·": "|",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "→": "->",
    "±": "+/-",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "’": "'",
    "─": "-",
}


class SafeStream(io.TextIOWrapper):
    """A text stream on a file descriptor that never raises.

    `failure` keeps the first error, except a closed pipe.
    """

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write the text, or drop it if it cannot be written."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop the buffered text if it cannot be written."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Redirect what is buffered, and everything from now on, to the null device."""
        if error.errno != errno.EPIPE and self.failure is None:
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle encoding errors: ASCII for signs of tables, raw bytes of file names, escapes for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte of a file name that is not UTF-8
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return _ASCII.get(sign, sign.encode("ascii", "backslashreplace").decode()), error.start + 1


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != _PLAIN_ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(
        plain.encode,
        plain.decode,
        plain.streamreader,
        plain.streamwriter,
        plain.incrementalencoder,
        plain.incrementaldecoder,
        name,
    )


def make_output_safe() -> None:
    """Replace stdout and stderr of this process by such streams, unless a caller has replaced them."""
    codecs.register_error(_ERRORS, _in_ascii)
    codecs.register(_find_codec)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # the parent process has closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - open until the end of the process
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
            if codecs.lookup(encoding).name == "ascii":
                encoding = _PLAIN_ASCII
            safe = SafeStream(
                stream.detach(),
                encoding=encoding,
                errors=_ERRORS,
                line_buffering=lines,
                write_through=through,
            )
            setattr(sys, name, safe)


def output_failure() -> str | None:
    """Return why output could not be written, for instance a full disk.

    None if it was written, and if a pipe was closed.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, SafeStream) and stream.failure is not None:
            return stream.failure.strerror
    return None
