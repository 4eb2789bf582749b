"""Transformed images: pixels, masks, boxes and key points move together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsolbench.evaluation.transforms import Transform, transform_dataset
from wsolbench.exceptions import UsageError
from wsolbench.maps import frame_boxes
from wsolbench.methods import InputSpec
from wsolbench.methods.inputs import to_view
from wsolbench.protocol import EvalProtocol
from wsolbench.types import Dataset, Sample

SPEC = InputSpec(size=64, mean=(0.5, 0.5, 0.5))
SQUASH, CROP = EvalProtocol(), EvalProtocol(frame="center_crop")
ALL = (
    "rotate90",
    "rotate180",
    "rotate270",
    "rotate:0",
    "rotate:33",
    "rotate:-120",
    "rotate:random",
    "reduce:300",
)


def one(sample: Sample) -> Dataset:
    return Dataset(name="one", split="test", samples=(sample,), class_names=("bird",), fingerprint="f")


def moved(sample: Sample, name: str, protocol: EvalProtocol = SQUASH) -> Sample:
    return transform_dataset(one(sample), Transform.parse(name), SPEC, protocol)[0]


def view_of(sample: Sample, protocol: EvalProtocol) -> np.ndarray:
    return to_view(
        sample.image(), SPEC.size, frame=protocol.network_frame, resize_size=protocol.view_of(SPEC.size)[0]
    )


def sample(
    size: int = 64,
    box: tuple[int, int, int, int] = (10, 20, 30, 50),
    folder: Path | None = None,
    **more: object,
) -> Sample:
    """Noise with a white box, which is the object."""
    pixels = np.random.default_rng(0).integers(0, 90, (size, size, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    masks: tuple[Path, ...] = ()
    if folder is not None:
        masks = (folder / "mask.png",)
        Image.fromarray((pixels == 255).all(axis=2).astype(np.uint8) * 255).save(masks[0])
    return Sample(
        id="a",
        label=0,
        size=(size, size),
        array=pixels,
        boxes=np.array([box], dtype=np.float64),
        mask_paths=masks,
        **more,
    )


@pytest.mark.parametrize("protocol", [SQUASH, CROP], ids=["squash", "crop"])
@pytest.mark.parametrize(
    ("name", "turns"),
    [("rotate90", 1), ("rotate180", 2), ("rotate270", 3), ("rotate:0", 0), ("rotate:-90", 3)],
)
def test_right_angles_turn_what_the_network_sees_and_nothing_else(
    protocol: EvalProtocol, name: str, turns: int
) -> None:
    original = sample(100, (20, 30, 60, 80))
    assert np.array_equal(
        view_of(moved(original, name, protocol), protocol), np.rot90(view_of(original, protocol), turns)
    )


def test_four_quarter_turns_are_no_turn() -> None:
    turned = original = sample()
    for _ in range(4):
        turned = moved(turned, "rotate90")
    assert np.array_equal(turned.image(), original.image())
    assert np.array_equal(turned.boxes, original.boxes)


@pytest.mark.parametrize("name", ALL)
def test_box_and_mask_move_with_the_pixels(name: str, tmp_path: Path) -> None:
    found = moved(sample(folder=tmp_path, box=(16, 24, 36, 40)), name)
    mask = found.mask()
    assert mask is not None
    white = found.image().min(axis=2) > 170
    assert (white & mask).sum() / (white | mask).sum() > 0.85
    y, x = np.nonzero(mask)
    # The upright box around a turned box is the one around its corners, which pixels miss by one at most.
    assert np.abs(found.boxes[0] - [x.min(), y.min(), x.max() + 1, y.max() + 1]).max() <= (
        1.5 if ":" in name else 0
    )


@given(
    x=st.integers(20, 43),
    y=st.integers(20, 43),
    name=st.sampled_from(ALL) | st.floats(-360, 360).map(lambda angle: f"rotate:{angle}"),
    crop=st.booleans(),
)
def test_a_key_point_stays_on_its_pixel(x: int, y: int, name: str, *, crop: bool) -> None:
    protocol = CROP if crop else SQUASH
    size = protocol.view_of(SPEC.size)[0]
    pixels = np.full(
        (size, size, 3), 128, dtype=np.uint8
    )  # what is filled in, so that the point alone stands out
    x, y = x + (size - 64) // 2, y + (size - 64) // 2
    pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
    points = np.array([[x + 0.5, y + 0.5, 1.0]])
    found = moved(Sample(id="a", label=0, size=(size, size), array=pixels, key_points=points), name, protocol)
    weight = np.maximum(found.image()[..., 0].astype(float) - 130, 0)
    rows, columns = np.indices(weight.shape) + 0.5
    assert found.key_points is not None
    centre = (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
    assert np.hypot(*(found.key_points[0, :2] - centre)) < 0.5
    assert points[0, 0] == x + 0.5  # the original is untouched


def test_reduced_images_have_a_border_of_the_mean_colour() -> None:
    found = moved(sample(), "reduce:224")
    pixels = found.image()
    assert (pixels[:16] == 128).all()
    assert (pixels[:, 48:] == 128).all()
    assert pixels[27:40, 22:30].min() > 200
    assert np.array_equal(found.boxes, [[16 + 5, 16 + 10, 16 + 15, 16 + 25]])


def test_boxes_are_cut_to_the_view_before_they_move_and_lost_ones_are_left_out() -> None:
    original = replace(sample(64), boxes=np.array([[0, 0, 64, 64], [0, 0, 3, 3]], dtype=np.float64))
    found = moved(original, "reduce:224", CROP)
    outer, start = CROP.view_of(64)
    assert (outer, start) == (73, 4)
    assert np.array_equal(found.boxes, [[start + 16, start + 16, start + 48, start + 48]])
    turned = transform_dataset(one(original), Transform.parse("rotate180"), InputSpec(size=56), CROP)[0]
    assert turned.size == (64, 64)
    assert np.array_equal(frame_boxes(turned.boxes, turned.size, CROP), [[0, 0, 224, 224]])


def test_a_random_angle_depends_on_the_id_alone() -> None:
    transform = Transform.parse("rotate:random")
    assert transform.angle_of("a") == transform.angle_of("a") != transform.angle_of("b")
    assert 0 <= transform.angle_of("a") < 360


@pytest.mark.parametrize(
    "name", ["rotate", "rotate45", "rotate:nan", "rotate:much", "reduce:0", "reduce:448", "reduce:x", "flip"]
)
def test_unknown_transforms_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown transform"):
        Transform.parse(name)


def test_ten_crops_of_a_transformed_view_are_refused() -> None:
    with pytest.raises(UsageError, match="ten crops"):
        transform_dataset(one(sample()), Transform.parse("rotate90"), SPEC, EvalProtocol.preset("bas"))


def test_a_box_that_turns_out_of_the_view_is_left_out_and_one_that_turns_partly_out_is_cut() -> None:
    boxes = np.array([[0, 0, 4, 4], [40, 0, 64, 24]], dtype=np.float64)
    (found,) = moved(replace(sample(), boxes=boxes), "rotate:45").boxes
    assert 0 <= found.min() < found.max() <= 64
    assert (found == 0).any() or (found == 64).any()


def test_masks_move_with_the_pixels_under_a_crop(tmp_path: Path) -> None:
    found = moved(sample(100, (20, 30, 60, 80), tmp_path), "rotate90", CROP)
    white, mask = found.image().min(axis=2) > 170, found.mask()
    assert (white & mask).sum() / (white | mask).sum() > 0.85
