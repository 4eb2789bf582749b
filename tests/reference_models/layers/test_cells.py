"""Mean pooling to cells equals torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reference_models.layers.cells import pool_cells


@pytest.mark.parametrize(("side", "cells"), [(14, 7), (16, 7), (4, 7), (5, 1), (1, 7)])
def test_cells_are_those_of_adaptive_pooling(side, cells):
    features = torch.randn(2, 3, side, side + 1)
    torch.testing.assert_close(pool_cells(features, cells), F.adaptive_avg_pool2d(features, cells))
