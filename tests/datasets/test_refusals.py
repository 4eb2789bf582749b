"""Invalid numbers, paths and files are rejected or reported in every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.datasets.coco_layout import write_coco
from tests.datasets.layouts import (
    CUB_IMAGES,
    WNIDS,
    voc_xml,
    write_aircraft,
    write_cars_joint,
    write_cars_split,
    write_csv_folder,
    write_cub,
    write_ilsvrc_official,
    write_image,
    write_lines,
    write_openimages,
)
from wsolbench.cli import score
from wsolbench.cli.verify import command as verify
from wsolbench.datasets import load_dataset
from wsolbench.datasets.coco import load_instances
from wsolbench.datasets.verify import verify_dataset
from wsolbench.exceptions import DataError


class TestCub:
    @pytest.mark.parametrize("value", ["2", "1.0", "-1", "yes"])
    def test_a_split_that_is_neither_0_nor_1_is_refused(self, value: str, tmp_path: Path) -> None:
        home = write_cub(tmp_path)
        write_lines(home / "train_test_split.txt", ["1 1", "2 0", f"3 {value}", "4 0"])
        with pytest.raises(DataError, match=r"train_test_split.txt:3: expected is_training to be 1 or 0"):
            load_dataset("cub", "train", tmp_path)

    def test_white_space_and_the_order_of_lines_make_no_difference(self, tmp_path: Path) -> None:
        home = write_cub(tmp_path)
        before = load_dataset("cub", "test", tmp_path)
        for path in (*home.glob("*.txt"), home / "parts" / "parts.txt"):
            write_lines(path, [f" {line} \t" for line in reversed(path.read_text().splitlines())])
        after = load_dataset("cub", "test", tmp_path)
        assert (after.fingerprint, after.class_names, after.key_point_names) == (
            before.fingerprint,
            before.class_names,
            before.key_point_names,
        )

    @pytest.mark.parametrize(
        "lines",
        [["1 001.Auk", "1 002.Owl"], ["1 001.Auk", "3 002.Owl"], ["1 a", "100000000 b"], ["1 a", "x b"]],
    )
    @pytest.mark.parametrize("file", ["classes.txt", "parts/parts.txt"])
    def test_numbers_that_repeat_or_leave_gaps_are_refused(
        self, file: str, lines: list[str], tmp_path: Path
    ) -> None:
        write_lines(write_cub(tmp_path) / file, lines)
        with pytest.raises(DataError, match=file.rpartition("/")[2]):
            load_dataset("cub", "test", tmp_path)

    def test_a_part_that_is_there_twice_in_place_of_another_is_refused(self, tmp_path: Path) -> None:
        path = write_cub(tmp_path) / "parts" / "part_locs.txt"
        lines = path.read_text().splitlines()
        write_lines(path, [*lines[:-1], lines[-2]])
        with pytest.raises(DataError, match=r"part_locs.txt:8: expected every part of an image once"):
            load_dataset("cub", "test", tmp_path)


@pytest.mark.parametrize(
    ("file", "line"), [("images_box.txt", "0000002 1 1 5 5"), ("variants.txt", "F-16A/B")]
)
def test_a_repeated_line_of_aircraft_is_refused(file: str, line: str, tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    path = tmp_path / "data" / file
    write_lines(path, [*path.read_text().splitlines(), line])
    with pytest.raises(DataError, match=rf"{file}:3: expected every (image|class) once"):
        load_dataset("aircraft", "test", tmp_path)


class TestCars:
    def test_the_packaging_whose_images_are_there_is_taken(self, tmp_path: Path) -> None:
        write_cars_split(tmp_path)
        home = tmp_path / "stanford_cars"
        before = load_dataset("cars", "test", home)
        write_cars_joint(home)
        for path in (home / "car_ims").iterdir():
            path.unlink()
        assert load_dataset("cars", "test", home).fingerprint == before.fingerprint

    @pytest.mark.parametrize(
        ("field", "value"),
        [("class", 2.7), ("bbox_x2", np.inf), ("bbox_y1", np.nan), ("fname", 5), ("bbox_x1", "a")],
    )
    def test_values_that_mean_nothing_are_refused(self, field: str, value: Any, tmp_path: Path) -> None:
        from scipy.io import loadmat, savemat

        write_cars_split(tmp_path)
        path = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
        rows = loadmat(path, squeeze_me=True)["annotations"]
        rows[1][field] = value
        savemat(path, {"annotations": rows})
        with pytest.raises(DataError, match=rf"withlabels.mat: expected .*`{field}`"):
            load_dataset("cars", "test", tmp_path)


@pytest.mark.parametrize(
    ("old", "new"), [("<xmax>20", "<xmax>inf"), ("<ymin>3", "<ymin>nan"), ("<xmin>1", "<xmin>1_0_0x")]
)
def test_corners_of_xml_that_are_not_finite_are_refused(old: str, new: str, tmp_path: Path) -> None:
    write_ilsvrc_official(tmp_path, kaggle=False)
    text = voc_xml(WNIDS[0], (50, 40), [(1, 3, 20, 9)]).replace(old, new)
    write_lines(tmp_path / "Annotations" / "val" / "ILSVRC2012_val_00000001.xml", [text])
    with pytest.raises(DataError, match=r"expected (finite )?numbers in"):
        load_dataset("ilsvrc", "test", tmp_path)


CSV_ROWS = {
    "a label for gigabytes": (
        "a.png,100000000,test,20,10,1,1,5,5,",
        "expected a label below 100,000, found 100000000",
    ),
    "a frame for gigabytes": (
        "a.png,0,test,65535,65535,1,1,5,5,",
        "has 65535x65535 pixels in the annotations; expected at most",
    ),
    "a number with an underscore": (
        "a.png,0,test,20,10,1_0,1,15,5,",
        "expected a finite number as x0, found '1_0'",
    ),
    "a mask above the root": (
        "a.png,0,test,20,10,1,1,5,5,../../m.png",
        "expected a path inside the data root as mask",
    ),
    "an absolute mask": (
        "a.png,0,test,20,10,1,1,5,5,/etc/m.png",
        "expected a path inside the data root as mask",
    ),
    "an id of 300 bytes": (f"{'a' * 300}.png,0,test,20,10,1,1,5,5,", "at most 255 bytes in a name"),
    "an id of 300 bytes in other letters": (
        f"{'ä' * 150}.png,0,test,20,10,1,1,5,5,",
        "at most 255 bytes in a name",
    ),
    "an id with a line break": ('"a\nb.png",0,test,20,10,1,1,5,5,', "control characters"),
    "the same file under another id": ("./a.png,0,test,20,10,1,1,5,5,", "expected a relative path"),
}


@pytest.mark.parametrize("case", CSV_ROWS)
def test_a_row_of_a_csv_that_means_nothing_is_refused(case: str, tmp_path: Path) -> None:
    row, message = CSV_ROWS[case]
    write_csv_folder(tmp_path, [row], classes=None)
    with pytest.raises(DataError, match=message):
        load_dataset("csvfolder", "test", tmp_path)


def test_masks_of_the_metadata_stay_in_the_data_root(tmp_path: Path) -> None:
    write_openimages(tmp_path, ["test/01226z/aa.jpg,../m.png,test/01226z/aa_ignore.png"])
    with pytest.raises(DataError, match=r"localization.txt:1: expected a path inside the data root as mask"):
        load_dataset("openimages", "test", tmp_path)


class TestCoco:
    def change(self, root: Path, **changes: Any) -> Path:
        path = write_coco(root, "val") / "annotations" / "instances_val.json"
        values = json.loads(path.read_text())
        for name, (index, fields) in changes.items():
            values[name][index] |= fields
        path.write_text(json.dumps(values))
        return root

    @pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../b.png", "a" * 300 + ".png"])
    def test_file_names_stay_in_their_folder(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has the file_name .*expected text, a relative path"):
            load_instances(self.change(tmp_path, images=(0, {"file_name": name})), "val")

    def test_a_size_for_gigabytes_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has 65535x65535 pixels; expected at most"):
            load_instances(self.change(tmp_path, images=(0, {"width": 65535, "height": 65535})), "val")

    @pytest.mark.parametrize("counts", ["0", "", "PPPPPP", "ZZZ0", "é", "\x00", "o" * 40])
    def test_run_lengths_that_do_not_cover_the_image_are_refused(self, counts: str, tmp_path: Path) -> None:
        root = self.change(tmp_path, annotations=(0, {"segmentation": {"size": [56, 64], "counts": counts}}))
        with pytest.raises(DataError, match="has the segmentation"):
            load_instances(root, "val")

    def test_run_lengths_of_every_mask_are_accepted(self, tmp_path: Path) -> None:
        from wsolbench.datasets.coco import mask_run_lengths
        from wsolbench.datasets.formats.segmentations import is_segmentation

        rng = np.random.default_rng(0)
        for share in (0.0, 0.01, 0.5, 0.99, 1.0):
            for height, width in ((1, 1), (5, 7), (56, 64), (300, 400)):
                assert is_segmentation(mask_run_lengths(rng.random((height, width)) < share), (width, height))
                assert not is_segmentation(
                    mask_run_lengths(rng.random((height, width)) < share), (width + 1, height)
                )


class TestMissing:
    def test_dead_links_are_missing_files(self, tmp_path: Path) -> None:
        write_csv_folder(tmp_path)
        (tmp_path / "images" / "d.png").unlink()
        (tmp_path / "images" / "d.png").symlink_to("/no/such/store/d.png")
        report = verify_dataset("csvfolder", tmp_path, splits=["test"])
        assert not report.sound
        assert report.missing_names() == ["images/d.png"]
        assert load_dataset("csvfolder", "test", tmp_path, missing="skip").ids == ("sub/c.png",)
        with pytest.raises(DataError, match=r"a dangling link to /no/such/store/d.png"):
            load_dataset("csvfolder", "test", tmp_path)

    def test_every_unreadable_file_is_listed(self, tmp_path: Path) -> None:
        home = write_cub(tmp_path)
        for name in CUB_IMAGES[:3]:
            (home / "images" / name).write_bytes(b"")
        listing = tmp_path / "missing.txt"
        arguments = ["--dataset", "cub", "--data-root", str(tmp_path), "--list-missing", str(listing)]
        result = CliRunner().invoke(verify, arguments, standalone_mode=False)
        assert result.return_value == 1
        assert "broken   3 files that cannot be read:" in result.output
        assert sorted(listing.read_text().splitlines()) == [f"images/{name}" for name in CUB_IMAGES[:3]]
        with pytest.raises(DataError, match=r"2 image files cannot be read: .*a.jpg.*c.jpg"):
            load_dataset("cub", "train", tmp_path)

    def test_score_names_its_own_option_and_scores_the_rest_with_it(self, tmp_path: Path) -> None:
        home = write_cub(tmp_path)
        (home / "images" / CUB_IMAGES[1]).unlink()
        (tmp_path / "maps" / "002.Great_Owl").mkdir(parents=True)
        np.save(tmp_path / "maps" / f"{CUB_IMAGES[3]}.npy", np.eye(5, dtype=np.float32))
        arguments = [
            "--maps",
            "maps",
            "--dataset",
            "cub",
            "--data-root",
            ".",
            "--out",
            "out",
            "--resamples",
            "100",
            "--workers",
            "1",
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            with pytest.raises(DataError, match=r"are missing .*Or add --allow-partial") as error:
                CliRunner().invoke(score.command, arguments, standalone_mode=False, catch_exceptions=False)
            assert "missing=" not in str(error.value)
            result = CliRunner().invoke(
                score.command, [*arguments, "--allow-partial"], standalone_mode=False, catch_exceptions=False
            )
        assert result.exit_code == 0
        (record,) = (tmp_path / "out").rglob("*wsoleval*.json")
        assert json.loads(record.read_text())["dataset"]["images"] == 1


class TestOrientation:
    def image(self, path: Path, orientation: int, size: tuple[int, int] = (120, 80)) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size).save(path, exif=exif)

    def findings(self, root: Path, row: str, *, deep: bool) -> list[tuple[str, str]]:
        write_lines(root / "annotations.csv", ["image,label,split,width,height,x0,y0,x1,y1", row])
        (split,) = verify_dataset("csvfolder", root, deep=deep).splits
        return [(finding.severity, finding.what) for finding in split.findings]

    @pytest.mark.parametrize("orientation", [5, 6, 7, 8])
    @pytest.mark.parametrize("size", ["80,120", ","])
    def test_annotations_as_shown_are_a_warning_with_the_cause(
        self, size: str, orientation: int, tmp_path: Path
    ) -> None:
        self.image(tmp_path / "a.jpg", orientation)
        for deep in (False, True):
            findings = self.findings(tmp_path, f"a.jpg,0,test,{size},10,20,40,110", deep=deep)
            assert ("warning", True) in [
                (severity, "as viewers show them" in what) for severity, what in findings
            ]

    @pytest.mark.parametrize("deep", [False, True])
    def test_annotations_with_sides_exchanged_are_a_warning_that_does_not_blame_an_orientation(
        self, deep: bool, tmp_path: Path
    ) -> None:
        self.image(tmp_path / "a.jpg", 1)
        (finding,) = self.findings(tmp_path, "a.jpg,0,test,80,120,10,20,40,60", deep=deep)
        assert finding == ("warning", "images whose annotations have width and height exchanged")

    @pytest.mark.parametrize(("box", "scaled"), [("10,20,400,60", True), (",,,", False)])
    def test_boxes_are_said_to_be_scaled_only_where_there_are_boxes(
        self, box: str, scaled: bool, tmp_path: Path
    ) -> None:
        self.image(tmp_path / "a.jpg", 1)
        (finding,) = self.findings(tmp_path, f"a.jpg,0,test,480,320,{box}", deep=True)
        assert ("boxes are scaled" in finding[1]) is scaled

    def test_another_ratio_is_a_warning_and_a_smaller_copy_a_note(self, tmp_path: Path) -> None:
        self.image(tmp_path / "a.jpg", 1)
        assert [
            severity
            for severity, _ in self.findings(tmp_path, "a.jpg,0,test,500,500,10,20,400,60", deep=True)
        ] == ["warning"]
        assert [
            severity
            for severity, _ in self.findings(tmp_path, "a.jpg,0,test,481,320,10,20,400,60", deep=True)
        ] == ["note"]
        assert self.findings(tmp_path, "a.jpg,0,test,120,80,10,20,40,60", deep=True) == []

    def test_kinds_of_pixels_are_named_by_the_deep_look(self, tmp_path: Path) -> None:
        write_image(tmp_path / "a.png", (20, 10))
        Image.fromarray(np.full((10, 20), 40_000, np.uint16)).save(tmp_path / "a.png")
        (finding,) = self.findings(tmp_path, "a.png,0,test,20,10,1,1,9,9", deep=True)
        assert finding == ("warning", "images with 16-bit pixels: scaled to 8 bits")
