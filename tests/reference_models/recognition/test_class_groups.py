"""Groups of images of one class: who is drawn, who is whose positive, also as the released code of LIO
confuses them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.recognition.lio.class_groups import (
    draw_class_groups,
    find_positives,
    order_by_role,
    reduce_groups,
)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_every_image_leads_one_group_of_its_class_and_others_come_once_where_there_are_enough(
    labels, size, others, seed
):
    classes = np.array(labels)
    batches = draw_class_groups(classes, size, others, np.random.default_rng(seed))
    assert [len(batch) for batch in batches[:-1]] == [size * (1 + others)] * (len(batches) - 1)
    groups = np.concatenate(batches).reshape(-1, 1 + others)
    assert sorted(groups[:, 0].tolist()) == list(range(len(labels)))
    assert (classes[groups] == classes[groups[:, :1]]).all()
    for leader, *company in groups.tolist():
        members = labels.count(labels[leader])
        assert members == 1 or leader not in company
        assert members <= others or len(set(company)) == others


def test_all_choices_of_others_are_equally_likely():
    rng, counts = np.random.default_rng(0), Counter()
    for _ in range(600):
        for leader, *company in (
            np.concatenate(draw_class_groups(np.zeros(4, dtype=np.int64), 4, 2, rng)).reshape(-1, 3).tolist()
        ):
            if leader == 1:
                counts[tuple(company)] += 1
    assert set(counts) == {(a, b) for a in (0, 2, 3) for b in (0, 2, 3) if a != b}
    assert max(abs(count - 100) for count in counts.values()) < 50  # five standard deviations are 46


def test_the_positives_of_an_image_are_the_others_of_its_group():
    index, counted = find_positives(torch.tensor([5, 5, 5, 2, 2, 2]), 3, "correct")
    assert index.tolist() == [[1, 2], [2, 0], [0, 1], [4, 5], [5, 3], [3, 4]]
    assert counted.all()


def test_missing_images_and_those_of_other_classes_do_not_count():
    index, counted = find_positives(torch.tensor([5, 5, 2, 2, 7]), 4, "correct")
    assert [
        [int(i) for i, c in zip(row, use, strict=True) if c] for row, use in zip(index, counted, strict=True)
    ] == [
        [1],
        [0],
        [3],
        [2],
        [],
    ]
    assert index.max() < 5


def released_order(leaders: int, positives: int) -> list[int]:
    """Positions in a batch of groups, in the order in which the released program stacks their features before
    it cuts groups."""
    place = torch.arange(leaders * (1 + positives)).view(leaders, 1 + positives)
    images, others = (
        place[:, 0],
        place[:, 1:].reshape(-1),
    )  # as its data loader gives them: the positives of one leader in a row
    turned = others.view(leaders, positives).transpose(0, 1).reshape(-1)
    return torch.cat([images, turned]).tolist()


@pytest.mark.parametrize(("leaders", "positives"), [(16, 3), (10, 3), (3, 5), (1, 3), (4, 1), (5, 2)])
def test_the_confused_groups_are_cut_from_leaders_then_first_positives_then_second_ones(leaders, positives):
    size = 1 + positives
    order = released_order(leaders, positives)
    assert order_by_role(leaders * size, size, torch.device("cpu")).tolist() == order
    sets = [order[start : start + size] for start in range(0, len(order), size)]
    index, counted = find_positives(torch.zeros(leaders * size, dtype=torch.int64), size, "interleaved_bug")
    assert counted.all()
    for members in sets:
        for image in members:
            assert set(index[image].tolist()) == set(members) - {image}


def test_with_sixteen_leaders_of_as_many_classes_no_partner_is_of_the_image_s_own_class():
    labels = torch.arange(16).repeat_interleave(4)
    index, counted = find_positives(labels, 4, "interleaved_bug")
    assert counted.all()
    assert (labels[index] == labels[:, None]).float().mean() == 0
    index, counted = find_positives(labels, 4, "correct")
    assert (labels[index] == labels[:, None])[counted].float().mean() == 1
    # If the positives stayed in the loader's order, leader by leader, a third of the partners would be of the
    # own class.
    kept = torch.cat([torch.arange(0, 64, 4), torch.arange(64)[torch.arange(64) % 4 > 0]]).view(16, 4)
    same = (labels[kept][:, :, None] == labels[kept][:, None, :]).sum(dim=2) - 1
    assert (same.float() / 3).mean() == pytest.approx(1 / 3)


def test_the_confused_order_of_an_incomplete_batch_leaves_out_what_is_missing():
    index, counted = find_positives(
        torch.arange(6), 4, "interleaved_bug"
    )  # leaders 0 and 4, first positives 1 and 5, then 2 and 3
    assert index[0].tolist() == [4, 1, 5]
    assert counted.tolist() == [
        [True] * 3,
        [True] * 3,
        [True, False, False],
        [False, False, True],
        [True] * 3,
        [True] * 3,
    ]


def test_means_over_all_images_or_over_leaders_and_the_others():
    values = torch.tensor([1.0, 2, 3, 5, 6, 7])
    assert reduce_groups(values, 3, "mean") == 4
    assert reduce_groups(values, 3, "split") == (1 + 5) / 2 + (2 + 3 + 6 + 7) / 4
    assert reduce_groups(values, 1, "split") == 4
