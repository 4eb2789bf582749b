"""Principal patterns: the singular value decomposition as the reference, and rules that fix the sign."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_models.layers.principal import check_grid, orient, principal_pattern
from wsolbench.exceptions import UsageError

SEEDS = st.integers(0, 2**31)


def up_to_sign(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    signs = (found * expected).sum(dim=-1, keepdim=True).sign()
    return found * signs


@settings(max_examples=25)
@given(SEEDS, st.integers(2, 12), st.integers(2, 12))
def test_the_pattern_is_the_first_right_singular_vector_times_its_value(seed, channels, pixels):
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 3, channels, pixels, generator=source, dtype=torch.float64)
    found = principal_pattern(rows, rows.square().sum(dim=(2, 3)))
    _, values, right = torch.linalg.svd(rows)
    expected = right[..., 0, :] * values[..., :1]
    torch.testing.assert_close(up_to_sign(found, expected), expected, atol=1e-6, rtol=0)


def test_a_pattern_that_is_not_defined_is_0():
    equal = torch.eye(3, dtype=torch.float64)[None]  # all singular values are 1
    assert not principal_pattern(equal, torch.tensor([3.0], dtype=torch.float64)).any()
    noise = 1e-8 * torch.randn(1, 3, 4, dtype=torch.float64)
    assert not principal_pattern(noise, torch.tensor([1.0], dtype=torch.float64)).any()
    assert principal_pattern(noise, torch.tensor([1e-16], dtype=torch.float64)).any()
    assert not principal_pattern(torch.zeros(1, 3, 4).double(), torch.zeros(1).double()).any()
    single = principal_pattern(torch.tensor([[[3.0]]]).double(), torch.tensor([9.0]).double())
    assert single.abs().item() == pytest.approx(3)


@settings(max_examples=25)
@given(SEEDS)
@pytest.mark.parametrize("polarity", ["border", "largest", "cam"])
def test_the_sign_that_a_map_comes_with_does_not_matter(polarity, seed):
    source = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 3, 5, 4, generator=source, dtype=torch.float64)
    coarse = torch.randn(2, 3, 10, 8, generator=source)
    assert torch.equal(orient(maps, polarity, coarse), orient(-maps, polarity, coarse))


def test_each_rule_turns_the_object_up():
    bump = torch.full((1, 1, 5, 5), -1.0)
    bump[..., 1:3, 2:4] = 2.0
    assert torch.equal(orient(-bump, "border"), bump)
    assert torch.equal(orient(-bump, "largest"), bump)
    assert torch.equal(orient(-bump, "cam", 7 + 1e-3 * bump), bump)
    assert torch.equal(orient(-bump, "cam", -bump), -bump)


def test_the_border_is_one_cell_on_all_sides():
    """16 of 5x5 cells: a single cell of the border outweighs nothing that lies inside."""
    for row in range(5):
        for column in range(5):
            one = torch.zeros(1, 1, 5, 5)
            one[..., row, column] = 1.0
            inside = 0 < row < 4 and 0 < column < 4
            assert torch.equal(orient(one, "border"), one if inside else -one)


def test_a_grid_without_inner_cells_has_no_border_rule():
    with pytest.raises(UsageError, match=r"'x' needs inner cells.*2x9 cells, expected at least 3x3"):
        check_grid(2, 9, "border", who="x")
    check_grid(2, 9, "largest", who="x")
    check_grid(3, 3, "border", who="x")
