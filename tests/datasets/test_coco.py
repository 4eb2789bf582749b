"""Reading COCO's layout, and writing other data sets in it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.datasets.coco_layout import edited, write_coco
from tests.datasets.layouts import write_csv_folder, write_cub
from wsolbench.datasets import load_dataset
from wsolbench.datasets.coco import load_instances
from wsolbench.datasets.coco_export import export_coco
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Dataset, Sample

# --- reading -----------------------------------------------------------------------------------------------------------


def test_ids_with_gaps_become_classes_in_their_order_and_boxes_xyxy(tmp_path: Path) -> None:
    dataset = load_instances(write_coco(tmp_path), "train")
    assert dataset.class_names == ("apple", "bottle")
    assert dataset.category_ids == (3, 7)
    truth = json.loads(dataset.annotations.read_text())["annotations"]
    first = dataset.samples[0]
    assert first.labels.tolist() == [0, 1]
    x, y, width, height = truth[1]["bbox"]
    assert first.boxes[1].tolist() == [x, y, x + width, y + height]
    assert [sample.crowd.tolist() for sample in dataset.samples] == [[False, False]] * 3 + [[True]]
    assert first.image().shape == (56, 64, 3)


def test_polygons_and_run_lengths_give_the_masks_that_pycocotools_gives(tmp_path: Path, capsys) -> None:
    dataset = load_instances(write_coco(tmp_path), "train")
    reference = COCO(str(dataset.annotations))
    for sample in dataset.samples:
        expected = [reference.annToMask(item) for item in reference.imgToAnns[sample.id]]
        np.testing.assert_array_equal(sample.masks(), expected)
        for mask, box in zip(sample.masks(), sample.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.tolist()


def test_detectors_learn_from_no_crowd_and_from_boxes_within_the_image_of_at_least_a_pixel(tmp_path: Path) -> None:
    first = load_instances(write_coco(tmp_path), "train").samples[0]
    boxes = np.array([[-5.0, 2.0, 30.0, 400.0], [10.0, 10.0, 10.5, 30.0]])
    kept = replace(first, boxes=boxes).learnable()
    assert kept.boxes.tolist() == [[0.0, 2.0, 30.0, 56.0]]
    assert kept.labels.tolist() == [0]
    assert len(kept.segmentations) == 1
    assert len(replace(first, crowd=np.array([True, True])).learnable().boxes) == 0


def test_the_official_names_and_those_of_an_export_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, "val2017", 2)
    write_coco(tmp_path, "test", 3)
    assert len(load_instances(tmp_path, "val")) == len(load_instances(tmp_path, "val2017")) == 2
    assert len(load_instances(tmp_path, "test")) == 3
    with pytest.raises(UsageError, match=r"unknown split 'train'.*Known: test, val"):
        load_instances(tmp_path, "train")
    monkeypatch.setenv("WSOLBENCH_COCO_ROOT", str(tmp_path))
    assert load_instances(None, "val").name == "coco"


def test_the_commands_for_one_label_an_image_say_which_commands_read_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train-detector"):
        load_dataset("coco", "train", write_coco(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "expected a list 'categories'"),
        ({"images": []}, "expected a list 'images'"),
        ({"annotations": [{"id": 1, "image_id": 100, "category_id": 3}]}, "entry 0 of 'annotations' has no 'bbox'"),
        ({"annotations": [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "annotation 1 is of image 9"),
        ({"annotations": [{"id": 1, "image_id": 100, "category_id": 4, "bbox": [0, 0, 1, 1]}]}, "category 4"),
        ({"annotations": [{"id": 1, "image_id": 100, "category_id": 3, "bbox": [0, 0, 1]}]}, "expected x, y, width, height"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "every id must be unique"),
    ],
)
def test_broken_annotations_are_named_with_the_file(tmp_path: Path, changes: dict, message: str) -> None:
    path = edited(write_coco(tmp_path) / "annotations" / "instances_train2017.json", **changes)
    with pytest.raises(DataError, match=message) as error:
        load_instances(tmp_path, "train")
    assert str(path) in str(error.value)


def test_missing_images_folders_and_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco")
    (root / "train2017" / "000000000001.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images .*000000000001\.png"):
        load_instances(root, "train")
    shutil.rmtree(root / "train2017")
    with pytest.raises(DataError, match="not the folder with its images"):
        load_instances(root, "train")
    (root / "train2017").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        load_instances(root, "train")
    (tmp_path / "other" / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match="is not the data root of 'coco'"):
        load_instances(tmp_path / "other", "train")


def test_an_image_of_another_size_and_a_segmentation_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    first = load_instances(write_coco(tmp_path), "train").samples[0]
    with pytest.raises(DataError, match="is 64x56, but its annotations are for 64x64"):
        replace(first, size=(64, 64)).image()
    for broken in (None, [], {"size": [3, 3], "counts": [9]}, "x"):
        with pytest.raises(DataError, match=r"'000000000000\.png' has a segmentation that cannot be read"):
            replace(first, segmentations=(broken, broken)).masks()


def test_without_pycocotools_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_instances(write_coco(tmp_path), "train").samples[0]
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UsageError, match=r"pip install 'wsolbench\[coco\]'"):
        first.masks()


# --- writing -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset("toybirds", "val", tmp_path_factory.mktemp("toy"), size=48, counts={"train": 1, "val": 18, "test": 1}, workers=1)


def test_an_export_read_back_by_pycocotools_has_the_same_boxes_masks_classes_and_pixels(birds: Dataset, tmp_path: Path, capsys) -> None:
    export = export_coco(birds, tmp_path)
    assert (export.images, export.objects, export.without_mask) == (18, sum(len(sample.boxes) for sample in birds.samples), 0)
    assert export.objects > 18
    coco = COCO(str(export.annotations))
    assert [category["name"] for category in coco.dataset["categories"]] == list(birds.class_names)
    for number, sample in enumerate(birds.samples, start=1):
        objects = coco.imgToAnns[number]
        boxes = np.array([item["bbox"] for item in objects])
        np.testing.assert_array_equal(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), sample.boxes)
        assert {item["category_id"] for item in objects} == {sample.label + 1}
        assert {item["iscrowd"] for item in objects} == {0}
        for path, item in zip(sample.mask_paths, objects, strict=True):
            mask = replace(sample, mask_paths=(path,)).mask()
            assert mask is not None
            np.testing.assert_array_equal(coco.annToMask(item), mask)
            assert item["area"] == np.count_nonzero(mask)
    dataset = load_instances(tmp_path, "val")
    assert (dataset.name, dataset.class_names) == ("toybirds", birds.class_names)
    for mine, theirs in zip(dataset.samples, birds.samples, strict=True):
        np.testing.assert_array_equal(mine.image(), theirs.image())
        np.testing.assert_array_equal(mine.boxes, theirs.boxes)


def test_the_same_data_give_the_same_bytes_and_an_export_is_left_as_it_is(birds: Dataset, tmp_path: Path) -> None:
    first = export_coco(birds, tmp_path / "a")
    assert first.annotations.read_bytes() == export_coco(birds, tmp_path / "b").annotations.read_bytes()
    before = first.annotations.stat().st_mtime_ns
    again = export_coco(birds, tmp_path / "a")
    assert not again.written
    assert again.annotations.stat().st_mtime_ns == before
    assert (again.images, again.objects) == (first.images, first.objects)


def test_what_is_there_and_is_something_else_is_not_overwritten(birds: Dataset, tmp_path: Path) -> None:
    path = export_coco(birds, tmp_path).annotations
    with pytest.raises(UsageError, match=r"export of other data \(fingerprint"):
        export_coco(replace(birds, fingerprint="other"), tmp_path)
    path.write_text("[]")
    with pytest.raises(UsageError, match="no export of this program"):
        export_coco(birds, tmp_path)


def test_an_export_that_is_interrupted_leaves_no_annotations_and_is_completed(birds: Dataset, tmp_path: Path) -> None:
    broken = replace(birds, samples=[*birds.samples[:3], replace(birds.samples[3], path=tmp_path / "gone.png")])
    with pytest.raises(DataError, match=r"gone\.png"):
        export_coco(broken, tmp_path / "out")
    assert not (tmp_path / "out" / "annotations").exists()
    assert len(list((tmp_path / "out" / "val").iterdir())) == 3
    assert export_coco(birds, tmp_path / "out").written


def test_without_masks_objects_have_boxes_only_and_other_folders_keep_their_names(tmp_path: Path) -> None:
    dataset = load_dataset("cub", "train", write_cub(tmp_path))
    export = export_coco(dataset, tmp_path / "out")
    assert export.without_mask == export.objects == 2
    values = json.loads(export.annotations.read_text())
    assert values["images"][0]["file_name"] == "001.Auk/a.jpg"
    assert (tmp_path / "out/train/001.Auk/a.jpg").read_bytes() == dataset.samples[0].path.read_bytes()  # type: ignore[union-attr]
    assert values["annotations"][0]["bbox"] == [0.0, 0.0, 40.0, 30.0]
    assert "segmentation" not in values["annotations"][0]


def test_an_image_that_is_no_whole_file_of_the_annotated_size_is_written_anew(tmp_path: Path) -> None:
    path = write_cub(tmp_path) / "images/001.Auk/a.jpg"
    box = np.array([[1.0, 2.0, 8.0, 9.0]])
    samples = [
        Sample(id="cut.jpg", label=0, path=path, crop=(0, 0, 40, 20), boxes=box),
        Sample(id="shrunken.jpg", label=0, path=path, size=(80, 60), boxes=box),
        Sample(id="memory", label=0, array=np.full((12, 10, 3), 7, dtype=np.uint8), boxes=box),
    ]
    dataset = Dataset(name="parts", split="train", samples=samples, class_names=("bird",), fingerprint="f")
    export_coco(dataset, tmp_path / "out")
    read = load_instances(tmp_path / "out", "train")
    assert [sample.file_name for sample in read.samples] == ["cut.jpg.png", "shrunken.jpg.png", "memory.png"]
    assert [sample.image().shape for sample in read.samples] == [(20, 40, 3), (60, 80, 3), (12, 10, 3)]


def test_a_data_set_without_boxes_cannot_be_exported(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    dataset = load_dataset("csvfolder", "train", tmp_path)
    plain = replace(dataset, samples=[replace(sample, boxes=np.zeros((0, 4))) for sample in dataset.samples])
    with pytest.raises(UsageError, match="has no boxes"):
        export_coco(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()
