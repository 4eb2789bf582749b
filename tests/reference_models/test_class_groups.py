"""Groups of images of one class: who is drawn, who is whose positive, also as the released code of LIO confuses them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.layers.class_groups import class_groups, leaders_first, over_groups, positives_of


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**31))
def test_every_image_leads_one_group_of_its_class_and_others_come_once_where_there_are_enough(labels, size, others, seed):
    classes = np.array(labels)
    batches = class_groups(classes, size, others, np.random.default_rng(seed))
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
        for leader, *company in np.concatenate(class_groups(np.zeros(4, dtype=np.int64), 4, 2, rng)).reshape(-1, 3).tolist():
            if leader == 1:
                counts[tuple(company)] += 1
    assert set(counts) == {(a, b) for a in (0, 2, 3) for b in (0, 2, 3) if a != b}
    assert max(abs(count - 100) for count in counts.values()) < 50  # five standard deviations are 46


def test_the_positives_of_an_image_are_the_others_of_its_group():
    index, counted = positives_of(torch.tensor([5, 5, 5, 2, 2, 2]), 3, "correct")
    assert index.tolist() == [[1, 2], [2, 0], [0, 1], [4, 5], [5, 3], [3, 4]]
    assert counted.all()


def test_missing_images_and_those_of_other_classes_do_not_count():
    index, counted = positives_of(torch.tensor([5, 5, 2, 2, 7]), 4, "correct")
    assert [[int(i) for i, c in zip(row, use, strict=True) if c] for row, use in zip(index, counted, strict=True)] == [
        [1],
        [0],
        [3],
        [2],
        [],
    ]
    assert index.max() < 5


def test_the_confused_order_cuts_leaders_and_the_others_into_groups():
    assert leaders_first(8, 4, torch.device("cpu")).tolist() == [0, 4, 1, 2, 3, 5, 6, 7]
    labels = torch.arange(4).repeat_interleave(4)  # four groups of four, leaders 0, 4, 8, 12
    index, counted = positives_of(labels, 4, "interleaved_bug")
    assert counted.all()
    sets = {frozenset([place, *row]) for place, row in enumerate(index.tolist())}
    assert sets == {frozenset(row) for row in ([0, 4, 8, 12], [1, 2, 3, 5], [6, 7, 9, 10], [11, 13, 14, 15])}
    cut, part = positives_of(labels[:6], 4, "interleaved_bug")
    assert part.tolist() == [[True] * 3, [True] * 3, [True] * 3, [True, False, False], [True] * 3, [False, False, True]]
    assert cut[0].tolist() == [4, 1, 2]
    assert cut[3, 0] == 5


def test_means_over_all_images_or_over_leaders_and_the_others():
    values = torch.tensor([1.0, 2, 3, 5, 6, 7])
    assert over_groups(values, 3, "mean") == 4
    assert over_groups(values, 3, "split") == (1 + 5) / 2 + (2 + 3 + 6 + 7) / 4
    assert over_groups(values, 1, "split") == 4
