"""Each preset on maps of a few pixels, for every convention about boxes on which published evaluators differ.

The arithmetic stands beside each case. Maps are in the evaluation frame, boxes (x0, y0, x1, y1).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.metrics.sweep import best_iou_per_tau, boxes_at, quantize, single_box_per_tau
from wsolbench.metrics.top_k_loc import TopKLoc
from wsolbench.protocol import EvalProtocol, tau_grid

PRESETS = ["wsoleval", "spa", "bas", "tscam", "psol", "lid"]


def single_at(score_map: np.ndarray, tau: float, protocol: EvalProtocol) -> list[float]:
    return single_box_per_tau(score_map, replace(protocol, taus=(tau,)))[0].tolist()


def picture(*rows: str) -> np.ndarray:
    """Parse a map: digits are tenths, '#' is 1."""
    return np.array([[1.0 if mark == "#" else int(mark) / 10 for mark in row] for row in rows])


# --- binarise, threshold basis ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # levels 0, 127, 255; cut int(.5 x 255) = 127; 127 > 127 is false: pixel 2. x + w = 3 is clipped to W
        # - 1 = 2, y + h = 1 to 0.
        ("wsoleval", [2, 0, 2, 0]),
        # float .5 >= .5: pixels 1 and 2, inclusive end.
        ("spa", [1, 0, 2, 0]),
        # .5 > .5 is false: pixel 2, half-open.
        ("bas", [2, 0, 3, 1]),
        ("psol", [2, 0, 3, 1]),
        # as wsoleval, x + w not clipped.
        ("tscam", [2, 0, 3, 1]),
        # cut round(.5 x 255) = 128, 127 >= 128 is false: pixel 2, clipped.
        ("lid", [2, 0, 2, 0]),
    ],
)
def test_a_pixel_on_the_threshold_is_foreground_only_where_the_test_is_greater_or_equal(
    preset: str, expected: list[int]
) -> None:
    assert single_at(np.array([[0.0, 0.5, 1.0]]), 0.5, EvalProtocol.preset(preset)) == expected


def test_lid_counts_a_pixel_that_equals_the_level() -> None:
    # level 100 >= 100: pixels 0 and 1 of three; clip: x1 = min(2, 2), y1 = min(1, 0).
    assert single_at(np.array([[100, 255, 99]], dtype=np.uint8), 100 / 255, EvalProtocol.preset("lid")) == [
        0,
        0,
        2,
        0,
    ]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        # maximum .5 is level 127; cut int(.6 x 127) = 76; levels 51, 127, 0: pixel 1.
        ("wsoleval", [1, 0, 2, 0]),
        ("tscam", [1, 0, 2, 1]),
        # nothing is above .6 of the unit range: the empty boxes.
        ("spa", [0, 0, 0, 0]),
        ("bas", [0, 0, 3, 1]),
        ("psol", [0, 0, 0, 0]),
        ("lid", [0, 0, 0, 0]),
    ],
)
def test_a_threshold_is_a_share_of_the_maximum_or_of_the_unit_range(preset: str, expected: list[int]) -> None:
    assert single_at(np.array([[0.2, 0.5, 0.0]]), 0.6, EvalProtocol.preset(preset)) == expected


def test_the_percentile_basis_takes_the_percentile_of_the_8_bit_map() -> None:
    # 11 levels 0, 10 .. 100; the 90th percentile is the tenth of them, 90. int(.5 x 90) = 45: levels 50 ..
    # 100, pixels 5 .. 10.
    levels = np.arange(0, 101, 10, dtype=np.uint8)[None]
    protocol = EvalProtocol(threshold_basis="percentile", box_end="inclusive")
    assert single_at(levels, 0.5, protocol) == [5, 0, 10, 0]
    # Of the maximum: int(.5 x 100) = 50, levels 60 .. 100.
    assert single_at(levels, 0.5, replace(protocol, threshold_basis="max")) == [6, 0, 10, 0]


# --- threshold count ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "count"),
    [("wsoleval", 1000), ("spa", 18), ("bas", 100), ("tscam", 100), ("psol", 100), ("lid", 256)],
)
def test_the_number_of_thresholds(preset: str, count: int) -> None:
    assert len(EvalProtocol.preset(preset).taus) == count


def test_the_official_1000_thresholds_are_255_different_cuts() -> None:
    # int(t x 255) for t = 0 .. .999 takes every value from 0 to 254.
    _, cuts = quantize(np.array([[0.0, 1.0]]), EvalProtocol())
    assert np.unique(cuts).tolist() == list(range(255))
    assert quantize(np.array([[0.0, 1.0]]), replace(EvalProtocol(), taus=tau_grid(0.01)))[1].shape == (100,)


# --- region and what "largest" means ------------------------------------------------------------------------

# A strip of 8 x 1 and a block of 2 x 2. Polygon area: strip 0, block 1. Pixels and box area: strip 8, block
# 4.
STRIP_AND_BLOCK = picture("########0000", "000000000000", "0000000000##", "0000000000##", "000000000000")


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("wsoleval", [10, 2, 11, 4]),  # block, 12 clipped to 11
        ("tscam", [10, 2, 12, 4]),  # block
        ("lid", [10, 2, 11, 4]),
        ("bas", [0, 0, 8, 1]),  # strip
        ("psol", [0, 0, 8, 1]),
        ("spa", [0, 0, 11, 3]),  # around both, inclusive
    ],
)
def test_a_thin_strip_is_the_largest_by_pixels_and_the_smallest_by_polygon_area(
    preset: str, expected: list[int]
) -> None:
    assert single_at(STRIP_AND_BLOCK, 0.5, EvalProtocol.preset(preset)) == expected


def test_all_contours_are_counted_by_wsoleval_and_one_region_by_the_others() -> None:
    # True box = the strip as each protocol would write it; only rules that see the strip reach IoU 1.
    found = {}
    for preset in PRESETS:
        protocol = replace(EvalProtocol.preset(preset), taus=(0.5,))
        strip = [[0, 0, 7, 0]] if protocol.box_end == "inclusive" else [[0, 0, 8, 1]]
        found[preset] = best_iou_per_tau(STRIP_AND_BLOCK, np.array(strip), protocol)[0]
    # spa: union 12 x 4 = 48 pixels, strip 8. tscam, lid: block 3 x 3 with +1 does not touch the strip.
    assert found == {"wsoleval": 1.0, "bas": 1.0, "psol": 1.0, "spa": 8 / 48, "tscam": 0.0, "lid": 0.0}


def test_the_outline_of_a_hole_is_a_region_of_its_own_for_wsoleval() -> None:
    # Ring of thickness 2 (6 x 6 with a 2 x 2 hole): the hole's outline runs through the pixels around it, 4 x
    # 4 at (2, 1).
    ring = picture(
        "000000000",
        "0######00",
        "0######00",
        "0##00##00",
        "0##00##00",
        "0######00",
        "0######00",
        "000000000",
        "000000000",
    )
    assert sorted(boxes_at(ring, 0.5, EvalProtocol()).tolist()) == [[1, 1, 7, 7], [2, 2, 6, 6]]
    assert boxes_at(ring, 0.5, EvalProtocol.preset("bas")).tolist() == [[1, 1, 7, 7]]


# A diagonal of 5 pixels and a block of 3 x 3: 8-connected, the diagonal has box area 25 and 5 pixels; the
# block 9 and 9.
DIAGONAL_AND_BLOCK = picture("#00000000", "0#0000000", "00#000###", "000#00###", "0000#0###")


@pytest.mark.parametrize(
    ("connectivity", "largest_by", "expected"),
    [
        ("8", "box_area", [0, 0, 5, 5]),
        ("8", "pixel_count", [6, 2, 9, 5]),
        ("4", "box_area", [6, 2, 9, 5]),  # 4-connected, the diagonal is five single pixels
        ("4", "pixel_count", [6, 2, 9, 5]),
    ],
)
def test_connectivity_and_size_decide_between_a_diagonal_and_a_block(
    connectivity: str, largest_by: str, expected: list[int]
) -> None:
    protocol = replace(EvalProtocol.preset("bas"), connectivity=connectivity, largest_by=largest_by)
    assert single_at(DIAGONAL_AND_BLOCK, 0.5, protocol) == expected


def test_the_component_variant_of_spa_is_4_connected_and_largest_by_box_area() -> None:
    # An L of 3 + 2 pixels (box 3 x 3 = 9, 5 pixels) against a 2 x 3 block (box 6, 6 pixels): the L by box
    # area.
    both = picture("#000000", "#0000##", "###00##", "00000##")
    variant = replace(EvalProtocol.preset("spa"), single_box="largest")
    assert single_at(both, 0.5, variant) == [0, 0, 2, 2]
    assert single_at(both, 0.5, replace(variant, largest_by="pixel_count")) == [5, 1, 6, 3]


def test_of_two_equal_components_the_first_of_a_row_wise_scan_counts() -> None:
    both = picture("000000000", "0##000##0", "0##000##0", "000000000")
    assert single_at(both, 0.5, EvalProtocol.preset("bas")) == [1, 1, 3, 3]
    # The left one starts a row lower: now the right one is met first.
    both = picture("000000##0", "0##000##0", "0##000000", "000000000")
    assert single_at(both, 0.5, EvalProtocol.preset("bas")) == [6, 0, 8, 2]


# --- box end, IoU arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "iou"), [(10, 100 / 121), (20, 400 / 441), (50, 2500 / 2601), (100, 10000 / 10201)]
)
def test_an_exclusive_end_read_as_inclusive_costs_a_perfect_box_a_pixel(side: int, iou: float) -> None:
    # Predicted (5, 5, 5 + s, 5 + s) is s + 1 wide under +1; the inclusive true box is s wide: s^2 / (s +
    # 1)^2, .83 at 10 pixels.
    score_map = np.zeros((120, 120))
    score_map[5 : 5 + side, 5 : 5 + side] = 1.0
    truth = np.array([[5, 5, 4 + side, 4 + side]])
    for preset in ("wsoleval", "tscam", "bas", "psol"):
        protocol = replace(EvalProtocol.preset(preset), taus=(0.5,))
        assert best_iou_per_tau(score_map, truth, protocol)[0] == iou
    assert best_iou_per_tau(score_map, truth, replace(EvalProtocol.preset("spa"), taus=(0.5,)))[0] == 1.0


def test_plus_one_widens_both_boxes() -> None:
    # Predicted (0, 0, 2, 2), true (1, 0, 3, 2). +1: 2 x 3 shared of 9 + 9 - 6 = 12. Without: 1 x 2 of 4 + 4 -
    # 2 = 6.
    score_map = picture("##00", "##00", "0000", "0000")
    protocol = replace(EvalProtocol.preset("bas"), taus=(0.5,))
    truth = np.array([[1, 0, 3, 2]])
    assert best_iou_per_tau(score_map, truth, protocol)[0] == 6 / 12
    assert best_iou_per_tau(score_map, truth, replace(protocol, iou_plus_one=False))[0] == 2 / 6


# --- IoU test -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "gt_known", "top1"),
    [
        ("wsoleval", 1.0, 1.0),
        ("spa", 0.0, 0.0),
        ("bas", 0.0, 0.0),
        ("psol", 0.0, 0.0),
        ("tscam", 1.0, 0.0),
        ("lid", 1.0, 1.0),
    ],
)
def test_an_iou_of_exactly_one_half_passes_where_the_test_includes_it(
    preset: str, gt_known: float, top1: float
) -> None:
    protocol = EvalProtocol.preset(preset)
    metric = TopKLoc(protocol, ks=(1,))
    iou = np.full(len(protocol.taus), 0.5)
    metric.update(iou, np.array([4, 2]), 4, ranked_iou=np.stack([iou, iou]))
    result = metric.compute()
    assert (result.gt_known, result.top_k[1]) == (gt_known, top1)
    single = MaxBoxAcc(protocol, deltas=(0.5,))
    single.update(iou, label=4)
    assert single.compute().value == gt_known


# --- empty map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("wsoleval", [0, 0, 0, 0]),
        ("spa", [0, 0, 0, 0]),
        ("tscam", [0, 0, 1, 1]),
        ("bas", [0, 0, 5, 3]),
        ("psol", [0, 0, 0, 0]),
        ("lid", [0, 0, 0, 0]),
    ],
)
def test_the_box_of_a_map_without_foreground(preset: str, expected: list[int]) -> None:
    assert single_at(np.zeros((3, 5)), 0.5, EvalProtocol.preset(preset)) == expected


def test_where_the_test_includes_the_threshold_zero_everything_is_foreground_at_zero() -> None:
    # 0 >= 0: spa's grid starts at .05 for that reason; lid's starts at level 0. 3 x 5 pixels, clipped to (4,
    # 2) for lid.
    assert single_at(np.zeros((3, 5)), 0.0, EvalProtocol.preset("lid")) == [0, 0, 4, 2]
    assert single_at(np.zeros((3, 5)), 0.0, EvalProtocol.preset("spa")) == [0, 0, 4, 2]
    assert single_at(np.zeros((3, 5)), 0.0, EvalProtocol.preset("wsoleval")) == [0, 0, 0, 0]


# --- ground-truth boxes, class of the map, averaging, V2 ----------------------------------------------------


def test_any_true_box_counts_or_only_the_first() -> None:
    # The map shows the second object: predicted (6, 0, 8, 1) in 9 x 2; the first is far away.
    score_map = picture("000000##0", "000000000")
    truth = np.array([[0, 0, 2, 1], [6, 0, 8, 1]])
    for preset in ("wsoleval", "tscam", "bas", "psol", "lid"):
        protocol = replace(EvalProtocol.preset(preset), taus=(0.5,))
        assert best_iou_per_tau(score_map, truth, protocol)[0] == 1.0
        assert best_iou_per_tau(score_map, truth, replace(protocol, gt_boxes="first"))[0] == 0.0


@pytest.mark.parametrize(
    ("preset", "top1"), [("wsoleval", 1.0), ("bas", 1.0), ("psol", 1.0), ("spa", 0.0), ("tscam", 0.0)]
)
def test_top1_loc_reads_the_true_class_s_map_or_the_predicted_class_s_own_map(
    preset: str, top1: float
) -> None:
    # The true class's map has IoU .9; the map made for the predicted class, which names the same class, has
    # .2.
    protocol = EvalProtocol.preset(preset)
    n = len(protocol.taus)
    metric = TopKLoc(protocol, ks=(1,))
    metric.update(np.full(n, 0.9), np.array([4]), 4, ranked_iou=np.full((1, n), 0.2))
    assert metric.compute().top_k == {1: top1}


@pytest.mark.parametrize(
    ("preset", "value"), [("wsoleval", 0.75), ("tscam", 0.75), ("spa", 0.75), ("bas", 0.5), ("psol", 0.5)]
)
def test_accuracy_is_averaged_over_images_or_over_classes(preset: str, value: float) -> None:
    # Class 0: three hits of three. Class 1: none of one. Images: 3/4. Classes: (1 + 0) / 2.
    protocol = EvalProtocol.preset(preset)
    metric = TopKLoc(protocol, ks=(1,))
    for iou, label in ((0.9, 0), (0.9, 0), (0.9, 0), (0.1, 1)):
        metric.update(np.full(len(protocol.taus), iou), np.array([label]), label)
    result = metric.compute()
    assert (result.gt_known, result.top_k[1]) == (value, value)


@pytest.mark.parametrize(("preset", "per_delta"), [("wsoleval", (1.0, 1.0, 0.5)), ("psol", (1.0, 1.0, 0.0))])
def test_v2_has_a_threshold_for_each_delta_or_one_for_all(preset: str, per_delta: tuple[float, ...]) -> None:
    # Two images of one class; hits at deltas .3, .5, .7. tau .1: IoU .6 and .6: 2, 2, 0. tau .2: .9 and .2:
    # 1, 1, 1. A threshold each: 2/2 at .1, 2/2 at .1, 1/2 at .2. Shared: tau .1, because 2 + 2 + 0 > 1 + 1 +
    # 1.
    protocol = replace(EvalProtocol.preset(preset), taus=(0.1, 0.2))
    metric = MaxBoxAcc(protocol)
    metric.update(np.array([0.6, 0.9]), label=0)
    metric.update(np.array([0.6, 0.2]), label=0)
    result = metric.compute()
    assert result.value_per_delta == per_delta
    assert result.value == pytest.approx(sum(per_delta) / 3)
