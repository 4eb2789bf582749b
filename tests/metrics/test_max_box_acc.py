from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles.golden import golden
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.protocol import EvalProtocol

PROTOCOL = EvalProtocol(name="three", taus=(0.1, 0.2, 0.3))
IOUS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 9), st.just(3)),
    elements=st.sampled_from([0.0, 0.29, 0.3, 0.5, 0.6, 0.7, 1.0]),
)


def accumulated(rows: np.ndarray, protocol: EvalProtocol = PROTOCOL, **options) -> MaxBoxAcc:
    metric = MaxBoxAcc(protocol, **options)
    for label, row in enumerate(rows):
        metric.update(row, label=label % 2)
    return metric


@pytest.mark.parametrize("mode", ["single", "multi"])
@pytest.mark.parametrize("grid", ["t1000", "t100"])
def test_hit_counts_and_final_scores_equal_the_official_evaluator(mode: str, grid: str) -> None:
    data = golden("boxes")
    protocol = replace(EvalProtocol.preset("wsoleval"), taus=tuple(data[f"thresholds_{grid}"].tolist()))
    metric = accumulated(data[f"best_iou_{mode}_{grid}"], protocol)
    counts = data[f"num_correct_{mode}_{grid}"]
    np.testing.assert_array_equal(metric.hits, counts)
    result = metric.compute()
    assert result.n == 56
    assert result.value_per_delta == tuple((counts.max(axis=1) / 56).tolist())
    np.testing.assert_allclose(
        np.array(result.value_per_delta) * 100, data[f"compute_{mode}_{grid}"], rtol=1e-15
    )
    np.testing.assert_allclose(result.value * 100, data[f"maxboxaccv2_{mode}_{grid}"], rtol=1e-15)


def test_max_box_acc_of_the_first_version_is_the_official_number_at_iou_50() -> None:
    data = golden("boxes")
    result = accumulated(data["best_iou_single_t1000"], EvalProtocol(), deltas=(0.5,)).compute()
    assert result.deltas == (0.5,)
    assert result.value == data["num_correct_single_t1000"][1].max() / 56


def test_v2_takes_the_best_threshold_of_each_delta_and_their_mean() -> None:
    # delta .3: all three taus hit 2, 1, 0 images -> 2/2 at tau .1. delta .5: 1, 1, 0 -> 1/2 at .1. delta .7:
    # 0, 1, 0 -> 1/2 at .2.
    result = accumulated(np.array([[0.6, 0.8, 0.0], [0.4, 0.2, 0.1]])).compute()
    assert result.value_per_delta == (1.0, 0.5, 0.5)
    assert result.tau_per_delta == (0.1, 0.1, 0.2)
    assert result.value == pytest.approx(2 / 3)


def test_a_shared_threshold_is_the_best_of_the_mean_over_deltas() -> None:
    # Hits at .3/.5/.7: tau .1 has 2 + 1 + 0 = 3, tau .2 has 1 + 1 + 1 = 3, tau .3 none. Equal: the smaller
    # tau.
    result = accumulated(
        np.array([[0.6, 0.8, 0.0], [0.4, 0.2, 0.1]]), replace(PROTOCOL, v2_tau="shared")
    ).compute()
    assert result.value_per_delta == (1.0, 0.5, 0.0)
    assert result.tau_per_delta == (0.1, 0.1, 0.1)


def test_of_equally_good_thresholds_the_smallest_counts() -> None:
    assert accumulated(np.array([[0.0, 0.9, 0.9]])).compute().tau_per_delta == (0.2, 0.2, 0.2)


def test_fixed_and_transferred_thresholds_are_read_where_they_say() -> None:
    metric = accumulated(np.array([[0.6, 0.8, 0.0], [0.4, 0.2, 0.1]]))
    assert metric.compute(ThresholdPolicy.fixed(0.3)).value_per_delta == (0.0, 0.0, 0.0)
    transferred = metric.compute(ThresholdPolicy.transfer([0.2, 0.1, 0.3]))
    assert transferred.tau_per_delta == (0.2, 0.1, 0.3)
    assert transferred.value_per_delta == (0.5, 0.5, 0.0)


