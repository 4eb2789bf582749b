from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets.layouts import write_lines, write_metadata
from wsolbench.datasets.formats.wsoleval import read_metadata
from wsolbench.exceptions import DataError

LABELS = {"val/a.JPEG": 3, "val/b.JPEG": 0}
SIZES = {"val/a.JPEG": (50, 40), "val/b.JPEG": (30, 20)}
BOXES = ["val/a.JPEG,0,1,20,30", "val/b.JPEG,2,2,9,9", "val/a.JPEG,30,1,40,9"]


def test_the_final_newline_makes_no_difference(tmp_path: Path) -> None:
    write_metadata(tmp_path / "with" / "test", LABELS, SIZES, BOXES, final_newline=True)
    write_metadata(tmp_path / "without" / "test", LABELS, SIZES, BOXES, final_newline=False)
    assert read_metadata(tmp_path / "with" / "test", "boxes") == read_metadata(
        tmp_path / "without" / "test", "boxes"
    )


def test_the_order_is_that_of_image_ids_and_one_image_may_have_several_boxes(tmp_path: Path) -> None:
    write_metadata(tmp_path / "test", LABELS, SIZES, BOXES)
    first, second = read_metadata(tmp_path / "test", "boxes").records("/images")
    assert (first.id, first.label, first.size, first.path) == (
        "val/a.JPEG",
        3,
        (50, 40),
        "/images/val/a.JPEG",
    )
    assert first.boxes == [(0, 1, 20, 30), (30, 1, 40, 9)]
    assert second.boxes == [(2, 2, 9, 9)]


@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(100, 200), st.integers(100, 200)),
        min_size=1,
        max_size=5,
    )
)
def test_integer_boxes_are_taken_unchanged(
    tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[int, int, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("meta") / "test"
    write_metadata(
        folder, {"a": 0}, {"a": (300, 300)}, [f"a,{x0},{y0},{x1},{y1}" for x0, y0, x1, y1 in boxes]
    )
    assert read_metadata(folder, "boxes").boxes["a"] == boxes


def test_training_images_need_neither_sizes_nor_boxes(tmp_path: Path) -> None:
    write_metadata(tmp_path / "train", LABELS, {}, [])
    (tmp_path / "train" / "localization.txt").unlink()
    metadata = read_metadata(tmp_path / "train", "boxes")
    assert metadata.sizes == {}
    assert metadata.boxes == {}


BROKEN = {
    "an id twice": (
        "image_ids.txt",
        ["val/a.JPEG", "val/b.JPEG", "val/a.JPEG"],
        r"image_ids.txt:3: expected every image once, found 'val/a.JPEG' again",
    ),
    "no id": ("image_ids.txt", [], r"names no image"),
    "a label for nobody": (
        "class_labels.txt",
        ["val/a.JPEG,1", "val/z.JPEG,1"],
        r"class_labels.txt:2: expected an image of image_ids.txt",
    ),
    "an image without label": (
        "class_labels.txt",
        ["val/a.JPEG,1"],
        r"class_labels.txt: expected all 2 images .* none for 1, such as 'val/b.JPEG'",
    ),
    "two labels": (
        "class_labels.txt",
        ["val/a.JPEG,1", "val/a.JPEG,2"],
        r"class_labels.txt:2: expected every image once",
    ),
    "a label that is a word": (
        "class_labels.txt",
        ["val/a.JPEG,cat"],
        r"class_labels.txt:1: expected a whole number as label",
    ),
    "a size of nothing": (
        "image_sizes.txt",
        ["val/a.JPEG,0,3"],
        r"image_sizes.txt:1: expected a width and a height of at least 1",
    ),
    "sizes of some images": (
        "image_sizes.txt",
        ["val/a.JPEG,5,5"],
        r"image_sizes.txt: expected all 2 images",
    ),
    "boxes of some images": (
        "localization.txt",
        ["val/a.JPEG,0,0,5,5"],
        r"localization.txt: expected all 2 images",
    ),
    "no boxes of a test split": ("localization.txt", [], r"localization.txt: expected all 2 images"),
    "a box the wrong way round": (
        "localization.txt",
        ["val/a.JPEG,9,0,5,5"],
        r"localization.txt:1: expected a box with x0 <= x1",
    ),
    "a box with three corners": (
        "localization.txt",
        ["val/a.JPEG,9,0,5"],
        r"localization.txt:1: expected 5 fields",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_contradict_each_other_are_refused_with_name_and_line(case: str, tmp_path: Path) -> None:
    file, lines, message = BROKEN[case]
    write_metadata(tmp_path / "test", LABELS, SIZES, BOXES)
    write_lines(tmp_path / "test" / file, lines)
    with pytest.raises(DataError, match=message):
        read_metadata(tmp_path / "test", "boxes")


@pytest.mark.parametrize("file", ["image_ids.txt", "class_labels.txt", "image_sizes.txt", "localization.txt"])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    write_metadata(tmp_path / "test", LABELS, SIZES, BOXES)
    (tmp_path / "test" / file).unlink()
    with pytest.raises(DataError, match=f"no file .*{file}"):
        read_metadata(tmp_path / "test", "boxes")
