"""From pixels to the input of a network, against torchvision where it does the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsolbench.exceptions import UsageError
from wsolbench.methods import InputSpec
from wsolbench.methods.inputs import (
    normalized,
    resize_short_side,
    resized,
    ten_crops,
    to_input,
    training_view,
)
from wsolbench.types import Sample


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalising_is_a_line_per_channel():
    pixels = np.zeros((1, 2, 3), dtype=np.uint8)
    pixels[0, 1] = 255
    values = normalized(pixels, InputSpec(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)))
    assert values.dtype == np.float32
    assert values[:, 0, 0].tolist() == [-1, -1, 0]
    assert values[:, 0, 1].tolist() == [1, 3, 0.5]


@pytest.mark.parametrize(("height", "width"), [(40, 64), (301, 200), (32, 32)])
def test_views_are_those_of_torchvision_on_pillow_images(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    pixels, spec = picture(height, width), InputSpec(size=32)
    image = Image.fromarray(pixels)
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])
    squash = finish(transforms.Resize((32, 32))(image)).numpy()
    crop = finish(transforms.CenterCrop(32)(transforms.Resize((37, 37))(image))).numpy()
    np.testing.assert_allclose(to_input(pixels, spec), squash, atol=1e-6)
    np.testing.assert_allclose(to_input(pixels, spec, frame="center_crop", resize_size=37), crop, atol=1e-6)
    ten = [finish(view).numpy() for view in transforms.TenCrop(32)(transforms.Resize((37, 37))(image))]
    np.testing.assert_allclose(
        normalized(ten_crops(pixels, spec.size, resize_size=37), spec), np.stack(ten), atol=1e-6
    )


def test_a_square_of_the_right_size_is_not_touched():
    pixels = picture(20, 20)
    assert resized(pixels, 20) is pixels


@pytest.mark.parametrize(
    ("height", "width"), [(40, 64), (301, 200), (32, 50), (70, 32), (30, 31), (33, 100), (16, 16)]
)
def test_the_shorter_side_is_resized_as_torchvision_does_it(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    pixels = picture(height, width)
    expected = np.asarray(transforms.Resize(32)(Image.fromarray(pixels)))
    made = resize_short_side(pixels, 32)
    assert min(made.shape[:2]) == 32
    assert np.array_equal(made, expected)


@given(st.integers(6, 9), st.integers(0, 4), st.integers(0, 9), st.integers(0, 1000))
def test_a_training_view_of_an_image_that_is_no_square_is_a_piece_of_it(size, down, right, seed):
    pixels = picture(size + down, size + right)
    view = training_view(pixels, size, np.random.default_rng(seed), flip=0.0)
    pieces = [
        pixels[top : top + size, left : left + size] for top in range(down + 1) for left in range(right + 1)
    ]
    assert any(np.array_equal(view, piece) for piece in pieces)


def test_views_of_a_long_image_come_from_all_of_it():
    pixels = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (8, 40, 3)).copy()
    starts = {
        int(training_view(pixels, 8, np.random.default_rng(seed), flip=0.0)[0, 0, 0]) for seed in range(800)
    }
    assert starts == set(range(33))


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = resized(stripes, 16)
    assert abs(int(small[8, 8, 0]) - 127) <= 2


@given(st.integers(8, 20), st.integers(0, 12), st.integers(0, 1000))
def test_a_training_view_is_a_piece_of_the_image_or_of_its_mirror_image(size, spare, seed):
    pixels = picture(size + spare, size + spare)
    view = training_view(pixels, size, np.random.default_rng(seed))
    pieces = [
        whole[top : top + size, left : left + size]
        for whole in (pixels, pixels[:, ::-1])
        for top in range(spare + 1)
        for left in range(spare + 1)
    ]
    assert any(np.array_equal(view, piece) for piece in pieces)


def test_over_many_draws_every_place_comes_up_and_half_of_the_views_are_mirrored():
    pixels = np.broadcast_to(np.arange(10, dtype=np.uint8)[None, :, None], (10, 10, 3)).copy()
    views = [training_view(pixels, 8, np.random.default_rng(seed)) for seed in range(600)]
    starts = [int(min(view[0, 0, 0], view[0, -1, 0])) for view in views]
    assert set(starts) == {0, 1, 2}
    assert min(starts.count(value) for value in range(3)) > 140
    mirrored = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views)
    assert 240 < mirrored < 360


def test_flips_and_rotations_can_be_switched_off_and_on():
    pixels = picture(16, 16)
    for seed in range(20):
        assert np.array_equal(training_view(pixels, 16, np.random.default_rng(seed), flip=0.0), pixels)
        assert np.array_equal(
            training_view(pixels, 16, np.random.default_rng(seed), flip=1.0), pixels[:, ::-1]
        )
    turned = training_view(pixels, 16, np.random.default_rng(0), flip=0.0, rotation=15.0)
    assert not np.array_equal(turned, pixels)


def test_a_rotation_by_nearest_pixels_makes_no_new_colours_and_is_that_of_pillow_by_default():
    """torchvision's `RandomRotation` calls Pillow's `rotate` in this way, unless it is told otherwise."""
    generator = np.random.default_rng(3)
    pixels = generator.choice(np.array([10, 70, 200], dtype=np.uint8), (40, 40, 1)).repeat(3, axis=2)
    for seed in range(5):
        views = {
            name: training_view(
                pixels, 40, np.random.default_rng(seed), flip=0.0, rotation=15.0, rotation_filter=name
            )
            for name in ("nearest", "bilinear")
        }
        degrees = (2 * np.random.default_rng(seed).random(4)[0] - 1) * 15
        assert np.array_equal(views["nearest"], np.asarray(Image.fromarray(pixels).rotate(degrees)))
        assert set(np.unique(views["nearest"])) <= {0, 10, 70, 200}
        assert len(np.unique(views["bilinear"])) > 100


def test_a_crop_larger_than_the_image_is_refused():
    for call in (
        lambda: to_input(picture(30, 30), InputSpec(size=32), frame="center_crop", resize_size=16),
        lambda: ten_crops(picture(30, 30), 32, resize_size=16),
        lambda: training_view(picture(16, 16), 32, np.random.default_rng(0)),
    ):
        with pytest.raises(UsageError, match=r"cannot cut 32 x 32 pixels from an image of 16 x 16"):
            call()


def whole_rotated(pixels: np.ndarray, size: int, rng: np.random.Generator, degrees: float, resample):
    """The view by the definition: Pillow rotates the whole image, then it is cropped and mirrored."""
    angle, row, column, coin = rng.random(4)
    rotated = [
        Image.fromarray(part).rotate((2 * angle - 1) * degrees, resample=resample)
        for part in (pixels[..., :3], *np.moveaxis(pixels[..., 3:], -1, 0))
    ]
    top, left = (
        int(draw * (side - size + 1)) for draw, side in zip((row, column), pixels.shape[:2], strict=True)
    )
    view = np.dstack(rotated)[top : top + size, left : left + size]
    return view[:, ::-1] if coin < 0.5 else view


@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("channels", [3, 4])
@given(
    st.integers(5, 40),
    st.integers(0, 9),
    st.integers(0, 30),
    st.integers(0, 1000),
    st.sampled_from([1e-12, 1e-3, 7.0, 90.0, 180.0, 360.0]),
)
def test_a_rotated_view_is_cut_from_the_rotated_image(sampling, channels, size, down, right, seed, degrees):
    shape = (size + down, size + right, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    view = training_view(
        pixels, size, np.random.default_rng(seed), rotation=degrees, rotation_filter=sampling
    )
    resample = Image.Resampling[sampling.upper()]
    if channels == 3:  # the same of an image that Pillow holds
        rng, held = np.random.default_rng(seed), Image.fromarray(pixels)
        again = training_view(held, size, rng, rotation=degrees, rotation_filter=sampling)
        assert np.array_equal(again, view)
        views = [training_view(image, size, np.random.default_rng(seed)) for image in (held, pixels)]
        assert np.array_equal(*views)
    assert np.array_equal(view, whole_rotated(pixels, size, np.random.default_rng(seed), degrees, resample))


class LargestAngle(np.random.Generator):
    """Draws the largest angle, and no mirror image."""

    def random(self, count):
        return np.array([1.0, 0.3, 0.6, 0.9])


@pytest.mark.parametrize("degrees", [90.0, 180.0, 270.0, 360.0])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 40)])
def test_right_angles_are_those_of_pillow(degrees, height, width):
    pixels = picture(height, width)
    expected = whole_rotated(pixels, 30, LargestAngle(np.random.PCG64()), degrees, Image.Resampling.BILINEAR)
    assert np.array_equal(
        training_view(pixels, 30, LargestAngle(np.random.PCG64()), rotation=degrees), expected
    )


SAVED = {
    "rgb.jpg": "RGB",
    "gray.jpg": "L",
    "cmyk.jpg": "CMYK",
    "palette.png": "P",
    "alpha.png": "RGBA",
    "bits.png": "1",
    "wide.png": "I;16",
    "plain.bmp": "RGB",
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("crop", [None, (3, 5, 50, 31), (0, 0, 60, 99)])
def test_a_picture_that_is_resized_as_it_is_has_the_pixels_of_the_array(tmp_path, name, crop):
    image = Image.fromarray(picture(45, 60))
    if SAVED[name] == "I;16":
        image = Image.fromarray(picture(45, 60)[..., 0].astype(np.uint16) * 257)
    image.convert(SAVED[name]).save(tmp_path / name)
    sample = Sample(id=name, label=0, path=tmp_path / name, crop=crop)
    pixels = sample.image()
    assert pixels.flags.writeable
    assert np.array_equal(np.asarray(sample.picture()), pixels)
    for change in (resized, resize_short_side, lambda image, size: ten_crops(image, size, resize_size=30)):
        assert np.array_equal(change(sample.picture(), 24), change(pixels, 24))
