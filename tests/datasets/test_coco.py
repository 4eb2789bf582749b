"""Loading data sets in COCO's layout."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.mask import decode

from tests.datasets.coco_layout import edited, write_coco
from wsolbench.datasets import load_dataset
from wsolbench.datasets.coco import load_instances, mask_run_lengths, run_lengths
from wsolbench.exceptions import DataError, UsageError

NAN, INF = float("nan"), float("inf")


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


def test_detectors_learn_from_no_crowd_and_from_boxes_within_the_image_of_at_least_a_pixel(
    tmp_path: Path,
) -> None:
    first = load_instances(write_coco(tmp_path), "train").samples[0]
    boxes = np.array([[-5.0, 2.0, 30.0, 400.0], [10.0, 10.0, 10.5, 30.0]])
    kept = replace(first, boxes=boxes).learnable()
    assert kept.boxes.tolist() == [[0.0, 2.0, 30.0, 56.0]]
    assert kept.labels.tolist() == [0]
    assert len(kept.segmentations) == 1
    assert len(replace(first, crowd=np.array([True, True])).learnable().boxes) == 0


def test_the_official_names_and_those_of_an_export_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path, "val2017", 2)
    write_coco(tmp_path, "test", 3)
    assert len(load_instances(tmp_path, "val")) == len(load_instances(tmp_path, "val2017")) == 2
    assert len(load_instances(tmp_path, "test")) == 3
    with pytest.raises(UsageError, match=r"unknown split 'train'.*Known: test, val"):
        load_instances(tmp_path, "train")
    monkeypatch.setenv("WSOLBENCH_COCO_ROOT", str(tmp_path))
    assert load_instances(None, "val").name == "coco"


@pytest.mark.parametrize(
    "info", [None, "mine", {"wsolbench": None}, {"wsolbench": "mine"}, {"wsolbench": {"dataset": ["mine"]}}]
)
def test_only_the_official_files_are_called_coco_and_others_as_their_folder(
    tmp_path: Path, info: object
) -> None:
    root = tmp_path / "my: data"
    for split, name in (("train2017", "coco"), ("val", "my--data")):
        edited(write_coco(root, split) / "annotations" / f"instances_{split}.json", info=info)
        assert load_instances(root, split.removesuffix("2017")).name == name


def test_a_name_that_an_export_has_written_down_stays_in_its_folder(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations" / "instances_train2017.json"
    edited(path, info={"wsolbench": {"dataset": "../../mine"}})
    assert load_instances(tmp_path, "train").name == "-..-mine"


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_an_empty_segmentation_is_none(tmp_path: Path, nothing: object) -> None:
    path = write_coco(tmp_path) / "annotations" / "instances_train2017.json"
    objects = json.loads(path.read_text())["annotations"]
    edited(path, annotations=[{**objects[0], "segmentation": nothing}, *objects[1:]])
    found = load_instances(tmp_path, "train").samples[0].segmentations
    assert [segmentation is None for segmentation in found] == [True, False]


def test_ids_of_images_may_be_text_and_boxes_may_be_empty(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations" / "instances_train2017.json"
    values = json.loads(path.read_text())
    images = [{**row, "id": f"image {row['id']}"} for row in values["images"]]
    objects = [
        {**item, "image_id": f"image {item['image_id']}", "bbox": [1, 2.5, 0, 0], "area": None}
        for item in values["annotations"]
    ]
    edited(path, images=images, annotations=objects)
    first = load_instances(tmp_path, "train").samples[0]
    assert first.id == "image 100"
    assert first.boxes.tolist() == [[1.0, 2.5, 1.0, 2.5]] * 2


def test_a_mask_as_run_lengths_is_the_mask() -> None:
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    stored = json.loads(json.dumps(mask_run_lengths(mask)))
    assert stored["size"] == [5, 7]
    np.testing.assert_array_equal(decode(run_lengths(stored, (7, 5))), mask)


def test_the_commands_for_one_label_an_image_say_which_commands_read_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train-detector"):
        load_dataset("coco", "train", write_coco(tmp_path))


IMAGE = {"id": 100, "file_name": "000000000000.png", "width": 64, "height": 56}
OBJECT = {"id": 1, "image_id": 100, "category_id": 3, "bbox": [0, 0, 9, 9]}
TRIANGLE = [0, 0, 9, 0, 9, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "no list 'categories'"),
        ({"images": []}, "no list 'images'"),
        (
            {"annotations": [{"id": 1, "image_id": 100, "category_id": 3}]},
            "entry 0 of 'annotations' has no 'bbox'",
        ),
        ({"annotations": [{**OBJECT, "image_id": 9}]}, "annotation 1 is of image 9"),
        ({"annotations": [{**OBJECT, "category_id": 4}]}, "category 4"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "expected unique ids"),
        *(
            (
                {"categories": [{"id": 7, "name": "a"}, {"id": broken, "name": "b"}]},
                r"entry 1 of 'categories' has the id .*; expected a whole",
            )
            for broken in ("a", "7", None, 3.2, True, [3], {})
        ),
        *(
            (
                {"images": [{**IMAGE, "id": broken}]},
                "entry 0 of 'images' has the id .*; expected a whole number or text",
            )
            for broken in (None, [1], 1.5)
        ),
        ({"images": [IMAGE, {**IMAGE, "id": "100"}]}, "some ids of 'images' are numbers and some are text"),
        *(
            ({"images": [{**IMAGE, "width": broken}]}, r"image 100 has the width .*; expected whole numbers")
            for broken in (None, 0, 64.0, True)
        ),
        ({"images": [{**IMAGE, "height": "h"}]}, "the height 'h'; expected whole numbers from 1"),
        ({"images": [{**IMAGE, "file_name": None}]}, "the file_name None; expected text"),
        ({"annotations": [{**OBJECT, "id": [1]}]}, r"entry 0 of 'annotations' has the id \[1\]"),
        *(
            ({"annotations": [{**OBJECT, "image_id": broken}]}, "expected both to be in the file")
            for broken in ([100], None, "100", {})
        ),
        *(
            ({"annotations": [{**OBJECT, "category_id": broken}]}, "expected both to be in the file")
            for broken in ([3], None, "3", 3.7)
        ),
        *(
            (
                {"annotations": [{**OBJECT, "bbox": broken}]},
                r"annotation 1 has the bbox .*; expected x, y, width, height: finite numbers",
            )
            for broken in (
                None,
                [0, 0, 1],
                "1234",
                ["0", "0", "1", "1"],
                [NAN, 0, 1, 1],
                [0, 0, INF, 1],
                [0, 0, 10**400, 1],
                [5, 5, -1, 1],
                [0, 0, 1, True],
            )
        ),
        *(
            ({"annotations": [{**OBJECT, "area": broken}]}, "annotation 1 has the area")
            for broken in ("1", -1, NAN, [])
        ),
        *(
            (
                {"annotations": [{**OBJECT, "iscrowd": broken}]},
                "annotation 1 has the iscrowd .*; expected 0 or 1",
            )
            for broken in ("0", 2, [])
        ),
        *(
            (
                {"annotations": [{**OBJECT, "segmentation": broken}]},
                r"annotation 1 has the segmentation .*; expected polygons .* 64x56 pixels",
            )
            for broken in (
                "x",
                TRIANGLE,
                [[]],
                [TRIANGLE[:4]],
                [TRIANGLE, TRIANGLE[:5]],
                [["0"] * 6],
                [[*TRIANGLE[:5], NAN]],
                [[*TRIANGLE[:5], 1e9]],
                {"size": [56, 64]},
                {"size": [64, 56], "counts": [56 * 64]},
                {"size": [56, 64], "counts": [9]},
                {"size": [56, 64], "counts": [56 * 64 + 1, -1]},
                {"size": [56, 64], "counts": ["a"]},
            )
        ),
    ],
)
def test_broken_annotations_are_named_with_the_file(tmp_path: Path, changes: dict, message: str) -> None:
    path = edited(write_coco(tmp_path) / "annotations" / "instances_train2017.json", **changes)
    with pytest.raises(DataError, match=message) as error:
        load_instances(tmp_path, "train")
    assert str(path) in str(error.value)
    assert len(str(error.value).replace(str(path), "")) < 300


def test_missing_images_folders_and_files_that_are_no_json_are_named(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco")
    (root / "train2017" / "000000000001.png").unlink()
    with pytest.raises(
        DataError,
        match=r"1 of 4 images .*000000000001\.png; expected them in .*Copy them there, or .* export again",
    ):
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
    with pytest.raises(DataError, match="is 64x56; expected 64x64"):
        replace(first, size=(64, 64)).image()
    for broken in (None, {"size": [3, 3], "counts": [9]}, {"size": [56, 64], "counts": "é"}, "x"):
        with pytest.raises(DataError, match=r"'000000000000\.png' has a segmentation that cannot be read"):
            replace(first, segmentations=(broken, broken)).masks()


def test_without_pycocotools_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_instances(write_coco(tmp_path), "train").samples[0]
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UsageError, match=r"pip install 'wsolbench\[coco\]'"):
        first.masks()
