"""What a command prints cannot stop it: other encodings, pipes that are closed, streams that are not
there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsolbench.exceptions import UsageError

MAIN = "from wsolbench.cli import main; main()"


@pytest.fixture
def scored(birds: Path, tmp_path: Path) -> list[str]:
    """A command line that scores maps and writes boxes and scores."""
    for row in (birds / "annotations.csv").read_text().splitlines()[1:]:
        name, _, split = row.split(",")[:3]
        if split == "test":
            path = tmp_path / "maps" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.random.default_rng(0).random((12, 12), dtype=np.float32))
    what = (
        "--maps",
        "maps",
        "--dataset",
        "csvfolder",
        "--data-root",
        str(birds),
        "--resamples",
        "100",
        "--name",
        "méthode",
    )
    return [sys.executable, "-c", MAIN, "score", *what, "--save-boxes", "boxes.json", "--save-scores"]


def check_written(folder: Path) -> None:
    assert len(json.loads((folder / "boxes.json").read_text())) == 9
    assert (
        len(list((folder / "results").rglob("*.json")))
        == len(list((folder / "results").rglob("*.scores.npz")))
        == 1
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_every_encoding_of_the_output_leaves_every_file(
    scored: list[str], tmp_path: Path, encoding: str
) -> None:
    done = subprocess.run(
        scored,
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding.partition(":")[0])
    assert "GT-known" in text
    assert "record " in text
    assert "boxes " in text
    check_written(tmp_path)


@pytest.mark.parametrize(
    "redirection",
    ["| true", "| head -c 1", "2>&1 | true", ">&-", ">&- 2>&-", "2>&-"],
    ids=["pipe", "head", "both", "no out", "none", "no err"],
)
def test_an_output_that_nobody_reads_leaves_every_file_and_succeeds(
    scored: list[str], tmp_path: Path, redirection: str
) -> None:
    import shlex

    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(scored)} {redirection}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    check_written(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_leaves_every_file_and_says_so(
    scored: list[str], tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(scored, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert b"could not be written: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    check_written(tmp_path)


def test_errors_with_names_that_are_no_text_are_printed(tmp_path: Path) -> None:
    for encoding in ("ascii", "utf-8"):
        line = [
            sys.executable,
            "-c",
            MAIN,
            "score",
            "--maps",
            b"m\xff\xc3\xa9",
            "--dataset",
            "csvfolder",
            "--data-root",
            b"d\xffp",
        ]
        done = subprocess.run(
            line,
            cwd=tmp_path,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr
        assert b"d\xffp" in done.stderr


def test_lists_are_printed_in_ascii(tmp_path: Path) -> None:
    for what in ("methods", "metrics"):
        line = [sys.executable, "-c", MAIN, "list", what]
        done = subprocess.run(
            line,
            cwd=tmp_path,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode("ascii")


def test_the_table_is_printed_also_where_pictures_fail(
    run, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("no picture")

    monkeypatch.setattr("wsolbench.report.pictures.plots.write_pictures", fail)
    result = run(
        "eval", "--method", "center-box", "--dataset", "csvfolder", "--data-root", birds, "--resamples", "100", "--pictures", "p",
        "--save-boxes", "boxes.json",
    )  # fmt: skip
    assert result.code == 2
    assert "no picture" in result.err
    assert "GT-known" in result.out
    assert "record " in result.out
    assert Path("boxes.json").exists()
