from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.datasets.layouts import (
    CUB_IMAGES,
    write_csv_folder,
    write_cub,
    write_image,
    write_lines,
    write_mask,
    write_openimages,
)
from wsolbench.cli.verify import command
from wsolbench.datasets.verify import verify_dataset
from wsolbench.exceptions import UsageError
from wsolbench.report.pictures.data_sheet import _panel
from wsolbench.report.pictures.overlays import TRUE_COLOR
from wsolbench.types import Sample


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], standalone_mode=False)


def test_a_subset_is_sound_and_is_called_one(tmp_path: Path) -> None:
    write_cub(tmp_path)
    result = verify("--dataset", "cub", "--data-root", tmp_path)
    assert result.return_value == 0
    assert "this is a subset: 4 of 11,788 images; sound" in result.output


def test_one_split_is_held_against_that_split(tmp_path: Path) -> None:
    write_cub(tmp_path)
    assert (
        "this is a subset: 2 of 5,794 images"
        in verify("--dataset", "cub", "--data-root", tmp_path, "--split", "test").output
    )


def test_counts_and_the_whole_fingerprint_are_printed(tmp_path: Path) -> None:
    write_cub(tmp_path)
    report = verify_dataset("cub", tmp_path)
    train = report.splits[0]
    assert (train.images, train.usable, train.boxes, train.masks, train.key_points) == (2, 2, 2, 0, 2)
    assert (train.classes_used, train.classes) == (2, 2)
    output = verify("--dataset", "cub", "--data-root", tmp_path).output
    assert all(split.fingerprint in output for split in report.splits)


def test_missing_files_are_counted_by_folder_listed_and_make_the_data_unsound(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    for name in CUB_IMAGES[1:]:
        (home / "images" / name).unlink()
    listing = tmp_path / "missing.txt"
    result = verify("--dataset", "cub", "--data-root", tmp_path, "--list-missing", listing)
    assert result.return_value == 1
    assert "missing  3 files:" in result.output
    assert "1 in images/001.Auk" in result.output
    assert "2 in images/002.Great_Owl" in result.output
    assert "3 of them cannot be used; not sound" in result.output
    assert sorted(listing.read_text().split()) == sorted(f"images/{name}" for name in CUB_IMAGES[1:])


def test_only_the_first_missing_files_are_printed_and_the_rest_is_counted(tmp_path: Path) -> None:
    write_csv_folder(
        tmp_path,
        [f"i{number}.png,0,test" for number in range(25)] + ["a.png,0,test"],
        header="image,label,split",
    )
    result = verify("--dataset", "csvfolder", "--data-root", tmp_path)
    assert "images/i9.png" in result.output
    assert "images/i10.png" not in result.output
    assert "and 15 more; --list-missing FILE writes them all" in result.output


def test_a_split_that_cannot_be_read_is_reported_beside_the_others(tmp_path: Path) -> None:
    write_openimages(tmp_path)
    write_lines(tmp_path / "metadata/OpenImages/val/image_ids.txt", ["a", "a"])
    report = verify_dataset("openimages", tmp_path)
    assert [(split.split, split.sound) for split in report.splits] == [("val", False), ("test", True)]
    result = verify("--dataset", "openimages", "--data-root", tmp_path)
    assert result.return_value == 1
    assert "error    val: " in result.output
    assert "image_ids.txt:2: expected every image once" in result.output


def test_an_image_in_two_splits_is_an_error(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "metadata" / "ILSVRC" / split
        write_lines(folder / "image_ids.txt", ["a.jpg"])
        write_lines(folder / "class_labels.txt", ["a.jpg,0"])
        write_lines(folder / "image_sizes.txt", ["a.jpg,40,30"])
        write_lines(folder / "localization.txt", ["a.jpg,1,1,4,4"])
    write_image(tmp_path / "a.jpg", (40, 30))
    report = verify_dataset("ilsvrc", tmp_path)
    assert [(finding.count, finding.example) for finding in report.findings] == [
        (1, "a.jpg (train and test)")
    ]
    assert not report.sound


def test_a_wrong_root_and_an_unknown_name_are_errors_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is empty"):
        verify_dataset("cub", tmp_path)
    with pytest.raises(UsageError, match="did you mean 'cub'"):
        verify_dataset("cup", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label,split\na.png,0,test\n".encode("utf-16"), "is not UTF-8 text"),
        (b"image,label\na.png,0\n", "expected a header line with the column(s) split"),
        (b"<!DOCTYPE html><html>404</html>\n", "it is a web page, download the file again"),
        (b'image,label,split\n"a.png,0,test\n', "expected comma-separated values"),
        (b"image,label,split\na.png,0,test,1\n", "expected 3 fields as in the header"),
        (b"image,label,split\na.png,owl,test\n", "expected a whole number as label"),
    ],
)
@pytest.mark.parametrize("chosen", [(), ("--split", "test")])
def test_a_table_that_cannot_be_read_is_a_line_of_the_report(
    content: bytes, message: str, chosen: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "annotations.csv").write_bytes(content)
    result = verify("--dataset", "csvfolder", "--data-root", tmp_path, *chosen)
    assert result.return_value == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("error    ")]
    assert message in line
    assert "0 images; not sound" in result.output
    assert f"root: {tmp_path}\n" in result.output


