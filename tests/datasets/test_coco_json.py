"""COCO's format for localization and recognition: the class of an image, its boxes, splits and what is not
read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets.layouts import write_image
from wsolbench.datasets import available_splits, load_dataset
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Dataset

SIZE = (40, 30)
CATEGORIES = {7: "cat", 3: "ant"}

Objects = list[tuple[int, list[float] | None]]


def write(path: Path, images: dict[str, Objects], folder: Path, **more: Any) -> Path:
    """Write images and their objects (category, bbox). A category below 0 is a crowd."""
    rows, objects = [], []
    for number, (name, own) in enumerate(images.items()):
        write_image(folder / name, SIZE)
        rows.append({"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
        for category, box in own:
            item = {"id": len(objects), "image_id": number, "category_id": abs(category)}
            objects.append(
                item | ({} if box is None else {"bbox": box}) | ({"iscrowd": 1} if category < 0 else {})
            )
    values = {
        "images": rows,
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values | more))
    return path


def load(root: Path, split: str = "test", **options: Any) -> Dataset:
    return load_dataset("coco-json", split, root, **options)


def whats(dataset: Dataset) -> dict[str, int]:
    return {finding.what.partition(":")[0]: finding.count for finding in dataset.findings}


def test_the_class_is_that_of_the_largest_box_and_the_boxes_are_those_of_the_class(tmp_path: Path) -> None:
    mixed: Objects = [(3, [0, 0, 5, 5]), (7, [1, 2, 10, 10]), (7, [30, 20, 2, 2]), (-3, [0, 0, 40, 30])]
    write(
        tmp_path / "annotations_test.json",
        {"a.png": mixed, "b.png": [(3, [4, 4, 8, 8])]},
        tmp_path / "images",
    )
    dataset = load(tmp_path)
    assert dataset.class_names == ("ant", "cat")  # in the order of the category ids
    assert [(sample.id, sample.label) for sample in dataset.samples] == [("a.png", 1), ("b.png", 0)]
    np.testing.assert_array_equal(dataset[0].boxes, [[1, 2, 11, 12], [30, 20, 32, 22]])
    assert whats(dataset) == {"crowds (iscrowd)": 1, "images of several categories": 1}
    assert "a.png: cat, of ant, cat" in [finding.example for finding in dataset.findings]
    assert dataset.details == {"image_class": "largest object"}


def test_the_first_of_two_objects_of_one_area_wins(tmp_path: Path) -> None:
    tie: Objects = [(7, [0, 0, 4, 2]), (3, [9, 9, 2, 4])]
    write(tmp_path / "annotations_test.json", {"a.png": tie}, tmp_path)
    assert load(tmp_path)[0].label == 1


def test_images_without_a_class_are_excluded_and_said(tmp_path: Path) -> None:
    images: dict[str, Objects] = {"a.png": [(3, [0, 0, 5, 5])], "b.png": [], "c.png": [(-7, [0, 0, 9, 9])]}
    write(tmp_path / "annotations_test.json", images, tmp_path)
    dataset = load(tmp_path)
    assert dataset.ids == ("a.png",)
    found = {finding.what: finding.example for finding in dataset.findings}
    assert found["images without an object: excluded, as they have no class"] == "b.png"
    assert found["images with crowds only: excluded, as they have no class"] == "c.png"


def test_objects_without_boxes_are_enough_for_recognition(tmp_path: Path) -> None:
    write(tmp_path / "annotations_test.json", {"a.png": [(7, None)], "b.png": [(3, None)]}, tmp_path)
    dataset = load(tmp_path)
    assert not dataset.has_boxes
    assert [sample.label for sample in dataset.samples] == [1, 0]
    assert whats(dataset) == {"objects without a box": 2}


# --- files and splits ---------------------------------------------------------------------------------------

ONE: dict[str, Objects] = {"a.png": [(3, [0, 0, 5, 5])]}


def test_the_official_layout_names_its_splits_and_other_files_there_are_not_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"annotations/instances_{split}2017.json", ONE, tmp_path / f"{split}2017")
    (tmp_path / "annotations/captions_train2017.json").write_text("{}")
    assert available_splits("coco-json", tmp_path) == ("train", "val")
    assert load(tmp_path, "val").ids == ("val2017/a.png",)
    with pytest.raises(UsageError, match="unknown split 'test'"):
        load(tmp_path)


def test_files_beside_the_images_of_each_split_are_found(tmp_path: Path) -> None:
    for folder in ("train", "valid"):
        write(tmp_path / folder / "_annotations.coco.json", ONE, tmp_path / folder)
    assert available_splits("coco-json", tmp_path) == ("train", "val")
    assert load(tmp_path, "val").ids == ("valid/a.png",)


def test_one_file_without_a_split_is_split_automatically_by_class(tmp_path: Path) -> None:
    images: dict[str, Objects] = {
        f"{index:02d}.png": [(3 if index % 2 else 7, [0, 0, 5, 5])] for index in range(20)
    }
    write(tmp_path / "annotations.json", images, tmp_path / "images")
    splits = {split: load(tmp_path, split) for split in ("train", "val", "test")}
    assert [len(data) for data in splits.values()] == [14, 2, 4]
    assert sorted(image for data in splits.values() for image in data.ids) == sorted(images)
    drawn = splits["test"].details["automatic_split"]
    assert drawn == {"seed": 0, "fractions": [0.7, 0.1, 0.2]}
    assert load(tmp_path, split_seed=2).ids != splits["test"].ids


def test_named_files_are_of_the_named_split(tmp_path: Path) -> None:
    write(tmp_path / "first.json", ONE, tmp_path)
    outside = write(tmp_path / "more/second.json", ONE, tmp_path)
    named = (f"train={outside}", "test=first.json")
    assert available_splits("coco-json", tmp_path, annotations=named) == ("train", "test")
    assert load(tmp_path, annotations=named).ids == ("a.png",)
    with pytest.raises(UsageError, match=r"no file third\.json"):
        load(tmp_path, annotations=("third.json",))
    with pytest.raises(UsageError, match="unknown split 'tset' of --annotations; did you mean 'test'"):
        load(tmp_path, annotations=("tset=first.json",))
    with pytest.raises(UsageError, match="--split-seed and --split-fractions have no effect"):
        load(tmp_path, annotations=named, split_seed=1)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("annotations_test.json", "annotations-test2.json"), "two annotation files of the split 'test'"),
        (("annotations.json", "annotations_test.json"), "annotations.json states no split"),
        (("annotations_a.json", "annotations_b.json"), "two annotation files without a split"),
    ],
)
def test_files_whose_split_is_not_clear_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    for name in names:
        write(tmp_path / name, ONE, tmp_path)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    assert "--annotations train=FILE" in str(error.value)


def test_a_root_without_annotations_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", SIZE)
    with pytest.raises(UsageError, match="is not the data root of 'coco-json'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [0, 0, -1, 5]}, "has the bbox"),
        ({"image_id": 5}, "is of image 5 and category 3"),
        ({"category_id": [3]}, r"category \[3\]"),
        ({"iscrowd": 2}, "has the iscrowd 2"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    item = {"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 5, 5]} | changes
    write(tmp_path / "annotations_test.json", ONE, tmp_path, annotations=[item])
    with pytest.raises(DataError, match=message):
        load(tmp_path)
