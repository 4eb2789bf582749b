"""Running commands as a user does: in this process, in an empty folder, with what they print."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import submissions
from wsolbench.datasets.official import OfficialSplit, ids_digest, labels_digest


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


@pytest.fixture(scope="session")
def scored() -> submissions.Scored:
    """A run of 12 images under the preset `wsoleval`, with transferred and fixed thresholds."""
    from tests.report.conftest import build_run, make_record
    from wsolbench.evaluation.summary import summarize

    made = build_run(12, protocol=submissions.PROTOCOL)
    other = build_run(12, protocol=submissions.PROTOCOL, seed=5)
    metrics = summarize(made.table, submissions.PROTOCOL, fixed_tau=0.2, transfer_from=other.table)
    record = make_record(made.dataset, submissions.PROTOCOL, metrics, method={"name": "Outside-Net+"})
    data = {**record.dataset, "transfer_from": {"split": "val", "fingerprint": "cd" * 8}}
    return made, replace(record, dataset=data)


@pytest.fixture
def official(scored, monkeypatch: pytest.MonkeyPatch) -> OfficialSplit:
    """The made-up squares are an official data set here."""
    scores, record = scored[0].scores, scored[1]
    known = OfficialSplit(
        images=12,
        annotated=frozenset({"boxes"}),
        fingerprint=record.dataset["fingerprint"],
        ids=ids_digest(scores.ids.tolist()),
        labels=labels_digest(scores.ids.tolist(), scores.labels.tolist()),
    )

    def find(name: str, split: str) -> OfficialSplit | None:
        return known if (name, split) == ("squares", "test") else None

    monkeypatch.setattr("wsolbench.evaluation.submissions.official_split", find)
    monkeypatch.setattr("wsolbench.datasets.official.official_split", find)
    return known


@pytest.fixture(scope="session")
def valid(scored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one submission that has no fault. It is copied and never changed."""
    from wsolbench.records import read_record
    from wsolbench.records.submission import Submission, parse_metadata
    from wsolbench.system.files import sha256_of_file

    folder = tmp_path_factory.mktemp("valid")
    record = submissions.write_run(folder, scored)
    metadata = {
        "authors": ["Ada Lovelace"],
        "paper": "unpublished",
        "backbone": "tiny",
        "training_data": "train",
        "extra_data": "none",
        "licence": "CC0",
    }
    parsed, faults = parse_metadata(metadata)
    assert parsed is not None, faults
    scores = record.with_suffix(submissions.OUTCOMES)
    submission = Submission(
        metadata=parsed,
        record=read_record(record),
        digests={"outcomes": sha256_of_file(scores), "maps": None, "predictions": None},
    )
    submissions.put(folder / "submitted", submission, scores)
    return folder / "submitted"


@pytest.fixture
def sent(valid: Path, tmp_path: Path) -> Path:
    """A copy of the valid submission: its JSON file."""
    shutil.copytree(valid, tmp_path / "sent")
    (path,) = (tmp_path / "sent").glob("*/*.json")
    return path
