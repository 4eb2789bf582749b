"""k-means and k-medoids find separate groups, are seeded, and leave no cluster empty."""

from __future__ import annotations

import numpy as np

from reference_models.layers.k_means import k_means, k_medoids


def test_clusters_and_medoids():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(at, 0.1, (20, 2)) for at in (0.0, 5.0, 9.0)])
    labels = k_means(points, 3, rng)
    assert sorted(np.bincount(labels)) == [20, 20, 20]
    medoids = k_medoids(points, 3, rng)
    assert all((points == medoid).all(axis=1).any() for medoid in medoids)
    np.testing.assert_array_equal(np.sort(medoids[:, 0].round()), [0, 5, 9])
    assert len(set(k_means(np.zeros((9, 2)), 3, rng))) == 3  # no cluster is empty
    np.testing.assert_array_equal(k_means(points[:2], 3, rng), [0, 1])


def test_missing_coordinates_count_neither_in_distances_nor_in_means():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(150, 4)) + 2 * rng.integers(0, 2, size=(150, 1))
    points[rng.random(points.shape) < 0.4] = np.nan
    points[:3] = np.nan  # points of which nothing is known
    labels = k_means(points, 3, np.random.default_rng(0), rounds=200)
    centres = np.stack([np.nanmean(points[labels == cluster], axis=0) for cluster in range(3)])
    for point, label in zip(points, labels, strict=True):
        distances = [
            sum((value - at) ** 2 for value, at in zip(point, centre, strict=True) if not np.isnan(value))
            for centre in centres
        ]
        assert distances[label] <= min(distances) + 1e-9


def test_a_coordinate_that_no_point_of_a_cluster_has_is_that_of_all_points():
    points = np.array([[0.0, np.nan], [0.1, np.nan], [9.0, 4.0], [9.1, 5.0]])
    assert len(set(k_means(points, 2, np.random.default_rng(0))[:2])) == 1
    assert np.bincount(k_means(points, 2, np.random.default_rng(0))).tolist() == [2, 2]


def test_clusters_depend_on_the_seed_alone():
    points = np.random.default_rng(1).normal(size=(60, 3))
    first, again = (k_means(points, 5, np.random.default_rng(2)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_each_point_is_in_the_cluster_with_the_nearest_mean():
    points = np.random.default_rng(3).normal(size=(200, 2))
    labels = k_means(points, 4, np.random.default_rng(0), rounds=200)
    means = np.stack([points[labels == cluster].mean(axis=0) for cluster in range(4)])
    distances = ((points[:, None] - means) ** 2).sum(axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), labels)
