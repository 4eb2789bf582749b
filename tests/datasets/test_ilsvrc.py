from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.datasets.layouts import (
    WNIDS,
    voc_xml,
    write_ilsvrc_official,
    write_image,
    write_lines,
    write_metadata,
)
from wsolbench.datasets import available_splits, load_dataset
from wsolbench.exceptions import DataError, UsageError

FIRST = "ILSVRC2012_val_00000001"
LAYOUTS = pytest.mark.parametrize(("kaggle", "nested"), [(True, False), (False, False), (False, True)])


@LAYOUTS
def test_every_layout_gives_the_same_images_labels_and_boxes(
    kaggle: bool, nested: bool, tmp_path: Path
) -> None:
    write_ilsvrc_official(tmp_path, kaggle=kaggle, nested=nested)
    test = load_dataset("ilsvrc", "test", tmp_path)
    assert test.ids == tuple(f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3))
    np.testing.assert_array_equal(
        test[0].boxes, [[2, 3, 20, 25], [30, 5, 40, 15]]
    )  # two objects are two boxes, numbers unchanged
    assert test[0].image().shape == (40, 50, 3)


def test_the_class_index_is_the_place_among_the_sorted_ids_and_not_the_devkits_number(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    test = load_dataset("ilsvrc", "test", tmp_path)
    assert [sample.label for sample in test.samples] == [1, 0, 2]
    assert test.class_names == tuple(
        f"{wnid} name" for wnid in WNIDS
    )  # inner nodes of the hierarchy are no classes


def test_the_class_index_is_the_same_from_the_mapping_file_and_from_the_folders(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=True)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()
    by_folder = load_dataset("ilsvrc", "test", tmp_path)
    write_lines(
        tmp_path / "LOC_synset_mapping.txt", [f"{wnid} a name of {wnid}, another" for wnid in reversed(WNIDS)]
    )
    by_mapping = load_dataset("ilsvrc", "test", tmp_path)
    assert by_folder.fingerprint == by_mapping.fingerprint
    assert by_mapping.class_names[0] == f"a name of {WNIDS[0]}"


def test_the_table_of_boxes_says_the_same_as_the_xml_files(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=True)
    from_xml = load_dataset("ilsvrc", "test", tmp_path)
    for path in (tmp_path / "ILSVRC/Annotations/CLS-LOC/val").glob("*.xml"):
        path.unlink()
    groups = ["2 3 20 25", "30 5 40 15"]
    rows = [
        f"ILSVRC2012_val_00000002,{WNIDS[0]} 0 0 49 39 ",
        f"{FIRST},{' '.join(f'{WNIDS[1]} {group}' for group in groups)} ",
        f"ILSVRC2012_val_00000003,{WNIDS[2]} 1 1 9 9 ",
    ]
    write_lines(tmp_path / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows])
    assert load_dataset("ilsvrc", "test", tmp_path).fingerprint == from_xml.fingerprint


def test_boxes_of_a_file_that_is_smaller_than_its_annotation_says_are_scaled_and_reported(
    tmp_path: Path,
) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    write_lines(
        tmp_path / "Annotations" / "val" / f"{FIRST}.xml", [voc_xml(WNIDS[1], (100, 80), [(10, 20, 90, 80)])]
    )
    test = load_dataset("ilsvrc", "test", tmp_path)
    np.testing.assert_array_equal(test[0].boxes, [[5, 10, 45, 40]])
    (finding,) = test.findings
    assert (finding.count, finding.severity) == (1, "warning")


@pytest.mark.parametrize(
    ("claim", "expected", "words"),
    [
        ((100, 80), [1, 1, 5, 5], "boxes scaled"),  # half as large
        ((67, 53), [2 * 50 / 67, 2 * 40 / 53, 500 / 67, 400 / 53], "boxes scaled"),  # three quarters, rounded
        ((25, 20), [4, 4, 20, 20], "boxes scaled"),
        ((50, 41), [2, 2, 10, 10], "boxes kept"),
        ((90, 40), [2, 2, 10, 10], "boxes kept"),
        ((40, 50), [2, 2, 10, 10], "boxes kept"),
    ],
)
def test_boxes_of_a_resized_copy_are_scaled_whether_they_fit_or_not(
    claim: tuple[int, int], expected: list[float], words: str, tmp_path: Path
) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    write_lines(
        tmp_path / "Annotations" / "val" / f"{FIRST}.xml", [voc_xml(WNIDS[1], claim, [(2, 2, 10, 10)])]
    )
    test = load_dataset("ilsvrc", "test", tmp_path)
    np.testing.assert_allclose(test[0].boxes, [expected])
    (finding,) = test.findings
    assert (finding.count, finding.severity) == (1, "warning")
    assert words in finding.what