class TestDeep:
    def test_sound_pixels_add_no_finding(self, tmp_path: Path) -> None:
        write_csv_folder(tmp_path)
        report = verify_dataset("csvfolder", tmp_path, deep=True)
        assert report.sound
        assert all(split.findings == () for split in report.splits)

    def test_a_truncated_image_is_found_only_when_looking_deep(self, tmp_path: Path) -> None:
        home = write_cub(tmp_path)
        path = home / "images" / CUB_IMAGES[1]
        write_image(path, (400, 300))
        path.write_bytes(path.read_bytes()[:-2000])
        assert verify_dataset("cub", tmp_path).sound
        result = verify("--dataset", "cub", "--data-root", tmp_path, "--deep")
        assert result.return_value == 1
        assert "1 images that cannot be read" in result.output
        assert "b.jpg is truncated or broken" in result.output

    def test_a_mask_of_another_size_is_found(self, tmp_path: Path) -> None:
        write_csv_folder(tmp_path)
        write_mask(tmp_path / "masks" / "c.png", (10, 20), [(0, 0, 5, 5)])
        (finding,) = verify_dataset("csvfolder", tmp_path, splits=["test"], deep=True).splits[0].findings
        assert (finding.what, finding.severity) == ("masks that cannot be used", "error")

    @pytest.mark.parametrize("on", [1, 100])
    def test_a_mask_without_a_value_of_an_object_is_found(self, on: int, tmp_path: Path) -> None:
        write_csv_folder(tmp_path)
        write_mask(tmp_path / "masks" / "c.png", (20, 10), [(0, 0, 5, 5)], on=on)
        (finding,) = (
            verify_dataset("csvfolder", tmp_path, splits=["test"]).splits[0].findings
        )  # without looking deep
        expected = "with values 0 and 1" if on == 1 else "without a value above 127"
        assert (finding.what, finding.count) == (f"masks {expected}; an object pixel should be 255", 1)
        assert finding.severity == "error"
        _, deep = verify_dataset("csvfolder", tmp_path, splits=["test"], deep=True).splits[0].findings
        assert deep.what == "masks without an object pixel"

    def test_a_mask_of_zeros_among_others_is_left_to_the_deep_look_and_nothing_but_zeros_is_not(
        self, tmp_path: Path
    ) -> None:
        write_csv_folder(tmp_path)
        write_mask(tmp_path / "masks" / "c.png", (20, 10), [])
        assert verify_dataset("csvfolder", tmp_path, splits=["test"]).sound
        for name in ("d0.png", "d1.png"):
            write_mask(tmp_path / "masks" / name, (20, 10), [])
        assert not verify_dataset("csvfolder", tmp_path, splits=["test"]).sound

    @pytest.mark.parametrize(("on", "count"), [(255, 0), (1, 1)])
    def test_an_ignore_mask_of_zeros_and_ones_is_found_and_one_of_zeros_may_be_meant(
        self, on: int, count: int, tmp_path: Path
    ) -> None:
        header = "image,label,split,mask,ignore"
        write_csv_folder(tmp_path, ["a.png,0,test,c.png,i.png", "b.png,0,test,c.png,z.png"], header=header)
        write_mask(tmp_path / "masks" / "i.png", (20, 10), [(9, 0, 12, 5)], on=on)
        write_mask(tmp_path / "masks" / "z.png", (20, 10), [])
        findings = verify_dataset("csvfolder", tmp_path).splits[0].findings
        assert [finding.count for finding in findings] == [1] * count
        assert all(
            "ignore masks with values 0 and 1; an ignored pixel should be 255" in finding.what
            for finding in findings
        )

    def test_of_many_masks_a_few_that_are_spread_evenly_are_looked_at(self, tmp_path: Path) -> None:
        rows = [f"{number}.png,0,test,20,10,1,1,9,9,m.png" for number in range(65)]
        rows[64] = "64.png,0,test,20,10,1,1,9,9,n.png"
        write_csv_folder(tmp_path, rows)
        for number in range(65):
            (tmp_path / "images" / f"{number}.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
        write_mask(tmp_path / "masks" / "m.png", (20, 10), [(1, 1, 9, 9)])
        write_mask(tmp_path / "masks" / "n.png", (20, 10), [(1, 1, 9, 9)], on=1)
        (finding,) = verify_dataset("csvfolder", tmp_path).splits[0].findings
        assert (finding.count, "of 33 that were checked" in finding.what) == (1, True)

    def test_a_mask_without_background_and_an_ignore_mask_over_everything_are_found(
        self, tmp_path: Path
    ) -> None:
        write_csv_folder(
            tmp_path,
            ["a.png,0,test,w.png,", "b.png,0,test,c.png,w.png", "d.png,0,test,c.png,c.png"],
            header="image,label,split,mask,ignore",
        )
        write_mask(tmp_path / "masks" / "w.png", (20, 10), [(0, 0, 20, 10)])
        assert verify_dataset("csvfolder", tmp_path).sound
        findings = verify_dataset("csvfolder", tmp_path, deep=True).splits[0].findings
        assert [
            (finding.severity, finding.what.partition(":")[0], finding.example) for finding in findings
        ] == [
            ("error", "masks without a background pixel", "a.png"),
            ("warning", "ignore masks over the whole image", "b.png"),
        ]

    def test_a_shrunken_copy_is_noted_and_sound(self, tmp_path: Path) -> None:
        write_csv_folder(tmp_path, ["a.png,0,test,200,100,0,0,150,90,"])
        report = verify_dataset("csvfolder", tmp_path, deep=True)
        assert report.sound
        assert report.splits[0].findings[0].severity == "note"
        assert "file 20x10, annotations 200x100" in report.splits[0].findings[0].example

    def test_every_image_passes_through_the_progress_bar(self, tmp_path: Path) -> None:
        write_csv_folder(tmp_path)
        seen: list[tuple[str, int, int]] = []

        def around(images: object, split: str, count: int) -> list[object]:
            gone_through = list(images)  # type: ignore[call-overload]
            seen.append((split, count, len(gone_through)))
            return gone_through

        verify_dataset("csvfolder", tmp_path, deep=True, around=around)  # type: ignore[arg-type]
        assert seen == [("train", 2, 2), ("test", 2, 2)]


def test_a_contact_sheet_of_each_split_shows_the_boxes_as_they_are_read(tmp_path: Path) -> None:
    root, out = tmp_path / "mine", tmp_path / "sheets"
    write_csv_folder(root)
    (root / "images/b.png").write_text("no image")
    result = verify("--dataset", "csvfolder", "--data-root", root, "--pictures", out)
    assert sorted(path.name for path in out.iterdir()) == ["mine_test.png", "mine_train.png"]
    assert f"picture  {out / 'mine_test.png'}" in result.output
    with Image.open(out / "mine_test.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    green = np.abs(pixels - TRUE_COLOR).sum(axis=2) < 60
    assert green.any()


def test_boxes_on_a_sheet_are_where_the_annotations_have_them() -> None:
    pixels = np.full((50, 100, 3), 255, dtype=np.uint8)
    sample = Sample(id="a", label=0, array=pixels, boxes=np.array([[10.0, 5.0, 90.0, 45.0]]))
    drawn = _panel(sample, ("only",)).pixels  # 200 x 100 in the middle of a square of 200
    rows, columns = np.nonzero((drawn == TRUE_COLOR).all(axis=2))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (60, 140, 20, 180)
