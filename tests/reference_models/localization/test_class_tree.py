"""Trees of classes: what a file says, what groups are, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_models.localization.danet.class_tree import ClassTree, consecutive_groups, read_tree
from wsolbench.exceptions import DataError

TREE = """label,parent,root,name
0,Diomedeidae,Procellariiformes,Laysan Albatross
2,Laridae,Charadriiformes,Ring-billed Gull
1,Alcidae,Charadriiformes,Crested Auklet
3,Diomedeidae,Procellariiformes,Sooty Albatross
"""


def written(tmp_path, text: str):
    path = tmp_path / "tree.csv"
    path.write_text(text)
    return path


def test_names_are_numbered_in_the_order_of_the_classes(tmp_path):
    assert read_tree(written(tmp_path, TREE)) == ClassTree(parents=(0, 1, 2, 0), roots=(0, 1, 1, 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (TREE.replace("root", "order"), "column"),
        (TREE.replace("2,Laridae", "5,Laridae"), "no line for label 2"),
        (TREE.replace("3,Diomedeidae", "0,Diomedeidae"), r"tree.csv:5: expected each class once"),
        (TREE.replace("3,Diomedeidae", "-1,Diomedeidae"), "counted from 0"),
        (TREE.replace("3,Diomedeidae", "3,"), "a parent and a root"),
        (TREE.replace("3,Diomedeidae", "3,Laridae"), r"tree.csv:5: expected 'Charadriiformes'"),
        (TREE.replace("3,", "x,"), "whole number"),
        ("label,parent,root\n", "label 0"),
    ],
)
def test_a_file_that_is_no_tree_is_refused_with_its_line(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        read_tree(written(tmp_path, changed))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        read_tree(tmp_path / "nowhere.csv")


@given(st.integers(1, 1200), st.integers(1, 12))
def test_groups_are_consecutive_and_even_and_at_least_two(classes, size):
    tree = consecutive_groups(classes, size)
    for indices in (tree.parents, tree.roots):
        assert len(indices) == classes
        assert indices == tuple(sorted(indices))
        assert len(set(indices)) >= min(2, classes)
    members = [tree.parents.count(parent) for parent in set(tree.parents)]
    assert max(members) - min(members) <= 1
    assert max(members) <= max(size, -(-classes // 2))


def test_the_groups_of_200_classes_are_about_as_many_as_the_families_and_orders_of_cub():
    tree = consecutive_groups(200, 5)
    assert (max(tree.parents) + 1, max(tree.roots) + 1) == (40, 8)


@pytest.mark.parametrize(
    ("parents", "roots", "message"),
    [
        ((0, 1), (0,), "2 classes"),
        ((0, 2), (0, 0), "every number"),
        ((0, 1), (1, 1), "every number"),
        ((0, 0), (0, 1), "parent 0"),
    ],
)
def test_indices_that_are_no_tree_are_refused(parents, roots, message):
    with pytest.raises(DataError, match=message):
        ClassTree(parents, roots)
