"""toybirds-v2: birds of all sizes, off centre. No centred box and no centred Gaussian finds many of them."""

from __future__ import annotations

from itertools import combinations

import cv2
import numpy as np
import pytest

from wsolbench.datasets import is_generated, load_dataset
from wsolbench.datasets.toybirds.bird import KINDS, Bird
from wsolbench.datasets.toybirds.canvas import SUPERSAMPLING, Canvas, Placement
from wsolbench.datasets.toybirds.render import draw_labels, draw_stratum
from wsolbench.datasets.toybirds.versions import V1, V2
from wsolbench.types import Dataset

COUNTS = {"train": 1, "val": 90, "test": 180}
SIZE = 48
LIMITS = (0.12, 0.3)
"""Areas of visible boxes that separate small, medium and large birds, as shares of the image."""

FINGERPRINTS = {
    ("toybirds", "train"): "232ac96840c0f072",
    ("toybirds", "test"): "ad19d0a37786feac",
    ("toybirds-v2", "train"): "6441837eec558bf9",
    ("toybirds-v2", "test"): "904b80fb73b6e2a9",
}
"""Annotations of a small set of each version. Records name sets by such fingerprints: never change one."""


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = tmp_path_factory.mktemp("toybirds")
    return {
        split: load_dataset("toybirds-v2", split, root, size=SIZE, counts=COUNTS, workers=2)
        for split in ("val", "test")
    }


def first_boxes(dataset: Dataset) -> np.ndarray:
    """Box of the bird that shows most, (n, 4), as shares of the image."""
    return np.array([sample.boxes[0] for sample in dataset.samples]) / SIZE


def areas(boxes: np.ndarray) -> np.ndarray:
    """Area of each box."""
    return np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)


