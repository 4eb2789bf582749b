"""The centred box: its level sets, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_models.localization.center_box import CenterBox, pyramid
from wsolbench.exceptions import UsageError


def create(**settings: str) -> CenterBox:
    return CenterBox.create(backbone="any", num_classes=3, weights="none", settings=settings)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.95))
def test_cutting_the_pyramid_gives_a_centred_box_of_the_remaining_side(height, width, tau):
    rows, columns = np.nonzero(pyramid(height, width).numpy() > tau)
    if len(rows) == 0:
        assert (1 - tau) * min(height, width) <= 1 + 1e-6  # the box holds the centre of no pixel
        return
    assert rows.min() + rows.max() == height - 1
    assert columns.min() + columns.max() == width - 1
    assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert abs((np.ptp(columns) + 1) - (1 - tau) * width) <= 1 + 1e-6
    assert abs((np.ptp(rows) + 1) - (1 - tau) * height) <= 1 + 1e-6


def test_the_pyramid_falls_from_the_middle_to_the_border():
    values = pyramid(5, 7)
    assert values[2, 3] == 1
    assert torch.equal(values, values.flip(0))
    assert torch.equal(values, values.flip(1))
    assert 0 < values.min() < 0.2


def test_a_fixed_side_gives_one_box_at_every_threshold():
    result = create(side="0.5").localize(torch.rand(2, 3, 32, 32))
    maps = result.score_maps(torch.tensor([[0, 2], [1, 1]]))
    assert maps.shape == (2, 2, 32, 32)
    assert result.logits is None
    expected = torch.zeros(32, 32)
    expected[8:24, 8:24] = 1
    assert all(torch.equal(one, expected) for one in maps.flatten(0, 1))


def test_the_map_does_not_depend_on_the_image_or_the_class():
    model = create()
    one = model.score_maps(torch.rand(1, 3, 32, 48), torch.tensor([[0]]))
    two = model.score_maps(torch.rand(1, 3, 32, 48), torch.tensor([[2]]))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (side, rf"side of method 'center-box' is {side}.*; expected a number in \(0, 1\]")
        for side in ("0", "1.5", "-1", "nan")
    ],
)
def test_a_side_outside_the_image_is_refused(side, message):
    with pytest.raises(UsageError, match=message):
        create(side=side)


def test_it_is_neither_trained_nor_loaded(tmp_path):
    assert not CenterBox.trainable
    with pytest.raises(UsageError, match="no parameters"):
        CenterBox.load(tmp_path / "x.safetensors", device="cpu")