def test_a_wrong_size_in_the_annotation_is_harmless_where_the_boxes_fit(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    write_lines(
        tmp_path / "Annotations" / "val" / f"{FIRST}.xml", [voc_xml(WNIDS[1], (0, 0), [(10, 20, 50, 40)])]
    )
    test = load_dataset("ilsvrc", "test", tmp_path)
    np.testing.assert_array_equal(test[0].boxes, [[10, 20, 50, 40]])
    assert test.findings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is not an XML file that can be read"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "is not an XML file that can be read"),
        ("<annotation></annotation>", "expected objects of one class, found no object"),
        (voc_xml("n01440764", (50, 40), [(9, 9, 3, 20)]), "expected a box with xmin <= xmax"),
        (
            voc_xml("n01440764", (50, 40), [(1, 1, 3, 20)]).replace("<xmin>1</xmin>", ""),
            "expected numbers in size and bndbox",
        ),
        (
            voc_xml("n99999999", (50, 40), [(1, 1, 3, 20)]),
            "has the class 'n99999999'; expected one of the 3 classes",
        ),
    ],
)
def test_a_broken_xml_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    write_lines(tmp_path / "Annotations" / "val" / f"{FIRST}.xml", [text])
    with pytest.raises(DataError, match=message):
        load_dataset("ilsvrc", "test", tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        f"{WNIDS[0]} 1 2 3",
        f"{WNIDS[0]} 5 2 3 4",
        f"{WNIDS[0]} 1 2 3 x",
        f"{WNIDS[0]} 1 2 3 4 {WNIDS[1]} 1 2 3 4",
        "",
    ],
)
def test_a_broken_row_of_the_table_of_boxes_is_named(value: str, tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=True)
    for path in (tmp_path / "ILSVRC/Annotations/CLS-LOC/val").glob("*.xml"):
        path.unlink()
    write_lines(tmp_path / "LOC_val_solution.csv", ["ImageId,PredictionString", f"{FIRST},{value}"])
    with pytest.raises(DataError, match=r"LOC_val_solution.csv:2: expected"):
        load_dataset("ilsvrc", "test", tmp_path)


def test_train_is_every_image_of_every_class_folder_with_its_size_read_late(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=True)
    (tmp_path / "ILSVRC/Data/CLS-LOC/train" / WNIDS[0] / "broken_2.JPEG").write_bytes(b"no image")
    train = load_dataset("ilsvrc", "train", tmp_path)
    assert train.ids[:2] == (f"train/{WNIDS[0]}/broken_2.JPEG", f"train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG")
    assert [sample.label for sample in train.samples] == [0, 0, 1, 2]
    assert train[1].size == (50, 40)
    with pytest.raises(DataError, match="is not an image that can be read"):
        _ = train[0].size


def _metadata(root: Path) -> dict[str, int]:
    """ImageNetV2: its folders are class numbers, and as text, 10 comes before 2."""
    labels = {"val2/2/0.jpeg": 2, "val2/10/0.jpeg": 10}
    boxes = [f"{name},1,2,{30 + label},40" for name, label in labels.items()]
    write_metadata(
        root / "metadata" / "ILSVRC" / "val",
        labels,
        dict.fromkeys(labels, (100, 80)),
        boxes,
        final_newline=False,
    )
    for name in labels:
        write_image(root / name, (25, 20))
    return labels


def test_folders_of_imagenet_v2_are_class_numbers_and_not_places_in_a_sorted_list(tmp_path: Path) -> None:
    labels = _metadata(tmp_path)
    val = load_dataset("ilsvrc", "val", tmp_path)
    assert {sample.id: sample.label for sample in val.samples} == labels
    assert val.ids == tuple(labels)


def test_sizes_of_the_metadata_count_even_when_the_files_are_shrunken_copies(tmp_path: Path) -> None:
    _metadata(tmp_path)
    sample = load_dataset("ilsvrc", "val", tmp_path)[0]
    assert sample.size == (100, 80)
    assert sample.image().shape == (20, 25, 3)
    np.testing.assert_array_equal(sample.boxes, [[1, 2, 32, 40]])


def test_maps_can_be_scored_without_the_images_when_asked(tmp_path: Path) -> None:
    labels = _metadata(tmp_path)
    (tmp_path / "val2/2/0.jpeg").unlink()
    with pytest.raises(DataError, match="1 files of 2 images are missing"):
        load_dataset("ilsvrc", "val", tmp_path)
    kept = load_dataset("ilsvrc", "val", tmp_path, missing="keep")
    assert kept.ids == tuple(labels)
    assert len(kept.missing) == 1
    assert load_dataset("ilsvrc", "val", tmp_path, missing="skip").ids == ("val2/10/0.jpeg",)


def test_val_without_metadata_says_what_it_is(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=True)
    with pytest.raises(UsageError, match=r"ImageNetV2.*--metadata-root"):
        load_dataset("ilsvrc", "val", tmp_path)
    assert available_splits("ilsvrc", tmp_path) == ("train", "test")


def test_blacklisted_images_are_left_out_only_when_asked(tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    with pytest.raises(DataError, match=r"no file .*blacklist.txt; expected it for exclude_blacklist"):
        load_dataset("ilsvrc", "test", tmp_path, exclude_blacklist=True)
    write_lines(
        tmp_path / "ILSVRC2014_devkit" / "data" / "ILSVRC2014_clsloc_validation_blacklist.txt", ["2", "36"]
    )
    assert len(load_dataset("ilsvrc", "test", tmp_path)) == 3
    test = load_dataset("ilsvrc", "test", tmp_path, exclude_blacklist=True)
    assert test.ids == ("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000003.JPEG")
    assert test.findings[0].count == 1


def test_images_without_any_annotation_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    write_image(tmp_path / "val" / f"{FIRST}.JPEG", (50, 40))
    write_image(tmp_path / "train" / WNIDS[0] / "a.JPEG", (50, 40))
    with pytest.raises(
        DataError, match=r"expected XML files .*LOC_val_solution.csv, or the wsolevaluation metadata"
    ):
        load_dataset("ilsvrc", "test", tmp_path)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_class_folders_one_level_too_deep_are_named(split: str, listed: bool, tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False, nested=True)
    if not listed:
        (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()
    folder = tmp_path / ("train" if split == "train" else "val")
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    (tmp_path / "moved").rename(folder / folder.name)
    with pytest.raises(
        DataError, match=rf"found the folder '{folder.name}', which holds 3 of them. Move them up"
    ):
        load_dataset("ilsvrc", split, tmp_path)