def test_class_averaging_weighs_classes_and_not_images() -> None:
    protocol = replace(PROTOCOL, averaging="class")
    metric = MaxBoxAcc(protocol, deltas=(0.5,))
    for iou, label in ((0.9, 4), (0.8, 4), (0.7, 4), (0.1, 9)):
        metric.update(np.full(3, iou), label)
    assert metric.compute().value == 0.5  # (3/3 + 0/1) / 2, where the mean over images is 3/4
    assert metric.n == 4


@given(IOUS, st.randoms(use_true_random=False), st.sampled_from(["image", "class"]), st.integers(0, 9))
def test_neither_the_order_of_images_nor_the_split_into_shards_changes_a_bit(
    rows, random, averaging, cut
) -> None:
    protocol = replace(PROTOCOL, averaging=averaging)
    labelled = [(row, label % 2) for label, row in enumerate(rows)]
    whole = accumulated(rows, protocol)
    random.shuffle(labelled)
    shards = [MaxBoxAcc(protocol), MaxBoxAcc(protocol)]
    for i, (row, label) in enumerate(labelled):
        shards[i >= cut].update(row, label)
    shards[0].merge(shards[1])
    assert shards[0].compute() == whole.compute()
    np.testing.assert_array_equal(shards[0].hits, whole.hits)


@given(IOUS)
def test_the_value_is_the_brute_force_maximum_over_thresholds(rows: np.ndarray) -> None:
    best = [
        max(sum(row[t] >= delta for row in rows) for t in range(3)) / len(rows) for delta in (0.3, 0.5, 0.7)
    ]
    assert accumulated(rows).compute().value_per_delta == tuple(best)


@given(IOUS)
def test_a_stricter_delta_never_has_more_hits(rows: np.ndarray) -> None:
    curve = accumulated(rows).curve()
    assert (np.diff(curve, axis=0) <= 0).all()
    assert ((curve >= 0) & (curve <= 1)).all()


def test_merging_does_not_change_the_other_side() -> None:
    a, b = accumulated(np.full((2, 3), 0.9)), accumulated(np.full((3, 3), 0.1))
    a.merge(b)
    assert (a.n, b.n) == (5, 3)
    assert b.compute().value == 0.0


def test_without_images_the_metric_is_undefined() -> None:
    with pytest.raises(UsageError, match="no image was counted"):
        MaxBoxAcc(PROTOCOL).compute()


def test_results_of_different_protocols_or_deltas_do_not_merge() -> None:
    with pytest.raises(UsageError, match="cannot merge"):
        MaxBoxAcc(PROTOCOL).merge(MaxBoxAcc(replace(PROTOCOL, iou_test=">")))
    with pytest.raises(UsageError, match="cannot merge"):
        MaxBoxAcc(PROTOCOL).merge(MaxBoxAcc(PROTOCOL, deltas=(0.5,)))


def test_class_averaging_without_a_label_is_refused() -> None:
    with pytest.raises(UsageError, match="image has no label"):
        MaxBoxAcc(replace(PROTOCOL, averaging="class")).update(np.zeros(3))


@pytest.mark.parametrize(
    "bad", [np.zeros(4), np.zeros((1, 3)), np.array([0.0, 0.5, 1.5]), np.array([0.0, np.nan, 0.5])]
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_iou_of_another_length_or_outside_0_to_1_is_refused(bad: np.ndarray) -> None:
    metric = MaxBoxAcc(PROTOCOL)
    with pytest.raises(DataError, match="IoU per threshold"):
        metric.update(bad)
    assert metric.n == 0


@pytest.mark.parametrize("deltas", [(), (0.0,), (0.5, 1.2), (50,)])
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_delta_outside_0_to_1_is_refused(deltas: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="deltas"):
        MaxBoxAcc(PROTOCOL, deltas=deltas)
