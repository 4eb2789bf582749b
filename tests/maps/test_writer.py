"""A folder of saved maps belongs to one run: it is claimed before the first map, locked, and lists all digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import MadeUpSource, box_map, dataset, eval_request

from wsolbench.evaluation.evaluate import conclude, evaluate, score, score_shard
from wsolbench.evaluation.request import RunOptions
from wsolbench.evaluation.runs import Shard, merge
from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import MapFolder
from wsolbench.maps.folder_source import FolderSource
from wsolbench.maps.store import LISTING, MANIFEST
from wsolbench.maps.writer import MapRun, finish_maps, open_writer
from wsolbench.protocol import EvalProtocol, tau_grid

PROTOCOL = EvalProtocol(taus=tau_grid(0.05))
RUN = MapRun(
    identity={"method": {"name": "a"}},
    facts={"method": {"name": "a"}, "dataset": "birds"},
    fingerprints={"test": "f"},
)
OTHER = replace(RUN, identity={"method": {"name": "b"}}, facts={"method": {"name": "b"}, "dataset": "birds"})


class NamedSource(MadeUpSource):
    """Another method, whose maps are mirrored."""

    def describe(self) -> dict[str, object]:
        return {"name": "mirrored", "backbone": None}

    def load(self, sample):
        return box_map(sample)[::-1]


def save(folder: Path, source: MadeUpSource | None = None, **more: object):
    options = RunOptions(resamples=100, save_maps=MapFolder(folder), batch_size=4)
    return evaluate(dataset(), source or MadeUpSource(), PROTOCOL, options=options, **more)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def source_of(folder: Path) -> FolderSource:
    return FolderSource(MapFolder(folder), name="x", ranked=MapFolder(folder).predictions(3))


def test_the_folder_says_whose_it_is_before_the_first_map_and_is_unfinished_until_the_last(
    tmp_path: Path,
) -> None:
    seen = []

    class Looking(MadeUpSource):
        def maps(self, samples, batch):
            seen.append(MapFolder(tmp_path).manifest())
            assert seen[1:] or not list(tmp_path.rglob("*.npy"))
            return super().maps(samples, batch)

    save(tmp_path, Looking())
    assert seen[0]["method"]["name"] == "made-up"
    assert seen[0]["unfinished"] == ["test"]
    finished = MapFolder(tmp_path).manifest()
    assert finished["unfinished"] == []
    assert set(finished["sha256"]) == {LISTING, "predictions.csv"}


def test_the_list_of_digests_is_that_of_sha256sum(tmp_path: Path) -> None:
    save(tmp_path)
    assert len((tmp_path / LISTING).read_text().splitlines()) == 12
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", LISTING],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_another_method_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    save(tmp_path)
    before = content(tmp_path)
    with pytest.raises(
        UsageError,
        match=r"holds maps of made-up \(made-up\), which differ from those of this run in method\.name",
    ):
        save(tmp_path, NamedSource())
    assert content(tmp_path) == before


def killed(folder: Path, source: MadeUpSource) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        save(folder, source)


def test_a_second_method_is_refused_also_where_the_first_was_killed(tmp_path: Path) -> None:
    killed(tmp_path, MadeUpSource(fail_after=2))
    assert len(list(tmp_path.rglob("*.npy"))) in range(1, 12)
    with pytest.raises(UsageError, match="holds maps of made-up"):
        save(tmp_path, NamedSource())
    with pytest.raises(DataError, match=r"has not finished.*--allow-partial"):
        source_of(tmp_path).check(dataset(), PROTOCOL)


def test_an_unfinished_run_is_taken_up_and_ends_with_the_bytes_of_an_unbroken_one(tmp_path: Path) -> None:
    save(tmp_path / "unbroken")
    killed(tmp_path / "maps", MadeUpSource(fail_after=2))
    save(tmp_path / "maps")
    assert content(tmp_path / "maps") == content(tmp_path / "unbroken")
    save(tmp_path / "maps")
    assert content(tmp_path / "maps") == content(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("protocol", "more", "field"),
    [
        (EvalProtocol.preset("bas"), {}, "view.classifier"),
        (replace(PROTOCOL, classifier="ten_crop"), {}, "view.classifier"),
        (PROTOCOL, {"metadata": {"transform": "rotate90"}}, "dataset.transform"),
    ],
)
def test_another_view_of_the_images_is_another_run(
    tmp_path: Path, protocol: EvalProtocol, more: dict, field: str
) -> None:
    save(tmp_path)
    with pytest.raises(UsageError, match=field):
        score(
            eval_request(
                dataset(),
                MadeUpSource(),
                protocol,
                options=RunOptions(save_maps=MapFolder(tmp_path), batch_size=4),
                **more,
            )
        )


def test_a_protocol_that_counts_otherwise_has_the_same_maps(tmp_path: Path) -> None:
    save(tmp_path)
    before = content(tmp_path)
    evaluate(
        dataset(),
        MadeUpSource(),
        replace(PROTOCOL, components="union"),
        options=RunOptions(save_maps=MapFolder(tmp_path), batch_size=4),
    )
    assert content(tmp_path) == before


def test_other_data_of_the_same_split_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(UsageError, match="other images or annotations"):
        evaluate(
            dataset(11),
            MadeUpSource(),
            PROTOCOL,
            options=RunOptions(save_maps=MapFolder(tmp_path), batch_size=4),
        )


def test_splits_of_one_method_share_a_folder(tmp_path: Path) -> None:
    save(tmp_path)
    val = dataset(8, "val", 1)
    evaluate(val, MadeUpSource(), PROTOCOL, options=RunOptions(save_maps=MapFolder(tmp_path), batch_size=4))
    source = source_of(tmp_path)
    assert len(source.ranked) == 20
    for split in (dataset(), val):
        source.check(split, PROTOCOL)
    both = evaluate(dataset(), source, PROTOCOL, transfer_from=val).record.metrics
    assert both == evaluate(dataset(), MadeUpSource(), PROTOCOL, transfer_from=val).record.metrics


@pytest.mark.parametrize("name", ["s0/003.png.npy", "s0/003.npz", "s0/003.png", "predictions.csv", MANIFEST])
def test_a_folder_with_files_of_another_program_is_not_written_to(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(UsageError, match="which this run has not written"):
        save(tmp_path)
    assert path.read_text() == "{}"
    assert not list(tmp_path.rglob("*000*"))


def test_two_runs_at_once_are_refused_and_two_shards_of_one_are_not(tmp_path: Path) -> None:
    maps = MapFolder(tmp_path)
    with open_writer(maps, RUN, ["x"]) as first, open_writer(maps, RUN, ["y"]) as second:
        with (
            pytest.raises(UsageError, match="another process is writing maps of a"),
            open_writer(maps, OTHER, ["x"]),
        ):
            pass
        first.write("x", np.ones((2, 2)))
        second.write("y", np.ones((2, 2)))
    finish_maps(maps, RUN, ["x", "y"], {"x": [1], "y": [0]})
    assert set(maps.digests()) == {"x.npy", "y.npy"}
    assert not list(tmp_path.glob("maps.part-*"))


def test_a_process_that_died_holds_no_lock(tmp_path: Path) -> None:
    program = (
        "import os\nfrom pathlib import Path\nimport numpy as np\nfrom wsolbench.maps import MapFolder\n"
        "from wsolbench.maps.writer import MapRun, open_writer\n"
        f"run = MapRun(identity={RUN.identity!r}, facts={RUN.facts!r}, fingerprints={RUN.fingerprints!r})\n"
        f"with open_writer(MapFolder(Path({str(tmp_path)!r})), run, ['x', 'y']) as maps:\n"
        "    maps.write('x', np.ones((2, 2)))\n    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    (tmp_path / ".y-0123abcd.npy").write_bytes(b"half a map")
    with open_writer(MapFolder(tmp_path), RUN, ["x", "y"]) as maps:
        assert [maps.find("x"), maps.find("y")] == [tmp_path / "x.npy", None]
        maps.write("y", np.zeros((2, 2)))
    finish_maps(MapFolder(tmp_path), RUN, ["x", "y"], None)
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {".maps.lock"} == {MANIFEST, LISTING, "x.npy", "y.npy"}


def replace_map(folder: Path) -> None:
    np.save(folder / "s0/004.png.npy", np.ones((4, 4), dtype=np.float32))


def add_map(folder: Path) -> None:
    (folder / "s0/004.png.npy").rename(folder / "s0/004.npy")


def from_another_folder(folder: Path) -> None:
    save(folder / "other", NamedSource())
    shutil.copy(folder / "other/s0/004.png.npy", folder / "s0/004.png.npy")


def list_it(folder: Path) -> None:
    replace_map(folder)
    digest = hashlib.sha256((folder / "s0/004.png.npy").read_bytes()).hexdigest()
    lines = (folder / LISTING).read_text().splitlines()
    (folder / LISTING).write_text(
        "".join(f"{digest}{line[64:]}\n" if "004" in line else f"{line}\n" for line in lines)
    )


def cut_list(folder: Path) -> None:
    (folder / LISTING).write_text((folder / LISTING).read_text()[:-5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_map, r"1 of 12 maps in .* are not those of the run.*004\.png\.npy was changed since"),
        (add_map, r"004\.npy was not written by it"),
        (from_another_folder, "was changed since"),
        (list_it, "expected the list that"),
        (cut_list, "expected the list that"),
    ],
)
def test_a_mixture_of_maps_is_refused_with_the_first_that_is_wrong(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    save(tmp_path)
    source_of(tmp_path).check(dataset(), PROTOCOL)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        source_of(tmp_path).check(dataset(), PROTOCOL)


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "predictions.csv"
    rows = path.read_text()
    path.write_text(rows.replace(",0,", ",0 ,"))
    with pytest.raises(DataError, match="was not written by the run of the maps, or was changed since"):
        MapFolder(tmp_path).predictions(3)
    path.unlink()
    with pytest.raises(DataError, match=r"predictions\.csv is missing"):
        MapFolder(tmp_path).predictions(3)


def test_maps_of_transformed_images_are_not_scored_on_the_images_as_they_are(tmp_path: Path) -> None:
    options = RunOptions(resamples=100, save_maps=MapFolder(tmp_path))
    conclude(
        score(
            eval_request(
                dataset(), MadeUpSource(), PROTOCOL, options=options, metadata={"transform": "rotate90"}
            )
        )
    )
    with pytest.raises(DataError, match="transformed by rotate90"):
        source_of(tmp_path).check(dataset(), PROTOCOL)


def test_another_centre_crop_is_refused(tmp_path: Path) -> None:
    bas = replace(EvalProtocol.preset("bas"), classifier="single")
    evaluate(dataset(), MadeUpSource(), bas, options=RunOptions(resamples=100, save_maps=MapFolder(tmp_path)))
    source_of(tmp_path).check(dataset(), EvalProtocol.preset("psol"))
    with pytest.raises(DataError, match="centre crop"):
        source_of(tmp_path).check(dataset(), replace(bas, resize_size=300))


def test_shards_with_folders_of_their_own_leave_them_unfinished(tmp_path: Path) -> None:
    for index, place in ((1, "a"), (2, "b")):
        options = RunOptions(resamples=100, save_maps=MapFolder(tmp_path / place))
        score_shard(
            eval_request(dataset(70), MadeUpSource(), PROTOCOL, options=options),
            Shard(index, 2),
            tmp_path / "shards",
        )
    conclude(merge([tmp_path / "shards"])[0])
    assert MapFolder(tmp_path / "a").manifest()["unfinished"] == ["test"]
    assert MapFolder(tmp_path / "b").manifest()["unfinished"] == ["test"]


@pytest.mark.parametrize("image_id", ["a" * 252, "ä" * 126 + "b", "two\nlines"])
def test_an_id_that_no_file_can_be_named_by_is_refused_before_the_work(tmp_path: Path, image_id: str) -> None:
    with (
        pytest.raises(UsageError, match="cannot be saved"),
        open_writer(MapFolder(tmp_path), RUN, [image_id]),
    ):
        pass


def test_the_longest_names_are_written_and_read(tmp_path: Path) -> None:
    image_id = "ä" * 125 + "b"
    with open_writer(MapFolder(tmp_path), RUN, [image_id]) as maps:
        maps.write(image_id, np.eye(2))
    np.testing.assert_array_equal(MapFolder(tmp_path).read(image_id), np.eye(2))


def test_names_that_differ_in_case_alone_are_refused_where_case_does_not_count(tmp_path: Path) -> None:
    folder = MapFolder(tmp_path)
    (tmp_path / ".MAPS.LOCK").touch()  # as on a file system that ignores case
    with (
        pytest.raises(UsageError, match="ignores the case of letters"),
        open_writer(folder, RUN, ["A.jpg", "a.jpg"]),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", r"is not JSON: it is not UTF-8 text\. Remove it"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"method": {"name": " "}}', "method.name ' '; expected the name of a method"),
        (b'{"dataset": 7}', "dataset '7'; expected a text"),
        (b'{"method": {"config": {"a": NaN}}}', "NaN is not a JSON number"),
        (b'{"method": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"method": {"name": "\\ud800"}}', "is not JSON"),
        (b'{"method": []}', "is not a manifest"),
        (b"[]", "is not a manifest"),
        (b'{"method": {"name": 7}}', "method.name '7'; expected a text"),
        (b'{"view": 7}', "view '7'; expected a text"),
    ],
)
def test_a_broken_description_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        MapFolder(tmp_path).manifest()
    assert str(tmp_path / MANIFEST) in str(caught.value)


def test_a_description_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(DataError, match="a named pipe"):
        MapFolder(tmp_path).manifest()


def test_a_folder_of_another_program_is_taken_as_it_is(tmp_path: Path) -> None:
    for sample in dataset().samples:
        MapFolder(tmp_path).write(sample.id, box_map(sample))
    (tmp_path / MANIFEST).write_text(json.dumps({"method": {"name": "mine"}}))
    source_of(tmp_path).check(dataset(), PROTOCOL)
    assert evaluate(dataset(), source_of(tmp_path), PROTOCOL).record.metric("gt_known").value == 1.0
