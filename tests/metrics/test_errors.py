from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.boxes import error_category
from tests.oracles.golden import golden
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.errors import ERROR_NAMES, ErrorBreakdown, error_codes, localization_error
from wsolbench.protocol import EvalProtocol

SPA = EvalProtocol.preset("spa")
PROTOCOL = EvalProtocol(name="two", taus=(0.1, 0.2))

ROW = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 12)] * 2).map(
    lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3])
)
ROWS = st.lists(ROW, min_size=1, max_size=4).map(lambda rows: np.array(rows, dtype=np.float64))


def test_all_300_categories_equal_the_official_breakdown() -> None:
    data = golden("spa_badcase")
    official_names = dict(zip(data["category_names"].tolist(), ERROR_NAMES, strict=True))
    assert official_names == {
        "right": "right",
        "cls": "cls",
        "mins": "m_ins",
        "part": "part",
        "more": "more",
        "other": "other",
    }
    seen = set()
    for i in range(len(data["gt_label"])):
        truth = data["gt_boxes"][i, : data["num_gt"][i]]
        class_correct = bool(data["pred_cls"][i, 0] == data["gt_label"][i])
        name = localization_error(data["pred_box"][i, 0], truth, class_correct=class_correct, protocol=SPA)
        assert name == ERROR_NAMES[data["category"][i].argmax()]
        seen.add(name)
    assert seen == set(ERROR_NAMES)


@given(ROWS, ROWS, st.booleans(), st.booleans(), st.sampled_from(["any", "first"]))
def test_the_codes_equal_one_test_after_another(
    boxes, truth, class_correct: bool, plus_one: bool, gt_boxes: str
) -> None:
    protocol = replace(PROTOCOL, iou_plus_one=plus_one, gt_boxes=gt_boxes)
    counted = [tuple(row) for row in (truth[:1] if gt_boxes == "first" else truth)]
    expected = [error_category(tuple(box), counted, True, protocol) for box in boxes]
    assert [ERROR_NAMES[code] for code in error_codes(boxes, truth, protocol)] == expected
    one = localization_error(boxes[0], truth, class_correct=class_correct, protocol=protocol)
    assert one == error_category(tuple(boxes[0]), counted, class_correct, protocol)


def category(box: list[float], *truth: list[float], protocol: EvalProtocol = SPA) -> str:
    return localization_error(np.array(box), np.array(truth), class_correct=True, protocol=protocol)


def test_a_wrong_class_is_cls_even_with_a_perfect_box() -> None:
    assert (
        localization_error(
            np.array([0, 0, 9, 9]), np.array([[0, 0, 9, 9]]), class_correct=False, protocol=SPA
        )
        == "cls"
    )


def test_iou_must_be_above_one_half_to_be_right() -> None:
    # 10 x 10 true, 10 x 5 predicted inside: IoU 50/100 = .5 is not above .5; IoB is 1, so Part. 10 x 6: .6.
    assert category([0, 0, 9, 4], [0, 0, 9, 9]) == "part"
    assert category([0, 0, 9, 5], [0, 0, 9, 9]) == "right"


def test_one_box_over_two_objects_is_m_ins_before_part_and_more_are_looked_at() -> None:
    # Two 10 x 10 objects at x 0-9 and 30-39 in a 40 x 10 box: IoU 1/4, both IoG 1, and IoG >= .7 would be
    # More.
    assert category([0, 0, 39, 9], [0, 0, 9, 9], [30, 0, 39, 9]) == "m_ins"
    assert category([0, 0, 39, 9], [0, 0, 9, 9]) == "more"
    # A 20 x 10 box in two 20 x 20 objects that overlap fully: IoU .5, IoG .5 twice; IoB 1 would be Part.
    assert category([0, 0, 19, 9], [0, 0, 19, 19], [0, 0, 19, 19]) == "m_ins"


def test_an_iog_of_exactly_three_tenths_does_not_count_for_m_ins() -> None:
    # 10 x 3 of two equal 10 x 10 objects: IoG .3 each, not above; IoB 1: Part. With 10 x 4 it is .4 each.
    assert category([0, 0, 9, 2], [0, 0, 9, 9], [0, 0, 9, 9]) == "part"
    assert category([0, 0, 9, 3], [0, 0, 9, 9], [0, 0, 9, 9]) == "m_ins"


def test_an_iob_of_exactly_one_half_is_not_part() -> None:
    # Predicted 10 x 2, half of it on the 10 x 10 object (rows 9 and 10, object ends at row 9): IoB .5, IoG
    # .1.
    assert category([0, 9, 9, 10], [0, 0, 9, 9]) == "other"
    # Predicted 10 x 3, two of its rows on the object: IoB 2/3.
    assert category([0, 8, 9, 10], [0, 0, 9, 9]) == "part"


def test_an_iog_of_exactly_seven_tenths_is_more() -> None:
    # Object 10 x 10. Predicted 20 x 7 over its upper seven rows: IoG .7, IoB .5, IoU 70/170. 20 x 6: IoG .6.
    assert category([0, 0, 19, 6], [0, 0, 9, 9]) == "more"
    assert category([0, 0, 19, 5], [0, 0, 9, 9]) == "other"


def test_without_any_overlap_it_is_other() -> None:
    assert category([50, 50, 60, 60], [0, 0, 9, 9], [20, 20, 29, 29]) == "other"


