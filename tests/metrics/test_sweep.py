from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import boxes as oracle
from tests.oracles.golden import golden
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.sweep import best_iou_per_tau, boxes_at, quantize, single_box_per_tau, sweep
from wsolbench.protocol import EvalProtocol

TAUS = (0.0, 0.1, 0.25, 0.5, 0.502, 0.7, 0.999)


@st.composite
def protocols(draw: st.DrawFn) -> EvalProtocol:
    """Return every combination of the fields that concern boxes."""
    quantized = draw(st.booleans())
    contour = draw(st.booleans())
    foreground = draw(st.sampled_from([">", ">="]))
    return EvalProtocol(
        name="drawn",
        taus=(*TAUS, 1.0) if foreground == ">=" else TAUS,
        quantize="uint8" if quantized else "none",
        threshold_basis=draw(st.sampled_from(["max", "unit", "percentile"])) if quantized else "unit",
        foreground=foreground,
        components=draw(st.sampled_from(["all", "largest", "union"])),
        single_box=draw(st.sampled_from(["largest", "union"])),
        connectivity="contour" if contour else draw(st.sampled_from(["4", "8"])),
        largest_by="contour_area" if contour else draw(st.sampled_from(["pixel_count", "box_area"])),
        box_end=draw(st.sampled_from(["exclusive", "inclusive"])),
        clip_boxes=draw(st.booleans()),
        empty_box=draw(st.sampled_from(["zero", "unit", "image"])),
        gt_boxes=draw(st.sampled_from(["any", "first"])),
        iou_plus_one=draw(st.booleans()),
    )


_LEVELS = st.sampled_from([0, 0, 1, 25, 26, 64, 127, 128, 179, 254, 255])
_SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)
_VALUES = st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.3, 0.5, 0.5019, 0.69999, 0.7, 0.9, 1.0])
UNIT_MAPS = st.one_of(
    hnp.arrays(np.uint8, _SHAPES, elements=_LEVELS),
    hnp.arrays(np.float64, _SHAPES, elements=_VALUES),
    hnp.arrays(np.float32, _SHAPES, elements=st.floats(0, 1, width=32)),
)


@st.composite
def true_boxes(draw: st.DrawFn) -> np.ndarray:
    rows = draw(
        st.lists(st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(0, 6)] * 2), min_size=1, max_size=3)
    )
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=np.float64)


# --- published outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["t1000", "t100"])
def test_the_best_iou_of_all_56_maps_equals_the_official_evaluator_to_the_last_bit(grid: str) -> None:
    data = golden("boxes")
    protocol = replace(EvalProtocol.preset("wsoleval"), taus=tuple(data[f"thresholds_{grid}"].tolist()))
    swept = [sweep(data[f"map_{i:03d}"], data[f"gt_{i:03d}"], protocol) for i in range(int(data["num_maps"]))]
    np.testing.assert_array_equal(np.stack([one.best_iou for one in swept]), data[f"best_iou_multi_{grid}"])
    # This includes cells with several largest contours: the first in OpenCV's order counts.
    np.testing.assert_array_equal(
        np.stack([one.single_iou for one in swept]), data[f"best_iou_single_{grid}"]
    )
    assert data[f"tie_single_{grid}"].any()


def test_the_largest_contour_rule_alone_gives_the_same_numbers() -> None:
    data = golden("boxes")
    protocol = replace(
        EvalProtocol.preset("wsoleval"), taus=tuple(data["thresholds_t100"].tolist()), components="largest"
    )
    got = [
        best_iou_per_tau(data[f"map_{i:03d}"], data[f"gt_{i:03d}"], protocol)
        for i in range(int(data["num_maps"]))
    ]
    np.testing.assert_array_equal(np.stack(got), data["best_iou_single_t100"])


@pytest.mark.parametrize(("mode", "rule"), [("union", "union"), ("max", "largest")])
def test_the_boxes_of_the_spa_preset_equal_the_official_ones_wherever_no_pixel_is_on_the_threshold(
    mode: str, rule: str
) -> None:
    data = golden("spa_boxes")
    protocol = replace(
        EvalProtocol.preset("spa"), taus=tuple(data["thresholds"].tolist()), components=rule, single_box=rule
    )
    compared = 0
    for image, (height, width) in enumerate(data["image_size_hw"].tolist()):
        ranked = [
            (cls, data[f"top5_boxes_{mode}"][image, :, rank, 1:])
            for rank, cls in enumerate(data[f"top5_boxes_{mode}"][image, 0, :, 0])
        ]
        expected = [*ranked, (data["gt_label"][image], data[f"gtknown_box_{mode}"][image, :, 1:])]
        for column, (cls, official) in enumerate(expected):
            resized = cv2.resize(
                data[f"cam_norm_{image:02d}"][cls], (width, height), interpolation=cv2.INTER_LINEAR
            )
            safe = data["fg_margin"][image, :, column] >= 1e-6
            got = single_box_per_tau(np.clip(resized, 0, 1), protocol)
            np.testing.assert_array_equal(got[safe], official[safe])
            compared += safe.sum()
    assert compared > 500


