"""The loaders on real files. Skipped if the files are not on this disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsolbench.datasets import load_dataset
from wsolbench.datasets.verify import verify_dataset
from wsolbench.exceptions import DataError

pytestmark = pytest.mark.data


@pytest.fixture
def root(request: pytest.FixtureRequest, real_data: Path) -> Path:
    folder = real_data / str(request.param)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def at(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("root", [name], indirect=True)


@at("cub50")
def test_cub50_is_a_sound_subset_with_the_official_split(root: Path) -> None:
    report = verify_dataset("cub", root)
    assert report.sound
    assert [(split.split, split.images, split.boxes, split.classes_used) for split in report.splits] == [
        ("train", 1500, 1500, 50),
        ("test", 1389, 1389, 50),
    ]
    assert (report.images, report.expected) == (2889, 11788)


@at("cub50")
def test_nearly_every_visible_part_of_a_cub_bird_lies_in_its_box(root: Path) -> None:
    inside = total = 0
    for sample in load_dataset("cub", "test", root).samples:
        assert sample.key_points is not None
        assert sample.key_points.shape == (15, 3)
        x, y = sample.key_points[sample.key_points[:, 2] > 0, :2].T
        x0, y0, x1, y1 = sample.boxes[0]
        inside += int(((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).sum())
        total += len(x)
    assert inside / total > 0.97


@at("cub_original_mini")
def test_an_incomplete_download_of_cub_is_refused_and_every_missing_file_listed(root: Path) -> None:
    with pytest.raises(DataError, match="5,782 files of 5,794 images are missing"):
        load_dataset("cub", "test", root)
    report = verify_dataset("cub", root)
    assert not report.sound
    assert len(report.missing_names()) == 11764
    assert sum(report.missing_by_folder().values()) == 11764
    assert [(split.images, split.usable) for split in report.splits] == [(5994, 12), (5794, 12)]
    assert report.images == report.expected


@at("cub_original_mini")
def test_the_first_cub_image_has_the_box_that_wsolevaluation_has(root: Path) -> None:
    first = load_dataset("cub", "test", root, missing="skip")[0]
    np.testing.assert_array_equal(first.boxes, [[60, 27, 385, 331]])


@at("butterflies")
def test_butterfly_boxes_are_exactly_those_of_their_masks(root: Path) -> None:
    dataset = load_dataset("butterflies", "test", root)
    for sample in dataset.samples[::10]:
        mask = sample.mask()
        assert mask is not None
        rows, columns = np.nonzero(mask)
        np.testing.assert_array_equal(
            sample.boxes, [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
        )


@at("butterflies")
def test_butterflies_are_complete_and_sound_to_the_last_pixel(root: Path) -> None:
    report = verify_dataset("butterflies", root, deep=True)
    assert report.sound
    assert report.images == report.expected == 832
    assert all(split.findings == () for split in report.splits)


@at("ilsvrc_mini")
def test_ilsvrc_boxes_lie_in_the_original_frame_though_the_files_are_warped(root: Path) -> None:
    dataset = load_dataset("ilsvrc", "test", root)
    assert (len(dataset), len(dataset.class_names), dataset.findings) == (300, 1000, ())
    assert sum(len(sample.boxes) > 1 for sample in dataset.samples) == 120
    assert max(sample.size[0] for sample in dataset.samples) > 227
    assert dataset[0].image().shape == (227, 227, 3)
