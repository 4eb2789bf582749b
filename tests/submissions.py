"""Submissions for tests: a made-up run as an official data set, and files that were changed on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.report.conftest import Run
from wsolbench.protocol import EvalProtocol
from wsolbench.records import RunRecord, parse_record
from wsolbench.records.submission import OUTCOMES, Submission, parse_metadata
from wsolbench.report.board.results import Results, read_results
from wsolbench.system.files import sha256_of_file, write_json

PROTOCOL = EvalProtocol.preset("wsoleval")
Scored = tuple[Run, RunRecord]


def write_run(folder: Path, scored: Scored) -> Path:
    path = scored[1].write(folder)
    scored[0].table.write(path.with_suffix(OUTCOMES), scored[1], outcomes=PROTOCOL)
    return path


def put(folder: Path, submission: Submission, scores: Path) -> Path:
    path = folder / submission.folder / f"{submission.id}.json"
    write_json(path, submission.to_json())
    shutil.copyfile(scores, path.with_name(f"{path.stem}{OUTCOMES}"))
    return path


def scores_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}{OUTCOMES}")


def reseal(path: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Change a submission as somebody would who knows how digest and id are made."""
    scores = path.with_name(f"{path.stem}{OUTCOMES}")
    values = json.loads(path.read_text())
    values["digests"]["outcomes"] = sha256_of_file(scores)
    if change is not None:
        change(values)
    metadata, faults = parse_metadata(values["metadata"])
    assert metadata is not None, faults
    record = parse_record(values["record"], "record")
    submission = Submission(metadata=metadata, record=record, digests=values["digests"])
    folder = path.parent.parent
    content = scores.read_bytes()
    path.unlink()
    scores.unlink()
    (folder / "scores").write_bytes(content)
    made = put(folder, submission, folder / "scores")
    (folder / "scores").unlink()
    return made


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the text of a submission, and nothing else."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


def read_all(results: Path) -> Results:
    read = read_results(results, records_required=False)
    assert not read.problems
    return read
