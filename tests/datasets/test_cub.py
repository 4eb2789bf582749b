from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.datasets.layouts import CUB_IMAGES, write_cub, write_image, write_lines, write_mask, write_metadata
from wsolbench.datasets import available_splits, load_dataset
from wsolbench.exceptions import DataError, UsageError


def test_boxes_are_x_y_width_height_counted_from_zero(tmp_path: Path) -> None:
    write_cub(tmp_path)
    train = load_dataset("cub", "train", tmp_path)
    np.testing.assert_array_equal(train[0].boxes, [[0, 0, 40, 30]])
    np.testing.assert_array_equal(train[1].boxes, [[1.5, 2.5, 9.5, 11.5]])
    assert train.findings == ()


def test_the_root_may_be_the_folder_or_its_parent(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    assert load_dataset("cub", "test", tmp_path).fingerprint == load_dataset("cub", "test", home).fingerprint


def test_labels_and_splits_are_those_of_the_text_files(tmp_path: Path) -> None:
    write_cub(tmp_path)
    train, test = (load_dataset("cub", split, tmp_path) for split in ("train", "test"))
    assert train.ids == (CUB_IMAGES[0], CUB_IMAGES[2])
    assert test.ids == (CUB_IMAGES[1], CUB_IMAGES[3])
    assert [sample.label for sample in test.samples] == [0, 1]
    assert test.class_names == ("001.Auk", "002.Great_Owl")


def test_part_names_may_have_spaces_and_an_invisible_part_has_no_coordinates(tmp_path: Path) -> None:
    write_cub(tmp_path)
    dataset = load_dataset("cub", "test", tmp_path)
    assert dataset.key_point_names == ("back", "left wing")
    np.testing.assert_array_equal(dataset[0].key_points, [[12, 13, 1], [0, 0, 0]])


def test_without_the_folder_of_parts_there_are_no_key_points(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    (home / "parts" / "part_locs.txt").unlink()
    (home / "parts" / "parts.txt").unlink()
    (home / "parts").rmdir()
    assert load_dataset("cub", "test", home)[0].key_points is None


@pytest.mark.parametrize("beside", [True, False])
def test_segmentations_are_soft_masks_cut_at_one_half(tmp_path: Path, beside: bool) -> None:
    home = write_cub(tmp_path)
    folder = (tmp_path if beside else home) / "segmentations"
    for name in CUB_IMAGES:
        write_mask(folder / name.replace(".jpg", ".png"), (40, 30), [(0, 0, 10, 10)], on=128)
    write_mask(folder / CUB_IMAGES[3].replace(".jpg", ".png"), (40, 30), [(0, 0, 10, 10)], on=127)
    test = load_dataset("cub", "test", tmp_path)
    masks = [sample.mask() for sample in test.samples]
    assert [int(mask.sum()) for mask in masks if mask is not None] == [100, 0]
    assert not load_dataset("cub", "test", tmp_path, segmentations=False).has_masks


def test_a_missing_segmentation_is_a_missing_file(tmp_path: Path) -> None:
    write_cub(tmp_path)
    write_mask(tmp_path / "segmentations" / CUB_IMAGES[1].replace(".jpg", ".png"), (40, 30), [(0, 0, 10, 10)])
    with pytest.raises(DataError, match=r"1 files of 2 images are missing.*d\.png"):
        load_dataset("cub", "test", tmp_path)


def test_a_box_that_sticks_out_is_clipped_and_counted(tmp_path: Path) -> None:
    write_cub(tmp_path, boxes=["0 0 40 30", "30.0 20.0 30.0 30.0", "0 0 1 1", "-2 0 10 10"])
    test = load_dataset("cub", "test", tmp_path)
    np.testing.assert_array_equal(test[0].boxes, [[30, 20, 40, 30]])
    np.testing.assert_array_equal(test[1].boxes, [[0, 0, 8, 10]])
    (finding,) = test.findings
    assert (finding.count, finding.severity) == (2, "warning")
    assert CUB_IMAGES[1] in finding.example


@pytest.mark.parametrize("box", ["50.0 5.0 10.0 10.0", "5.0 5.0 0.0 10.0", "40 0 3 3"])
def test_a_box_without_area_in_the_image_is_left_out_and_reported(box: str, tmp_path: Path) -> None:
    write_cub(tmp_path, boxes=["0 0 1 1", "1 1 5 5", "0 0 1 1", box])
    test = load_dataset("cub", "test", tmp_path)
    assert [len(sample.boxes) for sample in test.samples] == [1, 0]
    left_out, bare = test.findings
    assert (left_out.what, left_out.count, left_out.severity) == (
        "boxes without area inside the image: dropped",
        1,
        "error",
    )
    assert bare.example == CUB_IMAGES[3]


BROKEN = {
    "a box with a negative width": (
        "bounding_boxes.txt",
        "4 5 5 -1 3",
        r"bounding_boxes.txt:4: expected a width and a height that are not negative",
    ),
    "a box that is a word": (
        "bounding_boxes.txt",
        "4 a b c d",
        r"bounding_boxes.txt:4: expected a finite number as x, found 'a'",
    ),
    "a line that is cut": (
        "bounding_boxes.txt",
        "4 5.0 5",
        r"bounding_boxes.txt:4: expected 5 fields \(image_id x y width height\)",
    ),
    "an image twice": (
        "bounding_boxes.txt",
        "3 5 5 1 1",
        r"bounding_boxes.txt:4: expected every image of images.txt once, found image 3 again",
    ),
    "an image nobody knows": (
        "bounding_boxes.txt",
        "9 5 5 1 1",
        r"bounding_boxes.txt:4: .*image 9 which images.txt does not have",
    ),
    "an image without a box": (
        "bounding_boxes.txt",
        "",
        r"bounding_boxes.txt: expected a line for each of 4 images, found none for image 4",
    ),
    "a class nobody knows": (
        "image_class_labels.txt",
        "4 3",
        r"image_class_labels.txt:4: expected a class id from 1 to 2",
    ),
    "an image id twice": ("images.txt", "3 x.jpg", r"images.txt:4: expected every image once"),
    "an image name twice": ("images.txt", f"5 {CUB_IMAGES[0]}", r"images.txt:4: expected every image once"),
    "a part nobody knows": (
        "parts/part_locs.txt",
        "4 3 1.0 1.0 1",
        r"part_locs.txt:8: expected a part id from 1 to 2 and visible 0 or 1",
    ),
    "parts that stop early": (
        "parts/part_locs.txt",
        "",
        r"part_locs.txt: expected 2 lines for image 4, one for each part, found 1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_text_file_is_refused_with_its_name_and_line(case: str, tmp_path: Path) -> None:
    file, last_line, message = BROKEN[case]
    path = write_cub(tmp_path) / file
    write_lines(path, [*path.read_text().splitlines()[:-1], last_line])
    with pytest.raises(DataError, match=message):
        load_dataset("cub", "test", tmp_path)


def test_a_missing_text_file_is_named(tmp_path: Path) -> None:
    (write_cub(tmp_path) / "train_test_split.txt").unlink()
    with pytest.raises(DataError, match=r"no file .*train_test_split\.txt"):
        load_dataset("cub", "test", tmp_path)


def test_val_needs_the_metadata_and_says_so(tmp_path: Path) -> None:
    write_cub(tmp_path)
    with pytest.raises(UsageError, match=r"CUBV2.*--metadata-root"):
        load_dataset("cub", "val", tmp_path)
    with pytest.raises(UsageError, match=r"expected CUB/val/image_ids.txt or val/image_ids.txt"):
        load_dataset("cub", "val", tmp_path, metadata_root=tmp_path)
    assert available_splits("cub", tmp_path) == ("train", "test")


@pytest.mark.parametrize(
    ("given", "message"),
    [("absent", "absent is not a folder"), ("", "has no split of CUB; expected CUB/SPLIT/image_ids")],
)
def test_a_wrong_metadata_root_is_refused_where_the_official_files_would_do(
    given: str, message: str, tmp_path: Path
) -> None:
    write_cub(tmp_path)
    with pytest.raises(UsageError, match=f"{message}.*--metadata-root"):
        load_dataset("cub", "test", tmp_path, metadata_root=tmp_path / given)
    with pytest.raises(UsageError, match=f"{message}.*--metadata-root"):
        available_splits("cub", tmp_path, metadata_root=tmp_path / given)


def test_val_is_what_the_metadata_says_with_boxes_unchanged(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    write_image(home / "images" / "002.Great_Owl" / "301.jpg", (40, 30))
    write_metadata(
        tmp_path / "meta" / "CUB" / "val",
        {"002.Great_Owl/301.jpg": 1},
        {"002.Great_Owl/301.jpg": (80, 60)},
        ["002.Great_Owl/301.jpg,0,5,79,59"],
    )
    val = load_dataset("cub", "val", tmp_path, metadata_root=tmp_path / "meta")
    assert val[0].size == (80, 60)
    np.testing.assert_array_equal(val[0].boxes, [[0, 5, 79, 59]])
    assert (len(val.class_names), val.class_names[1]) == (200, "002.Great_Owl")
    assert available_splits("cub", tmp_path, metadata_root=tmp_path / "meta") == ("train", "val", "test")


def test_the_layout_of_wsolevaluation_alone_is_enough(tmp_path: Path) -> None:
    write_image(tmp_path / "001.Auk" / "a.jpg", (40, 30))
    write_metadata(
        tmp_path / "metadata" / "CUB" / "test",
        {"001.Auk/a.jpg": 0},
        {"001.Auk/a.jpg": (40, 30)},
        ["001.Auk/a.jpg,1,2,39,29"],
    )
    test = load_dataset("cub", "test", tmp_path)
    assert test[0].image().shape == (30, 40, 3)
    assert available_splits("cub", tmp_path) == ("test",)


def test_text_files_whose_lines_end_with_a_carriage_return_are_read(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    expected = load_dataset("cub", "test", tmp_path).fingerprint
    for path in home.glob("**/*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    assert load_dataset("cub", "test", tmp_path).fingerprint == expected


def test_labels_that_contradict_the_class_folders_are_a_warning(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    assert load_dataset("cub", "train", tmp_path).findings == ()
    write_lines(home / "image_class_labels.txt", ["1 1", "2 1", "3 1", "4 2"])
    (finding,) = load_dataset("cub", "train", tmp_path).findings
    assert (finding.what, finding.count, finding.severity) == (
        "images whose label contradicts their class folder",
        1,
        "warning",
    )
    assert finding.example == f"{CUB_IMAGES[2]}: label 0, its folder has 1"


def test_metadata_that_counts_labels_from_1_contradicts_the_class_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "001.Auk" / "a.jpg", (40, 30))
    write_metadata(
        tmp_path / "metadata" / "CUB" / "test",
        {"001.Auk/a.jpg": 1},
        {"001.Auk/a.jpg": (40, 30)},
        ["001.Auk/a.jpg,1,2,39,29"],
    )
    assert [finding.count for finding in load_dataset("cub", "test", tmp_path).findings] == [1]


@pytest.mark.parametrize(
    ("name", "home", "folders"),
    [("openimages", "OpenImages", ("01a", "02b")), ("ilsvrc", "ILSVRC", ("n00000001", "n00000002"))],
)
@pytest.mark.parametrize("wrong", [0, 1])
def test_metadata_with_two_labels_in_one_class_folder_is_a_warning(
    name: str, home: str, folders: tuple[str, str], wrong: int, tmp_path: Path
) -> None:
    labels = {
        f"train/{folder}/{number}.jpg": label for label, folder in enumerate(folders) for number in range(3)
    }
    labels[f"train/{folders[0]}/0.jpg"] = wrong
    for image_id in labels:
        write_image(tmp_path / image_id, (20, 10))
    write_metadata(tmp_path / "metadata" / home / "train", labels, {}, [])
    assert [finding.count for finding in load_dataset(name, "train", tmp_path).findings] == [1] * wrong
