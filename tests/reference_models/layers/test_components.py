"""Connected components: scipy as the reference, and the longest ways."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from reference_models.layers.components import component_of


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
def test_components_are_those_of_scipy(seed, height, width):
    rng = np.random.default_rng(seed)
    inside = rng.random((5, height, width)) < 0.6
    seeds = rng.integers(0, height * width, 5)
    found = component_of(torch.from_numpy(inside), torch.from_numpy(seeds))
    for region, start, one in zip(inside, seeds, found.numpy(), strict=True):
        labels, _ = ndimage.label(region)
        own = labels.flat[start]
        np.testing.assert_array_equal(one, (labels == own) & (own > 0))


def test_a_snake_is_followed_to_its_end():
    inside = torch.ones(1, 13, 13, dtype=torch.bool)
    for row in range(1, 13, 2):  # walls with one hole, at alternating ends
        inside[0, row] = False
        inside[0, row, 12 if row % 4 == 1 else 0] = True
    assert torch.equal(component_of(inside, torch.tensor([0])), inside)


def test_cells_that_touch_at_a_corner_are_apart():
    inside = torch.tensor([[[True, False], [False, True]]])
    assert component_of(inside, torch.tensor([0])).tolist() == [[[True, False], [False, False]]]
    assert not component_of(inside, torch.tensor([1])).any()
