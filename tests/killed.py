"""Runs that are killed at each file operation, in forks of this process: `python killed.py score FOLDER` says
what differs.

A fork starts where all is imported, so hundreds of runs take seconds each.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsolbench.cli import main
from wsolbench.exceptions import WsolbenchError

Commands = list[list[str]]


def data(root: Path) -> Path:
    """A folder of pictures: 16 to train on, 4 to validate, 10 to test, and a map of each of the last."""
    rng, rows = np.random.default_rng(0), ["image,label,split,width,height,x0,y0,x1,y1"]
    for split, count in (("train", 16), ("val", 4), ("test", 10)):
        for index in range(count):
            x0, y0 = rng.integers(2, 14, size=2)
            pixels = rng.integers(0, 60, size=(32, 32, 3), dtype=np.uint8)
            pixels[y0 : y0 + 14, x0 : x0 + 14, index % 2] = 250
            path = root / "images" / split / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            (root / "maps" / split).mkdir(parents=True, exist_ok=True)
            np.save(
                root / "maps" / split / f"{index:02d}.png.npy",
                pixels.max(axis=2).astype(np.float32) + rng.random((32, 32)) * 200,
            )
            rows.append(f"{split}/{index:02d}.png,{index % 2},{split},32,32,{x0},{y0},{x0 + 14},{y0 + 14}")
    (root / "annotations.csv").write_text("\n".join(rows) + "\n")
    return root


def commands(what: str, root: Path) -> Commands:
    on = ["--dataset", "csvfolder", "--data-root", str(root)]
    scoring = [*on, "--resamples", "100", "--protocol-set", "taus=0.1", "--workers", "1"]
    if what == "train":
        options = [
            "--backbone",
            "tiny",
            "--weights",
            "none",
            "--epochs",
            "2",
            "--batch-size",
            "8",
            "--image-size",
            "32",
            "--workers",
            "0",
        ]
        return [["train", "--method", "cam", *on, *options, "--device", "cpu", "--out", "run"]]
    if what == "eval":
        return [
            [
                "eval",
                "--method",
                "center-box",
                *scoring,
                "--save-maps",
                "saved",
                "--save-scores",
                "--out",
                "records",
            ]
        ]
    score = ["score", "--maps", str(root / "maps"), "--name", "x", *scoring]
    if what == "score":
        return [
            [
                *score,
                "--save-scores",
                "--pictures",
                "pictures",
                "--save-boxes",
                "boxes/boxes.json",
                "--out",
                "records",
            ]
        ]
    return [
        *([*score, "--shard", f"{index}/2", "--out", "shards"] for index in (1, 2)),
        ["merge", "shards", "--out", "records", "--save-scores"],
    ]


def forked(work: Callable[[], None], folder: Path) -> int:
    """The status of a fork that does this in the folder."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            work()
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 0)
        except WsolbenchError:
            os._exit(2)
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def run_all(lines: Commands, kill_at: int | None = None) -> None:
    """Run commands in this process; kill it at an operation on files."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove"):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at is not None:
        sys.addaudithook(hook)
    for line in lines:
        sys.argv = ["wsolbench", *line]
        try:
            main()
        except SystemExit as error:
            if error.code:
                raise


def content(folder: Path) -> dict[str, object]:
    """All that a run leaves, without what times the machine."""
    found: dict[str, object] = {}
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")
    ):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            values = json.loads(path.read_text())
            if isinstance(values, dict):
                values = {key: value for key, value in values.items() if key not in ("provenance", "run")} | {
                    "run": sorted(values.get("run", {}))
                }
            found[name] = values
        elif path.name == "log.csv":
            found[name] = [
                {k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(path.open())
            ]
        elif path.suffix != ".png":
            found[name] = path.read_bytes()
        else:
            found[name] = "a picture"
    return found


def kills(what: str, place: Path) -> tuple[int, list[str]]:
    """How many operations were tried, and where the run that went on differs from the unbroken one."""
    import wsolbench.evaluation.runs

    wsolbench.evaluation.runs.CHUNK = 3
    torch.set_num_threads(1)
    lines = commands(what, data(place / "data"))
    (place / "whole").mkdir()
    os.chdir(place / "whole")
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):  # noqa: PTH123
        run_all(lines)  # in this process: forks have all imported and compiled
    expected, problems, number = content(place / "whole"), [], 0
    while True:
        number += 1
        broken = place / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        if forked(lambda at=number: run_all(lines, at), broken) != -signal.SIGKILL:
            return number - 1, problems
        code = forked(lambda: run_all(lines), broken)
        got = content(broken)
        if code or got != expected:
            different = [name for name in {**expected, **got} if expected.get(name) != got.get(name)]
            problems.append(f"killed at operation {number}: then code {code}, and other files {different}")
            sys.stderr.write(problems[-1] + "\n")


if __name__ == "__main__":
    kind, place = sys.argv[1:]
    tried, problems = kills(kind, Path(place))
    sys.stdout.write("\n".join([f"{kind}: {tried} operations", *problems]) + "\n")
    sys.exit(bool(problems))
