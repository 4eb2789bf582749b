from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.datasets.layouts import write_aircraft, write_cars_joint, write_cars_split, write_lines
from wsolbench.datasets import available_splits, load_dataset
from wsolbench.exceptions import DataError, UsageError


class TestCars:
    def test_boxes_count_from_one_with_inclusive_ends_and_do_not_wrap_in_uint8(self, tmp_path: Path) -> None:
        write_cars_split(tmp_path)
        test = load_dataset("cars", "test", tmp_path)
        np.testing.assert_array_equal(test[0].boxes, [[0, 0, 200, 150]])
        np.testing.assert_array_equal(
            test[1].boxes, [[0, 9, 180, 140]]
        )  # x1 = 0 is -1, clipped; in uint8 it were 255
        assert test[0].boxes.dtype == np.float64
        assert [finding.count for finding in test.findings] == [1]

    def test_classes_count_from_one(self, tmp_path: Path) -> None:
        write_cars_split(tmp_path)
        train = load_dataset("cars", "train", tmp_path / "stanford_cars")
        assert [train.class_names[sample.label] for sample in train.samples] == [
            "Audi TT",
            "AM General Hummer",
        ]
        assert train.ids == ("cars_train/00001.jpg", "cars_train/00002.jpg")

    def test_both_packagings_load(self, tmp_path: Path) -> None:
        write_cars_joint(tmp_path)
        train, test = (load_dataset("cars", split, tmp_path) for split in ("train", "test"))
        assert (train.ids, test.ids) == (("car_ims/000001.jpg",), ("car_ims/000002.jpg",))
        np.testing.assert_array_equal(test[0].boxes, [[10, 20, 30, 40]])
        assert test.class_names[test[0].label] == "Audi TT"

    def test_the_test_annotations_without_labels_do_not_do(self, tmp_path: Path) -> None:
        write_cars_split(tmp_path, labels=False)
        with pytest.raises(
            DataError,
            match=r"no file .*cars_test_annos_withlabels.mat; expected it for the labels, which devkit/cars_test_annos.mat does not",
        ):
            load_dataset("cars", "test", tmp_path)

    def test_a_class_outside_the_list_is_named(self, tmp_path: Path) -> None:
        write_cars_split(tmp_path, classes=(3, 1))
        with pytest.raises(
            DataError,
            match=r"withlabels.mat: expected a class from 1 to 2 for 'cars_test/00001.jpg', found 3",
        ):
            load_dataset("cars", "test", tmp_path)

    def test_a_mat_file_that_is_none_or_lacks_a_variable_is_named(self, tmp_path: Path) -> None:
        from scipy.io import savemat

        write_cars_split(tmp_path)
        path = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
        path.write_bytes(b"not matlab" * 40)
        with pytest.raises(DataError, match=r"withlabels.mat is not a MATLAB file that can be read"):
            load_dataset("cars", "test", tmp_path)
        savemat(path, {"other": 1})
        with pytest.raises(DataError, match=r"withlabels.mat: expected a variable `annotations`"):
            load_dataset("cars", "test", tmp_path)
        path.write_bytes((tmp_path / "stanford_cars" / "devkit" / "cars_test_annos.mat").read_bytes())
        with pytest.raises(DataError, match="found no class"):
            load_dataset("cars", "test", tmp_path)


class TestAircraft:
    def test_labels_with_spaces_and_slashes_are_labels_and_no_paths(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        test = load_dataset("aircraft", "test", tmp_path)
        assert [test.class_names[sample.label] for sample in test.samples] == ["F-16A/B", "Boeing 737-700"]

    def test_the_banner_is_cut_off_with_the_part_of_the_box_inside_it(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        test = load_dataset("aircraft", "test", tmp_path)
        assert test[0].size == (50, 40)
        assert test[0].image().shape == (40, 50, 3)
        np.testing.assert_array_equal(test[0].boxes, [[0, 0, 50, 40]])
        assert "without their banner" in test.findings[0].what

    def test_the_cut_image_is_the_stored_one_without_its_last_rows(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        cut, whole = (load_dataset("aircraft", "test", tmp_path, crop_banner=crop) for crop in (True, False))
        np.testing.assert_array_equal(cut[0].image(), whole[0].image()[:40])
        assert cut.fingerprint != whole.fingerprint

    def test_boxes_count_from_one_with_inclusive_ends(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        whole = load_dataset("aircraft", "test", tmp_path, crop_banner=False)
        np.testing.assert_array_equal(whole[0].boxes, [[0, 0, 50, 60]])
        np.testing.assert_array_equal(whole[1].boxes, [[10, 5, 20, 15]])

    def test_a_coarser_level_has_its_own_classes(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        assert load_dataset("aircraft", "test", tmp_path, level="family").class_names == (
            "Boeing 737",
            "F-16",
        )

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_an_unknown_level_is_answered_with_the_nearest_name(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        with pytest.raises(UsageError, match="unknown level 'familly'; did you mean 'family'"):
            load_dataset("aircraft", "test", tmp_path, level="familly")

    def test_trainval_is_not_checked_beside_its_two_halves(self, tmp_path: Path) -> None:
        write_aircraft(tmp_path)
        assert available_splits("aircraft", tmp_path) == ("train", "val", "test")

    @pytest.mark.parametrize(
        ("file", "lines", "message"),
        [
            (
                "images_variant_test.txt",
                ["0000001 Concorde"],
                r"test.txt:1: expected a label of variants.txt, found 'Concorde'",
            ),
            ("images_variant_test.txt", ["0000001"], r"test.txt:1: expected 2 fields"),
            (
                "images_variant_test.txt",
                ["0000001 F-16A/B", "0000001 F-16A/B"],
                r"the image id '0000001.jpg' occurs twice",
            ),
            ("images_variant_test.txt", [], r"names no image"),
            (
                "images_box.txt",
                ["0000002 1 1 5 5"],
                r"images_box.txt: expected a box for every image, found none for '0000001'",
            ),
            ("images_box.txt", ["0000001 9 1 5 5"], r"images_box.txt:1: expected a box with xmin <= xmax"),
        ],
    )
    def test_a_broken_text_file_is_named(
        self, file: str, lines: list[str], message: str, tmp_path: Path
    ) -> None:
        write_aircraft(tmp_path)
        write_lines(tmp_path / "data" / file, lines)
        with pytest.raises(DataError, match=message):
            load_dataset("aircraft", "test", tmp_path)


@pytest.mark.parametrize("head", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64", b"\x89HDF\r\n\x1a\n"])
def test_a_matlab_file_of_version_7_3_is_refused_with_the_way_out(head: bytes, tmp_path: Path) -> None:
    write_cars_joint(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(head.ljust(600, b" "))
    with pytest.raises(
        DataError, match=r"cars_annos.mat is a MATLAB file of version 7.3 .HDF5.; expected version 7"
    ):
        load_dataset("cars", "test", tmp_path)
