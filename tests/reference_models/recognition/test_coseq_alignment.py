"""CoSeq: trees of poses, shape contexts, thin-plate splines, and points that travel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree

from reference_models.recognition.coseq.alignment import (
    Spline,
    align_outlines,
    align_points,
    assign,
    describe_outline,
    fit_spline,
    kernel,
    matching_costs,
    mirror,
    outline,
)
from reference_models.recognition.coseq.parts import group_points, propagate, root_points
from reference_models.recognition.coseq.pose_graph import Visit, spanning_trees, visit_order


def shape(angle: float = 0.0, stretch: float = 1.0) -> np.ndarray:
    """A mask (150, 180) that no mirror image equals: a body with a head and a tail to one side."""
    mask = np.zeros((150, 180), np.uint8)
    cv2.ellipse(mask, (90, 80), (int(50 * stretch), 28), angle, 0, 360, 1, -1)
    cv2.circle(mask, (128, 52), 18, 1, -1)
    cv2.fillPoly(mask, [np.array([[50, 70], [12, 125], [30, 130], [70, 95]], np.int32)], 1)
    return mask.astype(bool)


def random_distances(count: int, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))


# --- trees --------------------------------------------------------------------------------------------------


def is_spanning(edges: np.ndarray, count: int) -> bool:
    """Whether every image is reached from the first one, by plain search."""
    reached, waiting = {0}, [0]
    while waiting:
        one = waiting.pop()
        for pair in edges.tolist():
            if one in pair:
                (other,) = set(pair) - {one}
                if other not in reached:
                    reached.add(other)
                    waiting.append(other)
    return len(reached) == count


def test_trees_are_edge_disjoint_spanning_and_ever_longer():
    distances = random_distances(14)
    trees = spanning_trees(distances, 5)
    edges = [{tuple(sorted(pair)) for pair in tree.tolist()} for tree in trees]
    assert [len(tree) for tree in edges] == [13] * 5
    assert len(set.union(*edges)) == 5 * 13
    assert all(is_spanning(tree, 14) for tree in trees)
    lengths = [distances[tree[:, 0], tree[:, 1]].sum() for tree in trees]
    assert lengths == sorted(lengths)
    assert lengths[0] == pytest.approx(minimum_spanning_tree(distances).sum())


def test_equal_images_have_edges_too_and_trees_end_when_edges_do():
    first, *_ = spanning_trees(np.zeros((6, 6)))
    assert is_spanning(first, 6)
    assert len(spanning_trees(random_distances(4), 5)) == 2  # six edges, three per tree
    assert spanning_trees(np.zeros((1, 1))) == []


def test_the_first_image_has_most_neighbours_and_the_next_one_most_finished_ones():
    edges = [np.array([[0, 1], [1, 2], [1, 3], [3, 4], [2, 4], [4, 5]])]
    order = visit_order(edges, 6)
    assert order[0].image == 1
    assert order[0].sources == ()
    assert [visit.image for visit in order] == [1, 0, 2, 3, 4, 5]
    assert order[4].sources == (2, 3)
    # Every edge is used once, from the earlier image to the later one.
    assert sum(len(visit.sources) for visit in order) == 6
    assert [visit.image for visit in visit_order([], 1)] == [0]


# --- splines ------------------------------------------------------------------------------------------------


def test_a_spline_without_stiffness_interpolates():
    rng = np.random.default_rng(0)
    points, targets = rng.uniform(0, 150, (12, 2)), rng.uniform(0, 150, (12, 2))
    np.testing.assert_allclose(fit_spline(points, targets, 0.0)(points), targets, atol=1e-8)


def test_a_spline_solves_its_system_in_the_given_unit():
    rng = np.random.default_rng(1)
    points, targets, stiffness = rng.uniform(50, 150, (9, 2)), rng.uniform(0, 150, (9, 2)), 700.0
    found = fit_spline(points, targets, stiffness)
    ones = np.concatenate([np.ones((9, 1)), points], axis=1)
    left = (kernel(points, points) + stiffness * np.eye(9)) @ found.bends + ones @ found.affine
    np.testing.assert_allclose(left, targets, atol=1e-7)
    np.testing.assert_allclose(ones.T @ found.bends, 0, atol=1e-9)


@pytest.mark.parametrize("stiffness", [0.0, 1.0, 1e4])
def test_a_spline_reproduces_affine_maps(stiffness):
    points = np.random.default_rng(2).normal(size=(10, 2))
    affine, shift = np.array([[0.8, -0.3], [0.4, 1.1]]), np.array([2.0, -1.0])
    found = fit_spline(points, points @ affine + shift, stiffness)
    elsewhere = np.random.default_rng(3).normal(size=(20, 2)) * 3
    np.testing.assert_allclose(found(elsewhere), elsewhere @ affine + shift, atol=1e-12)
    np.testing.assert_allclose(found.affine[1:], affine, atol=1e-13)


def test_a_stiff_spline_tends_to_the_affine_least_squares():
    rng = np.random.default_rng(4)
    points, targets = rng.normal(size=(15, 2)), rng.normal(size=(15, 2))
    ones = np.concatenate([np.ones((15, 1)), points], axis=1)
    best = np.linalg.lstsq(ones, targets, rcond=None)[0]
    errors = [np.abs(fit_spline(points, targets, s)(points) - ones @ best).max() for s in (1e2, 1e4, 1e6)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-5


def test_the_affine_cost_is_the_log_ratio_of_the_stretches():
    turn = np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
    none = np.zeros((0, 2))
    for stretch, expected in ((1.0, 0.0), (3.0, np.log(3))):
        affine = np.concatenate([[[5.0, 5.0]], turn @ np.diag([stretch, 1.0]) @ turn])
        assert Spline(none, none, affine).affine_cost == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("points", [np.ones((5, 2)), np.arange(10.0).repeat(2).reshape(10, 2)])
def test_points_on_a_line_or_at_one_place_give_finite_values(points):
    assert np.isfinite(fit_spline(points, points, 1.0)(points + 1)).all()


# --- shape contexts -----------------------------------------------------------------------------------------


def test_shape_contexts_are_histograms_of_the_other_points():
    points = outline(shape())
    found = describe_outline(points)
    offsets = points[None] - points[:, None]
    distances = np.hypot(offsets[..., 0], offsets[..., 1])
    near = (distances <= 2 * distances.mean()).sum(axis=1) - 1
    np.testing.assert_allclose(found.histograms.sum(axis=1) * len(points), near, atol=1e-4)
    assert found.histograms.shape == (100, 60)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, (31.0, -7.0)), (2.5, (0.0, 0.0)), (0.4, (3.0, 900.0))])
def test_a_moved_or_scaled_outline_has_the_same_shape_contexts(factor, shift):
    points = np.random.default_rng(0).uniform(0, 100, (60, 2))  # at no border of a bin
    one, other = describe_outline(points), describe_outline(points * factor + shift)
    np.testing.assert_array_equal(one.histograms, other.histograms)
    np.testing.assert_allclose(one.directions, other.directions, atol=1e-9)
    assert other.mean_distance == pytest.approx(factor * one.mean_distance)


def test_an_outline_matches_itself_point_by_point():
    described = describe_outline(outline(shape()))
    costs = matching_costs(described, described)
    np.testing.assert_allclose(np.diagonal(costs), 0, atol=1e-6)
    pairs = assign(costs)
    np.testing.assert_array_equal(pairs[:, 0], np.arange(100))
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])


def test_costs_are_the_formula():
    one, other = describe_outline(outline(shape())), describe_outline(outline(shape(20.0)))
    a, b = one.histograms[3].astype(float), other.histograms[8].astype(float)
    used = a + b > 0
    chi = 0.5 * ((a - b)[used] ** 2 / (a + b)[used]).sum()
    expected = 0.9 * chi + 0.05 * (1 - np.cos(one.directions[3] - other.directions[8]))
    assert matching_costs(one, other)[3, 8] == pytest.approx(expected, abs=1e-6)


def test_points_that_cost_more_than_a_dummy_are_not_paired():
    costs = np.full((8, 8), 0.9)
    np.fill_diagonal(costs, 0.1)
    costs[0, 0] = 0.8  # two dummies of 0.25 are cheaper
    np.testing.assert_array_equal(assign(costs), np.stack([np.arange(1, 8)] * 2, axis=1))


def test_alignment_finds_an_affine_map():
    points = outline(shape())
    moved = points @ np.array([[1.15, 0.1], [-0.08, 0.95]]) + (4.0, -3.0)
    found = align_points(points, moved)(points)
    assert np.abs(found - moved).max() < 0.5


def test_an_outline_of_one_pixel_is_that_pixel():
    mask = np.zeros((5, 7), bool)
    mask[2, 3] = True
    np.testing.assert_array_equal(outline(mask, 4), np.tile([3.5, 2.5], (4, 1)))


# --- points that travel -------------------------------------------------------------------------------------


def travel(masks: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    outlines = [outline(mask) for mask in masks]
    order = visit_order(spanning_trees(random_distances(len(masks))), len(masks))

    def predict(source, target, at):
        found = align_outlines(outlines[source], outlines[target], float(masks[source].shape[1]))
        return found(at), found.mirrored

    return propagate(order, points, len(masks), predict)


def test_points_in_copies_of_an_image_are_the_same():
    mask = shape()
    points = root_points(mask, 40, np.random.default_rng(0))
    for found in travel([mask] * 6, points):
        np.testing.assert_allclose(found, points, atol=1e-6)


def test_points_in_a_mirror_image_are_mirrored():
    mask = shape()
    turned = np.ascontiguousarray(mask[:, ::-1])
    points = root_points(mask, 40, np.random.default_rng(0))
    width = float(mask.shape[1])
    found = align_outlines(outline(mask), outline(turned), width)
    assert found.mirrored
    # Outlines begin elsewhere, so their points differ by up to half their distance.
    assert np.abs(found(points) - mirror(points, width)).mean() < 1.0
    assert not align_outlines(outline(mask), outline(shape(8.0)), width).mirrored


def test_places_are_medians_of_the_predictions():
    order = [Visit(0, ()), Visit(1, (0,)), Visit(2, (0,)), Visit(3, (0,)), Visit(4, (1, 2, 3))]
    shifts = {1: 1.0, 2: 2.0, 3: 30.0}

    def predict(source, target, at):
        return at + shifts.get(target, 0.0), False

    found = propagate(order, np.zeros((3, 2)), 5, predict)
    np.testing.assert_array_equal(found[4], np.full((3, 2), 2.0))


def test_predictions_that_face_the_other_way_do_not_count():
    order = [Visit(0, ()), Visit(1, (0,)), Visit(2, (0,)), Visit(3, (0, 1, 2)), Visit(4, (2, 3))]
    # 2 is mirrored; 3 is so by two votes of three; 4 is as the first of its two sources says.
    turned = {
        (0, 1): False,
        (0, 2): True,
        (0, 3): True,
        (1, 3): False,
        (2, 3): False,
        (2, 4): True,
        (3, 4): False,
    }

    def predict(source, target, at):
        return at + 10.0**target + source, turned[source, target]

    found = propagate(order, np.zeros((1, 2)), 5, predict)[:, 0, 0]
    expected_3 = np.median([1000.0, found[2] + 1000 + 2])
    assert found[3] == pytest.approx(expected_3)
    assert found[4] == pytest.approx(found[2] + 10_000 + 2)


def test_points_with_one_trajectory_are_one_part():
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 150, (7, 4, 2))
    trajectories = np.repeat(centres, 10, axis=1) + rng.normal(0, 0.1, (7, 40, 2))
    labels, places = group_points(trajectories, 4, rng)
    assert all(len(set(labels[start : start + 10])) == 1 for start in range(0, 40, 10))
    order = [labels[start] for start in range(0, 40, 10)]
    np.testing.assert_allclose(places[:, order], centres, atol=0.2)
    assert group_points(trajectories[:, :3], 5, rng)[1].shape == (7, 5, 2)
