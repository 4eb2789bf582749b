"""Shards: whichever way a run is cut, merged it is the run that was never cut."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import MadeUpSource, dataset, eval_request

from wsolbench.evaluation import runs
from wsolbench.evaluation.evaluate import conclude, evaluate, score, score_shard
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.runs import RunPlan, Shard, merge, read_plan
from wsolbench.evaluation.score_table import ScoreTable
from wsolbench.evaluation.scores import ImageScores
from wsolbench.evaluation.summary import summarize
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOL = EvalProtocol(taus=tau_grid(0.05))
OPTIONS = RunOptions(resamples=100)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images a file, so that a dozen are several."""
    monkeypatch.setattr("wsolbench.evaluation.runs.CHUNK", 3)


def score_shards(folder: Path, *shards: str, apart: bool = False, **more) -> None:
    for shard in shards:
        place = folder / shard.replace("/", "-of-") if apart else folder
        score_shard(
            eval_request(
                dataset(20),
                MadeUpSource(),
                PROTOCOL,
                transfer_from=dataset(8, "val", 1),
                options=OPTIONS,
                **more,
            ),
            Shard.parse(shard),
            place,
        )


def whole(**more):
    return evaluate(
        dataset(20), MadeUpSource(), PROTOCOL, transfer_from=dataset(8, "val", 1), options=OPTIONS, **more
    )


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_merged_shards_are_the_run_that_was_never_cut(tmp_path: Path, count: int, apart: bool) -> None:
    score_shards(tmp_path, *(f"{index}/{count}" for index in range(count, 0, -1)), apart=apart)
    (run,) = merge([tmp_path])
    merged, base = conclude(run), whole()
    assert merged.record.digest == base.record.digest
    assert merged.record.path == base.record.path
    assert merged.record.provenance["processes"] == count
    assert merged.scores.load().ids.tolist() == list(dataset(20).ids)
    merged.finish()
    assert not list(tmp_path.rglob("*.scores"))


@given(n=st.integers(0, 40), count=st.integers(1, 7))
def test_every_image_is_in_one_shard(n: int, count: int) -> None:
    positions = [p for index in range(1, count + 1) for chunk in Shard(index, count).chunks(n) for p in chunk]
    assert sorted(positions) == list(range(n))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/4", "3/4")
    with pytest.raises(
        DataError, match=r"3 of 7 chunks of split 'test' are not in .*Run --shard 2/4, --shard 4/4"
    ):
        merge([tmp_path])
    score_shards(tmp_path, "1/2")
    with pytest.raises(DataError, match="Run the other shards"):
        merge([tmp_path])


