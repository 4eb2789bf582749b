"""Running commands as a user does: in this process, in an empty folder, with what they print."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("eval", "--method", ...)` in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        from wsolbench.cli import main

        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["wsolbench", *map(str, arguments)])
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as status,
        ):
            main()
        code = status.value.code
        return Outcome(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """A bring-your-own folder: 24 train, 6 val and 9 test pictures of bright rectangles in three colours,
    with boxes and masks."""
    root = tmp_path / "birds"
    rng = np.random.default_rng(0)
    rows = ["image,label,split,width,height,x0,y0,x1,y1,mask"]
    for split, count in (("train", 24), ("val", 6), ("test", 9)):
        for index in range(count):
            name = f"{split}/{index:02d}.png"
            x0, y0 = rng.integers(2, 20, size=2)
            width, height = rng.integers(10, 26, size=2)
            pixels = rng.integers(0, 60, size=(48, 48, 3), dtype=np.uint8)
            pixels[y0 : y0 + height, x0 : x0 + width, index % 3] = 250
            mask = np.zeros((48, 48), dtype=np.uint8)
            mask[y0 : y0 + height, x0 : x0 + width] = 255
            for folder, array in (("images", pixels), ("masks", mask)):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / folder / name)
            rows.append(f"{name},{index % 3},{split},48,48,{x0},{y0},{x0 + width},{y0 + height},{name}")
    (root / "annotations.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.csv").write_text("label,name\n0,red\n1,green\n2,blue\n")
    return root
