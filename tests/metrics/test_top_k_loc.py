from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.golden import golden
from wsolbench.exceptions import DataError, UsageError
from wsolbench.metrics.boxes import iou_matrix
from wsolbench.metrics.max_box_acc import MaxBoxAcc
from wsolbench.metrics.thresholds import ThresholdPolicy
from wsolbench.metrics.top_k_loc import TopKLoc
from wsolbench.protocol import EvalProtocol

PROTOCOL = EvalProtocol(name="two", taus=(0.1, 0.2))
IOU = st.sampled_from([0.0, 0.3, 0.5, 0.7])


@st.composite
def images(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray, int]]:
    one = st.tuples(
        st.tuples(IOU, IOU).map(np.array),
        st.permutations(range(7)).map(lambda order: np.array(order[:5])),
        st.integers(0, 6),
    )
    return draw(st.lists(one, min_size=1, max_size=8))


def accumulated(rows, protocol: EvalProtocol = PROTOCOL, **options) -> TopKLoc:
    metric = TopKLoc(protocol, **options)
    for iou, ranked, label in rows:
        metric.update(iou, ranked, label)
    return metric


@pytest.mark.parametrize("column", [0, 1, 2])
def test_top1_top5_and_gt_known_equal_the_official_localization_error_of_300_images(column: int) -> None:
    data = golden("spa_badcase")
    protocol = replace(EvalProtocol.preset("spa"), taus=(0.1,))
    metric = TopKLoc(protocol, delta=float(data["iou_ths"][column]))
    expected = np.zeros(3, dtype=int)
    used = 0
    for i in range(len(data["gt_label"])):
        truth = data["gt_boxes"][i, : data["num_gt"][i]]
        per_rank = iou_matrix(data["pred_box"][i], truth, plus_one=True).max(axis=1)[
            :, None
        ]  # (5, 1): each rank has its own box
        one = TopKLoc(protocol, delta=metric.delta)
        one.update(per_rank[0], data["pred_cls"][i], int(data["gt_label"][i]), ranked_iou=per_rank)
        official = [data[f"{name}_locerr"][i, column] == 0 for name in ("gtknown", "top1", "top5")]
        assert one.hits[:, 0].tolist() == official
        metric.merge(one)
        expected += official
        used += 1
    assert metric.hits[:, 0].tolist() == expected.tolist()
    assert (expected > 0).all()
    assert (expected < used).all()


def test_top1_asks_for_the_best_label_and_top5_for_one_of_five() -> None:
    metric = accumulated(
        [
            (np.array([0.6, 0.0]), np.array([3, 1, 2, 4, 5]), 3),  # label first: counts for both
            (np.array([0.6, 0.0]), np.array([1, 2, 4, 5, 3]), 3),  # label fifth
            (np.array([0.6, 0.0]), np.array([1, 2, 4, 5, 6]), 3),  # label missing
            (np.array([0.4, 0.0]), np.array([3, 1, 2, 4, 5]), 3),  # box wrong
        ]
    )
    result = metric.compute()
    assert result.gt_known == 3 / 4
    assert result.top_k == {1: 1 / 4, 5: 2 / 4}
    assert result.n == 4


def test_each_metric_has_its_own_best_threshold_or_shares_that_of_gt_known() -> None:
    # At tau .1 two boxes are right and their labels wrong; at tau .2 one box is right and its label too.
    rows = [
        (np.array([0.6, 0.0]), np.array([1, 2, 4, 5, 6]), 3),
        (np.array([0.6, 0.0]), np.array([1, 2, 4, 5, 6]), 3),
        (np.array([0.0, 0.6]), np.array([3, 1, 2, 4, 5]), 3),
    ]
    metric = accumulated(rows)
    own = metric.compute()
    assert own.tau == {"gt_known": 0.1, "top1_loc": 0.2, "top5_loc": 0.2}
    assert (own.gt_known, own.top_k) == (2 / 3, {1: 1 / 3, 5: 1 / 3})
    shared = metric.compute(shared_tau=True)
    assert shared.tau == {"gt_known": 0.1, "top1_loc": 0.1, "top5_loc": 0.1}
    assert (shared.gt_known, shared.top_k) == (2 / 3, {1: 0.0, 5: 0.0})


def test_fixed_and_transferred_thresholds_are_read_where_they_say() -> None:
    metric = accumulated([(np.array([0.6, 0.0]), np.arange(5), 0)])
    assert metric.compute(ThresholdPolicy.fixed(0.2)).gt_known == 0.0
    transferred = metric.compute(ThresholdPolicy.transfer([0.1, 0.2, 0.1]))
    assert (transferred.gt_known, transferred.top_k) == (1.0, {1: 0.0, 5: 1.0})


def test_under_class_map_predicted_the_rank_that_names_the_class_counts_with_its_own_map() -> None:
    true_map, ranked = np.array([0.9, 0.9]), np.array([3, 1, 2, 4, 5])
    own_maps = np.array([[0.1, 0.1], [0.8, 0.8], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1]])
    for class_map, expected in (("gt", {1: 0.0, 5: 1.0}), ("predicted", {1: 0.0, 5: 1.0})):
        metric = TopKLoc(replace(PROTOCOL, class_map=class_map))
        metric.update(true_map, ranked, 1, ranked_iou=own_maps)
        assert metric.compute().top_k == expected
    for class_map, expected in (("gt", {1: 1.0, 5: 1.0}), ("predicted", {1: 0.0, 5: 0.0})):
        metric = TopKLoc(replace(PROTOCOL, class_map=class_map))
        metric.update(true_map, ranked, 3, ranked_iou=own_maps)
        assert metric.compute().top_k == expected
        assert metric.compute().gt_known == 1.0