# --- the definition, pixel by pixel -------------------------------------------------------------------------


@given(UNIT_MAPS, protocols())
def test_foreground_is_levels_above_the_cut_for_every_protocol(
    score_map: np.ndarray, protocol: EvalProtocol
) -> None:
    levels, cuts = quantize(score_map, protocol)
    assert np.issubdtype(levels.dtype, np.unsignedinteger)
    assert (np.diff(cuts) >= 0).all()
    for tau, cut in zip(protocol.taus, cuts.tolist(), strict=True):
        assert {tuple(pixel) for pixel in np.argwhere(levels > cut).tolist()} == oracle.foreground(
            score_map, tau, protocol
        )


@settings(max_examples=200)
@given(UNIT_MAPS, true_boxes(), protocols())
def test_the_sweep_equals_flood_fill_and_scalar_iou_for_every_protocol(
    score_map: np.ndarray, truth: np.ndarray, protocol: EvalProtocol
) -> None:
    swept = sweep(score_map, truth, protocol)
    counted_truth = [tuple(row) for row in truth[: 1 if protocol.gt_boxes == "first" else None].tolist()]
    for k, tau in enumerate(protocol.taus):
        single = oracle.boxes(score_map, tau, protocol, protocol.single_box)
        assert swept.single_boxes[k].tolist() == list(single[0])
        assert swept.single_iou[k] == oracle.best_iou(single, counted_truth, protocol)
        assert swept.best_iou[k] == oracle.best_iou(
            oracle.boxes(score_map, tau, protocol, protocol.components), counted_truth, protocol
        )


@given(UNIT_MAPS, true_boxes(), protocols())
def test_all_four_functions_agree(score_map: np.ndarray, truth: np.ndarray, protocol: EvalProtocol) -> None:
    swept = sweep(score_map, truth, protocol)
    np.testing.assert_array_equal(swept.best_iou, best_iou_per_tau(score_map, truth, protocol))
    np.testing.assert_array_equal(swept.single_boxes, single_box_per_tau(score_map, protocol))
    single = replace(protocol, components=protocol.single_box)
    np.testing.assert_array_equal(
        swept.single_boxes, np.concatenate([boxes_at(score_map, tau, single) for tau in single.taus])
    )


@given(hnp.arrays(np.uint8, _SHAPES, elements=st.sampled_from([0, 255])), st.sampled_from(["4", "8"]))
def test_of_equally_large_components_the_first_of_a_row_wise_scan_counts(
    score_map: np.ndarray, connectivity: str
) -> None:
    assume(score_map.any())
    protocol = EvalProtocol(
        taus=(0.5,), components="largest", connectivity=connectivity, largest_by="box_area"
    )
    assert [tuple(row) for row in boxes_at(score_map, 0.5, protocol).tolist()] == oracle.boxes(
        score_map, 0.5, protocol, "largest"
    )


def test_the_scan_order_decides_ties_in_a_large_noisy_map_too() -> None:
    # Isolated pixels, all of size 1, so that only the order of the labels decides. The first one is in row 0.
    score_map = np.zeros((300, 300))
    rng = np.random.default_rng(0)
    score_map[::2, ::2] = rng.random((150, 150)) < 0.5
    first = int(np.flatnonzero(score_map[0])[0])
    for connectivity in ("4", "8"):
        protocol = EvalProtocol(
            taus=(0.5,),
            components="largest",
            connectivity=connectivity,
            largest_by="pixel_count",
            box_end="inclusive",
        )
        assert boxes_at(score_map, 0.5, protocol).tolist() == [[first, 0, first, 0]]


def test_a_threshold_between_those_of_the_grid_can_be_asked_for() -> None:
    score_map = np.array([[0.2, 0.4, 0.6, 0.8]])
    protocol = EvalProtocol(
        taus=(0.0, 0.9), components="union", box_end="inclusive", threshold_basis="unit", quantize="none"
    )
    assert boxes_at(score_map, 0.5, protocol).tolist() == [[2, 0, 3, 0]]


