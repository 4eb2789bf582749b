"""Key-point distance: worked numbers, invariances, and which boxes and points count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.confidence import mean_rates
from wsolbench.metrics.keypoints import KeypointDistance, keypoint_distance, slot_mean

POINTS = np.array([[100.0, 100.0, 1.0], [200.0, 50.0, 1.0]])
TRUE_BOX = np.array([20.0, 30.0, 320.0, 190.0])  # 300 x 160


def boxes_at(*centres: tuple[float, float], side: float = 20.0) -> np.ndarray:
    return np.array([[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for x, y in centres])


FOUR = boxes_at((103, 104), (200, 80), (0, 0), (150, 75))


def one_image(boxes=FOUR, points=POINTS, true_box=TRUE_BOX, side=448, **settings):
    image = keypoint_distance(boxes, points, true_box, side=side, **settings)
    assert image is not None
    return image


def test_distances_of_the_worked_example() -> None:
    metric = KeypointDistance(side=448)
    metric.update(FOUR, POINTS, TRUE_BOX)
    result = metric.compute()
    assert result.slot_px == pytest.approx((5.0, 30.0, 141.421356, 55.901699), abs=1e-6)
    assert result.px == pytest.approx(58.080764, abs=1e-6)
    assert result.norm == pytest.approx(0.170826, abs=1e-6)
    assert result.slot_norm == pytest.approx([distance / 340 for distance in result.slot_px], abs=1e-12)
    assert result.distinct == 2.0
    assert result.covered == 2.0  # at 5 of 34 and 30 of 34 pixels; the other boxes are too far away
    assert result.hit == 0.25  # only the first box holds a point
    assert (result.n, result.n_skipped, result.n_padded) == (1, 0, 0)


def test_a_centre_on_a_visible_point_has_distance_zero() -> None:
    assert one_image(boxes_at((100, 100), (200, 50))).px.tolist() == [0.0, 0.0]


def covered(boxes: np.ndarray, points: np.ndarray) -> float:
    metric = KeypointDistance(side=448, frame="all")
    metric.update(boxes, points, TRUE_BOX)
    return metric.compute().covered


def test_four_boxes_on_one_point_cover_one_and_scattered_boxes_none() -> None:
    points = np.array([[x, y, 1.0] for x in (60, 160, 260) for y in (60, 160)])
    assert covered(boxes_at(*[(60, 60)] * 4), points) == 1
    assert covered(boxes_at((94, 60)), points) == 1  # 34 pixels of the diagonal's 340
    assert covered(boxes_at((94.5, 60)), points) == 0
    assert covered(boxes_at((60, 60), (160, 60), (160, 160), (260, 60)), points) == 4
    assert covered(boxes_at((0, 110), (110, 110), (210, 110), (310, 110)), points) == 0


coordinates = st.floats(-50, 500)
point_rows = arrays.arrays(np.float64, (5, 2), elements=coordinates)
centre_rows = arrays.arrays(np.float64, (4, 2), elements=coordinates)


@given(point_rows, centre_rows, arrays.arrays(bool, 5))
def test_the_distance_is_that_to_the_nearest_visible_point(
    points: np.ndarray, centres: np.ndarray, visible: np.ndarray
) -> None:
    visible[0] = True
    image = one_image(boxes_at(*centres.tolist()), np.column_stack([points, visible]), frame="all")
    for row, (x, y) in enumerate(centres):
        expected = {p: math.dist((x, y), points[p]) for p in np.flatnonzero(visible)}
        assert image.px[row] == pytest.approx(min(expected.values()), abs=1e-9)
        assert expected[image.nearest[row]] == pytest.approx(min(expected.values()), abs=1e-9)


@given(point_rows, centre_rows, arrays.arrays(bool, 4))
def test_covered_points_are_counted_one_by_one(
    points: np.ndarray, centres: np.ndarray, padded: np.ndarray
) -> None:
    padded[0] = False
    points, centres = points.round(3), centres.round(3)  # squares of smaller distances underflow to a tie
    metric = KeypointDistance(side=448, frame="all")
    metric.update(boxes_at(*centres.tolist()), np.column_stack([points, np.ones(5)]), TRUE_BOX, padded)
    # A point counts once, if it is the nearest one of any box and within 34 pixels, a tenth of the diagonal.
    count = 0
    for p, point in enumerate(points):
        for centre, skipped in zip(centres, padded, strict=True):
            distances = [float(np.hypot(*(centre - other))) for other in points]
            if (
                not skipped
                and distances.index(min(distances)) == p
                and math.hypot(*(centre - point)) / 340 <= 0.1
            ):
                count += 1
                break
    assert metric.compute().covered == count
    assert metric.compute().covered <= metric.compute().distinct


@given(point_rows, centre_rows)
def test_scaling_image_and_points_leaves_both_reported_distances_as_they_are(
    points: np.ndarray, centres: np.ndarray
) -> None:
    key_points = np.column_stack([points, np.ones(5)])
    doubled = np.column_stack([points * 2, np.ones(5)])
    image = one_image(boxes_at(*centres.tolist()), key_points, side=224, frame="all")
    twice = one_image(boxes_at(*(centres * 2).tolist()), doubled, TRUE_BOX * 2, side=448, frame="all")
    np.testing.assert_allclose(twice.norm, image.norm, atol=1e-12)
    np.testing.assert_allclose(twice.px, image.px, atol=1e-9)  # pixels of a 448 input at either side


@given(point_rows, centre_rows, st.permutations(range(5)))
def test_permuting_parts_and_adding_invisible_ones_changes_no_distance(
    points: np.ndarray, centres: np.ndarray, order: list[int]
) -> None:
    boxes, key_points = boxes_at(*centres.tolist()), np.column_stack([points, np.ones(5)])
    hidden = np.vstack([key_points[order], [[*centres[0], 0.0]]])
    plain, changed = one_image(boxes, key_points, frame="all"), one_image(boxes, hidden, frame="all")
    assert plain.px.tolist() == changed.px.tolist()
    assert plain.hit.tolist() == changed.hit.tolist()


@given(point_rows, centre_rows, st.tuples(coordinates, coordinates))
def test_one_more_visible_point_never_increases_a_distance(
    points: np.ndarray, centres: np.ndarray, extra: tuple[float, float]
) -> None:
    boxes, key_points = boxes_at(*centres.tolist()), np.column_stack([points, np.ones(5)])
    more = np.vstack([key_points, [[*extra, 1.0]]])
    assert (one_image(boxes, more, frame="all").px <= one_image(boxes, key_points, frame="all").px).all()


def test_points_outside_of_the_input_are_dropped_unless_all_are_asked_for() -> None:
    points = np.array([[-10.0, 50.0, 1.0], [447.9, 50.0, 1.0], [448.0, 50.0, 1.0]])
    boxes = boxes_at((0, 50), (460, 50))
    assert one_image(boxes, points).nearest.tolist() == [1, 1]
    assert one_image(boxes, points, frame="all").nearest.tolist() == [0, 2]


def test_of_two_equally_near_parts_the_lower_index_is_the_nearest() -> None:
    points = np.array([[0.0, 0.0, 0.0], [110.0, 100.0, 1.0], [90.0, 100.0, 1.0]])
    assert one_image(boxes_at((100, 100)), points).nearest.tolist() == [1]


def test_a_box_holds_points_on_its_start_and_not_on_its_end() -> None:
    points = np.array([[100.0, 100.0, 1.0]])
    boxes = np.array([[100.0, 100.0, 120.0, 120.0], [80.0, 80.0, 100.0, 100.0]])
    assert one_image(boxes, points).hit.tolist() == [True, False]


def test_an_image_without_a_visible_point_is_skipped_and_counted() -> None:
    metric = KeypointDistance(side=448)
    metric.update(FOUR, POINTS, TRUE_BOX)
    before = metric.compute()
    metric.update(FOUR, POINTS * [1, 1, 0], TRUE_BOX)
    metric.update(FOUR, np.array([[500.0, 0.0, 1.0]]), TRUE_BOX)
    after = metric.compute()
    assert (after.n, after.n_skipped) == (1, 2)
    assert after.px == before.px


def test_padded_slots_count_nowhere_and_others_keep_their_place() -> None:
    metric = KeypointDistance(side=448)
    metric.update(FOUR, POINTS, TRUE_BOX, padded=np.array([False, True, False, True]))
    result = metric.compute()
    assert result.slot_px == (5.0, None, pytest.approx(141.421356, abs=1e-6), None)
    assert result.px == pytest.approx((5 + 141.421356) / 2, abs=1e-6)
    assert result.n_padded == 2
    assert result.hit == 0.5
    assert result.distinct == 1.0  # both remaining boxes are nearest to the first point


def test_an_image_with_fewer_boxes_counts_in_the_slots_that_it_has() -> None:
    metric = KeypointDistance(side=448)
    metric.update(FOUR, POINTS, TRUE_BOX)
    metric.update(boxes_at((100, 103)), POINTS, TRUE_BOX)
    result = metric.compute()
    assert result.slot_px == pytest.approx((4.0, 30.0, 141.421356, 55.901699), abs=1e-6)
    assert result.slot_median_px[0] == pytest.approx(4.0)


def test_only_the_best_boxes_count() -> None:
    metric, wide = KeypointDistance(side=448, top=2), KeypointDistance(side=448)
    metric.update(FOUR, POINTS, TRUE_BOX)
    wide.update(FOUR[:2], POINTS, TRUE_BOX)
    assert metric.compute().slot_px == wide.compute().slot_px[:2]


def test_rows_for_the_bootstrap_lead_to_the_same_distance() -> None:
    rng = np.random.default_rng(0)
    metric = KeypointDistance(side=448)
    for _ in range(7):
        metric.update(
            boxes_at(*rng.uniform(0, 448, (4, 2)).tolist()), POINTS, TRUE_BOX, padded=rng.random(4) < 0.3
        )
    assert float(slot_mean(mean_rates(metric.rows("px"))[None])[0]) == pytest.approx(
        metric.compute().px, abs=1e-10
    )
    assert float(slot_mean(mean_rates(metric.rows())[None])[0]) == pytest.approx(
        metric.compute().norm, abs=1e-12
    )
    assert np.isnan(slot_mean(np.zeros((1, 8)))[0])


@pytest.mark.parametrize(
    ("boxes", "points", "true_box"),
    [
        (FOUR, POINTS, np.array([5.0, 5.0, 5.0, 5.0])),
        (FOUR * np.nan, POINTS, TRUE_BOX),
        (FOUR, POINTS * [np.inf, 1, 1], TRUE_BOX),
        (FOUR[:, :3], POINTS, TRUE_BOX),
        (FOUR, POINTS[:, :2], TRUE_BOX),
        (FOUR, POINTS, TRUE_BOX[:2]),
    ],
)
def test_broken_boxes_and_points_are_refused(unchecked_shapes: None, boxes, points, true_box) -> None:
    with pytest.raises(DataError, match=r"ground-truth box|expected \([Kn], 4\)|NaN or Inf|x1 >= x0"):
        keypoint_distance(boxes, points, true_box, side=448)


def test_without_a_visible_point_or_a_box_the_distance_is_undefined() -> None:
    metric = KeypointDistance(side=448)
    with pytest.raises(DataError, match="undefined"):
        metric.compute()
    metric.update(np.zeros((0, 4)), POINTS, TRUE_BOX)
    with pytest.raises(DataError, match="none of them has a box"):
        metric.compute()


def test_settings_must_make_sense_and_agree_between_shards() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        KeypointDistance(side=0)
    with pytest.raises(UsageError, match="cannot merge"):
        KeypointDistance(side=448).merge(KeypointDistance(side=224))
