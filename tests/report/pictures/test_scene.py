"""Scenes: map, boxes and masks of the evaluation frame land on the right pixels of the image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.exceptions import DataError
from wsolbench.maps import to_frame
from wsolbench.protocol import EvalProtocol
from wsolbench.report.pictures.scene import (
    box_scene,
    drawn_size,
    mask_scene,
    photograph,
    place,
    scene,
    seen_part,
)
from wsolbench.types import Sample

PROTOCOLS = {
    "squash": EvalProtocol(),
    "centre crop": EvalProtocol.preset("bas"),
    "inclusive ends": EvalProtocol.preset("psol"),
    "original": EvalProtocol.preset("spa"),
    "a wide margin": replace(EvalProtocol(), frame="center_crop", frame_size=100, resize_size=128),
}
OBJECTS = {
    "landscape": ((320, 200), (80, 60, 260, 150)),
    "portrait": ((200, 320), (60, 80, 150, 260)),
    "shrunk": ((800, 500), (160, 120, 640, 375)),
    "enlarged": ((64, 40), (12, 10, 50, 30)),
}
CASES = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
SHAPES = pytest.mark.parametrize(("size", "box"), OBJECTS.values(), ids=OBJECTS)


def painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> Sample:
    """A black image with a white rectangle."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    return Sample(id="a", label=0, size=size, array=pixels, boxes=np.array([box], dtype=np.float64))


def in_frame(sample: Sample, protocol: EvalProtocol) -> np.ndarray:
    """The image as the protocol sees it, in [0, 1]."""
    image = Image.fromarray(sample.image()[..., 0])
    side = protocol.frame_size
    if protocol.frame == "squash":
        image = image.resize((side, side), Image.Resampling.BOX)
    elif protocol.frame == "center_crop":
        edge = (protocol.resize_size - side) // 2
        image = image.resize((protocol.resize_size,) * 2, Image.Resampling.BOX)
        image = image.crop((edge, edge, edge + side, edge + side))
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def extent(bright: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(bright)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@CASES
@SHAPES
def test_the_corners_of_both_boxes_are_those_of_the_object_in_the_image(
    protocol: EvalProtocol, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    sample = painted(size, box)
    # The map is the object itself, as the frame shows it.
    unit_map = in_frame(sample, protocol)
    found = box_scene(sample, protocol, unit_map, 0.5)
    height, width = found.image.shape[:2]
    assert (width, height) == drawn_size(size)
    object_ = extent(found.image[..., 0] > 128)
    np.testing.assert_allclose(found.outlines.true_boxes, [object_], atol=0.5)
    pixel = max(width, height) / min(unit_map.shape) * 1.3  # about one of the frame, in the picture
    np.testing.assert_allclose(found.outlines.predicted_boxes, [object_], atol=max(pixel, 1.5))
    assert found.unit_map is not None
    np.testing.assert_allclose(extent(np.nan_to_num(found.unit_map) > 0.5), object_, atol=max(pixel, 1.5))


@pytest.mark.parametrize("size", [(320, 200), (200, 320)])
def test_outside_of_a_centre_crop_the_photograph_keeps_its_colours(size: tuple[int, int]) -> None:
    sample = painted(size, (10, 10, 190, 190))
    protocol = PROTOCOLS["centre crop"]
    found = box_scene(sample, protocol, np.ones((224, 224), dtype=np.float32), 0.5)
    left, top = (round(side * 16 / 256) for side in size)
    right, bottom = size[0] - left, size[1] - top
    inside = np.zeros(size[::-1], dtype=bool)
    inside[top:bottom, left:right] = True
    assert found.unit_map is not None
    np.testing.assert_array_equal(~np.isnan(found.unit_map), inside)
    panel = found.panel()
    np.testing.assert_array_equal(panel.pixels[~inside], found.image[~inside])
    assert (panel.pixels[inside] != found.image[inside]).any(axis=1).all()
    # The true box ends where the protocol's view ends.
    expected = np.maximum([10, 10, 190, 190], [left, top, 0, 0])
    np.testing.assert_allclose(
        found.outlines.true_boxes[0], np.minimum(expected, [999, 999, right, bottom]), atol=0.6
    )
    np.testing.assert_allclose(
        found.outlines.seen, [size[0] / 16, size[1] / 16, size[0] * 15 / 16, size[1] * 15 / 16]
    )


@CASES
def test_a_map_covers_the_part_that_is_seen(protocol: EvalProtocol) -> None:
    part = seen_part((320, 200), protocol)
    margin = (protocol.resize_size - protocol.frame_size) / 2 / protocol.resize_size
    share = margin if protocol.frame == "center_crop" else 0.0
    np.testing.assert_allclose(part, [320 * share, 200 * share, 320 * (1 - share), 200 * (1 - share)])


def test_masks_are_brought_to_the_image(tmp_path: Path) -> None:
    sample = painted((320, 200), (80, 60, 260, 150))
    Image.fromarray(sample.image()[..., 0]).save(tmp_path / "mask.png")
    sample = replace(sample, mask_paths=(tmp_path / "mask.png",))
    for protocol in PROTOCOLS.values():
        unit_map = in_frame(sample, protocol)
        outlines = mask_scene(sample, protocol, unit_map, 128).outlines
        assert outlines.true_mask is not None
        assert outlines.predicted_mask is not None
        np.testing.assert_array_equal(extent(outlines.true_mask), [80, 60, 260, 150])
        np.testing.assert_allclose(extent(outlines.predicted_mask), [80, 60, 260, 150], atol=3)
        assert not len(outlines.true_boxes)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5000, 2), (2, 5000), (601, 600)])
