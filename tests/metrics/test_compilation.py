"""The line that says that kernels are compiled."""

from __future__ import annotations

from numba import njit

from wsolbench.metrics.compilation import MESSAGE, announced_compilation


def kernel_of(module: str):
    def add(a, b):
        return a + b

    add.__module__ = module
    return njit(add)


def test_the_first_compilation_of_an_own_kernel_is_announced_once() -> None:
    said: list[str] = []
    own, other = kernel_of("wsolbench.metrics.made_up"), kernel_of("numba.made_up")
    with announced_compilation(said.append):
        other(1, 2)
        assert said == []
        own(1, 2)
        own(1.0, 2.0)
        assert said == [MESSAGE]
    with announced_compilation(said.append):
        own(1, 2)  # is compiled already
    own(1j, 2j)
    assert said == [MESSAGE]