def test_of_equally_good_true_boxes_the_first_decides() -> None:
    # Predicted 20 x 10 at x 0-19. A: 10 x 10 at x 0-9: intersection 100, IoU 100/200. B: 40 x 10 at x 0-39:
    # 200/400. Both .5. First A: IoB 100/200 = .5, not Part; IoG 1: More. First B: IoB 1: Part. M-Ins is
    # switched off by its cut-off.
    protocol = replace(SPA, error_multi_iog=1.0)
    assert category([0, 0, 19, 9], [0, 0, 9, 9], [0, 0, 39, 9], protocol=protocol) == "more"
    assert category([0, 0, 19, 9], [0, 0, 39, 9], [0, 0, 9, 9], protocol=protocol) == "part"


def test_every_cut_off_is_a_field_of_the_protocol() -> None:
    box, one, two = [0, 0, 9, 4], [0, 0, 9, 9], [0, 0, 9, 9]
    assert category(box, one, protocol=replace(SPA, error_iou=0.49)) == "right"
    assert category(box, one, two) == "m_ins"
    assert category(box, one, two, protocol=replace(SPA, error_multi_iog=0.5)) == "part"
    assert category(box, one, protocol=replace(SPA, error_part_iob=1.0)) == "other"
    assert category(box, one, protocol=replace(SPA, error_part_iob=1.0, error_more_iog=0.5)) == "more"


def test_only_the_first_true_box_counts_where_the_protocol_says_so() -> None:
    assert category([30, 0, 39, 9], [0, 0, 9, 9], [30, 0, 39, 9]) == "right"
    assert (
        category([30, 0, 39, 9], [0, 0, 9, 9], [30, 0, 39, 9], protocol=replace(SPA, gt_boxes="first"))
        == "other"
    )


def test_the_breakdown_gives_shares_at_one_threshold_and_counts_wrong_classes_first() -> None:
    breakdown = ErrorBreakdown(PROTOCOL)
    breakdown.update(np.array([0, 3], dtype=np.uint8), True)
    breakdown.update(np.array([0, 4], dtype=np.uint8), True)
    breakdown.update(np.array([0, 0], dtype=np.uint8), False)
    breakdown.update(np.array([5, 2], dtype=np.uint8), True)
    assert breakdown.compute(0).fractions == {
        "right": 0.5,
        "cls": 0.25,
        "m_ins": 0.0,
        "part": 0.0,
        "more": 0.0,
        "other": 0.25,
    }
    assert breakdown.compute(1).fractions == {
        "right": 0.0,
        "cls": 0.25,
        "m_ins": 0.25,
        "part": 0.25,
        "more": 0.25,
        "other": 0.0,
    }
    assert breakdown.compute(1).n == 4


CODES = st.lists(
    st.tuples(st.lists(st.integers(0, 5), min_size=2, max_size=2), st.booleans()), min_size=1, max_size=9
)


@given(CODES, st.randoms(use_true_random=False), st.integers(0, 9))
def test_neither_the_order_of_images_nor_the_split_into_shards_changes_a_bit(rows, random, cut: int) -> None:
    def accumulated(part) -> ErrorBreakdown:
        breakdown = ErrorBreakdown(PROTOCOL)
        for codes, class_correct in part:
            breakdown.update(np.array(codes), class_correct)
        return breakdown

    whole = accumulated(rows)
    random.shuffle(rows)
    merged = accumulated(rows[:cut])
    merged.merge(accumulated(rows[cut:]))
    for index in (0, 1):
        assert merged.compute(index) == whole.compute(index)
        assert sum(merged.compute(index).fractions.values()) == pytest.approx(1.0)


def test_without_images_the_breakdown_is_undefined() -> None:
    with pytest.raises(UsageError, match="no image"):
        ErrorBreakdown(PROTOCOL).compute(0)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_threshold_index_outside_the_grid_is_refused(index: int) -> None:
    breakdown = ErrorBreakdown(PROTOCOL)
    breakdown.update(np.zeros(2, dtype=np.uint8), True)
    with pytest.raises(UsageError, match="expected 0 to 1"):
        breakdown.compute(index)


@pytest.mark.parametrize(
    "codes", [np.zeros(3, dtype=int), np.array([0, 6]), np.array([-1, 0]), np.array([0.0, 1.0])]
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_codes_of_another_shape_or_value_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(DataError, match="integers from 0 to 5"):
        ErrorBreakdown(PROTOCOL).update(codes, True)


def test_breakdowns_of_different_protocols_do_not_merge() -> None:
    with pytest.raises(UsageError, match="cannot merge"):
        ErrorBreakdown(PROTOCOL).merge(ErrorBreakdown(replace(PROTOCOL, error_iou=0.4)))


@pytest.mark.usefixtures("unchecked_shapes")
def test_missing_or_broken_boxes_are_refused() -> None:
    with pytest.raises(DataError, match="no ground-truth box"):
        localization_error(np.array([0, 0, 1, 1]), np.zeros((0, 4)), class_correct=True, protocol=SPA)
    with pytest.raises(DataError, match="predicted boxes: row 0"):
        localization_error(np.array([5, 0, 1, 1]), np.array([[0, 0, 1, 1]]), class_correct=True, protocol=SPA)
    with pytest.raises(DataError, match="ground-truth boxes have shape"):
        localization_error(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), class_correct=True, protocol=SPA)
