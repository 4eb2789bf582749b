"""Output that cannot stop a command: any encoding, a closed pipe, a stream that is not there.

What cannot be written in the stream's encoding is written in ASCII. After the reader of a pipe has gone,
output is dropped and the command finishes its work.
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
"""ASCII under another name: click takes a stream that is called ASCII for misconfigured, and writes UTF-8
past it.
"""
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
    """A text stream on a file descriptor whose writer never sees an error; `failure` keeps the first one but
    a closed pipe.
    """

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write, or drop the text where nobody can read it."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is there where nobody can read it."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Send what is buffered, and everything from now on, nowhere."""
        if error.errno != errno.EPIPE and self.failure is None:
            self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Error handler of encodings: ASCII for signs of tables, bytes of file names as they are, escapes for
    everything else.
    """
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
    """Make stdout and stderr of this process such streams. Streams that a caller has put in their place are
    left alone.
    """
    codecs.register_error(_ERRORS, _in_ascii)
    codecs.register(_find_codec)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by whoever started the process
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
    """Why output could not be written, for instance because the disk is full; None if it was written or a
    pipe was closed.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if isinstance(stream, SafeStream) and stream.failure is not None:
            return stream.failure.strerror
    return None
