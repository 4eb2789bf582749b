"""Install a wheel without extras into a new environment and use it as a stranger would.

    python tests/packaging/without_extras.py dist/wsolbench-0.1.0-py3-none-any.whl

Any Python that wsolbench supports can run it; it imports nothing but the standard library. pip needs an index
to get the dependencies from.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]

MAKE_DATA = """
from pathlib import Path
import numpy as np
Path("data").mkdir()
Path("maps").mkdir()
Path("data/classes.csv").write_text("label,name\\n0,crow\\n1,gull\\n")
lines = ["image,label,split,width,height,x0,y0,x1,y1"]
for number in range(4):
    lines.append(f"{number}.png,{number % 2},test,40,20,8,4,24,16")
    raw_map = np.zeros((10, 20), dtype=np.float32)
    raw_map[2:8, 4:12] = 1
    np.save(f"maps/{number}.png.npy", raw_map)
    from PIL import Image
    Image.new("RGB", (40, 20)).save(f"data/{number}.png")
Path("data/annotations.csv").write_text("\\n".join(lines) + "\\n")
"""

CHECK_INSTALLED = """
import importlib.metadata, importlib.util, pathlib, sys
import wsolbench
assert wsolbench.__version__ == importlib.metadata.version("wsolbench")
assert pathlib.Path(wsolbench.__file__).is_relative_to(sys.prefix), wsolbench.__file__
assert importlib.util.find_spec("torch") is None, "torch came with it"
"""

DATA = ("--dataset", "csvfolder", "--data-root", "data")
COMMANDS: tuple[tuple[str, ...], ...] = (
    *(
        ("list", kind)
        for kind in ("methods", "posts", "detectors", "datasets", "metrics", "protocols", "backbones")
    ),
    ("leaderboard", "--dataset", "cub", "--metric", "top1_loc"),
    ("verify", *DATA),
    ("score", "--maps", "maps", *DATA, "--name", "mine", "--resamples", "100"),
    ("leaderboard",),
    ("leaderboard", "--check"),
    ("report", "--resamples", "100"),
)


def blocks_of_readme() -> list[str]:
    """The blocks of Python in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.S)


def check(wheel: Path, folder: Path) -> None:
    """Install `wheel` into `folder/venv` and run everything in `folder`. Raises on the first failure."""
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            list(map(str, arguments)),
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    python = programs / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel.resolve())
    for code in (CHECK_INSTALLED, MAKE_DATA, *blocks_of_readme()):
        run(python, "-c", code)
    for arguments in COMMANDS:
        run(programs / "wsolbench", *arguments)
    index = (folder / "results/leaderboard/README.md").read_text(encoding="utf-8")
    page = (folder / "report/index.html").read_text(encoding="utf-8")
    for text, where in ((index, "leaderboard"), (page, "report")):
        if "csvfolder" not in text or "Where-to-Look" not in text:
            raise SystemExit(f"the {where} lacks the measured record, or the published numbers")


def main() -> None:
    """Check the wheel that is named on the command line."""
    with tempfile.TemporaryDirectory() as folder:
        check(Path(sys.argv[1]), Path(folder))
    sys.stdout.write(f"{Path(sys.argv[1]).name} works without extras on Python {sys.version.split()[0]}\n")


if __name__ == "__main__":
    main()
