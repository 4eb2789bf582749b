"""Exporting data sets to COCO's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.mask import decode

from tests.datasets.coco_layout import edited
from tests.datasets.layouts import write_csv_folder, write_cub, write_image, write_lines, write_mask
from wsolbench.datasets import load_dataset
from wsolbench.datasets.coco import load_instances
from wsolbench.datasets.coco_export import Export, export_coco
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Dataset, Sample

Box = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(
        "toybirds",
        "val",
        tmp_path_factory.mktemp("toy"),
        size=48,
        counts={"train": 1, "val": 18, "test": 1},
        workers=1,
    )


def test_an_export_read_back_by_pycocotools_has_the_same_boxes_masks_classes_and_pixels(
    birds: Dataset, tmp_path: Path, capsys
) -> None:
    export = export_coco(birds, tmp_path)
    assert (export.images, export.objects, export.without_mask) == (
        18,
        sum(len(sample.boxes) for sample in birds.samples),
        0,
    )
    assert export.objects > 18
    coco = COCO(str(export.annotations))
    assert [category["name"] for category in coco.dataset["categories"]] == list(birds.class_names)
    for number, sample in enumerate(birds.samples, start=1):
        objects = coco.imgToAnns[number]
        boxes = np.array([item["bbox"] for item in objects])
        np.testing.assert_array_equal(
            np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), sample.boxes
        )
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


def test_the_same_data_give_the_same_bytes_and_an_export_is_left_as_it_is(
    birds: Dataset, tmp_path: Path
) -> None:
    first = export_coco(birds, tmp_path / "a")
    assert first.annotations.read_bytes() == export_coco(birds, tmp_path / "b").annotations.read_bytes()
    before = first.annotations.stat().st_mtime_ns
    again = export_coco(birds, tmp_path / "a")
    assert not again.written
    assert again.annotations.stat().st_mtime_ns == before
    assert again == replace(first, written=False)


def test_an_export_that_lacks_images_gets_them_again(birds: Dataset, tmp_path: Path) -> None:
    export = export_coco(birds, tmp_path)
    files = sorted((tmp_path / "val").iterdir())
    stored = [file.read_bytes() for file in files]
    for gone in (files[:2], files):
        for file in gone:
            file.unlink()
        with pytest.raises(DataError, match="export again"):
            load_instances(tmp_path, "val")
        assert export_coco(birds, tmp_path) == export
        assert [file.read_bytes() for file in files] == stored
    shutil.rmtree(tmp_path / "val")
    assert export_coco(birds, tmp_path).written
    assert not export_coco(birds, tmp_path).written


def test_what_is_there_and_is_something_else_is_not_overwritten(birds: Dataset, tmp_path: Path) -> None:
    path = export_coco(birds, tmp_path).annotations
    with pytest.raises(UsageError, match=r"export of other data \(fingerprint"):
        export_coco(replace(birds, fingerprint="other"), tmp_path)
    first, second, *others = birds.class_names
    with pytest.raises(UsageError, match=rf"export of other data \(class {first!r}, not {second!r}\)"):
        export_coco(replace(birds, class_names=(second, first, *others)), tmp_path)
    with pytest.raises(UsageError, match=r"export of other data \(class None, not 'phoenix'\)"):
        export_coco(replace(birds, class_names=(*birds.class_names, "phoenix")), tmp_path)
    values = json.loads(path.read_text())
    edited(path, images=values["images"][1:])
    with pytest.raises(UsageError, match=r"export of other data \(17 images, not 18\)"):
        export_coco(birds, tmp_path)
    for broken in (
        [],
        {**values, "info": "mine"},
        {key: value for key, value in values.items() if key != "annotations"},
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match="is not an export of this program"):
            export_coco(birds, tmp_path)


def test_an_export_that_is_interrupted_leaves_no_annotations_and_is_completed(
    birds: Dataset, tmp_path: Path
) -> None:
    broken = replace(
        birds, samples=[*birds.samples[:3], replace(birds.samples[3], path=tmp_path / "gone.png")]
    )
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


def csv_export(root: Path, *lines: str, masks: Mapping[str, Box]) -> tuple[Export, list[dict[str, Any]]]:
    """Export images a.png and b.png of 32 x 24, and return their objects. A mask is a rectangle."""
    for name in ("a.png", "b.png"):
        write_image(root / "data/images" / name, (32, 24))
    for name, box in masks.items():
        write_mask(root / "data/masks" / name, (32, 24), [box])
    write_lines(root / "data/annotations.csv", ["image,label,split,x0,y0,x1,y1,mask", *lines])
    export = export_coco(load_dataset("csvfolder", "train", root / "data"), root / "out")
    return export, json.loads(export.annotations.read_text())["annotations"]


def test_masks_are_exported_with_the_boxes_that_they_lie_in(tmp_path: Path) -> None:
    boxes = {"a.png": (1, 1, 9, 9), "b.png": (20, 10, 28, 18), "c.png": (4, 4, 12, 20)}
    lines = [
        f"{name},0,train,{','.join(map(str, boxes[mask]))},{mask}"
        for name, mask in (("a.png", "a.png"), ("a.png", "b.png"), ("b.png", "c.png"))
    ]
    export, objects = csv_export(tmp_path, *lines, masks=boxes)
    assert (export.objects, export.without_mask, export.without_box) == (3, 0, 0)
    for item in objects:
        x, y, width, height = map(int, item["bbox"])
        rows, columns = np.nonzero(decode(item["segmentation"]))
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x, y, x + width, y + height]


@pytest.mark.parametrize(
    "mask", [(20, 10, 28, 18), (5, 5, 9, 9), (0, 0, 0, 0)], ids=["elsewhere", "beside", "empty"]
)
def test_a_mask_of_another_object_than_the_box_is_left_out(tmp_path: Path, mask: Box) -> None:
    """One line has a box and no mask, another a mask and no box."""
    lines = ("a.png,0,train,1,1,5,5,", "a.png,0,train,,,,,m.png", "b.png,0,train,0.5,0.5,1.5,1.5,n.png")
    export, objects = csv_export(tmp_path, *lines, masks={"m.png": mask, "n.png": (1, 1, 5, 5)})
    assert (export.objects, export.without_mask) == (2, 1)
    assert objects[0] == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1.0, 1.0, 4.0, 4.0],
        "area": 16.0,
        "iscrowd": 0,
    }
    assert objects[1]["area"] == 16


def test_images_without_a_box_are_counted(tmp_path: Path) -> None:
    export, _ = csv_export(tmp_path, "a.png,0,train,1,1,5,5,", "b.png,0,train,,,,,", masks={})
    assert (export.images, export.without_box, export.objects) == (2, 1, 1)
    assert [len(sample.boxes) for sample in load_instances(tmp_path / "out", "train").samples] == [1, 0]


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
