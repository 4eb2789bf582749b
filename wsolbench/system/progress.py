"""Progress of a long job: a bar with rate and remaining time on a terminal, occasional lines elsewhere.

Everything goes to stderr, so that the output of a command can be piped. A job of less than two seconds shows
nothing.
"""

from __future__ import annotations

import contextlib
import io
import operator
import sys
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, TypeVar, overload

from wsolbench.system.distributed import world

if TYPE_CHECKING:
    from rich.live import Live

T = TypeVar("T")

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0
BAR_SECONDS = 0.1


_IS_SILENT: ContextVar[bool] = ContextVar("_IS_SILENT", default=False)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Show no progress in a `with` statement."""
    token = _IS_SILENT.set(True)
    try:
        yield
    finally:
        _IS_SILENT.reset(token)


class Progress:
    """Progress without an iterable: a context with `advance`, returned by `track`."""

    def __init__(self, description: str, total: int | None, unit: str, done: int, stream: TextIO) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._first, self._done, self._note = done, done, ""
        self._left: float | None = None
        self._start = self._shown = time.monotonic()
        self._display = _Bar(stream) if stream.isatty() else _Lines(stream)

    def __enter__(self) -> Progress:
        self._start = self._shown = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.close(self._line(time.monotonic()))

    def advance(self, count: int = 1, note: str = "", *, left: float | None = None) -> None:
        """Count `count` more finished units. `note` ends the line until the next note.

        `left` is the caller's own estimate of the remaining seconds, for units that take unequal time.
        """
        self._done += count
        self._note = note or self._note
        self._left = left
        now = time.monotonic()
        if now - self._start >= QUIET_SECONDS and now - self._shown >= self._display.interval:
            self._shown = now
            self._display.show(self._line(now), self._done, self._total)

    def print_line(self, line: str) -> None:
        """Print a line that stays, above a bar if there is one."""
        self._display.print_line(line)

    def _line(self, now: float) -> str:
        seconds = max(now - self._start, 1e-9)
        rate = (self._done - self._first) / seconds
        parts = [
            f"{self._description}:",
            f"{self._done}" if self._total is None else f"{self._done}/{self._total}",
            self._unit,
        ]
        ends = self._total is not None and self._done < self._total
        if self._left is not None and ends:
            parts.append(f"{_clock(self._left)} left")
        elif rate > 0:
            parts.append(f"{rate:.3g}/s")
            parts.append(
                f"{_clock((self._total - self._done) / rate)} left"
                if ends and self._total
                else f"in {_clock(seconds)}"
            )
        if self._note:
            parts.append(f"({self._note})")
        return " ".join(parts)


@overload
def track(
    iterable: None = None,
    description: str = ...,
    *,
    total: int | None = ...,
    unit: str = ...,
    done: int = ...,
    stream: TextIO | None = ...,
) -> Progress: ...
@overload
def track(
    iterable: Iterable[T],
    description: str = ...,
    *,
    total: int | None = ...,
    unit: str = ...,
    done: int = ...,
    stream: TextIO | None = ...,
) -> Iterator[T]: ...
def track(
    iterable: Iterable[T] | None = None,
    description: str = "",
    *,
    total: int | None = None,
    unit: str = "images",
    done: int = 0,
    stream: TextIO | None = None,
) -> Iterator[T] | Progress:
    """Show progress around an iterable, or return a context with `advance(count, note)`.

    Args:
        iterable: iterable to show, or None to call `advance`.
        description: name of the job.
        total: number of units. If None, `len(iterable)`, or unknown if it has none.
        unit: name of the units, plural.
        done: units that an earlier run has finished. The rate ignores them.
        stream: output, stderr by default. Of several processes that torchrun started, only the first one
            writes by default.

    >>> [square for square in track((n * n for n in range(4)), "squaring", total=4, unit="numbers")]
    [0, 1, 4, 9]
    """
    if total is None and iterable is not None:
        total = operator.length_hint(iterable) or None
    if stream is None:
        is_shown = sys.stderr is not None and world().is_first and not _IS_SILENT.get()
        stream = sys.stderr if is_shown else io.StringIO()
    progress = Progress(description, total, unit, done, stream)
    return progress if iterable is None else _tracked(iterable, progress)


def note(text: str) -> None:
    """Print a line on stderr that the reader should know, but that stops nothing.

    Only the first process prints.
    """
    if world().is_first:
        sys.stderr.write(f"note: {text}\n")
        sys.stderr.flush()


def _tracked(iterable: Iterable[T], progress: Progress) -> Iterator[T]:
    with progress:
        for item in iterable:
            yield item
            progress.advance()


def _write_line(stream: TextIO, line: str) -> None:
    """Write a line, whatever the stream's encoding. A line that cannot be written must not end the job."""
    with contextlib.suppress(OSError):
        try:
            stream.write(line + "\n")
        except UnicodeEncodeError:
            stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
        stream.flush()


def _clock(seconds: float) -> str:
    """Format seconds: 7 as 0:07, 7265 as 2:01:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Lines:
    """Display of plain lines, for logs and pipes."""

    interval = LINE_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def show(self, line: str, done: int, total: int | None) -> None:  # noqa: ARG002 - one signature for both displays
        self._last = line
        _write_line(self._stream, line)

    def print_line(self, line: str) -> None:
        _write_line(self._stream, line)

    def close(self, line: str) -> None:
        if self._last and line != self._last:
            self.show(line, 0, None)


class _Bar:
    """Display of one line that is redrawn, for terminals."""

    interval = BAR_SECONDS

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: Live | None = None

    def show(self, line: str, done: int, total: int | None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            self._live = Live(console=Console(file=self._stream), auto_refresh=False, transient=True)
            self._live.start()
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=total, completed=done, width=24, pulse=total is None), line)
        self._live.update(row, refresh=True)

    def print_line(self, line: str) -> None:
        if self._live is None:
            _write_line(self._stream, line)
        else:
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self, line: str) -> None:
        if self._live is not None:
            self._live.stop()
            _write_line(self._stream, line)
