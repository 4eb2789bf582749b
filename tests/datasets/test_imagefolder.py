"""Images in one folder per class: with split folders, or split automatically, with boxes or without."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.datasets.layouts import write_image, write_lines
from wsolbench.datasets import available_splits, load_dataset, name_of_folder
from wsolbench.datasets.automatic_split import AutomaticSplit
from wsolbench.datasets.verify import verify_dataset
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Dataset


def write_classes(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        for index in range(count):
            write_image(root / name / f"{index:02d}.png", (8, 6))
    return root


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "my animals", cat=10, dog=20)


def whats(dataset: Dataset) -> dict[str, int]:
    return {finding.what: finding.count for finding in dataset.findings}


def loaded(root: Path, **options: object) -> dict[str, Dataset]:
    return {split: load_dataset("imagefolder", split, root, **options) for split in ("train", "val", "test")}


def test_without_split_folders_each_class_is_split_by_the_stated_fractions(animals: Path) -> None:
    splits = loaded(animals)
    assert splits["test"].class_names == ("cat", "dog")
    counts = {name: Counter(sample.label for sample in data.samples) for name, data in splits.items()}
    assert counts == {"train": {0: 7, 1: 14}, "val": {0: 1, 1: 2}, "test": {0: 2, 1: 4}}
    ids = [image for data in splits.values() for image in data.ids]
    assert sorted(ids) == sorted(path.relative_to(animals).as_posix() for path in animals.glob("*/*.png"))
    assert len(set(ids)) == 30
    assert splits["val"].details == {"automatic_split": {"seed": 0, "fractions": [0.7, 0.1, 0.2]}}


def test_the_split_depends_on_ids_seed_and_fractions_alone(animals: Path, tmp_path: Path) -> None:
    first = loaded(animals)
    copy = shutil.copytree(animals, tmp_path / "elsewhere/my animals")
    assert {name: data.fingerprint for name, data in loaded(copy).items()} == {
        name: data.fingerprint for name, data in first.items()
    }
    assert loaded(animals, split_seed=1)["test"].ids != first["test"].ids
    assert len(loaded(animals, split_fractions="0.5,0.2,0.3")["test"]) == 9
    # The order is that of a digest of the seed and the id, so another class changes nothing.
    write_classes(animals, elk=5)
    again = loaded(animals)
    assert [image for image in again["test"].ids if not image.startswith("elk")] == list(first["test"].ids)


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (100, (70, 10, 20))],
)
def test_every_class_is_trained_on_and_small_ones_lack_val_first(
    images: int, expected: tuple[int, int, int]
) -> None:
    assigned = AutomaticSplit().assign({str(index): 0 for index in range(images)})
    counts = Counter(assigned.values())
    assert tuple(counts[name] for name in ("train", "val", "test")) == expected


def test_a_split_without_share_is_not_there(animals: Path) -> None:
    assert available_splits("imagefolder", animals, split_fractions="0.5,0,0.5") == ("train", "test")
    with pytest.raises(UsageError, match="unknown split 'val'"):
        load_dataset("imagefolder", "val", animals, split_fractions="0.5,0,0.5")


@pytest.mark.parametrize(
    "fractions", ["0.5,0.5", "0.5,0.2,0.2", "0,0.5,0.5", "1.2,-0.1,-0.1", "a,b,c", "nan,0,1"]
)
def test_fractions_that_are_none_are_refused(animals: Path, fractions: str) -> None:
    with pytest.raises(UsageError, match=r"split fractions .*expected three"):
        load_dataset("imagefolder", "test", animals, split_fractions=fractions)


def test_split_folders_are_the_splits_and_classes_are_those_of_all_of_them(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ant=2, cow=1)
    write_classes(tmp_path / "test", bee=1, cow=1)
    assert available_splits("imagefolder", tmp_path) == ("train", "test")
    test = load_dataset("imagefolder", "test", tmp_path)
    assert test.class_names == ("ant", "bee", "cow")
    assert [(sample.id, sample.label) for sample in test.samples] == [
        ("test/bee/00.png", 1),
        ("test/cow/00.png", 2),
    ]
    assert test.details == {}
    assert whats(test) == {"classes without an image in test": 1}
    with pytest.raises(UsageError, match="--split-seed and --split-fractions have no effect"):
        load_dataset("imagefolder", "test", tmp_path, split_seed=1)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, bus=3, train=3)
    assert load_dataset("imagefolder", "test", tmp_path).class_names == ("bus", "train")


def test_split_folders_and_class_folders_side_by_side_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ant=2)
    write_classes(tmp_path, valid=1)
    with pytest.raises(DataError, match="has the split folders train and also valid"):
        load_dataset("imagefolder", "train", tmp_path)


def test_images_below_class_folders_count_and_other_files_are_reported(animals: Path) -> None:
    write_image(animals / "cat/indoor/a.JPG", (8, 6))
    for name in ("cat/notes.txt", "readme.md", ".DS_Store"):
        (animals / name).write_text("x")
    splits = loaded(animals)
    assert sum("cat/indoor/a.JPG" in data.ids for data in splits.values()) == 1
    assert whats(splits["test"])["files that are not images by their name: not read"] == 2


@pytest.mark.parametrize(
    ("folders", "found"), [((), "it has no folder in it"), (("cat",), "have no file that ends")]
)
def test_a_root_without_images_is_refused(tmp_path: Path, folders: tuple[str, ...], found: str) -> None:
    (tmp_path / "readme.md").write_text("x")
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=found):
        load_dataset("imagefolder", "test", tmp_path)


# --- boxes --------------------------------------------------------------------------------------------------


def test_boxes_csv_gives_images_their_boxes(animals: Path) -> None:
    lines = [f"{path.relative_to(animals).as_posix()},1,1,5,4" for path in sorted(animals.glob("*/*.png"))]
    write_lines(animals / "boxes.csv", ["image,x0,y0,x1,y1", *lines, "cat/00.png,0,0,8,6"])
    splits = loaded(animals)
    boxes = {sample.id: sample.boxes for data in splits.values() for sample in data.samples}
    np.testing.assert_array_equal(boxes["cat/00.png"], [[1, 1, 5, 4], [0, 0, 8, 6]])
    np.testing.assert_array_equal(boxes["dog/03.png"], [[1, 1, 5, 4]])
    assert verify_dataset("imagefolder", animals, deep=True).sound


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cow/0.png,1,1,2,2", "2: expected an image below the root"),
        ("cat/00.png,4,1,2,2", "x0 <= x1"),
        ("cat/00.png,,,,", "expected a box"),
        ("../00.png,1,1,2,2", "without '..'"),
    ],
)
def test_a_bad_line_of_boxes_csv_is_named(animals: Path, line: str, expected: str) -> None:
    write_lines(animals / "boxes.csv", ["image,x0,y0,x1,y1", line])
    with pytest.raises(DataError, match=r"boxes\.csv:2") as error:
        load_dataset("imagefolder", "test", animals)
    assert expected in str(error.value)


def test_a_box_given_twice_is_refused(animals: Path) -> None:
    write_lines(animals / "boxes.csv", ["image,x0,y0,x1,y1", *["cat/00.png,1,1,2,2"] * 2])
    with pytest.raises(DataError, match="that of line 2 again"):
        load_dataset("imagefolder", "test", animals)


# --- names of the user's own data ---------------------------------------------------------------------------


def test_the_users_own_data_are_named_by_their_folder(animals: Path) -> None:
    dataset = load_dataset("imagefolder", "test", animals)
    assert (dataset.name, dataset.format, dataset.option) == ("my-animals", "imagefolder", "imagefolder")
    assert name_of_folder(Path("/data/CUB"), "csvfolder") == "CUB-csvfolder"
    assert name_of_folder(Path("/data/csvfolder"), "csvfolder") == "csvfolder"