def test_the_product_with_255_is_taken_in_float64_and_truncated() -> None:
    value = 0.2 - 1e-10  # 255 x value is slightly below 51; rounded to float32 first, it would be 51
    assert np.float32(255) * np.float32(value) == 51.0
    assert quantize(np.array([[value, 0.2, 0.9999, 1.0]]), EvalProtocol())[0].tolist() == [[50, 51, 254, 255]]


def test_uint8_maps_stand_for_value_over_255() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    got, got_cuts = quantize(levels, EvalProtocol())
    expected, expected_cuts = quantize(levels.astype(np.float64) / 255.0, EvalProtocol())
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got_cuts, expected_cuts)


def test_a_float_map_may_have_more_than_256_levels() -> None:
    protocol = EvalProtocol(
        taus=tuple(k / 1000 for k in range(1000)), quantize="none", threshold_basis="unit"
    )
    levels, cuts = quantize(np.linspace(0, 1, 2000).reshape(40, 50), protocol)
    assert levels.dtype == np.uint16
    assert levels.max() == 1000
    np.testing.assert_array_equal(cuts, np.arange(1000))


# --- properties ---------------------------------------------------------------------------------------------


@given(UNIT_MAPS, true_boxes(), protocols(), st.randoms(use_true_random=False))
def test_the_order_of_the_true_boxes_does_not_matter_and_one_more_never_hurts(
    score_map, truth, protocol, random
) -> None:
    protocol = replace(protocol, gt_boxes="any")
    rows = truth.tolist()
    random.shuffle(rows)
    iou = best_iou_per_tau(score_map, truth, protocol)
    np.testing.assert_array_equal(iou, best_iou_per_tau(score_map, np.array(rows), protocol))
    assert (iou >= best_iou_per_tau(score_map, truth[:1], protocol)).all()


@given(UNIT_MAPS, true_boxes(), protocols())
def test_all_regions_are_never_worse_than_the_largest(
    score_map: np.ndarray, truth: np.ndarray, protocol: EvalProtocol
) -> None:
    swept = sweep(score_map, truth, replace(protocol, components="all", single_box="largest"))
    assert (swept.best_iou >= swept.single_iou).all()


@given(UNIT_MAPS, true_boxes(), protocols())
def test_turning_map_and_boxes_over_the_diagonal_changes_nothing(
    score_map: np.ndarray, truth: np.ndarray, protocol: EvalProtocol
) -> None:
    protocol = replace(
        protocol, components="all" if protocol.components == "largest" else protocol.components
    )
    turned = best_iou_per_tau(np.ascontiguousarray(score_map.T), truth[:, [1, 0, 3, 2]], protocol)
    np.testing.assert_array_equal(best_iou_per_tau(score_map, truth, protocol), turned)


@given(
    hnp.arrays(np.uint8, _SHAPES, elements=st.integers(0, 9)),
    st.lists(st.integers(0, 254), min_size=10, max_size=10, unique=True).map(sorted),
    st.sampled_from([">", ">="]),
)
def test_an_increasing_change_of_all_levels_and_thresholds_changes_no_box(
    picture: np.ndarray, renamed: list[int], test: str
) -> None:
    protocol = EvalProtocol(
        threshold_basis="unit", foreground=test, taus=tuple(level / 255 for level in range(10))
    )
    moved = replace(protocol, taus=tuple(level / 255 for level in renamed))
    np.testing.assert_array_equal(
        single_box_per_tau(picture, protocol),
        single_box_per_tau(np.array(renamed, dtype=np.uint8)[picture], moved),
    )


@given(UNIT_MAPS, st.integers(1, 4))
def test_fractions_of_the_maximum_ignore_a_positive_scale(score_map: np.ndarray, halvings: int) -> None:
    # A power of two scales floats exactly. The 8-bit picture of the scaled map is coarser, so the exact
    # statement holds for float maps only.
    values = score_map.astype(np.float64) / (255 if score_map.dtype == np.uint8 else 1)
    scale = 2.0**-halvings
    protocol = EvalProtocol(quantize="none", threshold_basis="unit", taus=TAUS)
    scaled = replace(protocol, taus=tuple(tau * scale for tau in TAUS))
    assume(np.all((values == 0) | (values > 1e-30)))
    np.testing.assert_array_equal(
        single_box_per_tau(values, protocol), single_box_per_tau(values * scale, scaled)
    )


