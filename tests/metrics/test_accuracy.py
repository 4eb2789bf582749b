"""Top-k accuracy and the mean of per-class accuracies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsolbench.exceptions import UsageError
from wsolbench.metrics.accuracy import MeanPerClassAccuracy, TopKAccuracy

images = st.lists(st.tuples(st.permutations(range(6)), st.integers(0, 5)), min_size=1, max_size=30)


@given(images)
def test_top_k_is_the_share_of_images_whose_label_is_among_the_first_k(
    ranked: list[tuple[list[int], int]],
) -> None:
    metric = TopKAccuracy(ks=(1, 3, 6))
    for ranking, label in ranked:
        metric.update(np.array(ranking), label)
    result = metric.compute()
    for k in (1, 3):
        assert result.top_k[k] == sum(ranking.index(label) < k for ranking, label in ranked) / len(ranked)
    assert result.top_k[6] == 1.0
    assert result.n == len(ranked)


@given(images)
def test_mean_per_class_accuracy_weighs_every_class_that_occurs_alike(
    ranked: list[tuple[list[int], int]],
) -> None:
    metric = MeanPerClassAccuracy()
    for ranking, label in ranked:
        metric.update(ranking, label)
    classes = {label for _, label in ranked}
    shares = [np.mean([ranking[0] == label for ranking, label in ranked if label == one]) for one in classes]
    assert metric.compute().value == pytest.approx(np.mean(shares), abs=1e-15)
    assert metric.compute().per_class.keys() == classes


def test_a_rare_class_counts_as_much_as_a_frequent_one() -> None:
    metric = MeanPerClassAccuracy()
    for _ in range(99):
        metric.update([0], 0)
    metric.update([0], 1)
    assert metric.compute().value == 0.5


def test_a_ranking_shorter_than_k_is_refused_instead_of_scored_as_a_miss() -> None:
    with pytest.raises(UsageError, match="ranking has 3 labels"):
        TopKAccuracy().update([0, 1, 2], 0)
    with pytest.raises(UsageError, match="ranking is empty"):
        MeanPerClassAccuracy().update([], 0)


@pytest.mark.parametrize("ks", [(), (0,), (-1, 5)])
def test_k_must_be_at_least_one(ks: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        TopKAccuracy(ks=ks)


def test_shards_of_other_ks_are_refused() -> None:
    with pytest.raises(UsageError, match="cannot merge"):
        TopKAccuracy(ks=(1,)).merge(TopKAccuracy(ks=(1, 5)))


@pytest.mark.parametrize("metric", [TopKAccuracy(), MeanPerClassAccuracy()])
def test_without_an_image_accuracy_is_undefined(metric: TopKAccuracy | MeanPerClassAccuracy) -> None:
    with pytest.raises(UsageError, match="no image"):
        metric.compute()