@given(images())
def test_both_class_map_rules_agree_when_the_map_depends_on_the_class_only(rows) -> None:
    predicted = TopKLoc(replace(PROTOCOL, class_map="predicted"))
    for iou, ranked, label in rows:
        own = np.where(
            ranked[:, None] == label, iou, 0.9
        )  # other classes' boxes are perfect and must not count
        predicted.update(iou, ranked, label, ranked_iou=own)
    assert predicted.compute() == accumulated(rows).compute()


@given(images(), st.sampled_from([">", ">="]), st.sampled_from([">", ">="]))
def test_the_fractions_equal_counting_by_hand(rows, iou_test: str, topk_test: str) -> None:
    result = accumulated(rows, replace(PROTOCOL, iou_test=iou_test, topk_iou_test=topk_test)).compute()

    def right(iou: float, test: str) -> bool:
        return iou > 0.5 or (test == ">=" and iou == 0.5)

    gt_known = [sum(right(iou[t], iou_test) for iou, _, _ in rows) for t in range(2)]
    assert result.gt_known == max(gt_known) / len(rows)
    for k in (1, 5):
        top_k = [
            sum(right(iou[t], topk_test) and label in ranked[:k].tolist() for iou, ranked, label in rows)
            for t in range(2)
        ]
        assert result.top_k[k] == max(top_k) / len(rows)


@given(images(), st.randoms(use_true_random=False), st.sampled_from(["image", "class"]), st.integers(0, 8))
def test_neither_the_order_of_images_nor_the_split_into_shards_changes_a_bit(
    rows, random, averaging, cut
) -> None:
    protocol = replace(PROTOCOL, averaging=averaging)
    whole = accumulated(rows, protocol).compute()
    random.shuffle(rows)
    merged = accumulated(rows[:cut], protocol)
    merged.merge(accumulated(rows[cut:], protocol))
    assert merged.compute() == whole


@given(images())
def test_top1_is_at_most_top5_and_top5_at_most_gt_known_which_is_max_box_acc(rows) -> None:
    metric = accumulated(rows)
    curve = metric.curve()
    assert (curve[1] <= curve[2]).all()
    assert (curve[2] <= curve[0]).all()
    single = MaxBoxAcc(PROTOCOL, deltas=(0.5,))
    for iou, _, _ in rows:
        single.update(iou)
    assert single.compute().value == metric.compute().gt_known


def test_class_averaging_weighs_classes_and_not_images() -> None:
    rows = [
        (np.full(2, iou), np.array([label, 10, 11, 12, 13]), label)
        for iou, label in ((0.9, 0), (0.9, 0), (0.9, 0), (0.1, 1))
    ]
    result = accumulated(rows, replace(PROTOCOL, averaging="class")).compute()
    assert (result.gt_known, result.top_k) == (0.5, {1: 0.5, 5: 0.5})


def test_without_a_classifier_only_gt_known_is_given() -> None:
    metric = TopKLoc(PROTOCOL)
    metric.update(np.array([0.6, 0.0]), None, 0)
    result = metric.compute()
    assert (result.gt_known, result.top_k, result.tau) == (1.0, {}, {"gt_known": 0.1})


def test_predicted_labels_for_some_images_only_are_refused() -> None:
    metric = accumulated([(np.array([0.6, 0.0]), np.arange(5), 0)])
    metric.update(np.array([0.6, 0.0]), None, 0)
    with pytest.raises(UsageError, match="1 of 2 images have predicted labels"):
        metric.compute()


def test_without_images_the_metric_is_undefined() -> None:
    with pytest.raises(UsageError, match="no image was counted"):
        TopKLoc(PROTOCOL).compute()


def test_results_of_different_protocols_deltas_or_ks_do_not_merge() -> None:
    for other in (
        TopKLoc(replace(PROTOCOL, iou_test=">")),
        TopKLoc(PROTOCOL, delta=0.3),
        TopKLoc(PROTOCOL, ks=(1,)),
    ):
        with pytest.raises(UsageError, match="cannot merge"):
            TopKLoc(PROTOCOL).merge(other)


@pytest.mark.parametrize(
    ("iou", "ranked", "ranked_iou", "message"),
    [
        (np.zeros(3), np.arange(5), None, "IoU per threshold has shape"),
        (np.full(2, np.nan), np.arange(5), None, "IoU per threshold holds"),
        (np.zeros(2), np.arange(3), None, "expected at least 5 for Top-5 Loc"),
        (np.zeros(2), np.zeros((5, 1), dtype=int), None, "ranked labels have shape"),
        (np.zeros(2), np.array([1, 1, 2, 3, 4]), None, "every class at most once"),
        (np.zeros(2), np.arange(5), np.zeros((4, 2)), "IoU per threshold has shape"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_rows_are_refused_and_not_counted(iou, ranked, ranked_iou, message: str) -> None:
    metric = TopKLoc(PROTOCOL)
    with pytest.raises(DataError, match=message):
        metric.update(iou, ranked, 0, ranked_iou=ranked_iou)
    assert metric.n == 0


@pytest.mark.parametrize(
    "options", [{"delta": 0.0}, {"delta": 50.0}, {"ks": ()}, {"ks": (5, 1)}, {"ks": (0, 1)}]
)
def test_a_delta_or_k_that_means_nothing_is_refused(options: dict) -> None:
    with pytest.raises(UsageError, match="expected"):
        TopKLoc(PROTOCOL, **options)
