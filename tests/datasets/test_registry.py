from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets.layouts import write_csv_folder, write_cub, write_image
from wsolbench.datasets import available_splits, dataset_info, list_datasets, load_dataset
from wsolbench.datasets.base import carve
from wsolbench.exceptions import UsageError


def test_an_unknown_data_set_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown dataset 'cubs'; did you mean 'cub'"):
        load_dataset("cubs", "test")


def test_an_unknown_split_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    write_cub(tmp_path)
    with pytest.raises(UsageError, match="unknown split 'tset'; did you mean 'test'"):
        load_dataset("cub", "tset", tmp_path)


def test_a_split_that_the_csv_does_not_name_is_answered_with_those_it_names(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    with pytest.raises(UsageError, match=r"unknown split 'val'.*Known: test, train"):
        load_dataset("csvfolder", "val", tmp_path)


def test_an_option_that_the_data_set_does_not_have_is_named(tmp_path: Path) -> None:
    write_cub(tmp_path)
    with pytest.raises(
        UsageError, match="'cub' has no option 'level'; expected one of: metadata_root, segmentations"
    ):
        load_dataset("cub", "test", tmp_path, level="family")


def test_listing_the_data_sets_imports_no_image_library() -> None:
    code = (
        "import sys; from wsolbench.datasets import list_datasets; assert len(list_datasets()) >= 8;"
        "print([name for name in ('PIL', 'cv2', 'scipy', 'matplotlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_data_set_says_what_its_root_holds_and_counts_only_its_own_splits() -> None:
    for info in list_datasets():
        assert info.summary
        assert info.root_holds
        assert set(info.expected) <= set(info.splits)
        assert dataset_info(info.name) is info


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSOLBENCH_DATA", raising=False)
    monkeypatch.delenv("WSOLBENCH_CUB_ROOT", raising=False)


@pytest.mark.usefixtures("no_environment")
class TestRoot:
    def test_without_a_root_all_three_ways_to_give_one_are_named(self) -> None:
        with pytest.raises(UsageError, match=r"--data-root.*WSOLBENCH_CUB_ROOT.*WSOLBENCH_DATA"):
            load_dataset("cub", "test")

    def test_the_data_sets_own_variable_names_the_root(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WSOLBENCH_CUB_ROOT", str(write_cub(tmp_path)))
        assert len(load_dataset("cub", "test")) == 2

    def test_the_common_folder_holds_one_folder_for_each_data_set(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_cub(tmp_path / "cub")
        monkeypatch.setenv("WSOLBENCH_DATA", str(tmp_path))
        assert len(load_dataset("cub", "test")) == 2

    def test_the_argument_comes_before_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WSOLBENCH_CUB_ROOT", str(tmp_path / "nowhere"))
        assert len(load_dataset("cub", "test", write_cub(tmp_path))) == 2

    @pytest.mark.parametrize(
        "name", ["aircraft", "butterflies", "cars", "csvfolder", "cub", "ilsvrc", "openimages"]
    )
    def test_an_absent_and_an_empty_root_are_named(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"nowhere, is missing; expected a folder with"):
            load_dataset(name, "test", tmp_path / "nowhere")
        with pytest.raises(UsageError, match=r"is empty; expected"):
            load_dataset(name, "test", tmp_path)

    @pytest.mark.parametrize("name", ["aircraft", "cars", "cub", "ilsvrc", "openimages"])
    def test_the_root_of_something_else_is_refused_with_what_was_looked_for(
        self, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "holiday.txt").write_text("photos")
        with pytest.raises(UsageError, match=f"is not the data root of '{name}'"):
            load_dataset(name, "test", tmp_path)

    def test_a_file_is_no_root(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(UsageError, match="is not a folder"):
            load_dataset("cub", "test", tmp_path / "file")


def _many(root: Path) -> None:
    rows = [f"i{number}.png,{number % 2},train" for number in range(40)] + ["t.png,0,test"]
    (root / "images").mkdir(parents=True)
    for row in rows:
        write_image(root / "images" / row.split(",")[0], (4, 4))
    write_csv_folder(root, rows, header="image,label,split", classes=2)


def test_carving_val_out_of_train_takes_a_tenth_of_each_class_and_loses_no_image(tmp_path: Path) -> None:
    _many(tmp_path)
    whole = load_dataset("csvfolder", "train", tmp_path)
    train = load_dataset("csvfolder", "train", tmp_path, carve_val=True)
    val = load_dataset("csvfolder", "val", tmp_path, carve_val=True)
    assert sorted([*train.ids, *val.ids]) == sorted(whole.ids)
    assert [sum(sample.label == label for sample in val.samples) for label in (0, 1)] == [2, 2]
    assert val.split == "val"
    assert len({whole.fingerprint, train.fingerprint, val.fingerprint}) == 3


def test_carving_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    _many(tmp_path)
    whole = load_dataset("csvfolder", "train", tmp_path)
    assert carve(whole, "val", seed=3).ids == carve(whole, "val", seed=3).ids
    assert carve(whole, "val", seed=3).ids != carve(whole, "val", seed=4).ids


def test_the_splits_of_a_csv_are_those_it_names(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    assert available_splits("csvfolder", tmp_path) == ("train", "test")
