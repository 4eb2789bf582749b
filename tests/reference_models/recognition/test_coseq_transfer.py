"""CoSeq: boxes of parts, and their transfer from the nearest training images."""

from __future__ import annotations

import pytest
import torch

from reference_models.recognition.coseq.transfer import (
    box_coverage,
    box_of_map,
    flood,
    mirror_boxes,
    placed_in,
    random_part_of_boxes,
    relative_to,
    scaled_boxes,
    transfer_parts,
    valid_boxes,
)


def test_parts_are_medians_over_the_neighbours():
    parts = torch.rand(6, 2, 4)
    index, mirrored = torch.tensor([[0, 3, 5]]), torch.tensor([[False, True, False]])
    three = torch.stack([parts[0], mirror_boxes(parts[3]), parts[5]])
    torch.testing.assert_close(transfer_parts(index, mirrored, parts)[0], three.sort(dim=0).values[1])


def test_boxes_in_boxes():
    boxes, outer = torch.rand(3, 5, 4), torch.tensor([[0.0, 0, 1, 1], [2, 3, 7, 9], [-1, 0, 3, 5]])
    torch.testing.assert_close(relative_to(placed_in(boxes, outer), outer), boxes)
    torch.testing.assert_close(
        placed_in(torch.tensor([[[0.0, 0, 1, 1]]]).expand(3, 1, 4), outer)[:, 0], outer
    )
    torch.testing.assert_close(scaled_boxes(outer, 1.0), outer)
    torch.testing.assert_close(scaled_boxes(outer[1:2], 2.0), torch.tensor([[-0.5, 0, 9.5, 12]]))
    inner = random_part_of_boxes(outer, 0.5, torch.tensor([[0.0, 0], [1, 1], [0.5, 0.5]]))
    torch.testing.assert_close(inner, torch.tensor([[0, 0, 0.5, 0.5], [4.5, 6, 7, 9], [0, 1.25, 2, 3.75]]))


def test_the_box_of_a_map_is_that_of_the_part_with_its_peak():
    maps = torch.zeros(3, 8, 8)
    maps[0, 2:5, 1:4] = 1.0
    maps[0, 3, 3] = 2.0
    maps[0, 7, 7] = 1.5  # another part
    maps[1] = -1.0  # flat and negative
    left, top, right, bottom = box_of_map(maps, 64)[0].tolist()
    assert (left, top) == pytest.approx((8, 16), abs=5)
    assert (right, bottom) == pytest.approx((32, 40), abs=5)
    found = box_of_map(maps, 64)
    assert (found[:, 2:] > found[:, :2]).all()
    assert (found >= 0).all()
    assert (found <= 64).all()
    assert box_of_map(torch.zeros(1, 1, 1), 64).tolist() == [[0, 0, 64, 64]]


def test_a_flood_stays_in_its_part():
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[0, 0, :4] = mask[0, 1, 4] = mask[0, 4:, 0:2] = True
    start = torch.zeros_like(mask)
    start[0, 0, 0] = True
    expected = mask.clone()
    expected[0, 4:] = False
    torch.testing.assert_close(flood(mask, start), expected)


def test_boxes_are_in_the_image_and_not_empty():
    boxes = torch.tensor([[-5.0, -5, 20, 90], [63, 10, 63, 12], [70, 70, 80, 80], [30, 30, 20, 20]])
    found = valid_boxes(boxes, 64)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0, 20, 64]))
    assert (found[:, 2:] - found[:, :2] >= 4 - 1e-5).all()
    assert (found >= 0).all()
    assert (found <= 64).all()


def test_a_box_covers_its_cells():
    boxes = torch.tensor([[[0.0, 0, 8, 8], [2, 1, 4, 4], [-4, 0, 4, 8]]])
    found = box_coverage(boxes, (4, 2), 8)
    torch.testing.assert_close(found.mean(dim=(2, 3)), torch.ones(1, 3))
    torch.testing.assert_close(found[0, 0], torch.ones(4, 2))
    torch.testing.assert_close(found[0, 2], torch.tensor([[2.0, 0]]).expand(4, 2))
    torch.testing.assert_close(
        found[0, 1] / found[0, 1].sum(), torch.tensor([[1, 0], [2, 0], [0, 0], [0, 0]]) / 3
    )
