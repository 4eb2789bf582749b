"""Files of per-image scores: read as they were written, refused when they are damaged, and tied to the record
that they are of."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import Run, build_run
from wsolbench.evaluation.compare import compare, compare_records, read_scores
from wsolbench.evaluation.score_table import SCORES, ScoreTable, scores_digest
from wsolbench.exceptions import DataError
from wsolbench.records import read_record
from wsolbench.records.budget import Budgets
from wsolbench.records.comparison import Comparison, read_comparison

RUN = build_run(12)


def stored(folder: Path, run: Run = RUN, *, tied: bool = True) -> tuple[Path, Path]:
    """A record, and the scores beside it."""
    path = run.record.write(folder)
    run.table.write(path.with_suffix(SCORES), run.record if tied else None)
    return path, path.with_suffix(SCORES)


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    path, file = stored(tmp_path)
    table = read_scores(path, read_record(path))
    assert np.array_equal(table.load().best_iou, RUN.scores.best_iou)
    with np.load(file) as arrays:
        assert arrays["ids"].tolist() == RUN.scores.ids.tolist()


def test_every_flipped_bit_gives_the_same_scores_or_names_the_file(tmp_path: Path) -> None:
    path, file = stored(tmp_path)
    content, record = file.read_bytes(), read_record(path)
    refusals = []
    for place in np.random.default_rng(0).integers(0, 8 * len(content), 300):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << int(place % 8)
        file.write_bytes(damaged)
        try:
            found = read_scores(path, record).load()
        except DataError as error:
            refusals.append(str(error))
        else:
            assert np.array_equal(found.best_iou, RUN.scores.best_iou)
            assert found.ids.tolist() == RUN.scores.ids.tolist()
    assert len(refusals) > 200
    assert all(str(file) in refusal for refusal in refusals)


@pytest.mark.parametrize("size", [0, 1, 100, -1, -30])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, size: int) -> None:
    path, file = stored(tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"scores\.npz cannot be read"):
        read_scores(path, read_record(path))


def test_a_pointer_in_place_of_scores_is_named(tmp_path: Path) -> None:
    path, file = stored(tmp_path)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="it is a Git LFS pointer"):
        read_scores(path, read_record(path))


def rewritten(file: Path, **arrays: Any) -> None:
    """The same file with some arrays changed; None removes one."""
    with np.load(file) as stored_arrays:
        values = {name: stored_arrays[name] for name in stored_arrays.files} | arrays
    np.savez_compressed(file, **{name: value for name, value in values.items() if value is not None})


def changed(name: str, value: Any) -> np.ndarray:
    array = getattr(RUN.scores, name).copy()
    array.flat[3] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"best_iou": changed("best_iou", np.nan)}, "best_iou has values from nan to nan; expected 0 to 1"),
        ({"single_iou": changed("single_iou", 2.0)}, "single_iou has values from .* to 2.0; expected 0 to 1"),
        ({"best_iou": changed("best_iou", -0.5)}, "best_iou has values from -0.5"),
        ({"error_codes": changed("error_codes", 9)}, "error_codes has values from 0 to 9; expected 0 to 5"),
        ({"labels": changed("labels", -1)}, "labels has values from -1"),
        ({"level_histogram": changed("level_histogram", -1)}, "level_histogram has values from -1"),
        ({"point_px": changed("point_px", np.inf)}, "point_px has values"),
        (
            {"best_iou": RUN.scores.best_iou.astype(np.int64)},
            "best_iou has values of type int64; expected floating-point numbers",
        ),
        (
            {"has_boxes": RUN.scores.has_boxes.astype(np.float64)},
            "has_boxes has values of type float64; expected truth values",
        ),
        ({"best_iou": RUN.scores.best_iou[:, :5]}, "does not fit the other arrays"),
        ({"labels": RUN.scores.labels[:5]}, "does not fit the other arrays"),
        ({"labels": np.array(3)}, "does not fit the other arrays"),
        ({"ids": np.full(12, "a.jpg")}, "the image 'a.jpg' occurs 12 times"),
        ({"ids": np.arange(12)}, "ids has values of type int64; expected texts"),
        ({"labels": None}, "labels"),
        ({"ids": RUN.scores.ids[::-1]}, "scores of other images or values than its record"),
        ({"single_iou": RUN.scores.single_iou[::-1]}, "scores of other images or values than its record"),
        ({"record": np.array("0a1b")}, "scores of other images or values than its record"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_scores_without_meaning_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path, file = stored(tmp_path)
    rewritten(file, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        read_scores(path, read_record(path))
    assert str(file) in str(caught.value)


def test_scores_that_name_the_record_and_the_images_alone_are_read(tmp_path: Path) -> None:
    path, file = stored(tmp_path)
    rewritten(file, record=np.array(scores_digest(RUN.table, RUN.record)))
    assert np.array_equal(read_scores(path, read_record(path)).load().best_iou, RUN.scores.best_iou)


def test_scores_of_several_chunks_are_tied_to_their_record(tmp_path: Path) -> None:
    whole = RUN.scores
    first = whole.select(np.arange(5))
    chunks = (replace(first, ids=first.ids.astype("U40")), whole.select(np.arange(5, 12)))
    path = RUN.record.write(tmp_path)
    ScoreTable(chunks).write(path.with_suffix(SCORES), RUN.record)
    assert len(read_scores(path, read_record(path))) == 12


@pytest.mark.parametrize("tied", [True, False])
def test_scores_of_another_run_with_the_same_counts_are_refused(tmp_path: Path, tied: bool) -> None:
    path, file = stored(tmp_path)
    other = build_run(12, seed=1)
    other.table.write(file, other.record if tied else None)
    with pytest.raises(DataError, match="its record") as caught:
        read_scores(path, read_record(path))
    assert str(file) in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(read_scores(*stored_pair(tmp_path / "own", other, tied))) == 12


def stored_pair(folder: Path, run: Run, tied: bool) -> Any:
    path, _ = stored(folder, run, tied=tied)
    return path, read_record(path)


def test_scores_do_not_belong_to_a_record_whose_values_were_edited(tmp_path: Path) -> None:
    path, _ = stored(tmp_path)
    values = json.loads(path.read_text())
    values["metrics"][0]["value"] = 0.5
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="other images or values"):
        read_scores(path, read_record(path))


def header_of(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def replace_member(file: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, inner in (members | {name: content}).items():
            archive.writestr(member, inner)


def test_sizes_that_the_file_does_not_hold_take_no_memory(tmp_path: Path) -> None:
    path, file = stored(tmp_path)
    replace_member(file, "best_iou.npy", header_of((10**6, 10**6)))
    with pytest.raises(DataError, match=r"best_iou is incomplete: shape .* in the file"):
        read_scores(path, read_record(path))


@pytest.mark.parametrize(
    ("field", "value"), [("flags", 1), ("method", 97)], ids=["encrypted", "unknown compression"]
)
def test_an_archive_that_cannot_be_opened_is_named(tmp_path: Path, field: str, value: int) -> None:
    path, file = stored(tmp_path)
    damaged = bytearray(file.read_bytes())
    for start, offsets in (
        (b"PK\x03\x04", {"flags": 6, "method": 8}),
        (b"PK\x01\x02", {"flags": 8, "method": 10}),
    ):
        place = damaged.find(start)
        while place >= 0:
            damaged[place + offsets[field]] = value
            place = damaged.find(start, place + 1)
    file.write_bytes(damaged)
    with pytest.raises(DataError, match=r"scores\.npz cannot be read"):
        read_scores(path, read_record(path))


def test_a_named_pipe_in_place_of_scores_is_not_waited_for(tmp_path: Path) -> None:
    path, file = stored(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="is a named pipe; expected a file"):
        read_scores(path, read_record(path))


@pytest.mark.parametrize("value", [np.nan, 2.0])
def test_compare_refuses_overlaps_that_are_none(value: float) -> None:
    broken = replace(RUN.scores, best_iou=changed("best_iou", value))
    with pytest.raises(DataError, match="best_iou has values"):
        compare([RUN.table], [ScoreTable((broken,))], RUN.record.map_protocol, resamples=100)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    groups = [
        {path: read_record(path)}
        for path in (stored(tmp_path, run)[0] for run in (RUN, build_run(12, seed=1)))
    ]
    return compare_records(*groups, resamples=100, budgets=Budgets(())).write(tmp_path / "compared")


def break_off(values: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> str:
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["differences"][0].update(low=float("nan")),
        lambda values: values["differences"][0].update(a=2.0),
        lambda values: values["differences"][0].update(low=0.5, high=-0.5),
        lambda values: values["differences"][0].update(n=0),
        lambda values: values["differences"][0].update(p_value=7),
        lambda values: values["differences"][0].update(per_pair=[3.0]),
        lambda values: values["differences"][0].update(name="gt_knwon"),
        lambda values: values["a"].pop("seeds"),
        lambda values: values["a"].update(records=[]),
        lambda values: values["a"].update(config=None),
        lambda values: values["dataset"].pop("name"),
        lambda values: values["differences"][0].update(per_run=[[0.5], [7.0]]),
        lambda values: values["budget"].update(images=[-3, 5]),
        lambda values: values.update(resamples=0),
        lambda values: values.update(schema=9),
        lambda values: values.pop("differences"),
    ],
)
def test_a_broken_comparison_is_named(comparison: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    assert isinstance(read_comparison(comparison), Comparison)
    comparison.write_text(break_off(json.loads(comparison.read_text()), change))
    with pytest.raises(DataError, match=comparison.name):
        read_comparison(comparison)
