from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets.layouts import CSV_HEADER, write_csv_folder, write_image, write_lines, write_mask
from wsolbench.datasets import load_dataset
from wsolbench.datasets.csvfolder import load_csv_folder
from wsolbench.exceptions import DataError

SHORT = "image,label,split"


def test_several_lines_of_one_image_are_several_boxes_and_masks(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    dataset = load_csv_folder(tmp_path, "test")
    assert dataset.ids == ("sub/c.png", "d.png")
    assert dataset.class_names == ("class 0", "class 1")
    np.testing.assert_array_equal(dataset[1].boxes, [[2, 2, 6, 6], [10, 2, 16, 8]])
    mask = dataset[1].mask()
    assert mask is not None
    assert mask.sum() == 4 * 4 + 6 * 6
    assert mask[2, 2]
    assert mask[2, 10]
    assert not mask[2, 8]


def test_inclusive_ends_become_exclusive_ones(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    box = load_csv_folder(tmp_path, "test", box_end="inclusive")[0].boxes
    np.testing.assert_array_equal(box, [[1, 1, 5, 5]])


def test_a_box_and_its_mask_agree_when_the_box_is_read_with_the_right_end(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    for sample in load_csv_folder(tmp_path, "test").samples:
        mask = sample.mask()
        assert mask is not None
        rows, columns = np.nonzero(mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert expected == [*sample.boxes[:, :2].min(axis=0), *sample.boxes[:, 2:].max(axis=0)]


def test_without_a_size_in_the_csv_the_files_own_size_counts(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test"], header=SHORT)
    assert load_csv_folder(tmp_path, "test")[0].size == (20, 10)


def test_a_size_in_the_csv_is_the_frame_even_when_the_stored_file_is_smaller(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test,200,100,0,0,150,90,"])
    sample = load_csv_folder(tmp_path, "test")[0]
    assert sample.size == (200, 100)
    assert sample.image().shape == (10, 20, 3)
    np.testing.assert_array_equal(sample.boxes, [[0, 0, 150, 90]])


def test_key_points_keep_their_names_and_invisible_ones_have_no_coordinates(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    write_lines(
        tmp_path / "keypoints.csv",
        ["image,part,x,y,visible", "d.png,left eye,3,4,1", "d.png,beak,,,0", "sub/c.png,beak,2.5,3,1"],
    )
    dataset = load_csv_folder(tmp_path, "test")
    assert dataset.key_point_names == ("left eye", "beak")
    np.testing.assert_array_equal(dataset[0].key_points, [[0, 0, 0], [2.5, 3, 1]])
    np.testing.assert_array_equal(dataset[1].key_points, [[3, 4, 1], [0, 0, 0]])


def test_ignore_masks_leave_out_pixels_that_no_object_covers(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test,a.png,ignored.png"], header="image,label,split,mask,ignore")
    write_mask(tmp_path / "masks" / "a.png", (20, 10), [(0, 0, 6, 10)])
    write_mask(tmp_path / "masks" / "ignored.png", (20, 10), [(4, 0, 10, 10)])
    ignored = load_csv_folder(tmp_path, "test")[0].ignore()
    assert ignored is not None
    np.testing.assert_array_equal(np.nonzero(ignored.any(axis=0))[0], [6, 7, 8, 9])


def test_a_spreadsheets_byte_order_mark_quotes_spaces_and_line_ends_make_no_difference(
    tmp_path: Path,
) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test", "b.png,1,test"], header=SHORT)
    plain = load_csv_folder(tmp_path, "test")
    text = '\ufeffimage, label ,split\r\n"a.png", 0,test\r\n\r\nb.png,1,"test"'
    (tmp_path / "annotations.csv").write_bytes(text.encode())
    assert load_csv_folder(tmp_path, "test").fingerprint == plain.fingerprint


def test_the_images_may_lie_directly_in_the_root(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", (5, 5))
    write_lines(tmp_path / "annotations.csv", [SHORT, "a.png,0,test"])
    assert load_csv_folder(tmp_path, "test")[0].image().shape == (5, 5, 3)


def test_without_classes_csv_the_largest_label_says_how_many_and_gaps_are_reported(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,train", "b.png,2,test"], header=SHORT, classes=None)
    dataset = load_csv_folder(tmp_path, "test")
    assert dataset.class_names == ("0", "1", "2")
    (finding,) = dataset.findings
    assert (finding.count, finding.example, finding.severity) == (1, "label 1", "warning")


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_inclusive_pixels_and_exclusive_edges_are_the_same_box(
    tmp_path_factory: pytest.TempPathFactory, w: int, h: int, data: st.DataObject
) -> None:
    x0, y0 = data.draw(st.integers(0, w - 1)), data.draw(st.integers(0, h - 1))
    x1, y1 = data.draw(st.integers(x0, w - 1)), data.draw(st.integers(y0, h - 1))
    root = tmp_path_factory.mktemp("box")
    write_lines(
        root / "annotations.csv",
        [
            CSV_HEADER,
            f"a.png,0,in,{w},{h},{x0},{y0},{x1},{y1},",
            f"b.png,0,ex,{w},{h},{x0},{y0},{x1 + 1},{y1 + 1},",
        ],
    )
    for name in ("a.png", "b.png"):
        (root / name).touch()
    inclusive = load_csv_folder(root, "in", box_end="inclusive")[0].boxes
    np.testing.assert_array_equal(inclusive, load_csv_folder(root, "ex")[0].boxes)
    pixels = np.zeros((h, w), dtype=bool)
    pixels[y0 : y1 + 1, x0 : x1 + 1] = True
    assert pixels.sum() == (inclusive[0, 2] - inclusive[0, 0]) * (inclusive[0, 3] - inclusive[0, 1])


BAD_ROWS = {
    "a label outside classes.csv": (
        ["a.png,2,test,20,10,0,0,5,5,"],
        r"csv:2: expected a label from 0 to 1 .*found 2",
    ),
    "a negative label": (["a.png,-1,test,20,10,0,0,5,5,"], r"csv:2: expected a label from 0 to 1 .*found -1"),
    "a label that is a word": (
        ["a.png,owl,test,20,10,0,0,5,5,"],
        r"csv:2: expected a whole number as label .*found 'owl'",
    ),
    "x1 before x0": (
        ["a.png,0,test,20,10,8,0,5,5,"],
        r"csv:2: expected a box with x0 <= x1 .*found 8,0,5,5.*not x,y,width,height",
    ),
    "y1 before y0": (
        ["b.png,0,test,20,10,0,0,5,5,", "a.png,0,test,20,10,0,8,5,5,"],
        r"csv:3: expected a box with x0 <= x1 and y0 <= y1",
    ),
    "a corner that is a word": (
        ["a.png,0,test,20,10,left,0,5,5,"],
        r"csv:2: expected a finite number as x0, found 'left'",
    ),
    "a corner that is nan": (
        ["a.png,0,test,20,10,nan,0,5,5,"],
        r"csv:2: expected a finite number as x0, found 'nan'",
    ),
    "half a box": (["a.png,0,test,20,10,1,1,,,"], r"csv:2: expected a finite number as x1, found ''"),
    "a width without a height": (["a.png,0,test,20,,1,1,2,2,"], r"csv:2: expected a whole number as height"),
    "a size of zero": (["a.png,0,test,0,10,1,1,2,2,"], r"csv:2: expected a width and a height of at least 1"),
    "a ragged line": (["a.png,0,test"], r"csv:2: expected 10 fields as in the header, found 3"),
    "an open quote": (['"a.png,0,test,20,10,1,1,2,2,'], r"csv:\d: expected comma-separated values"),
    "no image name": ([",0,test,20,10,1,1,2,2,"], r"csv:2: expected an image and a split"),
    "the same box twice": (
        ["a.png,0,test,20,10,1,1,2,2,"] * 2,
        r"csv:3: expected another image.*found 'a.png' again \(line 2\)",
    ),
    "an image twice without objects": (
        ["a.png,0,test,20,10,,,,,"] * 2,
        r"csv:3: expected another image.*found 'a.png' again \(line 2\)",
    ),
    "two labels of one image": (
        ["a.png,0,test,20,10,1,1,2,2,", "a.png,1,test,20,10,3,3,4,4,"],
        r"csv:3: expected the label of 'a.png' to be '0' as in line 2",
    ),
    "one image in two splits": (
        ["a.png,0,test,20,10,1,1,2,2,", "a.png,0,train,20,10,3,3,4,4,"],
        r"csv:3: expected the split of 'a.png' to be 'test'",
    ),
    "two sizes of one image": (
        ["a.png,0,test,20,10,1,1,2,2,", "a.png,0,test,10,20,3,3,4,4,"],
        r"csv:3: expected the width of 'a.png' to be '20'",
    ),
    "a path out of the folder": (["../a.png,0,test,20,10,1,1,2,2,"], r"'../a.png'; expected a relative path"),
    "an absolute path": (["/etc/a.png,0,test,20,10,1,1,2,2,"], r"'/etc/a.png'; expected a relative path"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_line_is_refused_with_its_file_and_number(case: str, tmp_path: Path) -> None:
    rows, message = BAD_ROWS[case]
    write_csv_folder(tmp_path, rows)
    with pytest.raises(DataError, match=message):
        load_csv_folder(tmp_path, "test")


def test_a_missing_column_is_named_and_so_is_another_separator(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0"], header="image,label")
    with pytest.raises(DataError, match=r"csv:1: expected a header line with the column\(s\) split"):
        load_csv_folder(tmp_path, "test")
    write_csv_folder(tmp_path, ["a.png;0;test"], header="image;label;split")
    with pytest.raises(DataError, match="Columns are separated by commas"):
        load_csv_folder(tmp_path, "test")


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_text("")
    with pytest.raises(DataError, match="csv:1: expected a header line"):
        load_csv_folder(tmp_path, "test")


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.csv").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_csv_folder(tmp_path, "test")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0,auk", "0,owl"], r"classes.csv:3: expected every label once"),
        (["0,auk", "2,owl"], r"expected the labels 0 to 1, each once, found \[0, 2\]"),
        ([], r"expected the labels 0 to 0"),
    ],
)
def test_a_class_list_with_gaps_or_repetitions_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    write_csv_folder(tmp_path)
    write_lines(tmp_path / "classes.csv", ["label,name", *lines])
    with pytest.raises(DataError, match=message):
        load_csv_folder(tmp_path, "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("z.png,beak,1,2,1", r"keypoints.csv:3: expected an image of annotations.csv, found 'z.png'"),
        (
            "a.png,eye,1,2,1",
            r"keypoints.csv:3: expected every part of an image once, found 'eye' of 'a.png' again",
        ),
        ("a.png,beak,1,2,2", r"keypoints.csv:3: expected visible to be 1 or 0, found '2'"),
        ("a.png,beak,one,2,1", r"keypoints.csv:3: expected a finite number as x"),
    ],
)
def test_a_bad_key_point_is_refused_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    write_lines(tmp_path / "keypoints.csv", ["image,part,x,y,visible", "a.png,eye,1,2,1", line])
    with pytest.raises(DataError, match=message):
        load_csv_folder(tmp_path, "test")


def test_a_data_set_without_any_box_loads_and_has_none(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test"], header=SHORT)
    dataset = load_dataset("csvfolder", "test", tmp_path)
    assert not dataset.has_boxes
    assert dataset.findings == ()


def test_an_image_without_a_box_among_images_with_boxes_is_an_error_in_the_findings(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,test,20,10,1,1,2,2,", "b.png,0,test,20,10,,,,,"])
    (finding,) = load_dataset("csvfolder", "test", tmp_path).findings
    assert (finding.count, finding.example, finding.severity) == (1, "b.png", "error")


def test_a_split_that_no_command_takes_by_itself_is_a_warning_in_the_findings(tmp_path: Path) -> None:
    write_csv_folder(tmp_path, ["a.png,0,training", "b.png,1,test"], header=SHORT)
    assert load_dataset("csvfolder", "test", tmp_path).findings == ()
    (finding,) = load_dataset("csvfolder", "training", tmp_path).findings
    assert (finding.count, finding.example, finding.severity) == (1, "a.png", "warning")
    assert "the split 'training', which only --split finds" in finding.what


@pytest.mark.parametrize(
    ("columns", "boxes"),
    [("xmin,ymin,xmax,ymax", True), ("x,y,w,h", True), ("Label", True), ("x0,y0,x1,y1,note", False)],
)
def test_columns_that_are_not_read_are_named_and_so_are_those_of_a_box_where_none_was_read(
    columns: str, boxes: bool, tmp_path: Path
) -> None:
    values = ",".join("1234"[: columns.count(",") + 1]) if boxes else "1,2,3,4,5"
    write_csv_folder(tmp_path, [f"a.png,0,test,{values}"], header=f"{SHORT},{columns}")
    (finding,) = load_csv_folder(tmp_path, "test").findings
    unread = columns.split(",") if boxes else ["note"]
    assert (finding.count, finding.example, finding.severity) == (
        len(unread),
        ", ".join(map(repr, unread)),
        "warning",
    )
    assert ("its columns are x0,y0,x1,y1" in finding.what) is boxes


def test_a_pointer_in_place_of_the_annotations_is_named(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    (tmp_path / "annotations.csv").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="it is a Git LFS pointer"):
        load_csv_folder(tmp_path, "test")
