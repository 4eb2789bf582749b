from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.boxes import overlap
from tests.oracles.golden import golden
from wsolbench.exceptions import DataError
from wsolbench.metrics.boxes import iob_matrix, iog_matrix, iou_matrix


@st.composite
def box_rows(draw: st.DrawFn) -> np.ndarray:
    corners = st.tuples(*[st.integers(-20, 20)] * 2, *[st.integers(0, 15)] * 2)
    rows = draw(st.lists(corners, min_size=1, max_size=4))
    return np.array([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=np.float64)


def test_iou_iog_and_iob_equal_those_of_the_published_program_to_the_last_bit() -> None:
    data = golden("spa_badcase")
    a, b = data["iou_a"], data["iou_b"]
    np.testing.assert_array_equal(np.diag(iou_matrix(a, b, plus_one=True)), data["iou"])
    np.testing.assert_array_equal(np.diag(iog_matrix(a, b, plus_one=True)), data["iog"])
    np.testing.assert_array_equal(np.diag(iob_matrix(a, b, plus_one=True)), data["iob"])
    assert (data["iou"] > 0).sum() > 10  # the pairs do overlap


@given(box_rows(), box_rows(), st.booleans())
def test_overlaps_equal_the_scalar_arithmetic_for_every_pair(
    a: np.ndarray, b: np.ndarray, plus_one: bool
) -> None:
    expected = np.array([[overlap(tuple(p), tuple(t), plus_one=plus_one) for t in b] for p in a])
    np.testing.assert_array_equal(iou_matrix(a, b, plus_one=plus_one), expected[..., 0])
    np.testing.assert_array_equal(iog_matrix(a, b, plus_one=plus_one), expected[..., 1])
    np.testing.assert_array_equal(iob_matrix(a, b, plus_one=plus_one), expected[..., 2])


@given(box_rows(), box_rows(), st.booleans())
def test_iou_is_symmetric_and_never_above_iog_or_iob(a: np.ndarray, b: np.ndarray, plus_one: bool) -> None:
    iou = iou_matrix(a, b, plus_one=plus_one)
    np.testing.assert_array_equal(iou, iou_matrix(b, a, plus_one=plus_one).T)
    assert (iou <= iog_matrix(a, b, plus_one=plus_one)).all()
    assert (iou <= iob_matrix(a, b, plus_one=plus_one)).all()
    assert ((iou >= 0) & (iou <= 1)).all()


def test_a_box_has_iou_one_with_itself_and_iou_of_disjoint_boxes_is_zero() -> None:
    boxes = np.array([[0, 0, 4, 4], [10, 10, 12, 20]])
    np.testing.assert_array_equal(iou_matrix(boxes, boxes, plus_one=True), np.eye(2))
    np.testing.assert_array_equal(iou_matrix(boxes, boxes, plus_one=False), np.eye(2))


def test_plus_one_counts_both_end_pixels() -> None:
    a, b = np.array([[0, 0, 1, 1]]), np.array([[1, 0, 2, 1]])
    # +1: 2x2 and 2x2 sharing a 1x2 column: 2 / (4 + 4 - 2). Without: they touch, 0 / 2.
    assert iou_matrix(a, b, plus_one=True)[0, 0] == 2 / 6
    assert iou_matrix(a, b, plus_one=False)[0, 0] == 0.0


def test_two_zero_boxes_overlap_fully_with_plus_one_and_not_at_all_without() -> None:
    zero = np.zeros((1, 4))
    assert iou_matrix(zero, zero, plus_one=True)[0, 0] == 1.0
    assert iou_matrix(zero, zero, plus_one=False)[0, 0] == 0.0


def test_no_boxes_give_an_empty_matrix() -> None:
    assert iou_matrix(np.zeros((0, 4)), np.zeros((3, 4)), plus_one=True).shape == (0, 3)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[5, 0, 3, 3]], r"row 0 is \[5.0, 0.0, 3.0, 3.0\]; expected x1 >= x0"),
        ([[0, 0, 1, 1], [0, 9, 1, 3]], "row 1 is"),
        ([[0, 0, np.nan, 1]], "row 0 holds NaN or Inf"),
        ([[0, 0, np.inf, 1]], "row 0 holds NaN or Inf"),
        ([0, 0, 1, 1], r"shape \(4,\); expected \(n, 4\)"),
        ([[0, 0, 1]], r"shape \(1, 3\)"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_broken_box_is_refused_with_its_row_and_what_was_expected(boxes: list, message: str) -> None:
    good = [[0, 0, 1, 1]]
    for function in (iou_matrix, iog_matrix, iob_matrix):
        for pair in ((boxes, good), (good, boxes)):
            with pytest.raises(DataError, match=message):
                function(*pair, plus_one=True)


def test_an_inclusive_box_narrower_than_a_pixel_is_sound_only_with_plus_one() -> None:
    narrow = np.array(
        [[2.0, 2.0, 1.5, 4.0]]
    )  # x from 2 to 2.5, written with an inclusive end: half a pixel wide
    assert iog_matrix(np.array([[0, 0, 9, 9]]), narrow, plus_one=True)[0, 0] == 1.0
    with pytest.raises(DataError, match="expected x1 >= x0"):
        iou_matrix(narrow, narrow, plus_one=False)