def share_found(boxes: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Share of the images in which each box (k, 4) has an IoU of at least 0.5 with a bird, (k,)."""
    hits = np.zeros(len(boxes))
    for sample in dataset.samples:
        truth = sample.boxes[:, None] / SIZE  # (r, 1, 4)
        low, high = np.maximum(truth[..., :2], boxes[:, :2]), np.minimum(truth[..., 2:], boxes[:, 2:])
        overlap = np.prod(np.clip(high - low, 0, None), axis=-1)  # (r, k)
        hits += np.any(overlap / (areas(truth) + areas(boxes) - overlap) >= 0.5, axis=0)
    return hits / len(dataset)


@pytest.mark.parametrize(("name", "split"), FINGERPRINTS)
def test_the_annotations_of_a_version_never_change(
    name: str, split: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "few"
    counts = {"train": 6, "val": 1, "test": 6}
    few = load_dataset(name, split, root, size=32, counts=counts, workers=1)
    assert few.name == name
    assert few.fingerprint == FINGERPRINTS[name, split]


def test_the_versions_share_neither_name_nor_folder_nor_scene(splits: dict[str, Dataset]) -> None:
    assert is_generated(V1.name)
    assert is_generated(V2.name)
    assert V1.number != V2.number
    assert V1.stream != V2.stream
    assert not np.array_equal(draw_labels(V1, 0, "test", 24), draw_labels(V2, 0, "test", 24))
    assert splits["test"].root is not None
    assert splits["test"].root.name.startswith("toybirds-v2-seed0-")


def test_every_three_images_have_one_of_each_size_in_random_order() -> None:
    strata = np.array([draw_stratum(V2, 0, "test", index) for index in range(600)]).reshape(200, 3)
    np.testing.assert_array_equal(np.sort(strata, axis=1), np.tile(np.arange(3), (200, 1)))
    for place in range(3):
        assert np.all(np.bincount(strata[:, place], minlength=3) > 45)


def test_every_class_comes_in_every_size() -> None:
    labels = draw_labels(V2, 0, "test", 600)
    strata = [draw_stratum(V2, 0, "test", index) for index in range(600)]
    table = np.zeros((12, 3))
    np.add.at(table, (labels, strata), 1)
    assert table.min() >= 8, "of 50 images per class"


def test_a_third_of_the_birds_is_small_a_third_medium_a_third_large(splits: dict[str, Dataset]) -> None:
    for split, dataset in splits.items():
        shares = areas(first_boxes(dataset))
        assert shares.min() > 0.02
        assert shares.max() < 0.66
        sizes = np.digitize(shares, LIMITS)
        counts = np.bincount(sizes, minlength=3) / len(sizes)
        assert np.all(np.abs(counts - 1 / 3) < 0.07), counts
        drawn = [draw_stratum(V2, 0, split, index) for index in range(len(dataset))]
        assert np.mean(sizes == drawn) > 0.85


def test_birds_are_near_a_border_and_no_side_is_preferred(splits: dict[str, Dataset]) -> None:
    boxes = np.concatenate([first_boxes(dataset) for dataset in splits.values()])
    gaps = np.concatenate([boxes[:, :2], 1 - boxes[:, 2:]], axis=1)  # (n, 4) to the four sides
    assert np.mean(gaps.min(axis=1) < 0.1) > 0.6
    nearest = np.bincount(gaps.argmin(axis=1), minlength=4) / len(gaps)
    assert np.all(np.abs(nearest - 0.25) < 0.15), nearest
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert np.all(np.abs(centres.mean(axis=0) - 0.5) < 0.05)
    small = centres[areas(boxes) < LIMITS[0]]
    assert np.mean(np.abs(small - 0.5).max(axis=1) > 0.2) > 0.7, "most small birds are far from the middle"


def test_no_centred_box_finds_a_fifth_of_the_birds(splits: dict[str, Dataset]) -> None:
    sides = np.array([(width, height) for width in range(4, SIZE + 1) for height in range(4, SIZE + 1)])
    half = sides / (2 * SIZE)
    boxes = np.concatenate([0.5 - half, 0.5 + half], axis=1)
    for dataset in splits.values():
        best = share_found(boxes, dataset).max()
        assert 0.05 < best < 0.2, best


def test_no_centred_gaussian_finds_a_fifth_of_the_birds(splits: dict[str, Dataset]) -> None:
    axis = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    boxes = []
    for wide, high in ((1.0, 1.0), (1.4, 1.0), (1.0, 1.4)):
        for sigma in (0.05, 0.1, 0.2, 0.4, 0.8):
            level = np.exp(-0.5 * ((axis[None, :] / wide) ** 2 + (axis[:, None] / high) ** 2) / sigma**2)
            for tau in np.linspace(level.min(), level.max(), 256):
                rows, columns = np.nonzero(level >= tau)
                boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    centred = np.unique(boxes, axis=0) / SIZE
    assert len(centred) > 50
    for dataset in splits.values():
        assert share_found(centred, dataset).max() < 0.2


@pytest.mark.parametrize(("size", "pixels"), [(64, 4), (128, 10)])
def test_every_two_kinds_differ_visibly_at_the_smallest_size(size: int, pixels: int) -> None:
    random = np.random.default_rng(0)
    smallest = V2.strata[0].single[0]
    counts: dict[tuple[str, str], list[int]] = {}
    for _ in range(9):
        bird = Bird.draw(random)
        extent = bird.extent()
        scale = np.sqrt(smallest / (np.ptp(extent.real) * np.ptp(extent.imag)))
        images = {}
        for kind in KINDS:
            canvas = Canvas(size)
            bird.paint(canvas, Placement(centre=0.5 + 0.5j, scale=float(scale)), kind, 0)
            shape = (canvas.side // SUPERSAMPLING,) * 2
            images[kind.name] = cv2.resize(canvas.rgb, shape, interpolation=cv2.INTER_AREA)
        for one, other in combinations(images, 2):
            differs = np.abs(images[one] - images[other]).max(axis=2) > 40
            counts.setdefault((one, other), []).append(int(np.count_nonzero(differs)))
    assert min(np.median(found) for found in counts.values()) >= pixels
