"""SSANET's oriented pooling: patches along rows and columns, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.recognition.ssanet.oriented_pooling import OrientedHead, oriented_pooling, patch_layout
from wsolbench.exceptions import UsageError


def by_loops(features: torch.Tensor, number: int, patch: int, stride: int) -> torch.Tensor:
    """(9)-(12) of one part (D, H, H)."""
    patches = [
        [
            features[:, a * stride : a * stride + patch, b * stride : b * stride + patch]
            .permute(1, 2, 0)
            .flatten()
            for b in range(number)
        ]
        for a in range(number)
    ]
    rows = [torch.stack(patches[a]).amax(0) for a in range(number)]
    columns = [torch.stack([patches[a][b] for a in range(number)]).amax(0) for b in range(number)]
    return torch.stack([torch.cat(some) for some in (rows, columns, rows[::-1], columns[::-1])])


def bag(features: torch.Tensor, patch: int, stride: int, variant: str) -> torch.Tensor:
    """The four vectors of a part in an order that depends on nothing but the vectors."""
    vectors = oriented_pooling(features, patch, stride, variant)[0]
    return torch.tensor(sorted(vectors.tolist()))


@pytest.mark.parametrize(
    ("side", "number", "patch", "stride"), [(7, 3, 3, 2), (4, 3, 2, 1), (2, 2, 1, 1), (5, 3, 1, 2)]
)
def test_the_vectors_are_maxima_of_the_patches_of_each_row_and_column(side, number, patch, stride):
    features = torch.randn(2, 5, side, side)
    found = oriented_pooling(features, patch, stride)
    assert found.shape == (2, 4, number * patch * patch * 5)
    for part in range(2):
        assert torch.equal(found[part], by_loops(features[part], number, patch, stride))


def test_a_2x2_image_and_its_quarter_turn():
    a, b, c, d = 3.0, 1.0, 2.0, 5.0
    image, turned = torch.tensor([[[[a, b], [c, d]]]]), torch.tensor([[[[c, a], [d, b]]]])
    assert torch.equal(turned, image.rot90(-1, (2, 3)))
    rows, columns, _, _ = oriented_pooling(image, 1, 1)[0]
    rows_turned, columns_turned, _, _ = oriented_pooling(turned, 1, 1)[0]
    assert columns.tolist() == [max(a, c), max(b, d)]
    assert rows_turned.tolist() == [max(a, c), max(b, d)]
    assert columns_turned.tolist() == rows.flip(0).tolist()


@given(st.integers(0, 999), st.integers(0, 3), st.booleans())
def test_patches_of_one_cell_give_the_same_four_vectors_for_turned_and_mirrored_maps(seed, turns, mirrored):
    features = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    other = features.rot90(turns, (2, 3))
    other = other.flip(3) if mirrored else other
    assert torch.equal(bag(features, 1, 1, "equations"), bag(other, 1, 1, "equations"))
    assert torch.equal(bag(features, 1, 1, "equations"), bag(features, 1, 1, "rotated_maps"))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_with_larger_patches_only_rotated_maps_do_not_see_a_turn(turns):
    features = torch.randn(1, 3, 7, 7)
    other = features.rot90(turns, (2, 3))
    assert torch.equal(bag(features, 3, 2, "rotated_maps"), bag(other, 3, 2, "rotated_maps"))
    # What is printed keeps the cells inside of a patch in their places.
    assert not torch.equal(bag(features, 3, 2, "equations"), bag(other, 3, 2, "equations"))


def test_rotated_maps_do_see_a_mirror_image():
    features = torch.randn(1, 3, 7, 7)
    assert not torch.equal(bag(features, 3, 2, "rotated_maps"), bag(features.flip(3), 3, 2, "rotated_maps"))


@pytest.mark.parametrize("variant", ["equations", "rotated_maps"])
def test_the_score_is_the_best_of_the_four_orientations(variant):
    head, features = OrientedHead(5, 7, 6, patches=3, patch=0, variant=variant), torch.randn(4, 5, 7, 7)
    assert head.classifier.weight.shape == (6, 3 * 3 * 3 * 5)
    assert head.classifier.bias is None
    scores, orientation = head(features)
    each = oriented_pooling(features, 3, 2, variant) @ head.classifier.weight.mT
    torch.testing.assert_close(scores, each.amax(1))
    assert torch.equal(orientation, each.argmax(1))
    assert len(orientation.unique()) == 4


def test_a_turned_map_has_the_scores_of_the_map():
    head, features = (
        OrientedHead(5, 7, 6, patches=3, patch=3, variant="rotated_maps"),
        torch.randn(4, 5, 7, 7),
    )
    torch.testing.assert_close(head(features)[0], head(features.rot90(1, (2, 3)))[0])


@pytest.mark.parametrize(
    ("side", "layout"),
    [
        (7, (3, 3, 2)),
        (4, (3, 2, 1)),
        (8, (3, 4, 2)),
        (14, (3, 6, 4)),
        (6, (3, 2, 2)),
        (3, (3, 1, 1)),
        (2, (2, 1, 1)),
        (1, (1, 1, 1)),
    ],
)
def test_patches_reach_from_border_to_border_without_a_gap(side, layout):
    number, patch, stride = patch_layout(side, 3)
    assert (number, patch, stride) == layout
    assert (number - 1) * stride + patch == side


@given(st.integers(1, 40), st.integers(1, 8))
def test_there_are_patches_for_every_grid(side, patches):
    number, patch, stride = patch_layout(side, patches)
    assert number == min(side, patches)
    assert (number - 1) * stride + patch == side
    assert stride <= patch


def test_the_side_of_a_patch_can_be_chosen_where_it_fits():
    assert patch_layout(7, 3, 5) == (3, 5, 1)
    assert patch_layout(7, 3, 1) == (3, 1, 3)
    for side, patches, patch in ((7, 3, 2), (7, 3, 7), (7, 3, 9), (4, 1, 2)):
        with pytest.raises(UsageError, match="cannot be spread evenly"):
            patch_layout(side, patches, patch)