def test_very_small_and_very_wide_images_can_be_drawn(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.full((height, width, 3), 200, dtype=np.uint8)
    sample = Sample(id="a", label=0, size=size, array=pixels, boxes=np.array([[0.0, 0.0, width, height]]))
    for protocol in PROTOCOLS.values():
        unit_map = to_frame(np.eye(4, dtype=np.float32), size, protocol)
        found = box_scene(sample, protocol, unit_map, 0.2)
        drawn = found.painted()
        assert 300 <= max(drawn.shape) <= 600
        assert min(drawn.shape[:2]) >= 1
        assert np.nanmax(found.unit_map) <= 1
        assert not np.isnan(found.unit_map).all()


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 200), ("I;16", 51_400), ("1", 1), ("RGBA", None), ("P", None)]
)
def test_images_of_any_mode_are_drawn_in_rgb(tmp_path: Path, mode: str, value: int | None) -> None:
    if mode == "I;16":
        Image.fromarray(np.full((30, 40), value, dtype=np.uint16)).save(tmp_path / "a.png")
    elif value is None:
        Image.new("RGB", (40, 30), (200, 200, 200)).convert(mode, palette=Image.Palette.ADAPTIVE).save(
            tmp_path / "a.png"
        )
    else:
        Image.new(mode, (40, 30), value).save(tmp_path / "a.png")
    found = scene(Sample(id="a", label=0, path=tmp_path / "a.png"), EvalProtocol())
    assert found.image.shape == (240, 320, 3)
    assert found.image.dtype == np.uint8
    assert (np.ptp(found.image, axis=2) == 0).all()  # grey
    assert abs(int(found.image[0, 0, 0]) - (255 if mode == "1" else 200)) <= 1
    assert found.unit_map is None


def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg"):
        photograph(Sample(id="a", label=0, path=tmp_path / "a.jpg", size=(40, 30)))


def test_a_file_smaller_than_its_annotations_is_drawn_in_their_shape() -> None:
    small = painted((80, 50), (20, 10, 60, 40))
    found = scene(
        replace(small, size=(400, 250), boxes=np.array([[100.0, 50.0, 300.0, 200.0]])), EvalProtocol()
    )
    assert found.image.shape == (250, 400, 3)
    np.testing.assert_allclose(found.outlines.true_boxes, [extent(found.image[..., 0] > 128)], atol=2)


def test_a_part_of_a_picture_is_at_least_one_pixel() -> None:
    found = place(np.ones((4, 4)), np.array([1.9, 0.2, 2.0, 0.4]), (2, 1))
    np.testing.assert_array_equal(np.isnan(found), [[True, False]])
