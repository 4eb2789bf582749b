"""The generated data set: the same for everybody, exact in its annotations, and different between classes in small parts only."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from wsolbench.datasets import load_dataset
from wsolbench.datasets import toybirds as module
from wsolbench.datasets._toybirds_bird import KINDS, PART_NAMES
from wsolbench.datasets._toybirds_render import labels_of, render
from wsolbench.exceptions import DataError, UsageError

TINY = {"train": 24, "val": 12, "test": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toybirds")
    load_dataset("toybirds", "train", folder, size=64, counts=TINY, workers=2)
    return folder


def tiny(root: Path, split: str):
    return load_dataset("toybirds", split, root, size=64, counts=TINY)


def digest(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def only_folder(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


def test_every_class_is_as_frequent_and_splits_hold_what_was_asked_for(root: Path) -> None:
    for split, count in TINY.items():
        data = tiny(root, split)
        assert len(data) == count
        assert set(Counter(sample.label for sample in data.samples).values()) == {count // len(KINDS)}
        assert data.class_names == tuple(kind.name for kind in KINDS)
        assert set(data.key_point_names) == set(PART_NAMES)
        assert not data.findings


def test_the_number_of_processes_changes_no_byte(root: Path, tmp_path: Path) -> None:
    load_dataset("toybirds", "train", tmp_path, size=64, counts=TINY, workers=1)
    assert digest(only_folder(tmp_path)) == digest(only_folder(root))


def test_another_seed_and_another_split_give_other_images() -> None:
    images = [render(seed, split, 0, KINDS[0], 64).image for seed, split in ((0, "train"), (1, "train"), (0, "val"))]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_boxes_are_the_extent_of_the_masks(root: Path) -> None:
    for sample in tiny(root, "train").samples:
        assert len(sample.boxes) == len(sample.mask_paths)
        mask = sample.mask()
        assert mask is not None
        union = np.array([*sample.boxes[:, :2].min(axis=0), *sample.boxes[:, 2:].max(axis=0)])
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        np.testing.assert_array_equal(union, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_visible_key_points_lie_on_a_bird_and_there_are_many(root: Path) -> None:
    visible = 0
    for sample in tiny(root, "train").samples:
        mask = sample.mask()
        assert mask is not None
        assert sample.key_points is not None
        for x, y, shown in sample.key_points:
            if shown:
                visible += 1
                assert mask[int(y), int(x)]
    assert visible > 24 * 5


def test_about_one_image_in_seven_has_two_birds() -> None:
    two = sum(len(render(0, "val", index, KINDS[0], 32).masks) == 2 for index in range(210))
    assert 15 <= two <= 50  # 30 expected; more than three standard deviations either way


@pytest.mark.parametrize("index", range(6))
def test_kinds_differ_in_their_parts_and_nowhere_else(index: int) -> None:
    base = render(0, "train", index, KINDS[0], 64)
    for kind in KINDS[1:]:
        other = render(0, "train", index, kind, 64)
        differs = (base.image.astype(int) != other.image).any(axis=2)
        assert not (differs & ~base.parts & ~other.parts).any()


def test_the_parts_are_a_small_share_of_the_bird() -> None:
    shares = []
    for index in range(36):
        result = render(0, "train", index, KINDS[index % len(KINDS)], 64)
        bird = np.any(result.masks, axis=0)
        shares.append((result.parts & bird).sum() / bird.sum())
    assert 0.02 < np.mean(shares) < 0.35


def test_labels_are_shuffled_within_blocks_of_all_kinds() -> None:
    labels = labels_of(0, "test", 600)
    assert all(sorted(labels[start : start + 12]) == list(range(12)) for start in range(0, 600, 12))
    assert labels[:12].tolist() != list(range(12))


def test_a_broken_rendering_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="exit code"):
        load_dataset("toybirds", "train", tmp_path, size=64, counts=TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_is_there_is_not_rendered_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    assert len(tiny(root, "test")) == 12


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("WSOLBENCH_CACHE", raising=False)
    assert module.cache_folder() == tmp_path / "xdg" / "wsolbench"
    monkeypatch.setenv("WSOLBENCH_CACHE", str(tmp_path / "own"))
    assert module.cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(("size", "counts"), [(8, TINY), (64, {"train": 1}), (64, {**TINY, "val": 0})])
def test_a_size_or_count_that_means_nothing_is_refused(tmp_path: Path, size: int, counts: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="toybirds of size"):
        load_dataset("toybirds", "train", tmp_path, size=size, counts=counts)


def test_the_contact_sheet_has_a_row_for_each_class(root: Path) -> None:
    assert module.contact_sheet(tiny(root, "train"), examples=2).shape == (12 * 68, 2 * 68, 3)
