"""Mean pooling to cells: torch's, and that of equal parts of the side. Shares of cells inside of a box."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.layers.cells import area_means, cell_shares, pool_cells


@pytest.mark.parametrize(("side", "cells"), [(14, 7), (16, 7), (4, 7), (5, 1), (1, 7)])
def test_cells_are_those_of_adaptive_pooling(side, cells):
    features = torch.randn(2, 3, side, side + 1)
    torch.testing.assert_close(pool_cells(features, cells), F.adaptive_avg_pool2d(features, cells))


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(12, 8, 3, 4), (10, 7, 4, 3), (3, 5, 7, 9)])
def test_equal_cells_are_means_of_an_image_that_they_divide(height, width, rows, columns):
    masks = torch.rand(2, height, width, dtype=torch.float64)
    # Each pixel repeated until the cells divide the image.
    fine = masks.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
    expected = fine.reshape(2, rows, height, columns, width).mean(dim=(2, 4))
    found = area_means(masks, rows, columns)
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(found.mean(dim=(1, 2)), masks.mean(dim=(1, 2)).float())


@pytest.mark.parametrize("count", [4, 5, 10])
def test_a_cell_counts_by_its_share_between_two_places(count):
    ends = [(0, 40), (3, 21), (7, 8), (10, 40), (39, 40), (40, 40)]
    for first, last in ends:
        inside = torch.zeros(40)
        inside[first:last] = 1
        expected = inside.repeat_interleave(count).view(count, 40).mean(1)
        found = cell_shares(torch.tensor(first / 40), torch.tensor(last / 40), count)
        torch.testing.assert_close(found, expected)
