"""A results folder for tests of the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsolbench.evaluation.score_table import SCORES
from wsolbench.protocol import EvalProtocol


@pytest.fixture
def results(tmp_path: Path, make_run: Callable[..., Any]) -> Path:
    """Two methods with two seeds each and one with one, with scores; and one of them under another
    protocol."""

    def write(name: str, number: int, seed: int, **more: Any) -> None:
        run = make_run(
            21, method={"name": name, "training": {"seed": seed}}, seed=number, masks=tmp_path, **more
        )
        run.table.write(run.record.write(tmp_path / "measured").with_suffix(SCORES))

    for number, (name, seed) in enumerate((("cam", 0), ("cam", 1), ("spa", 0), ("spa", 1), ("has", 0))):
        write(name, number, seed, fixed_tau=0.2)
    write(
        "has",
        4,
        0,
        fixed_tau=0.2,
        protocol=EvalProtocol(name="union", frame_size=64, resize_size=80, components="union"),
    )
    return tmp_path
