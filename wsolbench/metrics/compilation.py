"""Say that kernels are being compiled, because the first map after an installation takes seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from numba.core.event import Event, Listener, install_listener

MESSAGE = "compiling the metrics for this machine; this takes some seconds, once after an installation"


class _First(Listener):
    """Call a function when the first kernel of this package is compiled."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def on_start(self, event: Event) -> None:
        kernel = event.data["dispatcher"].py_func.__module__
        if self._call is not None and kernel.startswith("wsolbench."):
            call, self._call = self._call, None
            call()

    def on_end(self, event: Event) -> None:
        """Do nothing."""


@contextlib.contextmanager
def announced_compilation(say: Callable[[str], None]) -> Iterator[None]:
    """Call `say` with a message, once, if a `with` statement compiles a kernel.

    Kernels from the cache of an earlier run are not compiled.
    """
    with install_listener("numba:compile", _First(lambda: say(MESSAGE))):
        yield