def test_shards_of_other_settings_are_another_run(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2")
    score_shards(tmp_path, "2/2", fixed_tau=0.5)
    with pytest.raises(DataError, match="not in"):
        merge([tmp_path])


def test_two_runs_in_one_folder_are_two_records(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2", "2/2")
    score_shards(tmp_path, "1/1", fixed_tau=0.5)
    digests = {conclude(run).record.digest for run in merge([tmp_path, tmp_path])}
    assert digests == {whole().record.digest, whole(fixed_tau=0.5).record.digest}


def test_a_finished_shard_is_not_scored_again(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2")
    source = MadeUpSource()
    score_shard(
        eval_request(dataset(20), source, PROTOCOL, transfer_from=dataset(8, "val", 1), options=OPTIONS),
        Shard(1, 2),
        tmp_path,
    )
    assert source.loads == []


def test_saved_maps_of_shards_get_one_description(tmp_path: Path) -> None:
    options = RunOptions(resamples=100, save_maps=MapFolder(tmp_path / "maps"))
    for index in (1, 2):
        score_shard(
            eval_request(dataset(), MadeUpSource(), PROTOCOL, options=options),
            Shard(index, 2),
            tmp_path / "shards",
        )
    assert MapFolder(tmp_path / "maps").manifest()["unfinished"] == ["test"]
    conclude(merge([tmp_path / "shards"])[0])
    assert MapFolder(tmp_path / "maps").manifest()["dataset"] == "made-up"
    assert MapFolder(tmp_path / "maps").manifest()["unfinished"] == []
    assert len((tmp_path / "maps/predictions.csv").read_text().splitlines()) == 13


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected i/n"):
        Shard.parse(text)


def test_no_shards_no_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json"):
        merge([tmp_path])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 9}', '{"schema": 1, "method": {}}'])
def test_a_broken_plan_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        merge([tmp_path])


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/1")
    (path,) = tmp_path.rglob("run.json")
    plan = read_plan(path)
    assert isinstance(plan, RunPlan)
    assert plan.to_json() == json.loads(path.read_text())


def test_a_broken_chunk_is_named(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/1")
    (chunk, *_) = sorted(tmp_path.rglob("test/*.scores"))
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(DataError, match=str(chunk.name)):
        conclude(merge([tmp_path])[0])


def test_chunks_may_be_copied_together(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2", "2/2", apart=True)
    (first,) = (tmp_path / "1-of-2").iterdir()
    (second,) = (tmp_path / "2-of-2").iterdir()
    shutil.copytree(second, first, dirs_exist_ok=True)
    shutil.rmtree(second)
    assert conclude(merge([tmp_path])[0]).record.digest == whole().record.digest


def table(tmp_path: Path) -> tuple[ScoreTable, ImageScores]:
    run = score(eval_request(dataset(20), MadeUpSource(), PROTOCOL, options=RunOptions(work=tmp_path)))
    return run.tables["test"], score(eval_request(dataset(20), MadeUpSource(), PROTOCOL)).tables[
        "test"
    ].load()


def test_a_table_in_files_is_the_table_in_memory(tmp_path: Path) -> None:
    files, memory = table(tmp_path)
    assert len(files) == 20
    assert len(files.chunks) == 7
    assert files.load().arrays().keys() == memory.arrays().keys()
    for name, expected in memory.arrays().items():
        got = files.load().arrays()[name]
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    chosen = [19, 0, 7, 7, 3]
    assert files.take(chosen).ids.tolist() == memory.ids[chosen].tolist()
    np.testing.assert_array_equal(files.column(lambda part: part.best_iou[:, 5]), memory.best_iou[:, 5])


def test_stored_scores_can_be_read_by_numpy_alone(tmp_path: Path) -> None:
    files, memory = table(tmp_path)
    files.write(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz", allow_pickle=False) as stored:
        assert set(stored.files) == memory.arrays().keys()
        for name in stored.files:
            np.testing.assert_array_equal(stored[name], memory.arrays()[name])


def test_the_chunks_are_where_they_belong(tmp_path: Path) -> None:
    score_shards(tmp_path, "2/3")
    names = sorted(path.name for path in tmp_path.rglob("test/*.scores"))
    assert names == ["00000003.scores", "00000012.scores"]
    assert runs.CHUNK == 3


def test_the_scored_split_is_never_taken_for_the_one_of_the_thresholds(tmp_path: Path) -> None:
    data, val = dataset(20, "web"), dataset(8, "val", 1)  # in a file's sorted keys val comes first
    whole_run = evaluate(data, MadeUpSource(), PROTOCOL, transfer_from=val, options=OPTIONS)
    for index in (1, 2):
        score_shard(
            eval_request(data, MadeUpSource(), PROTOCOL, transfer_from=val, options=OPTIONS),
            Shard(index, 2),
            tmp_path,
        )
    merged = conclude(merge([tmp_path])[0])
    assert merged.record.digest == whole_run.record.digest
    assert merged.scores.load().ids.tolist() == list(data.ids)


def test_shards_with_other_options_are_named_as_such(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2")
    score_shards(tmp_path, "2/2", fixed_tau=0.5)
    with pytest.raises(DataError, match="Other shards of that name differ in fixed_tau"):
        merge([tmp_path])


def test_only_folders_of_shards_are_merged(tmp_path: Path) -> None:
    score(eval_request(dataset(20), MadeUpSource(), PROTOCOL, options=RunOptions(work=tmp_path / ".work")))
    with pytest.raises(DataError, match=r"no run\.json in"):
        merge([tmp_path])


def test_parts_without_provenance_and_folders_named_twice_are_merged_once(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2", "2/2")
    assert conclude(merge([tmp_path, tmp_path / "x" / ".."])[0]).record.provenance["processes"] == 2
    score_shards(tmp_path, "1/2")  # nothing is left to do, and what was said stays
    assert "score" in conclude(merge([tmp_path])[0]).record.provenance["seconds"]
    for path in tmp_path.rglob("process-*.json"):
        path.unlink()
    assert conclude(merge([tmp_path])[0]).record.provenance["device"] == "unknown"


def test_a_run_that_goes_on_saves_maps_that_are_gone(tmp_path: Path) -> None:
    options = RunOptions(resamples=100, work=tmp_path / "work", save_maps=MapFolder(tmp_path / "maps"))
    score(eval_request(dataset(), MadeUpSource(), PROTOCOL, options=options))
    (tmp_path / "maps/s0/004.png.npy").unlink()
    source = MadeUpSource()
    score(eval_request(dataset(), source, PROTOCOL, options=options))
    assert source.loads == ["s0/003.png", "s0/004.png", "s0/005.png"]


def test_chunks_of_other_maps_are_not_taken_over(tmp_path: Path) -> None:
    folder = MapFolder(tmp_path / "maps")
    evaluate(dataset(), MadeUpSource(), PROTOCOL, options=RunOptions(save_maps=folder))
    options = RunOptions(resamples=100, work=tmp_path / "work")
    source = FolderSource(folder, name="mine")
    first = score(eval_request(dataset(), source, PROTOCOL, options=options)).plan.digest
    assert score(eval_request(dataset(), source, PROTOCOL, options=options)).plan.digest == first
    for sample in dataset().samples:
        folder.write(sample.id, np.ones((4, 4)) * np.arange(4))
    assert score(eval_request(dataset(), source, PROTOCOL, options=options)).plan.digest != first
    assert (
        score(
            eval_request(
                dataset(), FolderSource(folder, name="mine", ranked={i: [0] for i in dataset().ids}), PROTOCOL
            )
        ).plan.digest
        != first
    )


def test_chunks_that_another_process_works_on_are_not_removed(tmp_path: Path) -> None:
    run = score(
        eval_request(dataset(20), MadeUpSource(), PROTOCOL, options=RunOptions(resamples=100, work=tmp_path))
    )
    (folder,) = run.folders
    with folder.opened(Shard()):
        conclude(run).finish()
        assert list(tmp_path.rglob("*.scores"))
    conclude(run).finish()
    assert list(tmp_path.iterdir()) == []


def test_images_with_and_without_labels_do_not_mix() -> None:
    scores = score(eval_request(dataset(20), MadeUpSource(), PROTOCOL)).tables["test"].load()
    bare = replace(scores, ranked=scores.ranked[:, :0])
    with pytest.raises(DataError, match="3 predicted labels and others 0"):
        summarize(ScoreTable((scores, bare)), PROTOCOL)
