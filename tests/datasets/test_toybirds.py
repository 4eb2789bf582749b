"""toybirds: exact ground truth, classes that differ only in parts, and a cache that is complete or absent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.processes import PATIENCE
from wsolbench.datasets import load_dataset
from wsolbench.datasets.toybirds import dataset as toybirds
from wsolbench.datasets.toybirds.bird import KINDS, PART_LAYERS, PART_NAMES, Bird, Kind, owner_of
from wsolbench.datasets.toybirds.canvas import Canvas, Placement, circle
from wsolbench.datasets.toybirds.render import _key_points, _share, draw_labels, render
from wsolbench.datasets.toybirds.versions import SPLITS, V1, V2, Version
from wsolbench.exceptions import DataError, UsageError
from wsolbench.types import Dataset

COUNTS = {"train": 144, "val": 12, "test": 24}
FEW = {"train": 3, "val": 2, "test": 4}
SIZE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toybirds")


@pytest.fixture(scope="module")
def train(root: Path) -> Dataset:
    return load_dataset("toybirds", "train", root, size=SIZE, counts=COUNTS, workers=2)


@pytest.fixture(scope="module", params=[V1, V2], ids=lambda version: version.name)
def splits(request: pytest.FixtureRequest, root: Path, train: Dataset) -> dict[str, Dataset]:
    name = request.param.name
    return {split: load_dataset(name, split, root, size=SIZE, counts=COUNTS, workers=2) for split in COUNTS}


def few(root: Path, seed: int = 0, workers: int = 1, split: str = "train") -> Dataset:
    return load_dataset("toybirds", split, root, seed=seed, size=32, counts=FEW, workers=workers)


def files_under(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def masks_of(dataset: Dataset, index: int) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) > 127 for path in dataset[index].mask_paths]


# --- the same from the same seed ----------------------------------------------------------------------------


def test_one_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    one = few(tmp_path / "one", workers=1)
    three = few(tmp_path / "three", workers=3)
    assert one.root is not None
    assert three.root is not None
    assert files_under(one.root) == files_under(three.root)
    assert one.fingerprint == three.fingerprint


def test_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    first, second = few(tmp_path, seed=0), few(tmp_path, seed=1)
    assert all(
        not np.array_equal(a.image(), b.image()) for a, b in zip(first.samples, second.samples, strict=True)
    )
    assert first.fingerprint != second.fingerprint


def test_an_image_depends_on_its_number_and_not_on_how_many_there_are(train: Dataset) -> None:
    again = render(V1, 0, "train", 7, KINDS[train[7].label], SIZE)
    np.testing.assert_array_equal(train[7].image(), again.image)
    np.testing.assert_array_equal(draw_labels(V1, 0, "train", 31), draw_labels(V1, 0, "train", 1500)[:31])


def test_no_picture_is_in_two_splits_or_twice_in_one(splits: dict[str, Dataset]) -> None:
    pictures = [sample.image().tobytes() for dataset in splits.values() for sample in dataset.samples]
    assert len(set(pictures)) == len(pictures) == sum(COUNTS.values())
    assert all(
        sample.id.startswith(f"{name}/") for name, dataset in splits.items() for sample in dataset.samples
    )


@pytest.mark.parametrize("version", [V1, V2])
def test_the_same_scene_has_the_same_birds_at_every_size(version: Version) -> None:
    small, large = (render(version, 0, "val", 3, KINDS[0], size) for size in (48, 96))
    halved = np.asarray(Image.fromarray(large.masks[0]).resize((48, 48), Image.Resampling.BOX))
    assert np.mean(small.masks[0] != halved) < 0.03


# --- classes ------------------------------------------------------------------------------------------------


def test_there_are_twelve_kinds_and_no_two_have_the_same_parts() -> None:
    parts = [(kind.beak, kind.crest, kind.wing_bar, kind.tail, kind.breast) for kind in KINDS]
    assert len(set(parts)) == len(KINDS) == 12
    distances = [
        sum(a != b for a, b in zip(one, other, strict=True)) for one, other in combinations(parts, 2)
    ]
    assert distances.count(1) >= 4, "some kinds differ in a single part"


@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_balanced_in_every_run_of_twelve_images(split: str) -> None:
    labels = draw_labels(V1, 5, split, 120).reshape(10, 12)
    np.testing.assert_array_equal(np.sort(labels, axis=1), np.tile(np.arange(12), (10, 1)))
    assert len(set(labels[:, 0])) > 3, "every twelfth image is no sample of one class"


def test_labels_of_the_loaded_split_are_balanced_and_named(train: Dataset) -> None:
    assert np.bincount([sample.label for sample in train.samples]).tolist() == [12] * 12
    assert train.class_names == tuple(kind.name for kind in KINDS)


@settings(max_examples=12, deadline=None)
@given(
    version=st.sampled_from([V1, V2]),
    seed=st.integers(0, 2**31),
    index=st.integers(0, 10**6),
    pair=st.lists(st.sampled_from(KINDS), min_size=2, max_size=2, unique=True),
)
def test_two_kinds_in_the_same_scene_differ_in_the_parts_and_nowhere_else(
    version: Version, seed: int, index: int, pair: list[Kind]
) -> None:
    one, other = (render(version, seed, "train", index, kind, 48) for kind in pair)
    elsewhere = ~(one.parts | other.parts)
    np.testing.assert_array_equal(one.image[elsewhere], other.image[elsewhere])


def test_every_two_kinds_look_different() -> None:
    canvases = []
    for kind in KINDS:
        canvas = Canvas(96)
        bird = Bird.draw(np.random.default_rng(4))
        bird.paint(canvas, Placement(centre=0.5 + 0.5j, scale=0.45), kind, 0)
        canvases.append(canvas.rgb)
    for one, other in combinations(canvases, 2):
        assert np.any(np.abs(one - other).max(axis=2) > 40, axis=None)
        assert np.count_nonzero(np.abs(one - other).max(axis=2) > 40) >= 4 * 6 * 6, (
            "at least a spot of 6 by 6 pixels"
        )


def test_the_telling_parts_are_small_beside_the_bird() -> None:
    shares = []
    for index in range(36):
        drawn = render(V1, 1, "train", index, KINDS[index % 12], 64)
        bird = np.any(drawn.masks, axis=0)
        shares.append(np.count_nonzero(drawn.parts & bird) / np.count_nonzero(bird))
    assert 0.05 < np.mean(shares) < 0.4


# --- boxes, masks, key points -------------------------------------------------------------------------------


def test_a_box_is_exactly_the_extent_of_its_mask(splits: dict[str, Dataset]) -> None:
    for dataset in splits.values():
        for index, sample in enumerate(dataset.samples):
            masks = masks_of(dataset, index)
            assert len(masks) == len(sample.boxes)
            for mask, box in zip(masks, sample.boxes, strict=True):
                rows, columns = np.nonzero(mask)
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_masks_are_black_and_white_and_birds_share_only_pixels_of_which_each_has_half(train: Dataset) -> None:
    for index, sample in enumerate(train.samples):
        for path in sample.mask_paths:
            assert set(np.unique(Image.open(path))) == {0, 255}
        masks = masks_of(train, index)
        shared = np.count_nonzero(np.sum(masks, axis=0) > 1)
        assert shared <= 0.02 * np.count_nonzero(np.any(masks, axis=0))


def test_a_mask_holds_the_pixels_that_painting_the_bird_changes_and_nothing_hides() -> None:
    canvas = Canvas(64)
    bird, place = Bird.draw(np.random.default_rng(0)), Placement(centre=0.5 + 0.5j, scale=0.5)
    canvas.rgb[:] = -1.0
    bird.paint(canvas, place, KINDS[3], 0)
    np.testing.assert_array_equal(canvas.owner > 0, canvas.rgb[..., 0] >= 0)
    shown = int(np.count_nonzero(canvas.owner))
    canvas.paint(circle(place(0j)[()], 0.1), (0, 90, 0))
    assert int(np.count_nonzero(canvas.owner)) < shown


def test_a_visible_key_point_lies_on_the_first_bird_and_an_invisible_one_says_nothing(
    splits: dict[str, Dataset],
) -> None:
    seen = 0
    for dataset in splits.values():
        assert dataset.key_point_names == PART_NAMES
        for index, sample in enumerate(dataset.samples):
            assert sample.key_points is not None
            mask = masks_of(dataset, index)[0]
            for x, y, visible in sample.key_points:
                if visible:
                    seen += 1
                    near = mask[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2]
                    assert near.any()
                else:
                    assert (x, y) == (0, 0)
    assert seen > 5 * sum(COUNTS.values())


def test_key_points_belong_to_the_bird_that_shows_most(train: Dataset) -> None:
    pairs = [masks_of(train, index) for index, sample in enumerate(train.samples) if len(sample.boxes) == 2]
    assert pairs
    assert all(np.count_nonzero(larger) >= np.count_nonzero(smaller) for larger, smaller in pairs)


def test_every_part_is_seen_often_and_hidden_sometimes_and_never_both_eyes(
    splits: dict[str, Dataset],
) -> None:
    visible = np.array(
        [sample.key_points[:, 2] for dataset in splits.values() for sample in dataset.samples]
    )  # (n, 15)
    shares = dict(zip(PART_NAMES, visible.mean(axis=0), strict=True))
    assert all(0.35 < share < 1 for share in shares.values()), shares
    both = visible[:, PART_NAMES.index("left eye")] * visible[:, PART_NAMES.index("right eye")]
    assert not both.any()


def test_a_mirrored_bird_shows_its_left_eye_and_a_leaf_over_the_beak_hides_the_beak() -> None:
    bird = Bird.draw(np.random.default_rng(2))
    for mirrored, near, far in ((False, "right eye", "left eye"), (True, "left eye", "right eye")):
        canvas, place = Canvas(96), Placement(centre=0.5 + 0.5j, scale=0.4, mirrored=mirrored)
        bird.paint(canvas, place, KINDS[0], 0)

        def seen(canvas: Canvas = canvas, place: Placement = place) -> dict[str, float]:
            points = _key_points(canvas.owner, bird, place, 0, _share(canvas.owner > 0) >= 0.5)
            return dict(zip(PART_NAMES, points[:, 2], strict=True))

        assert (seen()[near], seen()[far], seen()["beak"]) == (1.0, 0.0, 1.0)
        canvas.paint(circle(complex(place(bird.key_points(mirrored)["beak"][0])), 0.05), (0, 90, 0))
        assert seen()["beak"] == 0.0


def test_a_part_outside_the_image_is_invisible() -> None:
    bird, canvas, place = (
        Bird.draw(np.random.default_rng(2)),
        Canvas(64),
        Placement(centre=0.95 + 0.5j, scale=0.6),
    )
    bird.paint(canvas, place, KINDS[0], 0)
    points = _key_points(canvas.owner, bird, place, 0, _share(canvas.owner > 0) >= 0.5)
    assert points[PART_NAMES.index("beak"), 2] == 0
    assert points[PART_NAMES.index("tail"), 2] == 1


def test_owners_of_two_birds_never_meet() -> None:
    assert not {owner_of(0, layer) for layer in PART_LAYERS} & {owner_of(1, layer) for layer in PART_LAYERS}


# --- how hard it is -----------------------------------------------------------------------------------------


def test_one_image_in_seven_has_two_birds(train: Dataset) -> None:
    assert abs(np.mean([len(sample.boxes) == 2 for sample in train.samples]) - 1 / 7) < 0.08
    assert all(1 <= len(sample.boxes) <= 2 for sample in train.samples)


def test_boxes_cover_a_tenth_to_three_fifths_of_the_image_and_are_not_in_its_middle(train: Dataset) -> None:
    boxes = np.array([sample.boxes[0] for sample in train.samples if len(sample.boxes) == 1])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / SIZE**2
    assert np.quantile(areas, 0.05) > 0.1
    assert np.quantile(areas, 0.95) < 0.65
    centres = (boxes[:, :2] + boxes[:, 2:]) / (2 * SIZE)
    assert centres.std(axis=0).min() > 0.08


def test_no_centred_box_finds_half_of_the_birds(train: Dataset) -> None:
    def best_iou(box: np.ndarray, boxes: np.ndarray) -> float:
        overlap = np.prod(
            np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None), axis=1
        )
        return float(
            np.max(
                overlap
                / (np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - overlap)
            )
        )

    sides = [(width, height) for width in range(24, 65, 8) for height in range(24, 65, 8)]
    shares = [
        np.mean(
            [
                best_iou(np.array([32 - w / 2, 32 - h / 2, 32 + w / 2, 32 + h / 2]), sample.boxes) >= 0.5
                for sample in train.samples
            ]
        )
        for w, h in sides
    ]
    assert 0.2 < max(shares) < 0.5


# --- the cache ----------------------------------------------------------------------------------------------


def test_a_second_load_renders_nothing(
    root: Path, splits: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    for split, dataset in splits.items():
        again = load_dataset(dataset.name, split, root, size=SIZE, counts=COUNTS)
        assert again.fingerprint == dataset.fingerprint


def test_the_cache_folder_is_the_own_variable_then_the_common_one_then_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WSOLBENCH_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "common"))
    assert toybirds.cache_folder() == tmp_path / "own"
    assert few(None, split="val").root == tmp_path / "own" / "toybirds-v1-seed0-32-3-2-4"  # type: ignore[arg-type]
    monkeypatch.delenv("WSOLBENCH_CACHE")
    assert toybirds.cache_folder() == tmp_path / "common" / "wsolbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert toybirds.cache_folder() == tmp_path / ".cache" / "wsolbench"


@pytest.mark.parametrize("content", [None, "#!/bin/sh\nexit 3\n", "#!/bin/sh\necho '[1, '\n"])
def test_a_rendering_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    python = tmp_path / "python"
    if content is not None:
        python.write_text(content)
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DataError, match=r"rendering toybirds into .* failed"):
        few(tmp_path / "cache", workers=2)
    assert list((tmp_path / "cache").iterdir()) == []


LOAD = "import sys, pathlib; from wsolbench.datasets import load_dataset; load_dataset('toybirds', 'val', pathlib.Path(sys.argv[1]), "
MANY = "size=48, counts={'train': 400, 'val': 12, 'test': 12}, workers=1)"


def test_a_rendering_that_is_killed_leaves_no_set_and_the_next_one_clears_up(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", LOAD + MANY, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.glob(".*/images/train/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".toybirds-")
    while_it_ends = -1
    while (written := len(list(leftover.rglob("*.png")))) != while_it_ends and time.monotonic() < deadline:
        while_it_ends = written
        time.sleep(0.3)
    assert written < 400, "the orphaned process stopped"
    os.utime(leftover, (0, 0))
    toybirds._remove_leftovers(tmp_path / "toybirds-v1-seed0-48-400-12-12")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_that_may_still_be_written_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".toybirds-x-abc").mkdir()
    toybirds._remove_leftovers(tmp_path / "toybirds-x")
    assert (tmp_path / ".toybirds-x-abc").is_dir()


def test_two_processes_at_once_agree_on_one_set(tmp_path: Path) -> None:
    code = LOAD + "size=32, counts={'train': 24, 'val': 2, 'test': 2}, workers=1)"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(PATIENCE) for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["toybirds-v1-seed0-32-24-2-2"]


@pytest.mark.parametrize(
    "options", [{"size": 8}, {"seed": -1}, {"counts": {"train": 1}}, {"counts": {**FEW, "val": 0}}]
)
def test_sizes_seeds_and_counts_that_mean_nothing_are_refused(
    tmp_path: Path, options: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match="expected a size of at least 32"):
        load_dataset("toybirds", "train", tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file.*WSOLBENCH_CACHE"):
        few(tmp_path / "file")


def test_the_contact_sheet_has_a_row_for_each_class_and_draws_truth_only_in_the_last_column(
    train: Dataset, tmp_path: Path
) -> None:
    sheet = toybirds.contact_sheet(train, 3)
    assert sheet.shape == (12 * (SIZE + 4), 3 * (SIZE + 4), 3)
    first = next(sample for sample in train.samples if sample.label == 0)
    np.testing.assert_array_equal(sheet[2 : 2 + SIZE, 2 : 2 + SIZE], first.image())
    toybirds.write_contact_sheet(tmp_path / "sheet.png", train, 3)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "sheet.png")), np.concatenate([sheet[:408], sheet[408:]], axis=1)
    )
    drawn = [
        np.count_nonzero(np.all(sheet[:, 68 * column : 68 * column + 68] == (255, 230, 0), axis=2))
        for column in range(3)
    ]
    assert drawn[0] == drawn[1] == 0 < drawn[2]


def test_a_contact_sheet_of_no_image_format_is_refused_and_not_written(
    train: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"expected one such as \.jpg"):
        toybirds.write_contact_sheet(tmp_path / "sheet.txt", train, 3)
    assert list(tmp_path.iterdir()) == []
