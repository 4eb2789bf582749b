"""Behaviour for image and mask files that are missing, broken or of another size."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.datasets.layouts import CUB_IMAGES, write_csv_folder, write_cub, write_image, write_mask
from wsolbench.datasets import load_dataset
from wsolbench.datasets.annotations import Record
from wsolbench.datasets.base import assemble, compute_fingerprint
from wsolbench.exceptions import DataError
from wsolbench.types import Sample


def test_missing_images_are_refused_with_their_number_the_first_names_and_the_way_out(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    (home / "images" / CUB_IMAGES[1]).unlink()
    with pytest.raises(
        DataError, match=r"1 files of 2 images are missing .*b\.jpg.*wsolbench verify.*missing='skip'"
    ):
        load_dataset("cub", "test", tmp_path)


def test_a_root_without_any_image_says_so(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    for name in CUB_IMAGES:
        (home / "images" / name).unlink()
    with pytest.raises(DataError, match=r"none of the 2 files is under .*Is this the right data root\?"):
        load_dataset("cub", "test", tmp_path)


def test_skipping_leaves_out_exactly_the_images_whose_files_are_missing_and_says_which(
    tmp_path: Path,
) -> None:
    home = write_cub(tmp_path)
    (home / "images" / CUB_IMAGES[1]).unlink()
    complete = load_dataset("cub", "train", tmp_path)
    partial = load_dataset("cub", "test", tmp_path, missing="skip")
    assert partial.ids == (CUB_IMAGES[3],)
    assert partial.left_out == (CUB_IMAGES[1],)
    assert [path.name for path in partial.missing] == ["b.jpg"]
    assert complete.left_out == complete.missing == ()


def test_keeping_images_without_a_file_needs_their_sizes(tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    (home / "images" / CUB_IMAGES[1]).unlink()
    with pytest.raises(DataError, match="are missing"):
        load_dataset("cub", "test", tmp_path, missing="keep")


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named_and_when_skipping_reported(content: bytes, tmp_path: Path) -> None:
    home = write_cub(tmp_path)
    (home / "images" / CUB_IMAGES[1]).write_bytes(content)
    with pytest.raises(DataError, match=r"b\.jpg"):
        load_dataset("cub", "test", tmp_path)
    partial = load_dataset("cub", "test", tmp_path, missing="skip")
    assert partial.left_out == (CUB_IMAGES[1],)
    assert [(finding.count, finding.severity) for finding in partial.findings] == [(1, "error")]


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_image_is_an_error_and_never_half_grey(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, (64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"image 'a': .*a\{suffix} is truncated or broken"):
        Sample(id="a", label=0, path=path).image()


def test_a_missing_file_and_a_folder_in_its_place_are_errors_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 'a': no file"):
        Sample(id="a", label=0, path=tmp_path / "a.jpg").image()
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(DataError, match="is a folder; expected a file"):
        Sample(id="a", label=0, path=tmp_path / "a.jpg").image()


def test_an_image_that_claims_to_be_enormous_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", (40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too large to be safe"):
        Sample(id="a", label=0, path=tmp_path / "a.png").image()


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", ".jpg"), ("CMYK", ".jpg"), ("L", ".png"), ("P", ".png"), ("RGBA", ".png"), ("1", ".png")],
)
def test_every_mode_becomes_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    write_image(tmp_path / f"a{suffix}", (7, 5), mode)
    pixels = Sample(id="a", label=0, path=tmp_path / f"a{suffix}").image()
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable


def test_a_png_named_jpeg_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", (7, 5))
    (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    assert Sample(id="a", label=0, path=tmp_path / "a.JPEG").image().shape == (5, 7, 3)


def test_the_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate it by a quarter turn
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    sample = Sample(id="a", label=0, path=tmp_path / "a.jpg")
    assert sample.image().shape == (4, 8, 3)
    assert sample.size == (8, 4)


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    write_mask(tmp_path / "masks" / "c.png", (10, 20), [(0, 0, 5, 5)])
    with pytest.raises(DataError, match=r"mask .*c\.png is 10x20, but its image 'sub/c\.png' is 20x10"):
        load_dataset("csvfolder", "test", tmp_path)[0].mask()


def test_a_mask_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_csv_folder(tmp_path)
    (tmp_path / "masks" / "c.png").write_bytes(b"mask")
    with pytest.raises(DataError, match=r"mask of 'sub/c\.png': .* is not an image"):
        load_dataset("csvfolder", "test", tmp_path)[0].mask()


class TestSize:
    def test_without_a_size_the_header_is_read_when_first_asked_for(self, tmp_path: Path) -> None:
        sample = Sample(id="a", label=0, path=tmp_path / "a.png")
        write_image(tmp_path / "a.png", (9, 6))
        assert sample.size == (9, 6)

    def test_a_given_size_never_touches_the_file(self) -> None:
        assert Sample(id="a", label=0, size=(3, 4), path=Path("/nowhere")).size == (3, 4)

    def test_pixels_in_memory_have_their_own_size(self) -> None:
        assert Sample(id="a", label=0, array=np.zeros((5, 7, 3), dtype=np.uint8)).size == (7, 5)

    def test_a_crop_is_the_image_and_its_size(self) -> None:
        pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
        sample = Sample(id="a", label=0, array=pixels, crop=(1, 2, 6, 5))
        assert sample.size == (5, 3)
        np.testing.assert_array_equal(sample.image(), pixels[2:5, 1:6])

    def test_copies_and_pickles_keep_it(self) -> None:
        sample = Sample(id="a", label=0, size=(3, 4))
        assert dataclasses.replace(sample, label=1).size == (3, 4)
        assert pickle.loads(pickle.dumps(sample)).size == (3, 4)

    def test_a_sample_without_anything_says_so(self) -> None:
        with pytest.raises(DataError, match="'a' has neither a size nor pixels nor a path"):
            _ = Sample(id="a", label=0).size


boxes = st.tuples(*(st.floats(-50, 150, allow_nan=False) for _ in range(4)))


@given(st.lists(st.lists(boxes, max_size=4), min_size=1, max_size=5))
def test_boxes_end_up_inside_the_image_or_among_the_findings(
    tmp_path_factory: pytest.TempPathFactory, given_boxes: list[list[tuple[float, ...]]]
) -> None:
    root = tmp_path_factory.mktemp("boxes")
    (root / "a").touch()
    records = [
        Record(id=f"{number}", label=0, path=f"{root}/a", size=(100, 80), boxes=own)
        for number, own in enumerate(given_boxes)
    ]
    dataset = assemble("x", "test", root, records, ["only"])
    counts = {finding.what.partition(":")[0]: finding.count for finding in dataset.findings}
    kept = sum(len(sample.boxes) for sample in dataset.samples)
    assert kept + counts.get("boxes without area inside the image", 0) == sum(map(len, given_boxes))
    untouched = sum(
        0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 80 for own in given_boxes for x0, y0, x1, y1 in own
    )
    assert kept - counts.get("boxes that exceed the image", 0) == untouched
    for sample in dataset.samples:
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= [100, 80]).all()
        assert (sample.boxes[:, :2] < sample.boxes[:, 2:]).all()


class TestFingerprint:
    base = Sample(
        id="a",
        label=1,
        size=(10, 20),
        boxes=np.array([[1.0, 2.0, 3.0, 4.0]]),
        key_points=np.array([[1.0, 2.0, 1.0]]),
    )

    @pytest.mark.parametrize(
        "change",
        [
            {"id": "b"},
            {"label": 2},
            {"size": (20, 10)},
            {"boxes": np.array([[1.0, 2.0, 3.0, 4.5]])},
            {"boxes": np.array([[1.0, 2.0, 3.0, 4.0]] * 2)},
            {"mask_paths": (Path("m.png"),)},
            {"ignore_path": Path("m.png")},
            {"key_points": np.array([[1.0, 2.0, 0.0]])},
            {"key_points": None},
        ],
    )
    def test_every_annotation_enters_it(self, change: dict[str, object]) -> None:
        assert compute_fingerprint([dataclasses.replace(self.base, **change)]) != compute_fingerprint(
            [self.base]
        )

    def test_where_the_files_lie_does_not(self) -> None:
        moved = dataclasses.replace(self.base, path=Path("/elsewhere/a.jpg"))
        assert compute_fingerprint([moved]) == compute_fingerprint([self.base])

    def test_the_order_of_the_images_does(self) -> None:
        other = dataclasses.replace(self.base, id="b")
        assert compute_fingerprint([self.base, other]) != compute_fingerprint([other, self.base])

    def test_it_is_the_same_on_every_machine(self) -> None:
        assert compute_fingerprint([self.base]) == "c6cc514b513be42d"
