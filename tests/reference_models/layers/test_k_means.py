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
