"""`wsolbench verify-submission`: every way in which a file from outside can be wrong or hostile."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.submissions import edit, put, read_all, reseal, scores_of
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.records.submission import MAX_JSON, MAX_OUTCOMES, read_submission
from wsolbench.report.board.board import Filters
from wsolbench.report.board.formats import render
from wsolbench.report.board.leaderboard import board_tables
from wsolbench.report.page.page import page_html

pytestmark = pytest.mark.usefixtures("official")


def refuse(run, path: Path | str, *texts: str) -> None:
    result = run("verify-submission", path)
    assert result.code == 2, result.out
    assert "valid    " not in result.out
    assert "Traceback" not in result.err
    for text in texts:
        assert text in result.err, result.err


def set_metric(values: dict[str, Any], **fields: Any) -> None:
    next(m for m in values["record"]["metrics"] if m["name"] == "gt_known").update(fields)


SEALED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a changed number": (
        lambda values: set_metric(values, value=0.4375),
        "the per-image scores give",
    ),
    "a changed interval": (lambda values: set_metric(values, high=1.0), "gt_known (oracle) has high 1.0"),
    "a metric that was left out": (
        lambda values: values["record"]["metrics"].pop(0),
        "is missing; the per-image scores give it",
    ),
    "a changed protocol": (
        lambda values: values["record"]["protocol"].update(iou_test=">"),
        "was modified or is not a preset",
    ),
    "another split": (
        lambda values: values["record"]["dataset"].update(split="val"),
        "squares/val is not the official test split",
    ),
    "another fingerprint": (
        lambda values: values["record"]["dataset"].update(fingerprint="ee" * 8),
        "the official annotations have abab",
    ),
    "an unknown data set": (
        lambda values: values["record"]["dataset"].update(name="../squares"),
        "is not the official test split",
    ),
    "fewer images": (lambda values: values["record"]["dataset"].update(limit=6), "dataset.limit is 6"),
}


@pytest.mark.parametrize("name", SEALED)
def test_a_changed_record_is_refused_even_with_a_new_id(run, sent: Path, name: str) -> None:
    change, text = SEALED[name]
    refuse(run, reseal(sent, change), text)


TEXT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a script": (
        lambda values: values["metadata"].update(paper="<script>alert(1)</script>"),
        "metadata.paper is '<script>",
    ),
    "a script as the method": (
        lambda values: values["record"]["method"].update(name="<img src=x>"),
        "the method's name is '<img src=x>'",
    ),
    "a method that climbs": (
        lambda values: values["record"]["method"].update(name="../../x"),
        "expected no '/', '\\' and '..'",
    ),
    "an id that climbs": (
        lambda values: values.update(id="../../x"),
        "id is '../../x', but its content gives",
    ),
    "an address of code": (
        lambda values: values["metadata"].update(url="javascript:alert(1)"),
        "expected an address that begins with http:// or https://",
    ),
    "an address that ends a tag": (
        lambda values: values["metadata"].update(code='https://x.org/"><script>'),
        "metadata.code is",
    ),
    "a long text": (lambda values: values["metadata"].update(venue="x" * 101), "expected at most 100"),
    "marks of direction": (
        lambda values: values["metadata"].update(licence="a\u202eb"),
        "metadata.licence is",
    ),
    "authors in one text": (
        lambda values: values["metadata"].update(authors="Ada"),
        "metadata.authors is not a list",
    ),
    "an unknown field": (lambda values: values["metadata"].update(rank=1), "the unknown field 'rank'"),
    "a field that is missing": (
        lambda values: values["metadata"].pop("extra_data"),
        "metadata lacks extra_data",
    ),
    "a field in the record": (lambda values: values["record"].update(note="x"), "it has other fields"),
    "a badge": (lambda values: values.update(badge="trained here"), "only maintainers set badges"),
    "an unknown badge": (lambda values: values.update(badge="best"), "badge is 'best'"),
    "a changed number": (lambda values: set_metric(values, n=11), "it was changed after it was written"),
    "a number that is none": (
        lambda values: set_metric(values, value=float("nan")),
        "expected a number that is finite",
    ),
    "no digest": (lambda values: values["digests"].update(outcomes=None), "expected a SHA-256"),
}


@pytest.mark.parametrize("name", TEXT)
def test_a_file_with_a_bad_field_is_refused(run, sent: Path, name: str) -> None:
    change, text = TEXT[name]
    refuse(run, edit(sent, change), text)


CONTENT = {
    "no UTF-8": (lambda text: text.encode("utf-16"), "is not UTF-8"),
    "a key that occurs twice": (
        lambda text: text.replace("{", '{"schema": 1,', 1).encode(),
        "the name 'schema' occurs twice",
    ),
    "no object": (lambda text: b"[]", "is not a submission of schema 1"),
    "deep nesting": (lambda text: b"[" * 100_000, "nested too deeply"),
    "a huge file": (lambda text: b" " * (MAX_JSON + 1), f"expected at most {MAX_JSON:,}"),
}


@pytest.mark.parametrize("name", CONTENT)
def test_a_file_that_is_no_submission_is_refused(run, sent: Path, name: str) -> None:
    make, text = CONTENT[name]
    sent.write_bytes(make(sent.read_text()))
    refuse(run, sent, text)


def test_one_changed_score_is_refused(run, sent: Path) -> None:
    table = ScoreTable.read(scores_of(sent))
    every = table.load()
    ranked = every.ranked.copy()
    right = int(np.flatnonzero(ranked[:, 0] == every.labels)[0])
    ranked[right] = np.roll(ranked[right], 1)
    changed = ScoreTable((replace(every, ranked=ranked),))
    changed.write(scores_of(sent), read_submission(sent).record)
    refuse(run, sent, "their SHA-256 is not the one in")
    refuse(run, reseal(sent), "top1_cls has value", "the per-image scores give")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": 1}, "the labels of the images are not those of squares/test"),
        ({"ids": "../x"}, "1 image ids are no plain relative paths"),
        ({"has_boxes": False}, "1 images have no boxes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_scores_of_other_images_are_refused(run, sent: Path, change: dict[str, Any], text: str) -> None:
    ((name, value),) = change.items()
    every = ScoreTable.read(scores_of(sent)).load()
    column = getattr(every, name).copy()
    column[0] = value
    ScoreTable((replace(every, **{name: column}),)).write(scores_of(sent), read_submission(sent).record)
    refuse(run, reseal(sent), text)


def repack(path: Path, change: Callable[[zipfile.ZipFile], None], *, without: str = "") -> Path:
    """Write the archive of scores again, with one array left out and another content added."""
    file = scores_of(path)
    with zipfile.ZipFile(file) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if name != without}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
        change(archive)
    return reseal(path)


def add_pickled(archive: zipfile.ZipFile) -> None:
    """Add an array of objects of the right size, whose pickle would run a command."""
    pickled = b"cos\nsystem\n(S'touch run_by_pickle'\ntR."
    with archive.open("ids.npy", "w") as stream:
        header = {"descr": "|O", "fortran_order": False, "shape": (12,)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(pickled.ljust(12 * 8, b"\0"))


def add_bomb(archive: zipfile.ZipFile) -> None:
    with archive.open("ids.npy", "w", force_zip64=True) as stream:
        header = {"descr": "<U4000000", "fortran_order": False, "shape": (12,)}
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(12):
            stream.write(bytes(16_000_000))


@pytest.mark.parametrize(
    ("change", "without", "text"),
    [
        (add_pickled, "ids.npy", "ids has values of type object"),
        (add_bomb, "ids.npy", "it expands to 192"),
        (lambda archive: archive.writestr("../x.npy", b""), "", "'../x.npy'"),
        (lambda archive: archive.writestr("ids.npy", b""), "", "each once"),
        (lambda archive: None, "labels.npy", "'labels.npy'"),
    ],
    ids=["pickle", "bomb", "climbs", "twice", "missing"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_are_refused_before_they_are_read(
    run, sent: Path, change: Callable[[zipfile.ZipFile], None], without: str, text: str
) -> None:
    refuse(run, repack(sent, change, without=without), text)
    assert not Path("run_by_pickle").exists()


def test_huge_scores_are_not_read(run, sent: Path) -> None:
    with scores_of(sent).open("r+b") as stream:
        stream.truncate(MAX_OUTCOMES + 1)
    refuse(run, sent, f"expected at most {MAX_OUTCOMES:,}")


def test_links_and_other_files_are_refused(run, sent: Path, tmp_path: Path) -> None:
    folder = sent.parent.parent
    target = tmp_path / "elsewhere.json"
    shutil.copyfile(sent, target)
    (folder / "linked").symlink_to(sent.parent, target_is_directory=True)
    (sent.parent / "run.sh").write_text("echo")
    result = run("verify-submission", folder)
    assert (result.code, result.out.count("valid    ")) == (2, 1)
    assert "linked is a symbolic link" in result.err
    assert "run.sh is no file of a submission" in result.err
    sent.unlink()
    sent.symlink_to(target)
    refuse(run, sent, "is a symbolic link; expected a regular file")
    sent.unlink()
    refuse(run, scores_of(sent), "does not exist, but its per-image scores do")


def test_a_file_under_another_name_or_twice_is_refused(run, sent: Path) -> None:
    other = reseal_copy(sent, paper="Another title")
    refuse(run, sent.parent, f"its record is also that of {other.name}")
    renamed = sent.rename(sent.with_name("mine.json"))
    refuse(run, renamed, "the file must be named outside-net-")


def reseal_copy(path: Path, **metadata: Any) -> Path:
    submission = read_submission(path)
    changed = replace(submission, metadata=replace(submission.metadata, **metadata))
    return put(path.parent.parent, changed, scores_of(path))


def test_names_and_addresses_are_escaped_on_board_and_page(
    sent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a file has not been verified."""
    hostile = reseal_hostile(sent)
    monkeypatch.setattr("wsolbench.records.submission.text_fault", lambda *_arguments: None)
    results = hostile.parent.parent.rename(hostile.parent.parent.with_name("submitted")).parent
    read = read_all(results)
    text = board_markdown(results, read)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    page, _ = page_html(results, galleries=[], methods=0, resamples=100, read=read)
    assert "<script>alert" not in page
    assert "<b>" not in page


def reseal_hostile(path: Path) -> Path:
    submission = read_submission(path)
    record = replace(submission.record, method={**submission.record.method, "name": "x<script>alert(1)<b>"})
    metadata = replace(submission.metadata, paper="[x](javascript:y)", authors=("<b>|",))
    made = put(path.parent.parent, replace(submission, record=record, metadata=metadata), scores_of(path))
    scores_of(path).unlink()
    path.unlink()
    return made


def board_markdown(results: Path, read: Any) -> str:
    return render(board_tables(results, Filters(), read), "markdown")
