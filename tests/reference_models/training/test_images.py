"""Images of a training: views, the memory for them, masks, and what prepares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reference_models.core.recipes import RECIPES
from reference_models.localization.cam import Cam
from reference_models.training import images
from reference_models.training import loop as train
from reference_models.training.images import ImageReader, masks_of
from tests.reference_models.conftest import squares
from tests.reference_models.training.test_loop import request
from wsolbench.exceptions import DataError
from wsolbench.types import Dataset, Sample


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_views_depend_on_seed_epoch_and_image_but_not_on_workers_or_memory(cache_bytes):
    plan = [np.array([3, 1, 4]), np.array([0, 2])]
    recipe = RECIPES["tiny"]
    reference = [
        view.copy()
        for view in ImageReader(squares(5), 36, workers=0).views(plan, 32, recipe, seed=1, epoch=2)
    ]
    for workers, processes in ((0, None), (1, None), (4, False), (2, True)):
        reader = ImageReader(squares(5), 36, workers=workers, cache_bytes=cache_bytes, processes=processes)
        views = list(reader.views(plan, 32, recipe, seed=1, epoch=2))
        assert all(np.array_equal(one, two) for one, two in zip(views, reference, strict=True))
        other = list(reader.views(plan, 32, recipe, seed=1, epoch=3))
        assert (reader._pool is not None) == bool(processes)
        reader.close()
        assert not all(np.array_equal(one, two) for one, two in zip(other, reference, strict=True))


def pictures() -> Dataset:
    """Pictures of several shapes; the red of a pixel says how far along the longer side it is."""
    samples = []
    for number, (height, width) in enumerate([(40, 100), (90, 40), (50, 50), (36, 60)]):
        ramp = np.linspace(0, 255, max(height, width)).astype(np.uint8)
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[..., 0] = ramp[None, :width] if width >= height else ramp[:height, None]
        samples.append(Sample(id=f"{number}.png", label=0, size=(width, height), array=pixels))
    return Dataset(
        name="pictures", split="train", samples=samples, class_names=("one",), fingerprint="pictures"
    )


def test_with_the_shorter_side_resized_views_are_crops_of_undistorted_images():
    data, plan = pictures(), [np.arange(4)]
    recipe = replace(RECIPES["tiny"], flip=0.0)
    reader = ImageReader(data, 36, workers=0, short_side=True)
    starts: list[set[int]] = [set() for _ in range(4)]
    for epoch in range(60):
        (views,) = reader.views(plan, 32, recipe, seed=1, epoch=epoch)
        assert views.shape == (4, 32, 32, 3)
        for number, view in enumerate(views):
            red = view[..., 0].astype(int)
            along = red[0] if number in (0, 2, 3) else red[:, 0]
            height, width = data.samples[number].array.shape[:2]
            # Of an image that is resized to a square, a crop of 32 of 36 shows 32 / 36 of the ramp; of these,
            # as much as is in 32 pixels.
            shown = 255 * 32 / (36 * max(height, width) / min(height, width))
            assert along[-1] - along[0] == pytest.approx(shown, abs=12)
            starts[number].add(int(along[0]))
    assert max(starts[0]) > 100  # both ends of a long image are seen
    assert max(starts[2]) < 40


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 1 << 30])
def test_views_of_undistorted_images_depend_on_neither_workers_nor_memory(cache_bytes):
    data, plan, recipe = pictures(), [np.array([3, 1]), np.array([0, 2, 1])], RECIPES["tiny"]
    reference = list(
        ImageReader(data, 36, workers=0, short_side=True, cache_bytes=0).views(
            plan, 32, recipe, seed=1, epoch=2
        )
    )
    for workers in (0, 3, 2):
        reader = ImageReader(
            data, 36, workers=workers, cache_bytes=cache_bytes, short_side=True, processes=workers == 2
        )
        for _ in range(2):  # the second time from memory
            views = list(reader.views(plan, 32, recipe, seed=1, epoch=2))
            assert all(np.array_equal(one, two) for one, two in zip(views, reference, strict=True))
        assert reader._used <= cache_bytes
        # Which ones fit depends on who comes first.
        assert len(reader._places) in {0: [0], 20_000: [2, 3], 1 << 30: [4]}[cache_bytes]
        reader.close()


def test_processes_start_if_a_pass_takes_long_and_samples_can_be_sent(monkeypatch):
    def starts(seconds: float, workers: int = 2, data: Dataset | None = None) -> bool:
        monkeypatch.setattr(images, "WORTH_SECONDS", seconds)
        reader = ImageReader(data or squares(5), 36, workers=workers, cache_bytes=0)
        list(reader.squares([np.arange(5)]))
        started = reader._pool is not None
        reader.close()
        return started

    assert starts(0.0)
    assert not starts(5.0)
    assert not starts(0.0, workers=1)
    monkeypatch.setattr(Sample, "__module__", "__main__")  # as one of a script
    assert not starts(0.0)


def test_the_memory_for_images_is_half_of_what_is_available(monkeypatch):
    for available, processes, expected in ((80, 1, 40), (80, 4, 10), (3, 1, 2), (None, 1, 2)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        monkeypatch.setattr(images, "available_bytes", lambda a=available: a and a << 30)
        assert images.cache_budget(None) == expected << 30
    assert images.cache_budget(0.5) == 1 << 29
    assert images.cache_budget(0.0) == 0


def test_masks_keep_their_aspect_ratio_with_their_images(tmp_path):
    data = pictures()
    samples = []
    for sample in data.samples:
        path = tmp_path / sample.id
        Image.fromarray((sample.image()[..., 0] > 127).astype(np.uint8) * 255).save(path)
        samples.append(replace(sample, mask_paths=(path,)))
    reader = ImageReader(replace(data, samples=tuple(samples)), 36, workers=0, masks="mask", short_side=True)
    for epoch in range(8):
        (views,) = reader.views(
            [np.arange(4)], 32, replace(RECIPES["tiny"], rotation=0.0), seed=1, epoch=epoch
        )
        assert ((views[..., 0] > 127) != (views[..., 3] > 127)).mean() < 0.05


def test_a_recipe_says_whether_training_images_keep_their_aspect_ratio(tmp_path, monkeypatch):
    seen = []

    def spy(dataset, side, **how):
        seen.append((dataset.split, side, how.get("short_side", False)))
        return ImageReader(dataset, side, **how)

    monkeypatch.setattr(train, "ImageReader", spy)
    Cam.fit(
        request(
            tmp_path / "one", train=pictures(), val=None, epochs=1, settings={"recipe.short_side": "true"}
        )
    )
    Cam.fit(request(tmp_path / "two", train=pictures(), val=None, epochs=1))
    side = seen[0][1]
    assert seen == [("train", side, True), ("train", side, False)]


def with_masks(folder: Path) -> Dataset:
    """The squares, with their bright part as mask."""
    data = squares(6)
    samples = []
    for sample in data.samples:
        path = folder / f"{sample.id.replace('/', '-')}"
        Image.fromarray((sample.image().max(axis=2) == 255).astype(np.uint8) * 255).save(path)
        samples.append(replace(sample, mask_paths=(path,)))
    return replace(data, samples=tuple(samples))


def test_masks_move_with_their_images_and_leave_the_pixels_as_they_are(tmp_path):
    data, plan = with_masks(tmp_path), [np.arange(6)]
    recipe = replace(RECIPES["tiny"], rotation=20.0)
    (plain,) = ImageReader(data, 36, workers=0).views(plan, 32, recipe, seed=1, epoch=2)
    (both,) = ImageReader(data, 36, workers=0, masks="mask").views(plan, 32, recipe, seed=1, epoch=2)
    assert np.array_equal(both[..., :3], plain)
    bright, masked = plain.max(axis=3) > 160, both[..., 3] > 127
    assert (bright & masked).sum() / (
        bright | masked
    ).sum() > 0.75  # the border of ten pixels is sampled differently
    masks = masks_of(torch.from_numpy(both))
    assert masks is not None
    assert masks.shape == (6, 32, 32)
    assert (masks.min(), masks.max()) == (0, 1)
    assert masks_of(torch.from_numpy(plain)) is None


def test_a_recipe_says_how_rotated_images_and_masks_are_sampled(tmp_path):
    data, plan = with_masks(tmp_path), [np.arange(6)]
    recipe = replace(RECIPES["tiny"], rotation=20.0, rotation_filter="nearest")
    (nearest,) = ImageReader(data, 32, workers=0, masks="mask").views(plan, 32, recipe, seed=1, epoch=2)
    assert set(np.unique(nearest[..., 3])) == {0, 255}
    (mixed,) = ImageReader(data, 32, workers=0, masks="mask").views(
        plan, 32, replace(recipe, rotation_filter="bilinear"), seed=1, epoch=2
    )
    assert len(np.unique(mixed[..., 3])) > 10


def test_an_image_without_a_mask_is_named_where_one_is_needed():
    with pytest.raises(
        DataError, match=r"'train/0\.png' of squares train has no mask; .* every image, and 2 of 2 have none"
    ):
        ImageReader(squares(2), 36, workers=0, masks="mask")


def test_an_image_without_a_box_is_named_where_one_is_needed():
    data = squares(3)
    bare = replace(data, samples=(*data.samples[:2], replace(data.samples[2], boxes=np.zeros((0, 4)))))
    with pytest.raises(
        DataError, match=r"'train/2\.png' of squares train has no ground-truth box; .* and 1 of 3 have none"
    ):
        ImageReader(bare, 36, workers=0, masks="box")