@given(st.integers(0, 5), st.integers(0, 5), st.integers(2, 6), st.integers(2, 6), protocols())
def test_a_perfect_map_has_iou_one_under_consistent_box_ends(
    x: int, y: int, w: int, h: int, protocol: EvalProtocol
) -> None:
    score_map = np.zeros((14, 14))
    score_map[y : y + h, x : x + w] = 1.0
    protocol = replace(
        protocol,
        clip_boxes=False,
        taus=(0.1, 0.5),
        iou_plus_one=protocol.box_end == "inclusive",
        threshold_basis="unit",
    )
    end = 1 if protocol.box_end == "inclusive" else 0
    swept = sweep(score_map, np.array([[x, y, x + w - end, y + h - end]]), protocol)
    assert swept.best_iou.tolist() == [1.0, 1.0]
    assert swept.single_iou.tolist() == [1.0, 1.0]


@given(UNIT_MAPS, protocols())
def test_a_larger_threshold_never_makes_the_union_larger(
    score_map: np.ndarray, protocol: EvalProtocol
) -> None:
    union = replace(protocol, single_box="union", empty_box="zero", clip_boxes=False)
    areas = [
        len(oracle.foreground(score_map, tau, union)) and (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
        for tau, b in zip(union.taus, single_box_per_tau(score_map, union), strict=True)
    ]
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(
    ("empty_box", "expected"), [("zero", [0, 0, 0, 0]), ("unit", [0, 0, 1, 1]), ("image", [0, 0, 5, 3])]
)
def test_a_map_without_foreground_gives_the_protocol_s_empty_box(empty_box: str, expected: list[int]) -> None:
    protocol = EvalProtocol(taus=(0.0, 0.5), empty_box=empty_box, clip_boxes=False)
    for score_map in (np.zeros((3, 5)), np.zeros((3, 5), dtype=np.uint8)):
        assert single_box_per_tau(score_map, protocol).tolist() == [expected, expected]
        assert boxes_at(score_map, 0.5, protocol).tolist() == [expected]


def test_a_constant_map_is_scored_as_the_protocol_says() -> None:
    # All ones: at every tau < 1 everything is foreground; at tau = 1 nothing is above the maximum, but
    # everything equals it.
    protocol = EvalProtocol(taus=(0.0, 0.5), components="union", single_box="union")
    assert single_box_per_tau(np.ones((3, 5)), protocol).tolist() == [[0, 0, 4, 2]] * 2
    assert boxes_at(np.ones((3, 5)), 1.0, protocol).tolist() == [[0, 0, 0, 0]]
    equal = replace(protocol, taus=(0.5, 1.0), foreground=">=")
    assert single_box_per_tau(np.ones((3, 5)), equal).tolist() == [[0, 0, 4, 2]] * 2


# --- invalid input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score_map", "message"),
    [
        (np.full((2, 2), np.nan), "holds 4 NaN or Inf of 4 values"),
        (np.array([[0.0, np.inf]]), "holds 1 NaN or Inf of 2 values"),
        (np.array([[0.0, 1.5]]), r"ranges from 0 to 1.5; expected \[0, 1\].*to_frame"),
        (np.array([[-0.1, 1.0]]), "ranges from -0.1 to 1"),
        (np.zeros((2, 2, 1)), r"shape \(2, 2, 1\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((2, 2), dtype=np.int64), "dtype int64"),
        (np.zeros((2, 2), dtype=bool), "dtype bool"),
        (np.zeros((2, 2), dtype=complex), "dtype complex128"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_bad_map_is_refused_by_every_function(score_map: np.ndarray, message: str) -> None:
    protocol, truth = EvalProtocol(), np.array([[0, 0, 1, 1]])
    for call in (
        lambda: sweep(score_map, truth, protocol),
        lambda: best_iou_per_tau(score_map, truth, protocol),
        lambda: single_box_per_tau(score_map, protocol),
        lambda: boxes_at(score_map, 0.5, protocol),
        lambda: quantize(score_map, protocol),
    ):
        with pytest.raises(DataError, match=message):
            call()


def test_no_true_box_is_refused() -> None:
    for function in (sweep, best_iou_per_tau):
        with pytest.raises(DataError, match="no ground-truth box"):
            function(np.ones((2, 2)), np.zeros((0, 4)), EvalProtocol())


def test_a_broken_true_box_is_refused_by_its_row() -> None:
    with pytest.raises(DataError, match="ground-truth boxes: row 1"):
        sweep(np.ones((9, 9)), np.array([[0, 0, 1, 1], [5, 5, 1, 1]]), EvalProtocol())


@pytest.mark.parametrize("tau", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(tau: float) -> None:
    with pytest.raises(UsageError, match="tau"):
        boxes_at(np.ones((2, 2)), tau, EvalProtocol())
