"""Chunks of scores that are damaged, doubled or of another run, and runs that go on with another program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MadeUpSource, dataset, eval_request

from tests.evaluation.test_runs import OPTIONS, PROTOCOL, _small_chunks, score_shards, whole  # noqa: F401 - a fixture of every test
from wsolbench.evaluation.evaluate import conclude, score
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.runs import RunFolder, gather, merge
from wsolbench.evaluation.scores import ImageScores
from wsolbench.exceptions import DataError, UsageError
from wsolbench.records.program import program


def chunks_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test/*.scores"))


def doubled(folder: Path) -> None:
    first, second, *_ = chunks_of(folder)
    shutil.copy(first, second)


def swapped(folder: Path) -> None:
    first, second, *_ = chunks_of(folder)
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])


def of_another_split(folder: Path) -> None:
    shutil.copy(next(folder.rglob("val/00000000.scores")), chunks_of(folder)[0])


def of_another_run(folder: Path) -> None:
    other = folder.parent / "other"
    score_shards(other, "1/1", fixed_tau=0.5)
    shutil.copy(chunks_of(other)[0], chunks_of(folder)[0])


def truncated(folder: Path) -> None:
    chunks_of(folder)[0].write_bytes(chunks_of(folder)[0].read_bytes()[:2000])


def emptied(folder: Path) -> None:
    chunks_of(folder)[0].write_bytes(b"")


def a_pipe(folder: Path) -> None:
    chunk = chunks_of(folder)[0]
    chunk.unlink()
    os.mkfifo(chunk)


@pytest.mark.parametrize(
    "damage", [doubled, swapped, of_another_split, of_another_run, truncated, emptied, a_pipe]
)
def test_wrong_chunks_are_named_by_merge_and_scored_again_by_their_shard(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "shards"
    score_shards(folder, "1/1")
    damage(folder)
    with pytest.raises(
        DataError,
        match=r"of 7 chunks of split 'test' are not in .*0000\d\.scores cannot be read: .*Run --shard 1/1",
    ):
        merge([folder])
    score_shards(folder, "1/1")
    assert conclude(merge([folder])[0]).record.digest == whole().record.digest


def test_a_damaged_chunk_does_not_hide_a_good_one_in_another_folder(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/1", "1/2", apart=True)
    truncated(tmp_path / "1-of-1")
    assert conclude(merge([tmp_path])[0]).record.digest == whole().record.digest


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_chunk_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "one.scores"
    if not path.exists():
        score(eval_request(dataset(3), MadeUpSource(), PROTOCOL)).tables["test"].load().write(
            path, "run test 0"
        )
    whole_file = path.read_bytes()
    stored = bytearray(whole_file)
    stored[int(place * len(stored))] ^= 1 << bit
    flipped = path.with_name("flipped.scores")
    flipped.write_bytes(stored)
    with pytest.raises(DataError, match="SHA-256 differs"):
        ImageScores.read(flipped)


def test_a_flipped_bit_of_the_plan_is_noticed_and_corrected_by_its_shard(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/1")
    (path,) = tmp_path.rglob("run.json")
    path.write_text(path.read_text().replace('"resamples": 100', '"resamples": 104'))
    with pytest.raises(DataError, match=r"run\.json is .*SHA-256 differs"):
        merge([tmp_path])
    score_shards(tmp_path, "1/1")
    assert conclude(merge([tmp_path])[0]).record.digest == whole().record.digest


def test_the_images_of_the_chunks_are_those_of_the_plan(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/1")
    (run,) = merge([tmp_path])
    plan = replace(run.plan, splits={**run.plan.splits, "test": {"images": 20, "ids": "0" * 64}})
    for chunk in chunks_of(tmp_path):
        start = int(chunk.stem)
        RunFolder(tmp_path / "other.shards", plan).write_chunk("test", start, ImageScores.read(chunk))
    for chunk in tmp_path.rglob("val/*.scores"):
        RunFolder(tmp_path / "other.shards", plan).write_chunk(
            "val", int(chunk.stem), ImageScores.read(chunk)
        )
    with pytest.raises(DataError, match=r"not those of run\.json"):
        gather([RunFolder(tmp_path / "other.shards", plan)])


def test_what_a_process_said_may_be_damaged(tmp_path: Path) -> None:
    score_shards(tmp_path, "1/2", "2/2")
    for content in ("", "[]", '{"seconds": 1}', "[" * 100_000):
        next(tmp_path.rglob("process-1-of-2.json")).write_text(content)
        assert conclude(merge([tmp_path])[0]).record.provenance["processes"] == 1


# --- programs and machines ----------------------------------------------------------------------------------


@pytest.fixture
def another_program(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on the source is another one."""
    here = program()

    def change() -> None:
        source = {**here["source"], "wsolbench": "0" * 64}
        monkeypatch.setattr(
            "wsolbench.evaluation.runs.program", lambda libraries=(): {**program(libraries), "source": source}
        )

    return change


def test_a_run_does_not_go_on_with_another_program(
    tmp_path: Path, another_program: Callable[[], None]
) -> None:
    options = RunOptions(resamples=100, batch_size=3, work=tmp_path / "work")
    with pytest.raises(RuntimeError, match="killed"):
        score(eval_request(dataset(20), MadeUpSource(fail_after=3), PROTOCOL, options=options))
    another_program()
    version = program()["versions"]["wsolbench"]
    with pytest.raises(
        UsageError,
        match=rf"wsolbench {version} \(source \w+\) there and wsolbench {version} \(source 0{{12}}\) here",
    ):
        score(eval_request(dataset(20), MadeUpSource(), PROTOCOL, options=options))
    score(
        eval_request(dataset(20), MadeUpSource(), replace(PROTOCOL, components="union"), options=options)
    )  # another run
    (folder,) = [path for path in (tmp_path / "work").iterdir() if len(list(path.rglob("*.scores"))) < 7]
    shutil.rmtree(folder)
    source = MadeUpSource()
    score(eval_request(dataset(20), source, PROTOCOL, options=options))
    assert len(source.loads) == 20


def test_shards_of_two_programs_do_not_meet(tmp_path: Path, another_program: Callable[[], None]) -> None:
    score_shards(tmp_path, "1/2", apart=True)
    another_program()
    with pytest.raises(UsageError, match="computed differently"):
        score_shards(tmp_path / "1-of-2", "2/2")
    score_shards(tmp_path, "2/2", apart=True)
    with pytest.raises(DataError, match=r"Other shards of that name differ in program"):
        merge([tmp_path])


def test_a_run_does_not_go_on_with_another_number_of_threads_of_a_network(tmp_path: Path) -> None:
    class Network(MadeUpSource):
        threads = 1

        def provenance(self):
            return {"device": "cpu", "packages": ("torch",), "threads": self.threads}

    options = RunOptions(resamples=100, batch_size=3, work=tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        score(eval_request(dataset(20), Network(fail_after=3), PROTOCOL, options=options))
    more = Network()
    more.threads = 2
    with pytest.raises(UsageError, match="computed differently: threads 1 there and 2 here"):
        score(eval_request(dataset(20), more, PROTOCOL, options=options))
    score(eval_request(dataset(20), Network(), PROTOCOL, options=options))
