"""The evaluation frame: maps and boxes are brought where the protocol compares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsolbench.exceptions import DataError, UsageError
from wsolbench.maps import cut_center, frame_boxes, frame_size, image_boxes, to_frame
from wsolbench.methods import InputSpec
from wsolbench.methods.inputs import to_input
from wsolbench.metrics import best_iou_per_tau, single_box_per_tau
from wsolbench.protocol import EvalProtocol

WSOLEVAL = EvalProtocol.preset("wsoleval")
SPA = EvalProtocol.preset("spa")
BAS = EvalProtocol.preset("bas")
LID = EvalProtocol.preset("lid")


@pytest.mark.parametrize(
    ("protocol", "size"), [(WSOLEVAL, (224, 224)), (SPA, (300, 200)), (BAS, (224, 224)), (LID, (300, 200))]
)
def test_the_frame_is_square_or_the_image(protocol: EvalProtocol, size: tuple[int, int]) -> None:
    assert frame_size((300, 200), protocol) == size
    assert to_frame(np.arange(12.0).reshape(3, 4), (300, 200), protocol).shape == size[::-1]


def test_resized_boxes_equal_those_of_the_official_evaluator(golden_folder: Path) -> None:
    with np.load(golden_folder / "resize_bbox.npz") as golden:
        cases = zip(
            golden["box"], golden["image_size_wh"], golden["resize_size_wh"], golden["expected"], strict=True
        )
        for box, image, new, expected in cases:
            if new[0] != new[1]:
                continue
            # The official function only scales. Clipping happens elsewhere, so it is switched off here.
            protocol = replace(WSOLEVAL, frame_size=int(new[0]), clip_boxes=False)
            np.testing.assert_array_equal(
                frame_boxes(box[None].astype(float), tuple(image.tolist()), protocol)[0], expected
            )
        for box, image, expected in zip(
            golden["box_float"], golden["image_size_wh_float"], golden["expected_float"], strict=True
        ):
            protocol = replace(WSOLEVAL, clip_boxes=False)
            np.testing.assert_array_equal(
                frame_boxes(box[None], tuple(image.tolist()), protocol)[0], expected
            )


@pytest.mark.parametrize("protocol", [WSOLEVAL, SPA, BAS, LID])
@pytest.mark.parametrize("box", [[90.0, 20.0, 30.0, 80.0], [30.0, 80.0, 90.0, 20.0]])
def test_a_box_that_ends_before_it_starts_is_refused(protocol: EvalProtocol, box: list[float]) -> None:
    """The message names the box and its row, whichever of its ends is before its start."""
    with pytest.raises(DataError, match=r"row 1 is .*expected x1 >= x0 and y1 >= y0") as error:
        frame_boxes(np.array([[0.0, 0.0, 50.0, 50.0], box]), (200, 100), protocol)
    assert str(box) in str(error.value)


def test_wsoleval_cuts_at_the_last_pixel_then_scales_then_truncates() -> None:
    # 200 x 100 image; (30.5, 10, 200, 100) is cut at (199, 99): x 224/200 and 224/100 -> 34.16, 22.4, 222.88,
    # 221.76
    boxes = frame_boxes(np.array([[30.5, 10.0, 200.0, 100.0]]), (200, 100), WSOLEVAL)
    np.testing.assert_array_equal(boxes, [[34, 22, 222, 221]])


def test_spa_keeps_the_image_size_and_ends_on_the_last_pixel() -> None:
    np.testing.assert_array_equal(
        frame_boxes(np.array([[30.0, 10.0, 200.0, 100.0]]), (200, 100), SPA), [[30, 10, 199, 99]]
    )


def test_the_centre_crop_shifts_and_cuts() -> None:
    # 512 x 256 image at 256 x 256: x halves; the crop starts at 16
    boxes = frame_boxes(np.array([[0.0, 0.0, 512.0, 256.0], [132.0, 66.0, 232.0, 116.0]]), (512, 256), BAS)
    np.testing.assert_array_equal(boxes, [[0, 0, 224, 224], [50, 50, 100, 100]])


def test_first_box_only_where_the_protocol_says_so() -> None:
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0]])
    assert len(frame_boxes(boxes, (50, 50), WSOLEVAL)) == 2
    np.testing.assert_array_equal(
        frame_boxes(boxes, (50, 50), replace(SPA, gt_boxes="first")), [[0, 0, 9, 9]]
    )


def test_the_order_of_resizing_and_normalising_matters() -> None:
    score_map = np.zeros((7, 7))
    score_map[3, 3] = 1
    first = to_frame(score_map, (50, 50), WSOLEVAL)
    last = to_frame(score_map, (50, 50), replace(WSOLEVAL, order="normalize_then_resize"))
    assert first.max() == 1
    assert last.max() < 1  # the peak lies between the pixels of the large map


def test_lid_makes_levels_before_it_resizes() -> None:
    # float32, as networks give it: in float64 the 1e-10 in the divisor would turn the maximum into 254.
    levels = to_frame(np.array([[0.0, 0.5], [0.7, 1.0]], dtype=np.float32), (9, 9), LID) * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    np.testing.assert_array_equal(np.round(levels[[0, 0, -1, -1], [0, -1, 0, -1]]), [0, 127, 178, 255])


def test_a_map_that_is_in_the_frame_already_scores_as_it_is(rng: np.random.Generator) -> None:
    once = to_frame(rng.random((9, 9)), (50, 50), WSOLEVAL)
    np.testing.assert_array_equal(to_frame(once, (50, 50), WSOLEVAL), once)


def test_maps_in_the_frame_score_as_the_official_program_scores_them_in_their_own_precision(
    golden_folder: Path,
) -> None:
    with np.load(golden_folder / "boxes.npz") as golden:
        kinds = set()
        for number in range(int(golden["num_maps"])):
            stored = golden[f"map_{number:03d}"]
            if (
                stored.shape[0] != stored.shape[1]
                or stored.min() != 0
                or stored.max() != (255 if stored.dtype == np.uint8 else 1)
            ):
                continue
            protocol = replace(WSOLEVAL, frame_size=stored.shape[0])
            framed = to_frame(stored / 255 if stored.dtype == np.uint8 else stored, (50, 50), protocol)
            expected = golden["best_iou_multi_t1000"][number]
            np.testing.assert_array_equal(
                best_iou_per_tau(framed, golden[f"gt_{number:03d}"].astype(float), protocol), expected
            )
            kinds.add(stored.dtype.name)
    assert kinds == {"uint8", "float32", "float64"}


def test_boxes_and_pixels_of_an_odd_centre_crop_start_together() -> None:
    protocol = replace(BAS, resize_size=255)
    image = np.zeros((255, 255, 3), dtype=np.uint8)
    image[100:110, 100:110] = 255
    view = to_input(
        image, InputSpec(size=224, mean=(0, 0, 0), std=(1, 1, 1)), frame="center_crop", resize_size=255
    )
    rows = np.flatnonzero(view[0].any(axis=1))
    (box,) = frame_boxes(np.array([[100.0, 100.0, 110.0, 110.0]]), (255, 255), protocol)
    np.testing.assert_array_equal(box[[1, 3]], [rows[0], rows[-1] + 1])


@pytest.mark.parametrize("name", EvalProtocol.presets())
@pytest.mark.parametrize("level", [-1.3, 0.0, 3.0, 1e-20])
def test_a_constant_map_stays_constant_through_resizing(name: str, level: float) -> None:
    assert not to_frame(np.full((4, 4), level), (50, 40), EvalProtocol.preset(name)).any()


@pytest.mark.parametrize(
    ("score_map", "message"),
    [
        (np.zeros((2, 3, 3)), "shape"),
        (np.zeros((0, 3)), "shape"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "Inf"),
        (np.array([["a"]]), "dtype"),
    ],
)
def test_a_broken_map_is_refused_by_name(score_map: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=rf"map of bird.*{message}"):
        to_frame(score_map, (5, 5), WSOLEVAL, what="map of bird")


@pytest.mark.parametrize("name", EvalProtocol.presets())
def test_boxes_go_back_to_the_image(name: str) -> None:
    preset = EvalProtocol.preset(name)
    # The fraction, and what is beyond the last pixel, are lost on the way and are not restored.
    protocol = replace(preset, clip_boxes=False, gt_truncate=False, gt_end=preset.box_end)
    boxes = np.array([[50.5, 40.0, 201.0, 133.25]])
    np.testing.assert_allclose(
        image_boxes(frame_boxes(boxes, (300, 200), protocol), (300, 200), protocol), boxes, rtol=1e-12
    )


def test_the_centre_of_a_map_is_where_the_centre_crop_has_its_boxes() -> None:
    size, true_box = (512, 128), np.array([[100.0, 20.0, 420.0, 80.0]])
    whole = np.zeros((128, 512), dtype=np.float32)
    whole[20:80, 100:420] = 1
    cut = cut_center(whole, BAS)
    assert cut.shape == (224, 224)
    (found,) = single_box_per_tau(to_frame(cut, size, BAS), replace(BAS, taus=(0.5,)))
    np.testing.assert_array_equal(found, frame_boxes(true_box, size, BAS)[0])


def test_a_constant_map_stays_constant_when_it_is_cut() -> None:
    constant = np.full((7, 5), 0.3, dtype=np.float32)
    assert not to_frame(cut_center(constant, BAS), (300, 200), BAS).any()


def test_there_is_nothing_to_cut_without_a_centre_crop() -> None:
    with pytest.raises(UsageError, match="frame='center_crop'"):
        cut_center(np.eye(3), WSOLEVAL)
