from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.datasets.layouts import write_image, write_mask, write_metadata, write_openimages
from wsolbench.datasets import load_dataset
from wsolbench.exceptions import DataError

IMAGE = "test/01226z/aa.jpg"
MASK = "test/01226z/aa_m01226z_1.png"
IGNORE = "test/01226z/aa_ignore.png"


def test_the_object_is_the_union_of_the_instances_in_the_frame_of_the_masks(tmp_path: Path) -> None:
    write_openimages(tmp_path)
    sample = load_dataset("openimages", "test", tmp_path)[0]
    mask = sample.mask()
    assert sample.size == (20, 10)
    assert sample.image().shape == (20, 40, 3)
    assert mask is not None
    assert mask.shape == (10, 20)
    assert mask.sum() == 32


def test_where_ignore_and_object_overlap_the_pixel_counts_as_object(tmp_path: Path) -> None:
    write_openimages(tmp_path)
    sample = load_dataset("openimages", "test", tmp_path)[0]
    mask, ignored = sample.mask(), sample.ignore()
    assert mask is not None
    assert ignored is not None
    assert not (mask & ignored).any()
    assert ignored.sum() == 6 * 10 - 2 * 4


def test_classes_are_named_by_their_folders(tmp_path: Path) -> None:
    write_openimages(tmp_path)
    dataset = load_dataset("openimages", "test", tmp_path)
    assert (len(dataset.class_names), dataset.class_names[0]) == (100, "01226z")


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ([f"{IMAGE},{MASK},"], 1),
        ([f"{IMAGE},{MASK},{IGNORE}", f"{IMAGE},{MASK},{IGNORE}"], 2),
    ],
)
def test_the_ignore_mask_stands_on_the_first_line_of_an_image_only(
    lines: list[str], line: int, tmp_path: Path
) -> None:
    write_openimages(tmp_path, lines)
    with pytest.raises(
        DataError, match=rf"localization.txt:{line}: expected an ignore mask on the first line"
    ):
        load_dataset("openimages", "test", tmp_path)


@pytest.mark.parametrize("name", [IGNORE, MASK, IMAGE])
def test_a_missing_file_of_any_kind_is_an_error_and_never_an_empty_mask(name: str, tmp_path: Path) -> None:
    write_openimages(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"1 files of 1 images are missing.*{name}"):
        load_dataset("openimages", "test", tmp_path)


def test_masks_of_two_sizes_are_refused_when_they_are_read(tmp_path: Path) -> None:
    write_openimages(tmp_path)
    write_mask(tmp_path / IGNORE, (10, 20), [(0, 0, 5, 5)])
    with pytest.raises(DataError, match=r"aa_ignore.png is 10x20, but its image .* is 20x10"):
        load_dataset("openimages", "test", tmp_path)[0].ignore()


def test_a_training_image_has_a_label_and_its_size_is_read_when_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "train/01226z/b.jpg", (30, 20))
    write_metadata(tmp_path / "metadata" / "train", {"train/01226z/b.jpg": 0}, {}, [])
    dataset = load_dataset("openimages", "train", tmp_path)
    assert not dataset.has_boxes
    assert dataset[0].mask() is None
    fingerprint = dataset.fingerprint
    assert dataset[0].size == (30, 20)
    assert load_dataset("openimages", "train", tmp_path).fingerprint == fingerprint


def test_equal_masks_under_other_names_are_another_fingerprint(tmp_path: Path) -> None:
    write_openimages(tmp_path / "one")
    write_openimages(tmp_path / "two", [f"{IMAGE},{MASK},{IGNORE}"])
    prints = [load_dataset("openimages", "test", tmp_path / name).fingerprint for name in ("one", "two")]
    assert prints[0] != prints[1]
    np.testing.assert_equal(len(prints[0]), 16)
